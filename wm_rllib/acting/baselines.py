"""What an agent has to beat: players that look at nothing."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from wm_rllib.acting.evaluation import EvaluationResult, evaluate_policy

STICKINESS = 0.9
"""Probability with which the sticky random player repeats its last action: it goes somewhere where a random one
trembles, and a smooth environment may pay for that."""
MAX_CONSTANTS = 32
"""Actions that are tried for the best constant one."""


class RandomPlayer:
    """Draws each action from the space, or repeats its last one.

    Args:
        space: The environment's action space.
        seed: Of its actions.
        stickiness: Probability of a repetition.
    """

    def __init__(self, space: gym.Space[Any], seed: int, stickiness: float = 0.0):
        self._space = copy.deepcopy(space)
        self._space.seed(seed)
        self._rng = np.random.default_rng(seed)
        self._stickiness = stickiness

    def initial_state(self, batch_size: int) -> None:
        """No last action."""
        return None

    def act(self, observations: np.ndarray, state: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Actions [B, ...], and themselves as the memory."""
        actions = np.stack([self._space.sample() for _ in range(len(observations))])
        if state is not None:
            repeats = self._rng.random(len(actions)) < self._stickiness
            actions[repeats] = state[repeats]
        return actions, actions


@dataclass(frozen=True)
class ConstantPlayer:
    """Takes one action, always."""

    action: Any

    def initial_state(self, batch_size: int) -> None:
        """It needs none."""
        return None

    def act(self, observations: np.ndarray, state: None) -> tuple[np.ndarray, None]:
        """The action [B, ...]."""
        action = np.asarray(self.action)
        return np.broadcast_to(action, (len(observations), *action.shape)).copy(), None


def constant_actions(space: gym.Space[Any], seed: int) -> list[Any]:
    """Actions to try as constant ones: all of them where there are few; else drawn ones, and the middle of a box."""
    if isinstance(space, gym.spaces.Discrete) and int(space.n) <= MAX_CONSTANTS:
        return [int(space.start) + index for index in range(int(space.n))]
    if isinstance(space, gym.spaces.MultiDiscrete):
        counts: Any = np.asarray(space.nvec)
        if counts.prod() <= MAX_CONSTANTS:
            all_of_them = np.indices(counts.ravel()).reshape(counts.size, -1).T  # [number, dimension]
            return [(space.start + one.reshape(counts.shape)).astype(space.dtype) for one in all_of_them]
    drawing = copy.deepcopy(space)
    drawing.seed(seed)
    middle = []
    if isinstance(space, gym.spaces.Box) and space.is_bounded():
        middle = [((space.low.astype(np.float64) + space.high) / 2).astype(space.dtype)]
    return middle + [drawing.sample() for _ in range(MAX_CONSTANTS - len(middle))]


@dataclass(frozen=True)
class Baselines:
    """Returns of the players in the same episodes; `constant_action` is what the best constant one does."""

    random: EvaluationResult
    sticky_random: EvaluationResult
    constant: EvaluationResult
    constant_action: Any


def measure_baselines(
    env: str | Any, env_config: dict[str, Any], space: gym.Space[Any], num_episodes: int, *, seed: int, choose_seed: int
) -> Baselines:
    """Plays the baselines.

    Args:
        env: As `evaluate_policy` takes it.
        env_config: Its arguments.
        space: Its action space.
        num_episodes: Of each player.
        seed: Of the episodes, the same for all players, and of the random ones' actions.
        choose_seed: Of the episodes on which the constant action is chosen: fresh ones then say what it is worth.
    """

    def play(player: Any, its_seed: int) -> EvaluationResult:
        return evaluate_policy(player, env, num_episodes, its_seed, env_config)

    constants = [ConstantPlayer(action) for action in constant_actions(space, choose_seed)]
    best = max(constants, key=lambda player: play(player, choose_seed).mean)
    return Baselines(
        random=play(RandomPlayer(space, seed), seed),
        sticky_random=play(RandomPlayer(space, seed, STICKINESS), seed),
        constant=play(best, seed),
        constant_action=best.action,
    )
