"""The players that an agent has to beat, in an environment whose episodes and rewards are known."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from wm_rllib.acting.baselines import (
    MAX_CONSTANTS,
    STICKINESS,
    ConstantPlayer,
    RandomPlayer,
    constant_actions,
    measure_baselines,
)

WORTH = (1.0, 5.0, 2.0)
LENGTHS = (4, 7, 10)


class PaidByAction(gym.Env[np.ndarray, Any]):
    """An episode lasts as long as its seed says, and each action pays what it is worth."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, config: dict[str, Any] | None = None):
        self.worth = (config or {}).get("worth", WORTH)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = int(self.np_random.choice(LENGTHS))
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return np.zeros(1, np.float32), self.worth[action], self.left == 0, False, {}


def test_all_play_the_same_fresh_episodes():
    found = measure_baselines(PaidByAction, {}, PaidByAction.action_space, 25, seed=7, choose_seed=1000)
    assert found.constant_action == 1
    assert found.random.lengths == found.sticky_random.lengths == found.constant.lengths
    assert len(set(found.constant.lengths)) > 1
    assert found.constant.returns == [5.0 * length for length in found.constant.lengths]
    assert (
        found.constant.lengths
        != measure_baselines(PaidByAction, {}, PaidByAction.action_space, 25, seed=1000, choose_seed=7).constant.lengths
    )
    for result in (found.random, found.sticky_random):
        assert all(length <= value <= 5 * length for value, length in zip(result.returns, result.lengths, strict=True))


def test_the_seed_repeats_them():
    first, again = (
        measure_baselines(PaidByAction, {}, PaidByAction.action_space, 6, seed=3, choose_seed=50) for _ in range(2)
    )
    assert first == again


def test_arguments_reach_the_environment():
    worth = {"worth": (0.0, 0.0, 9.0)}
    found = measure_baselines(PaidByAction, worth, PaidByAction.action_space, 3, seed=3, choose_seed=50)
    assert found.constant_action == 2 and found.constant.mean == 9 * np.mean(found.constant.lengths)


@pytest.mark.parametrize("stickiness", [0.0, STICKINESS])
def test_how_often_actions_repeat(stickiness: float):
    player = RandomPlayer(gym.spaces.Discrete(4), 0, stickiness)
    observations, actions = np.zeros((50, 1)), None
    steps = []
    for _ in range(200):
        acted, actions = player.act(observations, actions)
        steps.append(acted)
    steps = np.array(steps)
    expected = stickiness + (1 - stickiness) / 4  # one in four draws is the same action
    assert np.mean(steps[1:] == steps[:-1]) == pytest.approx(expected, abs=0.02)
    assert np.bincount(steps.ravel()) / steps.size == pytest.approx([0.25] * 4, abs=0.04)


def test_actions_to_try():
    assert constant_actions(gym.spaces.Discrete(3, start=5), 0) == [5, 6, 7]
    pairs = constant_actions(gym.spaces.MultiDiscrete([2, 3]), 0)
    assert [tuple(pair) for pair in pairs] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    box = gym.spaces.Box(np.float32([-1, 0]), np.float32([1, 4]))
    drawn = constant_actions(box, 0)
    assert len(drawn) == MAX_CONSTANTS and drawn[0].tolist() == [0, 2] and all(action in box for action in drawn)
    assert np.array_equal(drawn, constant_actions(box, 0))
    for space in (gym.spaces.Discrete(1000), gym.spaces.MultiDiscrete([50, 50]), gym.spaces.Box(-np.inf, np.inf)):
        many = constant_actions(space, 0)
        assert len(many) == MAX_CONSTANTS and all(action in space for action in many)


def test_a_constant_is_given_to_every_lane():
    actions, _ = ConstantPlayer(np.array([1.0, 2.0])).act(np.zeros((3, 4)), None)
    assert actions.tolist() == [[1.0, 2.0]] * 3
    assert ConstantPlayer(2).act(np.zeros((3, 4)), None)[0].tolist() == [2, 2, 2]
