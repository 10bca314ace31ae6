"""Units of M: those of one step's change, of rewards and last rewards, and of how often an episode ends."""

from __future__ import annotations

import math

import pytest
import torch
from test_dreaming import counting_policy
from tiny_models import HIDDEN_DIM, LATENT_DIM, mdn_config, sequences, world_model
from torch import Tensor

from wm_rllib.models import MDNRNN
from wm_rllib.models.dreaming import dream
from wm_rllib.models.mdn_rnn import SMALLEST_CHANGE
from wm_rllib.models.outcome import Outcome

SCALE = torch.tensor([0.5, 2.0, 0.1])
Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def batch(seed: int = 0, *, scale: float = 1.0) -> Batch:
    """z, action, reward, terminated and mask of padded sequences."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(6, 5, LATENT_DIM, generator=generator) * scale * torch.tensor([0.1, 1.0, 0.0])
    action, reward = torch.randn(6, 4, 2, generator=generator), torch.randn(6, 4, generator=generator)
    lengths = torch.tensor([4, 3, 1, 4, 2, 4])
    mask = torch.arange(4)[None] < lengths[:, None]
    terminated = torch.arange(4)[None] == lengths[:, None] - 1
    return z, action, reward, terminated & torch.tensor([1, 1, 0, 0, 1, 0]).bool()[:, None], mask


def test_change_scale_is_the_spread_of_one_step_on_the_first_batch_alone():
    mdn = MDNRNN(mdn_config()).train()
    z, *rest = batch()
    mask = rest[-1]
    assert not mdn.has_change_scale
    mdn.losses(z, *rest)
    change = (z[:, 1:] - z[:, :-1])[mask]
    assert len(change) == 18
    torch.testing.assert_close(mdn.change_scale, change.std(0).clamp(min=SMALLEST_CHANGE))
    assert mdn.change_scale[2] == SMALLEST_CHANGE  # that latent never changes
    first = mdn.change_scale.clone()
    mdn.losses(*batch(seed=1, scale=10.0))
    assert torch.equal(mdn.change_scale, first)


@pytest.mark.parametrize("case", ["evaluating", "direct", "one transition", "none"])
def test_change_scale_is_measured_in_training_on_residuals_only(case: str):
    mdn = MDNRNN(mdn_config(residual=case != "direct")).train(case != "evaluating")
    z, action, reward, terminated, mask = batch()
    if case in ("one transition", "none"):
        mask = torch.zeros_like(mask)
        mask[0, 0] = case == "one transition"
    assert mdn.losses(z, action, reward, terminated, mask).total.isfinite()
    assert torch.equal(mdn.change_scale, torch.ones(LATENT_DIM))
    assert not mdn.has_change_scale


def test_change_scale_travels_with_the_weights():
    mdn, copied = MDNRNN(mdn_config()).train(), MDNRNN(mdn_config()).train()
    mdn.losses(*batch())
    copied.load_state_dict(mdn.state_dict())
    assert torch.equal(copied.change_scale, mdn.change_scale)
    copied.losses(*batch(seed=1, scale=10.0))
    assert torch.equal(copied.change_scale, mdn.change_scale)


@pytest.mark.parametrize("mixture", ["joint", "per_dimension"])
def test_means_and_sigmas_are_predicted_in_units_of_change(mixture: str):
    mdn = MDNRNN(mdn_config(mixture=mixture))
    inputs = torch.randn(7, HIDDEN_DIM), torch.randn(7, LATENT_DIM), torch.randn(7, 2)
    before = mdn.predict(*inputs)
    mdn.change_scale.copy_(SCALE)
    after = mdn.predict(*inputs)
    z = inputs[1][:, None]
    assert torch.equal(after.log_pi, before.log_pi)
    torch.testing.assert_close(after.mean - z, (before.mean - z) * SCALE, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(after.log_sigma.exp(), before.log_sigma.exp() * SCALE)


def test_last_reward_counts_only_where_an_episode_terminates():
    reward, last = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-100.0, -200.0, -300.0])
    outcome = Outcome(reward, torch.tensor([-1e3, 1e3, 0.0]), last)
    assert outcome.reward_if(torch.tensor([False, True, False])).tolist() == [1.0, -200.0, 3.0]
    torch.testing.assert_close(outcome.expected_reward(), torch.tensor([1.0, -200.0, -148.5]))
    alone = Outcome(reward, torch.zeros(3))
    assert alone.reward_if(torch.tensor([False, True, False])).tolist() == [1.0, 2.0, 3.0]
    assert alone.expected_reward().tolist() == [1.0, 2.0, 3.0]


def test_each_reward_head_learns_from_its_own_transitions():
    mdn = MDNRNN(mdn_config())
    z, action, reward, terminated, mask = batch()
    last = mdn.outcome_head[-1].weight  # type: ignore[union-attr]
    for where, learns, idle in ((~terminated, 0, 1), (terminated, 1, 0)):
        loss = mdn.losses(z, action, reward, terminated, mask & where).reward
        (gradient,) = torch.autograd.grad(loss, [last])  # type: ignore[list-item]
        assert gradient[learns].abs().max() > 0
        assert not gradient[idle].any()
        assert not gradient[2].any()


def test_dreams_pay_last_rewards_at_terminations_alone():
    model = world_model()
    model.mdn_rnn.set_normalisation(*map(torch.tensor, (0.0, 1.0, 50.0, 0.3)))
    with torch.no_grad():
        for parameter in model.mdn_rnn.outcome_head[-1].parameters():
            parameter.zero_()
        model.mdn_rnn.outcome_head[-1].bias.copy_(torch.tensor([0.25, -2.0, 0.0]))
    result = dream(model, counting_policy, torch.randn(50, LATENT_DIM), model.mdn_rnn.initial_state(50), 6, 1.0)
    assert 0 < result.terminateds.sum() < 300
    assert torch.equal(result.rewards, torch.where(result.terminateds, -100.0, 0.25))


@pytest.mark.parametrize("rate", [0.001, 0.05, 0.5])
def test_terminations_start_at_the_base_rate(rate: float):
    mdn = MDNRNN(mdn_config())
    last = mdn.outcome_head[-1]
    before = last.bias.detach().clone()  # type: ignore[union-attr]
    mdn.set_normalisation(*map(torch.tensor, (0.0, 1.0, 1.0, rate)))
    assert last.bias[2].item() == pytest.approx(math.log(rate / (1.0 - rate)), rel=1e-5, abs=1e-6)  # type: ignore
    assert torch.equal(last.bias[:2], before[:2])  # type: ignore[index]
    logit = mdn.outcome(torch.randn(2000, LATENT_DIM), torch.randn(2000, 2), torch.randn(2000, LATENT_DIM))
    assert abs(logit.termination_logit.mean().item() - last.bias[2].item()) < 0.5  # type: ignore[index]


def test_losses_of_no_transition_are_zero():
    z, action, reward, terminated, mask = batch()
    losses = MDNRNN(mdn_config(ensemble_size=3)).losses(z, action, reward, terminated, torch.zeros_like(mask))
    assert losses.total == losses.nll == losses.reward == losses.termination == 0.0


def test_padding_is_never_seen_by_the_measurement():
    model = world_model().train()
    short, padded = sequences([3, 3], 3), sequences([3, 3], 8)
    z = torch.randn(2, 9, LATENT_DIM)
    scales = []
    for time, rows in ((3, short), (8, padded)):
        mdn = MDNRNN(mdn_config()).train()
        action = torch.zeros(2, time, 2)
        mdn.losses(z[:, : time + 1], action, rows.rewards, rows.terminateds, rows.mask)
        scales.append(mdn.change_scale)
    assert torch.equal(*scales)
    assert not model.mdn_rnn.has_change_scale
