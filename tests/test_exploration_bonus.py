"""The exploration bonus: what exceeds the usual disagreement, in units of the reward, and nothing else."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
import torch
from test_cutting import Unsure
from test_dreaming import FIRST_BIRTH, counting_policy
from test_fused_dream import SPACES, controller_for, starts
from tiny_models import HIDDEN_DIM, LATENT_DIM, world_model

from wm_rllib.models.dreaming import MAX_BONUS, Dream, draw_dream_noise, dream


def aged_dream(horizon: int, *, coefficient: float, reward_scale: float = 1.0) -> Dream:
    """One lane that does not die, of age 0, 1, 2 and so on."""
    model = world_model(mdn_rnn_class=Unsure, mdn={"ensemble_size": 2})
    model.mdn_rnn.reward_scale.fill_(reward_scale)
    start, h = torch.zeros(1, LATENT_DIM), torch.zeros(1, HIDDEN_DIM)
    start[:, 0] = FIRST_BIRTH + 99
    return dream(model, counting_policy, start, (h, h.clone()), horizon, 1.0, exploration_bonus=coefficient)


@pytest.mark.parametrize(("coefficient", "reward_scale"), [(0.1, 1.0), (0.5, 7.0)])
def test_the_bonus_by_hand(coefficient: float, reward_scale: float):
    without, with_bonus = (aged_dream(9, coefficient=c, reward_scale=reward_scale) for c in (0.0, coefficient))
    excess = torch.tensor([0, 0, 1, 2, 3, 4, 5, 5, 5]).float()
    assert MAX_BONUS == 5.0
    expected = without.rewards + coefficient * reward_scale * excess
    torch.testing.assert_close(with_bonus.rewards, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_nothing_but_rewards_changes(space: Any):
    model = world_model(space, mdn={"ensemble_size": 3})
    assert model.mdn_rnn.ensemble is not None
    model.mdn_rnn.ensemble.usual.fill_(1e-3)  # all steps are most unusual
    controller = controller_for(model, space)
    start_z, state = starts(7, LATENT_DIM, HIDDEN_DIM)
    noise = draw_dream_noise(model, controller, 6, 7)
    plain, curious = (
        dream(model, controller, start_z, state, 6, 1.0, noise=noise, exploration_bonus=c) for c in (0.0, 0.2)
    )
    for name, values in vars(plain).items():
        if name != "rewards" and values is not None:
            assert torch.equal(values, getattr(curious, name)), name
    difference = curious.rewards - plain.rewards
    assert torch.all(difference > 0.0) and torch.all(difference <= 0.2 * MAX_BONUS + 1e-5)


def test_without_an_ensemble_there_is_none():
    model, space = world_model(), gym.spaces.Discrete(2)
    controller = controller_for(model, space)
    start_z, state = starts(4, LATENT_DIM, HIDDEN_DIM)
    noise = draw_dream_noise(model, controller, 5, 4)
    one, other = (
        dream(model, controller, start_z, state, 5, 1.0, noise=noise, exploration_bonus=c) for c in (0.0, 3.0)
    )
    assert torch.equal(one.rewards, other.rewards)
