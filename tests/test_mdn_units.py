"""Units of M: those of one step's change, of rewards and last rewards, and of how often an episode ends."""

from __future__ import annotations

import math

import pytest
import torch
from test_dreaming import counting_policy
from tiny_models import HIDDEN_DIM, LATENT_DIM, mdn_config, sequences, world_model
from torch import Tensor, nn

from wm_rllib.learners.agreement import change_over_learners
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


def test_units_of_change_are_taken_from_the_first_measurement():
    mdn = MDNRNN(mdn_config())
    assert not mdn.has_change_scale
    mdn.grow_change_scale(torch.tensor([0.5, 2.0, 0.0]))
    assert mdn.has_change_scale
    assert mdn.change_scale.tolist() == pytest.approx([0.5, 2.0, SMALLEST_CHANGE])  # the last latent never changed


def test_a_drift_is_the_unit_of_what_drifts():
    noise = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    # A clock, a walk with a slight trend, and what never changes.
    unit = change_over_learners(noise * torch.tensor([0.001, 0.2, 0.0]) + torch.tensor([0.1, 0.4, 0.0]))
    assert unit.tolist() == pytest.approx([0.1, 0.2, 0.0], rel=0.03)
    assert change_over_learners(noise[:0]).tolist() == [0.0, 0.0, 0.0]


class OneLayer(MDNRNN):
    """Its outcome head is no sequence of layers."""

    def __init__(self, config):
        super().__init__(config)
        self.outcome_head = nn.Linear(self.outcome_head[0].in_features, 3)


class TwoOutputs(MDNRNN):
    """Its outcome head knows no last rewards."""

    def __init__(self, config):
        super().__init__(config)
        self.outcome_head[-1] = nn.Linear(self.outcome_head[-1].in_features, 2)


@pytest.mark.parametrize("kind", [OneLayer, TwoOutputs])
def test_an_m_with_another_outcome_head_starts_as_it_is_made(kind: type[MDNRNN]):
    mdn = kind(mdn_config())
    before = {name: value.clone() for name, value in mdn.outcome_head.state_dict().items()}
    one = torch.tensor(1.0)
    mdn.set_normalisation(one, 2 * one, 3 * one, 0.01 * one)
    assert mdn.reward_scale == 2.0 and mdn.last_reward_scale == 3.0
    assert all(torch.equal(value, before[name]) for name, value in mdn.outcome_head.state_dict().items())


def test_units_of_change_only_grow():
    mdn = MDNRNN(mdn_config())
    mdn.grow_change_scale(SCALE)
    mdn.grow_change_scale(torch.tensor([0.1, 3.0, 0.1]))
    assert mdn.change_scale.tolist() == pytest.approx([0.5, 3.0, 0.1])


def test_direct_predictions_have_no_units_of_change():
    mdn = MDNRNN(mdn_config(residual=False))
    mdn.grow_change_scale(SCALE)
    assert torch.equal(mdn.change_scale, torch.ones(LATENT_DIM))
    assert not mdn.has_change_scale


@pytest.mark.parametrize("mixture", ["joint", "per_dimension"])
@pytest.mark.parametrize("head", [(16,), ()])
def test_growing_units_leave_every_prediction_as_it_was(mixture: str, head: tuple[int, ...]):
    mdn = MDNRNN(mdn_config(mixture=mixture, head_hidden_dims=head, log_sigma_range=(-30.0, 30.0)))
    mdn.grow_change_scale(torch.tensor([0.5, 0.001, 0.1]))
    inputs = torch.randn(7, HIDDEN_DIM), torch.randn(7, LATENT_DIM), torch.randn(7, 2)
    z, action, after = torch.randn(7, LATENT_DIM), torch.randn(7, 2), torch.randn(7, LATENT_DIM)
    mixture_before, outcome_before = mdn.predict(*inputs), mdn.outcome(z, action, after)
    mdn.grow_change_scale(torch.tensor([0.6, 2.0, 0.0]))
    assert mdn.change_scale.tolist() == pytest.approx([0.6, 2.0, 0.1])
    mixture_after, outcome_after = mdn.predict(*inputs), mdn.outcome(z, action, after)
    for name in ("log_pi", "mean", "log_sigma"):
        torch.testing.assert_close(getattr(mixture_after, name), getattr(mixture_before, name), rtol=1e-4, atol=1e-5)
    for name in ("reward", "last_reward", "termination_logit"):
        torch.testing.assert_close(getattr(outcome_after, name), getattr(outcome_before, name), rtol=1e-4, atol=1e-4)


