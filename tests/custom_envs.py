"""Environments that tests name by import path."""

import os

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


class Wide(Walk):
    """Shows its position as often as it is told, up to nine times."""

    def __init__(self, width=1):
        assert width < 10, "at most nine"
        super().__init__()
        self.observation_space = gym.spaces.Box(-10.0, 10.0, (width,), np.float32)


class Faulty(Walk):
    """Its own code raises a TypeError."""

    def __init__(self, step_size=1.0):
        super().__init__(step_size + None)


class DictObservations(Walk):
    observation_space = gym.spaces.Dict({"position": Walk.observation_space})


class Breaks(Walk):
    """Raises at its step number `at`, but once only, which the file `marker` says; and always when that is closed."""

    def __init__(self, config):
        super().__init__()
        self.marker, self.at, self.steps = config["marker"], config["at"], 0

    def step(self, action):
        self.steps += 1
        if os.path.exists(f"{self.marker}.closed") or (self.steps == self.at and not os.path.exists(self.marker)):
            open(self.marker, "w").close()
            raise RuntimeError("the road is closed")
        observation, reward, done, _, info = super().step(action)
        return observation, reward, done, self.steps % 30 == 0, info


class Gallery(gym.Env):
    """Images [12, 8, 3] uint8 all of whose numbers are the frame's; it ends with the last of its rewards."""

    observation_space = gym.spaces.Box(0, 255, (12, 8, 3), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, config=None, *, rewards=(1.0,) * 12, end="terminated"):
        self.rewards, self.end = rewards, end

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.frame, self.actions = 0, []
        return self._image(), {}

    def step(self, action):
        self.actions.append(action)
        reward, self.frame = self.rewards[self.frame], self.frame + 1
        over = self.frame == len(self.rewards)
        ends = over and self.end == "terminated", over and self.end == "truncated"
        return self._image(), reward, *ends, {"frame": self.frame}

    def _image(self):
        return np.full((12, 8, 3), self.frame, np.uint8)


class Cinema(Gallery):
    """The same images as a part of a Dict."""

    observation_space = gym.spaces.Dict({"screen": Gallery.observation_space, "health": Walk.observation_space})

    def _image(self):
        return {"screen": super()._image(), "health": np.zeros(1, np.float32)}
