"""What M makes of what it has not seen, and of what it has seen seldom. No Ray."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from tiny_models import HIDDEN_DIM, LATENT_DIM, mdn_config
from torch import Tensor, nn
from torch.nn import functional

from wm_rllib.models import MDNRNN
from wm_rllib.spaces import observation_scale, scale_from_bounds, too_far_from_zero

ACTIONS = 2


def transitions(rows: int = 6, time: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """z, action, reward, terminated and mask, of random sequences of which the last step ends."""
    terminated = torch.zeros(rows, time, dtype=torch.bool)
    terminated[:, -1] = True
    action = functional.one_hot(torch.randint(ACTIONS, (rows, time)), ACTIONS).float()
    mask = torch.ones(rows, time, dtype=torch.bool)
    return torch.randn(rows, time + 1, LATENT_DIM), action, torch.randn(rows, time), terminated, mask


def test_shuffled_transitions_add_the_cross_entropy_of_no_end():
    batch = transitions()
    totals = []
    for coeff in (0.0, 0.3):
        torch.manual_seed(1)
        mdn = MDNRNN(mdn_config(shuffled_coeff=coeff, termination_loss_coeff=5.0)).train()
        last = mdn.outcome_head[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, 0.7)  # whatever the transition, the logit of an end is 0.7
        totals.append(mdn.losses(*batch).total)
    no_end = functional.binary_cross_entropy_with_logits(torch.tensor(0.7), torch.tensor(0.0))
    torch.testing.assert_close(totals[1] - totals[0], 5.0 * 0.3 * no_end)


def test_shuffled_transitions_count_in_training_only():
    batch = transitions()
    mdn = MDNRNN(mdn_config(shuffled_coeff=0.3)).eval()
    with_them = mdn.losses(*batch).total
    mdn.config = mdn_config(shuffled_coeff=0.0)
    torch.testing.assert_close(with_them, mdn.losses(*batch).total, rtol=0, atol=0)


@pytest.mark.parametrize("rows", [1, 6])
def test_shuffled_transitions_are_made_of_parts_of_real_ones(rows: int, monkeypatch: pytest.MonkeyPatch):
    mdn = MDNRNN(mdn_config(shuffled_coeff=0.3)).train()
    z, action, reward, terminated, mask = transitions(rows, 4)
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    outcome = mdn.outcome
    monkeypatch.setattr(mdn, "outcome", lambda *args: seen.append(args) or outcome(*args))
    mdn.losses(z, action, reward, terminated, mask)
    made_z, made_action, made_next = seen[-1]
    real, change = z[:, :-1].flatten(0, 1), (z[:, 1:] - z[:, :-1]).flatten(0, 1)
    for dim in range(LATENT_DIM):
        torch.testing.assert_close(made_z[:, dim].sort().values, real[:, dim].sort().values)
        torch.testing.assert_close((made_next - made_z)[:, dim].sort().values, change[:, dim].sort().values)
    torch.testing.assert_close(made_action.sum(0), action.flatten(0, 1).sum(0))
    assert (made_z != real).any()


def probability_of_a_soft_end(shuffled_coeff: float) -> tuple[float, float]:
    """P(end) of hard landings, and of soft ones, after training on falls that all end in hard ones.

    z = (height, speed, 0): a fall from 1 at a speed of 1 ends at height 0; at height 1 some things are slow.
    """
    torch.manual_seed(0)
    mdn = MDNRNN(mdn_config(shuffled_coeff=shuffled_coeff, head_hidden_dims=(32,))).train()
    optimizer = torch.optim.Adam(mdn.outcome_head.parameters(), lr=3e-3)
    for _ in range(400):
        height = torch.rand(256)
        slow = (torch.rand(256) < 0.5) & (height > 0.3)
        speed = torch.where(slow, 0.1 * torch.rand(256), 0.8 + 0.4 * torch.rand(256))
        z = torch.stack([height, speed, torch.zeros(256)], -1)
        after = z - 0.1 * torch.stack([speed, torch.zeros(256), torch.zeros(256)], -1)
        end = after[:, 0] < 0
        pairs = torch.stack([z, after], 1)
        action = torch.zeros(256, 1, ACTIONS)
        total = mdn.losses(pairs, action, torch.zeros(256, 1), end[:, None], torch.ones(256, 1).bool()).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    mdn.eval()
    probabilities = []
    for speed in (1.0, 0.05):
        z = torch.tensor([[0.02 * speed, speed, 0.0]])
        after = z - 0.1 * torch.tensor([[speed, 0.0, 0.0]])
        logit = mdn.outcome(z, torch.zeros(1, ACTIONS), after).termination_logit.detach()
        probabilities.append(float(logit.sigmoid()))
    return probabilities[0], probabilities[1]


def test_ends_are_believed_where_they_were_seen_and_not_beyond():
    hard, soft = probability_of_a_soft_end(0.0)
    believed_hard, believed_soft = probability_of_a_soft_end(0.1)
    assert min(hard, believed_hard) > 0.9
    assert soft > 0.2  # nothing tells M that it is the speed that matters
    assert believed_soft < 0.5 * soft


def test_the_mixtures_weights_share_no_layer_with_its_means():
    mdn = MDNRNN(mdn_config())
    inputs = torch.randn(4, HIDDEN_DIM), torch.randn(4, LATENT_DIM), torch.randn(4, ACTIONS)
    before = mdn.predict(*inputs)
    with torch.no_grad():
        for parameter in mdn.mixture_head.parameters():
            parameter.add_(torch.randn_like(parameter))
    after = mdn.predict(*inputs)
    torch.testing.assert_close(after.log_pi, before.log_pi, rtol=0, atol=0)
    assert not torch.allclose(after.mean, before.mean)
    with torch.no_grad():
        for parameter in mdn.weight_head.parameters():
            parameter.add_(torch.randn_like(parameter))
    last = mdn.predict(*inputs)
    assert not torch.allclose(last.log_pi, after.log_pi)
    torch.testing.assert_close(last.mean, after.mean, rtol=0, atol=0)


def test_scales_from_bounds_are_a_tenth_of_half_the_range():
    high = np.array([2.0, np.inf, 3e38, 10.0], np.float32)
    low = np.array([1.0, -np.inf, -3e38, -10.0], np.float32)
    scale = scale_from_bounds(gym.spaces.Box(low, high))
    np.testing.assert_allclose(scale, [0.05, 0.0, 0.0, 1.0])


def test_what_has_not_changed_yet_has_its_bounds_for_a_unit():
    high = np.array([0.01, 1.0, 4.8, np.inf, 0.0, 0.01, 10.0], np.float32)
    low = np.array([-0.01, 0.0, -4.8, -np.inf, 0.0, -0.01, -10.0], np.float32)
    measured = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.004, 0.2], np.float32)
    scale = observation_scale(measured, gym.spaces.Box(low, high))
    np.testing.assert_allclose(scale, [0.02, 1.0, 1.0, 1.0, 1.0, 0.004, 1.0], rtol=1e-6)
    assert scale.dtype == np.float32


def test_generous_bounds_do_not_hide_what_was_measured():
    """[-1000, 1000] for what stays within 1: in units of 100 it would be less than V's own noise."""
    measured = np.array([1.0, 1.0, 0.0], np.float32)
    scale = observation_scale(measured, gym.spaces.Box(np.float32([-1e3, -20, -1e3]), np.float32([1e3, 20, 1e3])))
    np.testing.assert_allclose(scale, [10.0, 2.0, 100.0], rtol=1e-6)


def test_a_clock_in_seconds_since_1970_is_too_far_from_zero():
    clock = 1.76e9 + np.arange(200.0)
    mean, scale = np.array([clock.mean(), 0.0, 1e3, 50.0]), np.array([2 * clock.std(), 1.0, 1.0, 0.01], np.float32)
    assert too_far_from_zero(mean.astype(np.float32), scale).tolist() == [0]
