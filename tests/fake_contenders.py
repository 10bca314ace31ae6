"""Contenders whose learning is scripted, and an environment whose return is what the policy says."""

from __future__ import annotations

import subprocess
import sys
import time

import gymnasium as gym
import numpy as np

from wm_rllib.benchmark.trainer import Contender


class Say(gym.Env):
    """Episodes of one step whose reward is the action."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def __init__(self, offset=0.0):
        self.offset = offset

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), float(action[0]) + self.offset, True, False, {}


class Constant:
    """A policy that always says the same."""

    def __init__(self, value):
        self.value = value

    def initial_state(self, batch_size):
        return batch_size

    def act(self, observations, state):
        assert state == len(observations)
        return np.full((len(observations), 1), self.value, np.float32), state


class Learner:
    """Says a tenth of its steps; a call of `train` is `stride` steps, the first one 30 as of a random phase."""

    settings = {"stride": 40, "clip": float("inf")}  # noqa: RUF012

    def __init__(self, job, values):
        self.steps, self.stopped = 0, False

    def train(self):
        self.steps += self.settings["stride"] if self.steps else 30
        return self.steps

    def policy(self):
        return Constant(self.steps / 10)

    def stop(self):
        self.stopped = True


class Sleeper(Learner):
    """Trains once, starts a process of its own, and never comes back."""

    def train(self):
        if self.steps:
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
            print(f"child {child.pid}", flush=True)
            time.sleep(600)
        self.steps += 100
        return self.steps


class Broken(Learner):
    """Fails at once."""

    def train(self):
        raise ValueError("the dog ate the weights")


def accept(job, values):
    """Any job will do."""


LEARNER = Contender("learner", "learns by script", Learner, accept, needs_ray=False)
SLEEPER = Contender("sleeper", "never comes back", Sleeper, accept, needs_ray=False)
BROKEN = Contender("broken", "fails", Broken, accept, needs_ray=False)
