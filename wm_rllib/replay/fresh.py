"""How a chunk of real experience came about: what a judgement of M on it has to know."""

from __future__ import annotations

from dataclasses import dataclass

from ray.rllib.env.single_agent_episode import SingleAgentEpisode

KEY = "wm_rllib/fresh"
"""Under which a chunk's `custom_data` holds it, on its way from an env runner to the replay."""


@dataclass(frozen=True)
class Fresh:
    """One chunk of an episode, as an env runner's call brought it.

    Attributes:
        length: Env steps.
        steps_after: Vector steps that the call went on for after the chunk's end.
        is_greedy: Whether its actions were the policy's greedy ones.
    """

    length: int
    steps_after: int = 0
    is_greedy: bool = False

    def attach(self, chunk: SingleAgentEpisode) -> SingleAgentEpisode:
        """The chunk, which says so from now on."""
        chunk.custom_data[KEY] = self
        return chunk

    @classmethod
    def of(cls, chunk: SingleAgentEpisode) -> Fresh:
        """What a chunk says; of one that says nothing, its length."""
        return chunk.custom_data.get(KEY) or cls(len(chunk))

    @classmethod
    def detach(cls, chunk: SingleAgentEpisode) -> Fresh:
        """What a chunk says, for the last time; of one that says nothing, its length."""
        return chunk.custom_data.pop(KEY, None) or cls(len(chunk))
