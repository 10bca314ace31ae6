"""The floor: actions drawn evenly from the action space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from wm_rllib.acting.evaluation import GreedyPolicy
from wm_rllib.benchmark.job import Job
from wm_rllib.benchmark.trainer import Contender
from wm_rllib.environments.names import env_spaces


class RandomPolicy:
    """Samples the action space."""

    def __init__(self, action_space: gym.Space[Any], seed: int):
        self._action_space = action_space
        self._action_space.seed(seed)

    def initial_state(self, batch_size: int, /) -> None:
        """It has no memory."""

    def act(self, observations: np.ndarray, state: None, /) -> tuple[np.ndarray, None]:
        """[B, ...] actions."""
        return np.stack([self._action_space.sample() for _ in observations]), None


class RandomTrainer:
    """Learns nothing; "trains" one interval at a time.

    Args:
        job: What to measure.
        values: Nothing: it takes no settings.
    """

    def __init__(self, job: Job, values: Mapping[str, Any]):
        self.settings: Mapping[str, Any] = {}
        self._interval, self._steps = job.measure.interval, 0
        self._policy = RandomPolicy(env_spaces(job.env_id, job.env_config, job.pixels)[1], job.seed)

    def train(self) -> int:
        """Counts on."""
        self._steps += self._interval
        return self._steps

    def policy(self) -> GreedyPolicy:
        """The same as ever."""
        return self._policy

    def stop(self) -> None:
        """There is nothing to end."""


def _check(job: Job, values: Mapping[str, Any]) -> None:
    env_spaces(job.env_id, job.env_config, job.pixels)


RANDOM = Contender("random", "actions drawn evenly: the floor", RandomTrainer, _check, needs_ray=False)
