"""Environments that a resumed run finds where the last one left them, without asking them to be pickled.

Few environments can be (Box2D's and ViZDoom's cannot), but all that honour `reset(seed=)` can be played to the same
point again: by the seed of the episode and the actions taken in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np

MAX_REPLAYED = 50_000
"""Steps of the longest episode that is brought back: of one that never ends, records and replays would grow on."""


@dataclass(frozen=True)
class EpisodeSoFar:
    """An environment's episode, as far as it has come.

    Attributes:
        seed: What the environment was reset with.
        actions: Those taken since, in the environment's own space.
        is_over: Whether the last of them ended it, so that the next step of a vector environment is a reset.
        next_seeds: State of the generator that the seeds of its later episodes are drawn from.
    """

    seed: int
    actions: tuple[Any, ...]
    is_over: bool
    next_seeds: dict[str, Any]


class ReplayableEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Remembers seed and actions of its episode; each episode has a seed of its own, drawn from the first.

    Attributes:
        coming: Set to an episode, the next reset plays that one to its point instead, and returns what is seen there.
    """

    def __init__(self, env: gym.Env[Any, Any]):
        super().__init__(env)
        self.coming: EpisodeSoFar | None = None
        self._seeds = np.random.default_rng()
        self._seed = 0
        self._actions: list[Any] = []
        self._is_over = self._owes_reset = False

    def episode_so_far(self) -> EpisodeSoFar | None:
        """What has to be done again to get here; None where it is too much."""
        if len(self._actions) > MAX_REPLAYED:
            return None
        return EpisodeSoFar(self._seed, tuple(self._actions), self._is_over, dict(self._seeds.bit_generator.state))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts the next episode, or brings back the one that is `coming`."""
        if self.coming is not None:
            return self._bring_back()
        if seed is not None:
            self._seeds = np.random.default_rng(seed)
        self._seed = int(self._seeds.integers(2**31)) if seed is None else seed
        self._actions, self._is_over, self._owes_reset = [], False, False
        return super().reset(seed=self._seed, options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """One step; of an episode that was brought back after its end, the reset that a vector environment owes it."""
        if self._owes_reset:
            observation, info = self.reset()
            return observation, 0.0, False, False, info
        if len(self._actions) <= MAX_REPLAYED:
            self._actions.append(action.copy() if isinstance(action, np.ndarray) else action)
        observation, reward, terminated, truncated, info = super().step(action)
        self._is_over = bool(terminated or truncated)
        return observation, reward, terminated, truncated, info

    def _bring_back(self) -> tuple[Any, dict[str, Any]]:
        episode, self.coming = self.coming, None
        assert episode is not None
        observation, info = self.reset(seed=episode.seed)
        for action in episode.actions:
            if self._is_over:
                raise RuntimeError("an episode ends sooner, given the same seed and actions")
            observation, _, _, _, info = self.step(action)
        self._seeds.bit_generator.state = episode.next_seeds
        self._is_over = self._owes_reset = episode.is_over
        return observation, info
