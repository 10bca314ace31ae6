"""A small environment with MultiDiscrete actions."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class TwoLevers(gym.Env[np.ndarray, np.ndarray]):
    """Two numbers, each moved by a lever of its own; the reward is their closeness to zero.

    The levers have 3 and 5 positions, so that mixing up the two parts of an action is an error or a visible mistake.
    """

    observation_space = gym.spaces.Box(-4.0, 4.0, (2,), np.float32)
    action_space = gym.spaces.MultiDiscrete([3, 5])

    def __init__(self, config: dict[str, Any] | None = None):
        self._length = int((config or {}).get("length", 30))
        self._position = np.zeros(2, np.float32)
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._position = self.np_random.uniform(-2.0, 2.0, 2).astype(np.float32)
        self._steps = 0
        return self._position.copy(), {}

    def step(self, action: np.ndarray):
        first, second = action
        assert 0 <= first < 3 and 0 <= second < 5
        self._position += np.array([0.3 * (first - 1), 0.2 * (second - 2)], np.float32)
        self._position = self._position.clip(-4.0, 4.0)
        self._steps += 1
        lost = bool(np.abs(self._position).max() >= 4.0)
        reward = 1.0 - float(np.abs(self._position).mean())
        return self._position.copy(), reward, lost, self._steps >= self._length, {}