def test_sigmas_whose_unit_grows_by_far_stay_where_gradients_bring_them_back():
    mdn = MDNRNN(mdn_config(log_sigma_range=(-3.0, 1.0)))
    mdn.grow_change_scale(torch.tensor([0.5, 0.001, 0.1]))
    width = len(mdn.mixture_head[-1].bias) // 2
    with torch.no_grad():
        mdn.mixture_head[-1].bias[width:] = torch.tensor([-1.0, -2.5, -5.0]).repeat(mdn.config.num_mixtures)
    mdn.grow_change_scale(torch.tensor([0.5, 1.0, 0.2]))
    after = mdn.mixture_head[-1].bias[width:].reshape(-1, 3)
    # Of the same unit: as it was. A thousand times: at the edge. Below the edge before: not farther down.
    torch.testing.assert_close(after, torch.tensor([-1.0, -3.0, -5.0]).expand_as(after))


@pytest.mark.parametrize("head", [nn.Identity(), nn.Sequential(nn.Linear(2, 2), nn.Identity())], ids=["other", "last"])
def test_units_of_an_m_with_a_head_of_its_own_stay_as_they_were_first(head: nn.Module):
    mdn = MDNRNN(mdn_config())
    mdn.mixture_head = head  # type: ignore[assignment]
    mdn.grow_change_scale(SCALE)
    mdn.grow_change_scale(2.0 * SCALE)
    assert torch.equal(mdn.change_scale, SCALE)


def test_units_of_change_travel_with_the_weights():
    mdn, copied = MDNRNN(mdn_config()), MDNRNN(mdn_config())
    mdn.grow_change_scale(SCALE)
    copied.load_state_dict(mdn.state_dict())
    assert torch.equal(copied.change_scale, mdn.change_scale)
    copied.grow_change_scale(0.5 * SCALE)
    assert torch.equal(copied.change_scale, mdn.change_scale)


def test_changes_are_those_of_real_transitions():
    model = world_model()
    rows = sequences([3, 1], 5)
    z = model.vae.posterior(rows.observations).mean
    expected = torch.cat([z[0, 1:4] - z[0, :3], z[1, 1:2] - z[1, :1]])
    torch.testing.assert_close(model.changes(rows.observations, rows.mask), expected)


def test_noise_on_the_input_in_training_alone_and_in_units_of_change():
    mdn = MDNRNN(mdn_config(input_noise=0.5))
    mdn.grow_change_scale(SCALE)
    z = torch.zeros(400, 50, LATENT_DIM)
    for part in mdn.train()._disturbed(z):
        torch.testing.assert_close(part.flatten(0, 1).std(0), 0.5 * SCALE, rtol=0.03, atol=0.0)
    noisy, shift = mdn.eval()._disturbed(z)
    assert torch.equal(noisy, z)
    assert not shift.any()


def test_noise_teaches_m_to_come_back_to_where_latents_are():
    """A latent that never moves: without noise M has no reason to undo an error, with it the error shrinks."""
    shrunk = {}
    for noise in (0.0, 1.0):
        torch.manual_seed(0)
        mdn = MDNRNN(mdn_config(input_noise=noise, num_mixtures=1)).train()
        mdn.grow_change_scale(torch.full((LATENT_DIM,), 0.1))
        optimizer = torch.optim.Adam(mdn.parameters(), 1e-2)
        z, zeros = torch.zeros(16, 6, LATENT_DIM), torch.zeros(16, 5)
        for _ in range(150):
            optimizer.zero_grad()
            mdn.losses(z, torch.zeros(16, 5, 2), zeros, zeros.bool(), zeros == 0).total.backward()
            optimizer.step()
        off = torch.full((1, LATENT_DIM), 0.1)
        state = mdn.step(off, torch.zeros(1, 2), mdn.initial_state(1))
        shrunk[noise] = mdn.predict(state[0], off, torch.zeros(1, 2)).expectation().abs().mean().item() / 0.1
    assert shrunk[1.0] < 0.5
    assert shrunk[0.0] > 0.7


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


