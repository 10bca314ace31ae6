"""Two environments in which dreams could do harm: one whose dynamics cannot be learned, one with an unseen trap."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

Observation = np.ndarray[Any, Any]


class FreshNoise(gym.Env[Observation, int]):
    """Every observation is fresh noise, every reward random; only the mean reward of each action can be learned.

    Returns: 25 for random actions, 50 for the best one, both +- 7 (50 steps of unit variance).
    """

    MEAN_REWARDS = (0.0, 0.5, 1.0)
    LENGTH = 50

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.action_space = gym.spaces.Discrete(len(self.MEAN_REWARDS))
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Observation, dict[str, Any]]:
        """Starts anew."""
        super().reset(seed=seed)
        self._steps = 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Rewards by the action; what is observed has nothing to do with it."""
        self._steps += 1
        reward = self.MEAN_REWARDS[int(action)] + self.np_random.normal()
        return self._observe(), float(reward), False, self._steps >= self.LENGTH, {}

    def _observe(self) -> Observation:
        return self.np_random.normal(size=4).astype(np.float32)


class HiddenTrap(gym.Env[Observation, int]):
    """A line on which the reward grows towards a trap that random actions never reach.

    The position starts in [0, 1], moves by a quarter a step, and is rewarded by a tenth of itself. Beyond 8 the episode
    ends with -20. Returns: about 20 for random actions, 65 for going right and staying just short of the trap.
    """

    STRIDE, TRAP, PENALTY, LENGTH = 0.25, 8.0, -20.0, 100

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(3)
        self._position, self._steps = 0.0, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Observation, dict[str, Any]]:
        """Starts on the left."""
        super().reset(seed=seed)
        self._position, self._steps = float(self.np_random.uniform()), 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Left, stay or right, with a little noise."""
        self._steps += 1
        move = self.STRIDE * (int(action) - 1) + 0.05 * self.np_random.normal()
        self._position = max(0.0, self._position + move)
        trapped = self._position > self.TRAP
        reward = self.PENALTY if trapped else 0.1 * self._position
        return self._observe(), float(reward), trapped, self._steps >= self.LENGTH and not trapped, {}

    def _observe(self) -> Observation:
        return np.array([self._position, self._steps / self.LENGTH], np.float32)
