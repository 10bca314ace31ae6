"""lambda-returns of dreams, against RLlib's own and against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ray.rllib.utils.postprocessing.value_predictions import compute_value_targets
from torch import Tensor

from wm_rllib.learners.advantages import standardise, value_targets
from wm_rllib.learners.agreement import mean_and_std, moments


def lanes(batch: int, time: int, *, death: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random rewards, values, bootstrap values and terminations."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, batch, time, generator=generator).unbind(0)
    return (
        rewards,
        values,
        torch.randn(batch, generator=generator),
        torch.rand(batch, time, generator=generator) < death,
    )


def targets_by_rllib(
    rewards: Tensor, values: Tensor, bootstrap: Tensor, ends: Tensor, gamma: float, lambda_: float
) -> np.ndarray:
    """RLlib's targets of one lane: its trajectories one after the other, each with RLlib's extra last step."""
    expected, start, time = [], 0, len(rewards)
    stops = [t + 1 for t in range(time) if ends[t]]
    for stop in stops + [time] * (not stops or stops[-1] != time):
        terminated = bool(ends[stop - 1])
        extra = 123.0 if terminated else float(bootstrap)  # V of a terminal observation must not matter
        length = stop - start
        targets = compute_value_targets(
            values=np.append(values[start:stop].numpy(), np.float32(extra)),
            rewards=np.append(rewards[start:stop].numpy(), np.float32(0.0)),
            terminateds=np.array([0.0] * (length - 1) + [float(terminated)] * 2),
            truncateds=np.array([0.0] * (length - 1) + [float(not terminated)] + [1.0]),
            gamma=gamma,
            lambda_=lambda_,
        )
        expected.append(targets[:length])
        start = stop
    return np.concatenate(expected)


@pytest.mark.parametrize(("gamma", "lambda_"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.5, 0.7)])
@pytest.mark.parametrize("death", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("time", [1, 2, 12])
def test_equals_rllib_lane_by_lane(time: int, death: float, gamma: float, lambda_: float):
    rewards, values, bootstrap, ends = lanes(8, time, death=death)
    targets = value_targets(rewards, values, bootstrap, ends, gamma=gamma, lambda_=lambda_)
    for lane in range(8):
        expected = targets_by_rllib(rewards[lane], values[lane], bootstrap[lane], ends[lane], gamma, lambda_)
        np.testing.assert_allclose(targets[lane].numpy(), expected, rtol=1e-5, atol=1e-5)


def test_lambda_one_is_the_discounted_return_and_the_bootstrap():
    rewards, values, bootstrap, ends = lanes(3, 5, death=0.0)
    targets = value_targets(rewards, values, bootstrap, ends, gamma=0.9, lambda_=1.0)
    for t in range(5):
        returns = sum(0.9 ** (k - t) * rewards[:, k] for k in range(t, 5)) + 0.9 ** (5 - t) * bootstrap
        torch.testing.assert_close(targets[:, t], returns)


def test_lambda_zero_is_one_step():
    rewards, values, bootstrap, ends = lanes(3, 5, death=0.4)
    targets = value_targets(rewards, values, bootstrap, ends, gamma=0.9, lambda_=0.0)
    following = torch.cat([values[:, 1:], bootstrap[:, None]], dim=1)
    torch.testing.assert_close(targets, rewards + 0.9 * torch.where(ends, 0.0, 1.0) * following)


def test_a_true_critic_is_its_own_target():
    # Reward 1 for ever is worth 1 / (1 - gamma), whichever lambda and wherever the lane is cut.
    ones, worth = torch.ones(2, 6), torch.full((2, 6), 10.0)
    never = torch.zeros(2, 6, dtype=torch.bool)
    for lambda_ in (0.0, 0.5, 1.0):
        targets = value_targets(ones, worth, torch.full((2,), 10.0), never, gamma=0.9, lambda_=lambda_)
        torch.testing.assert_close(targets, worth)


def test_truncation_bootstraps_and_termination_does_not():
    rewards, values, ends = torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([[0, 0, 1], [0, 0, 0]]).bool()
    targets = value_targets(rewards, values, torch.tensor([8.0, 8.0]), ends, gamma=0.5, lambda_=1.0)
    assert targets.tolist() == [[0.0, 0.0, 0.0], [1.0, 2.0, 4.0]]


def test_nothing_after_a_termination_reaches_back():
    rewards, values, bootstrap, ends = lanes(4, 6, death=0.0)
    ends[:, 2] = True
    before = value_targets(rewards, values, bootstrap, ends, gamma=0.99, lambda_=0.95)
    rewards[:, 3:] += 100.0
    values[:, 3:] -= 50.0
    after = value_targets(rewards, values, bootstrap + 9.0, ends, gamma=0.99, lambda_=0.95)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.any(before[:, 3:] == after[:, 3:])


def test_standardise():
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])
    result = standardise(values, mean_and_std(moments(values)))
    np.testing.assert_allclose(result.numpy(), (np.array([1, 2, 3, 6]) - 3) / np.std([1, 2, 3, 6]), rtol=1e-6)


@pytest.mark.parametrize("values", [[3.0], [2.0, 2.0, 2.0]])
def test_standardise_of_equal_values_is_zero(values: list[float]):
    column = torch.tensor(values)
    assert standardise(column, mean_and_std(moments(column))).tolist() == [0.0] * len(values)


def cuts_of(ends: Tensor, share: float) -> Tensor:
    """Steps after which a lane goes on from elsewhere; never one that terminates, nor the last."""
    cuts = (torch.rand(ends.shape, generator=torch.Generator().manual_seed(7)) < share) & ~ends
    cuts[:, -1] = False
    return cuts


@pytest.mark.parametrize(("gamma", "lambda_"), [(0.99, 0.95), (0.9, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("death", [0.0, 0.2])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_cut_lanes_equal_episodes_truncated_there(share: float, death: float, gamma: float, lambda_: float):
    rewards, values, bootstrap, ends = lanes(8, 12, death=death)
    cuts = cuts_of(ends, share)
    after = 5.0 + torch.randn(int(cuts.sum()))
    how = {"gamma": gamma, "lambda_": lambda_}
    targets = value_targets(rewards, values, bootstrap, ends, truncateds=cuts, cut_values=after, **how)
    assert len(after) > 10
    rest = iter(after)
    for lane in range(8):
        start, expected = 0, []
        for stop in [*(torch.nonzero(cuts[lane]).flatten() + 1).tolist(), 12]:
            part = slice(start, stop)
            last = next(rest) if stop < 12 else bootstrap[lane]
            expected.append(
                targets_by_rllib(rewards[lane, part], values[lane, part], last, ends[lane, part], gamma, lambda_)
            )
            start = stop
        np.testing.assert_allclose(targets[lane].numpy(), np.concatenate(expected), rtol=1e-5, atol=1e-4)


def test_no_cut_changes_nothing():
    rewards, values, bootstrap, ends = lanes(4, 6, death=0.2)
    plain = value_targets(rewards, values, bootstrap, ends, gamma=0.9, lambda_=0.8)
    none = torch.zeros_like(ends)
    cut = value_targets(
        rewards, values, bootstrap, ends, gamma=0.9, lambda_=0.8, truncateds=none, cut_values=torch.zeros(0)
    )
    assert torch.equal(plain, cut)


def test_a_cut_by_hand():
    zeros, cut = torch.zeros(1, 3), torch.tensor([[True, False, False]])
    targets = value_targets(
        zeros,
        zeros,
        torch.tensor([8.0]),
        cut ^ cut,
        gamma=0.5,
        lambda_=1.0,
        truncateds=cut,
        cut_values=torch.tensor([6.0]),
    )
    assert targets.tolist() == [[3.0, 2.0, 4.0]]