@pytest.mark.parametrize("grown", ["reward_scale", "last_reward_scale"])
@pytest.mark.parametrize("head", [(16,), ()])
def test_a_growing_unit_of_rewards_leaves_every_prediction_as_it_was(head: tuple[int, ...], grown: str):
    mdn = MDNRNN(mdn_config(head_hidden_dims=head, ensemble_size=3))
    mdn.set_normalisation(*map(torch.tensor, (0.5, 0.03, 0.03, 0.01)))
    z, action, after = torch.randn(7, LATENT_DIM), torch.randn(7, 2), torch.randn(7, LATENT_DIM)
    assert mdn.outcome_ensemble is not None
    inputs = torch.cat([z, action], -1)
    mdn.outcome_ensemble.bias.data.normal_()

    def outcomes() -> tuple[Outcome, Outcome]:
        return mdn.outcome(z, action, after), mdn.decode_outcome(mdn.outcome_ensemble.predict(inputs))  # type: ignore[union-attr]

    before = outcomes()
    for measured, unit in ((0.05, 0.03), (100.0, 100.0), (50.0, 100.0), (math.inf, 100.0), (math.nan, 100.0)):
        of_others, of_grown = torch.tensor(0.03), torch.tensor(measured)
        mdn.grow_reward_scales(*((of_grown, of_others) if grown == "reward_scale" else (of_others, of_grown)))
        assert getattr(mdn, grown) == pytest.approx(unit)
        assert mdn.reward_scale + mdn.last_reward_scale == pytest.approx(unit + 0.03)
    for one, other in zip(before, outcomes(), strict=True):
        for name in ("reward", "last_reward", "termination_logit"):
            torch.testing.assert_close(getattr(other, name), getattr(one, name), rtol=1e-4, atol=1e-5)


def test_an_m_that_decodes_otherwise_keeps_its_first_unit():
    class Symlog(MDNRNN):
        def decode_outcome(self, out: Tensor) -> Outcome:
            reward, last_reward, logit = out.unbind(-1)
            return Outcome(reward.sinh(), logit, last_reward.sinh())

    mdn = Symlog(mdn_config())
    mdn.grow_reward_scales(torch.tensor(math.nan), torch.tensor(100.0))
    assert mdn.last_reward_scale == 1.0


def test_a_first_reward_of_another_size_is_learnt_in_its_own_units():
    """A goal that pays a hundred, after steps that cost a few hundredths, is soon promised."""
    z, action, reward, terminated, mask = batch()
    reward = torch.where(terminated, 100.0, 0.03 * reward)

    def error_after(updates: int, *, grow: bool) -> float:
        torch.manual_seed(0)
        mdn = MDNRNN(mdn_config())
        mdn.set_normalisation(*map(torch.tensor, (0.0, 0.03, 0.03, 0.01)))
        if grow:
            mdn.grow_reward_scales(torch.tensor(math.nan), torch.tensor(100.0))
        optimiser = torch.optim.Adam(mdn.parameters(), lr=2e-3)
        for _ in range(updates):
            optimiser.zero_grad()
            mdn.losses(z, action, reward, terminated, mask).total.backward()
            torch.nn.utils.clip_grad_norm_(mdn.parameters(), 100.0)
            optimiser.step()
        outcome = mdn.outcome(z[:, :-1], action, z[:, 1:])
        assert outcome.last_reward is not None
        return float((outcome.last_reward - reward)[terminated].detach().abs().mean())

    assert error_after(200, grow=True) < 10.0
    assert error_after(200, grow=False) > 50.0
