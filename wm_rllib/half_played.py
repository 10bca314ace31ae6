"""Episodes that a checkpoint finds under way, for the run that goes on from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from wm_rllib.connectors import Ongoing
from wm_rllib.replayable_env import EpisodeSoFar


@dataclass(frozen=True)
class DeliveredChunk:
    """What RLlib's metrics ask of a part of an episode that was delivered before; the rest would fill checkpoints."""

    length: int
    episode_return: float
    duration_s: float

    @classmethod
    def of(cls, chunk: SingleAgentEpisode | DeliveredChunk) -> DeliveredChunk:
        """Its figures."""
        return cls(len(chunk), chunk.get_return(), chunk.get_duration_s())

    def __len__(self) -> int:
        """Its env steps."""
        return self.length

    def get_return(self) -> float:
        """Sum of its rewards."""
        return self.episode_return

    def get_duration_s(self) -> float:
        """Seconds that it took to play."""
        return self.duration_s


@dataclass(frozen=True)
class HalfPlayed:
    """All that an env runner holds between two samples, but weights.

    Attributes:
        envs: How each environment came to where it is.
        episodes: RLlib's, on features, one an environment.
        earlier_chunks: Figures of what was delivered of them before, by the episode's id: RLlib's metrics need them.
        to_module: The next batch for C.
        shared_data: What RLlib's connectors tell each other.
        features: What the feature connector remembers.
    """

    envs: Sequence[EpisodeSoFar]
    episodes: Sequence[SingleAgentEpisode]
    earlier_chunks: dict[str, list[DeliveredChunk]]
    to_module: Any
    shared_data: Any
    features: Ongoing

    def shows(self, observations: np.ndarray) -> bool:
        """Whether environments that show `observations` [B, *O] are where these episodes are."""
        return all(
            np.array_equal(self.features.tracks[episode.id_].observations[-1], now)
            for episode, now in zip(self.episodes, observations, strict=True)
            if episode.is_reset
        )
