"""Random actions that are held: their durations, and that nothing else of the space changes."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from wm_rllib.environments.held_actions import HeldActions


def drawn(space: gym.Space, longest: int, steps: int = 4000) -> np.ndarray:
    space.seed(0)
    held = HeldActions(space, longest, 1)
    return np.stack([held.sample() for _ in range(steps)])


@pytest.mark.parametrize("longest", [1, 5])
def test_durations_are_even_up_to_the_longest(longest: int):
    actions = drawn(gym.spaces.Box(-1.0, 1.0, (3, 2)), longest)  # floats: no two draws in a row are alike
    for lane in actions.transpose(1, 0, 2):
        changes = np.flatnonzero((np.diff(lane, axis=0) != 0).any(1)) + 1
        durations = np.diff(changes)
        counts = np.bincount(durations, minlength=longest + 1)[1:]
        assert len(counts) == longest
        assert counts / counts.sum() == pytest.approx(np.full(longest, 1 / longest), abs=0.06)


@pytest.mark.parametrize("space", [gym.spaces.MultiDiscrete([3] * 4), gym.spaces.MultiDiscrete([[2, 5]] * 4)])
def test_actions_are_as_frequent_as_in_the_space(space: gym.spaces.MultiDiscrete):
    actions = drawn(space, 4, 20_000)
    assert actions.dtype == space.dtype and all(space.contains(row) for row in actions[:20])
    for value in range(2):
        assert (actions[..., 0].ravel() if actions.ndim > 2 else actions.ravel()).tolist().count(value) > 0
    first = actions.reshape(len(actions), 4, -1)[..., 0]
    count = int(np.asarray(space.nvec).reshape(4, -1)[0, 0])
    assert np.bincount(first.ravel()) / first.size == pytest.approx(np.full(count, 1 / count), abs=0.03)


def test_environments_change_at_different_times():
    actions = drawn(gym.spaces.Box(-1.0, 1.0, (2, 1)), 10)
    changes = (np.diff(actions[..., 0], axis=0) != 0).T
    assert (changes[0] != changes[1]).mean() > 0.1
