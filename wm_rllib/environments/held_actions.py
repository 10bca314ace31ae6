"""Random actions that are held for a while: they lead farther than fresh ones at every step, which cancel out."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class HeldActions(gym.Space[np.ndarray]):
    """A vector environment's action space whose samples are held, in each environment for steps drawn from 1 to N.

    Args:
        space: The vector environment's own; its samples are arrays [B, ...].
        longest: N, at least 1.
        seed: Of the durations; the actions come from the space's own generator.
    """

    def __init__(self, space: gym.Space[Any], longest: int, seed: int | None):
        super().__init__(space.shape, space.dtype)
        self._space, self._longest = space, longest
        self._rng = np.random.default_rng(seed)
        self._held: np.ndarray | None = None
        self._left = np.zeros(0, int)

    def sample(self, *_: Any, **__: Any) -> np.ndarray:
        """Actions [B, ...]."""
        fresh = np.asarray(self._space.sample())
        if self._held is None:
            self._held, self._left = fresh.copy(), self._durations(len(fresh))
        over = self._left == 0
        self._held[over] = fresh[over]
        self._left[over] = self._durations(len(fresh))[over]
        self._left -= 1
        return self._held.copy()

    def _durations(self, count: int) -> np.ndarray:
        return self._rng.integers(1, self._longest + 1, count)

    def contains(self, x: Any) -> bool:
        """Whether the space itself does."""
        return self._space.contains(x)
