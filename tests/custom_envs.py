"""Environments that tests name by import path."""

import gymnasium as gym
import numpy as np


class Walk(gym.Env):
    """A walk on a line, with a step size as its argument."""

    observation_space = gym.spaces.Box(-10.0, 10.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, step_size=1.0):
        self.step_size = step_size
        self.position = 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = 0.0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.position += self.step_size * (2 * action - 1)
        done = abs(self.position) >= 10
        return np.array([self.position], np.float32), 1.0, done, False, {}


class DictObservations(Walk):
    observation_space = gym.spaces.Dict({"position": Walk.observation_space})
