"""Optimism: the spread of expected rewards over an ensemble, above what is usual, is what a dreamed step pays more."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from test_fused_dream import SPACES, controller_for, starts
from tiny_models import HIDDEN_DIM, LATENT_DIM, mdn_config, world_model
from torch import Tensor

from wm_rllib.models import MDNRNN
from wm_rllib.models.dreaming import draw_dream_noise, dream
from wm_rllib.models.outcome import Outcome, OutcomeEnsemble, Truth


def outcome(*rows: list[float]) -> Outcome:
    """Reward, last reward and logit of each member's only transition."""
    reward, last, logit = torch.tensor(rows).unsqueeze(1).unbind(-1)
    return Outcome(reward, logit, last)


def test_spread_by_hand():
    # Expected rewards: 1 (never ends), -100 (always), and the mean of both.
    members = outcome([1.0, -100.0, -50.0], [1.0, -100.0, 50.0], [1.0, -100.0, 0.0])
    expected = np.std([1.0, -100.0, -49.5])
    np.testing.assert_allclose(members.reward_spread().numpy(), [expected], rtol=1e-5)


def test_errors_by_hand():
    truth = Truth(torch.tensor([1.0, -100.0]), torch.tensor([False, True]), torch.tensor([0.5, 50.0]))
    predicted = Outcome(torch.tensor([2.0, 7.0]), torch.tensor([0.0, 2.0]), torch.tensor([9.0, -50.0]))
    torch.testing.assert_close(truth.reward_error(predicted), torch.tensor([0.5 * 2.0**2, 0.5 * 1.0**2]))
    expected = torch.tensor([np.log(2.0), np.log1p(np.exp(-2.0))]).float()
    torch.testing.assert_close(truth.termination_error(predicted), expected)


def test_optimism_is_what_exceeds_the_usual_and_has_the_units_of_rewards():
    mdn = MDNRNN(mdn_config(ensemble_size=3))
    assert mdn.outcome_ensemble is not None
    mdn.reward_scale.fill_(7.0)
    mdn.reward_mean.fill_(2.0)
    mdn.last_reward_scale.fill_(40.0)
    z, action = torch.randn(50, LATENT_DIM), torch.randn(50, 2)
    with torch.no_grad():
        raw = mdn.outcome_ensemble.predict(torch.cat([z, action], -1)).double().numpy()
        p = 1.0 / (1.0 + np.exp(-raw[..., 2]))
        spread = ((1.0 - p) * (7.0 * raw[..., 0] + 2.0) + p * 40.0 * raw[..., 1]).std(0)
        usual = float(np.median(spread))
        mdn.outcome_ensemble.usual.fill_(usual)
        np.testing.assert_allclose(mdn.optimism(z, action).numpy(), np.maximum(spread - usual, 0.0), atol=1e-4)


def test_without_an_ensemble_there_is_none():
    mdn = MDNRNN(mdn_config())
    assert mdn.outcome_ensemble is None
    assert not mdn.optimism(torch.randn(5, LATENT_DIM), torch.randn(5, 2)).any()


def test_usual_moves_in_training_only():
    members = OutcomeEnsemble(LATENT_DIM + 2, 3, hidden_dim=8)
    predicted = outcome([1.0, 0.0, -9.0], [2.0, 0.0, -9.0], [3.0, 0.0, -9.0])
    truth = Truth(torch.zeros(1), torch.zeros(1, dtype=torch.bool), torch.ones(1))
    members.eval().loss(predicted, truth)
    assert members.usual == 1.0
    members.train().loss(predicted, truth)
    spread = predicted.reward_spread().item()
    np.testing.assert_allclose(members.usual.item(), 1.0 + 0.05 * (spread - 1.0), rtol=1e-5)


def crashes(speeds: Tensor, limit: float) -> tuple[Tensor, ...]:
    """Sequences of one transition: whoever is faster than the limit crashes, and loses 100."""
    z = torch.zeros(len(speeds), 2, LATENT_DIM)
    z[:, :, 0] = speeds[:, None]
    terminated = (speeds > limit)[:, None]
    reward = torch.where(terminated, -100.0, 0.0)
    return z, torch.zeros(len(speeds), 1, 2), reward, terminated, torch.ones(len(speeds), 1, dtype=torch.bool)


def fitted(speeds: Tensor) -> MDNRNN:
    """M after some hundred steps on landings of these speeds; 0.2 is too fast."""
    torch.manual_seed(0)
    mdn = MDNRNN(mdn_config(ensemble_size=5)).train()
    mdn.last_reward_scale.fill_(100.0)
    optimizer = torch.optim.Adam(mdn.parameters(), lr=3e-3)
    batch = crashes(speeds, 0.2)
    for _ in range(300):
        loss = mdn.losses(*batch).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return mdn.eval()


def test_a_soft_landing_never_seen_is_worth_a_try_and_one_that_is_known_is_not():
    """High in the air nothing happens; all landings seen are hard. What a soft one brings, members disagree on."""
    air, hard, soft = -1.0 + 0.3 * torch.rand(200), 0.6 + 0.4 * torch.rand(60), 0.05 + 0.1 * torch.rand(60)
    between, none = torch.full((1, LATENT_DIM), 0.0), torch.zeros(1, 2)
    between[0, 0] = 0.1
    known = between.clone()
    known[0, 0] = 0.8
    before, after = fitted(torch.cat([air, hard])), fitted(torch.cat([air, hard, soft]))
    with torch.no_grad():
        assert before.optimism(between, none) > 1.0  # of the hundred that may be lost
        assert before.optimism(known, none) < 0.1
        assert after.optimism(between, none) < 0.1


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_nothing_but_rewards_changes(space: Any):
    model = world_model(space, mdn={"ensemble_size": 3})
    ensemble = model.mdn_rnn.outcome_ensemble
    assert ensemble is not None
    ensemble.usual.fill_(0.0)
    controller = controller_for(model, space)
    start_z, state = starts(7, LATENT_DIM, HIDDEN_DIM)
    noise = draw_dream_noise(model, controller, 6, 7)
    plain, hopeful = (dream(model, controller, start_z, state, 6, 1.0, noise=noise, optimism=c) for c in (0.0, 2.0))
    for name, values in vars(plain).items():
        if name != "rewards" and values is not None:
            assert torch.equal(values, getattr(hopeful, name)), name
    z = plain.features[..., :LATENT_DIM].flatten(0, 1)
    expected = 2.0 * model.mdn_rnn.optimism(z, model.codec.encode(plain.actions.flatten(0, 1))).view(7, 6)
    torch.testing.assert_close(hopeful.rewards, plain.rewards + expected)
    assert torch.all(expected > 0.0)


def test_dreams_without_an_ensemble_are_as_they_were():
    model, space = world_model(), gym.spaces.Discrete(2)
    controller = controller_for(model, space)
    start_z, state = starts(4, LATENT_DIM, HIDDEN_DIM)
    noise = draw_dream_noise(model, controller, 5, 4)
    one, other = (dream(model, controller, start_z, state, 5, 1.0, noise=noise, optimism=c) for c in (0.0, 3.0))
    assert torch.equal(one.rewards, other.rewards)
