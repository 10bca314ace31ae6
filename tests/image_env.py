"""A dot that is moved over a noisy-free background: images whose truth is known."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

SIZE = 16


class DotEnv(gym.Env[np.ndarray, int]):
    """A bright 2 x 2 dot on a striped ground; right and left move it, and leaving the frame ends the episode.

    The reward is 1 for each step within the middle half.
    """

    def __init__(self, size: int = SIZE, steps: int = 30, channels: int = 3):
        self.observation_space = gym.spaces.Box(0, 255, (size, size, channels), np.uint8)
        self.action_space = gym.spaces.Discrete(3)
        self._size, self._steps, self._channels = size, steps, channels

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self._x, self._t = int(self.np_random.integers(4, self._size - 5)), 0
        self._y = int(self.np_random.integers(0, self._size - 2))
        return self._draw(), {}

    def step(self, action: int) -> Any:
        self._x, self._t = self._x + int(action) - 1, self._t + 1
        ended = not 0 <= self._x <= self._size - 2
        self._x = min(max(self._x, 0), self._size - 2)
        middle = self._size // 4 <= self._x < 3 * self._size // 4
        return self._draw(), float(middle), ended, self._t >= self._steps, {}

    def _draw(self) -> np.ndarray:
        frame = np.zeros((self._size, self._size, self._channels), np.uint8)
        frame[::2] = 40
        frame[self._y : self._y + 2, self._x : self._x + 2] = 250
        return frame
