"""Greedy actions of a Gaussian whose actions are clipped, held to what sampling it gives on average."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical, TorchDiagGaussian
from tiny import tiny_config

from wm_rllib.clipped_gaussian import BoundedEntropy, ClippedGaussian, clipped_mean, greedy_distribution
from wm_rllib.policy_module import NORMALIZE_ACTIONS

MEANS = torch.tensor([0.0, 0.3, -0.8, 1.0, 4.0, -20.0])


@pytest.mark.parametrize("std", [0.01, 0.5, 3.0, 30.0])
def test_it_is_the_mean_of_clipped_samples(std):
    stds = torch.full_like(MEANS, std)
    generator = torch.Generator().manual_seed(0)
    samples = (MEANS + std * torch.randn(400_000, len(MEANS), generator=generator)).clamp(-1.0, 1.0)
    torch.testing.assert_close(clipped_mean(MEANS, stds), samples.mean(0), atol=0.006, rtol=0.0)


def test_a_narrow_one_has_its_mode_and_a_wide_one_steers_by_how_often():
    inside = torch.tensor([-0.9, 0.0, 0.5])
    torch.testing.assert_close(clipped_mean(inside, torch.full((3,), 1e-3)), inside)
    wide = clipped_mean(torch.tensor([2.0]), torch.tensor([20.0]))
    assert 0.0 < float(wide) < 0.1  # its mode, clipped, is 1


def test_extremes_stay_within_the_bounds():
    mean = torch.tensor([1e4, -1e4, 0.0, 1e4])
    std = torch.tensor([1e-6, 1e-6, 1e6, 1e6])
    result = clipped_mean(mean, std)
    assert result.isfinite().all() and (result.abs() <= 1.0 + 1e-5).all()
    assert result[:2].tolist() == [1.0, -1.0]


BOUNDED = gym.spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))
HALF = gym.spaces.Box(np.array([-2.0, -np.inf], np.float32), np.array([2.0, 1.0], np.float32))


@pytest.mark.parametrize(
    ("distribution", "space", "normalized", "expected"),
    [
        (TorchDiagGaussian, BOUNDED, True, ClippedGaussian),
        (TorchDiagGaussian, BOUNDED, False, TorchDiagGaussian),
        (TorchDiagGaussian, HALF, True, TorchDiagGaussian),
        (TorchCategorical, gym.spaces.Discrete(2), True, TorchCategorical),
    ],
)
def test_only_what_rllib_clips_is_treated_so(distribution, space, normalized, expected):
    assert greedy_distribution(distribution, space, normalized=normalized) is expected


def test_entropy_is_rllibs_up_to_a_deviation_of_one_and_pays_nothing_beyond():
    log_std = torch.tensor([[-2.0, -0.5, 0.5, 6.0]], requires_grad=True)
    inputs = torch.cat([torch.zeros(1, 4), log_std], -1)
    entropy = BoundedEntropy.from_logits(inputs).entropy()
    narrow = torch.cat([torch.zeros(1, 4), log_std.detach().clamp(max=0.0)], -1)
    torch.testing.assert_close(entropy, TorchDiagGaussian.from_logits(narrow).entropy())
    entropy.sum().backward()
    assert log_std.grad.tolist() == [[1.0, 1.0, 0.0, 0.0]]
    same = BoundedEntropy.from_logits(inputs).kl(TorchDiagGaussian.from_logits(inputs))
    assert same.tolist() == [0.0]


@pytest.mark.parametrize("normalized", [True, False])
def test_the_module_knows_whether_its_actions_are_clipped(normalized):
    config = tiny_config("Pendulum-v1")
    config.normalize_actions = normalized
    actions = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)
    observations = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)
    spec = config.get_rl_module_spec(spaces={"default_policy": (observations, actions)}, inference_only=True)
    spec.observation_space = gym.spaces.Box(-np.inf, np.inf, (config.latent_dim + config.mdn_hidden_dim,), np.float32)
    spec.action_space = actions
    module = spec.build()
    assert module.model_config[NORMALIZE_ACTIONS] is normalized
    assert module.get_inference_action_dist_cls() is (ClippedGaussian if normalized else TorchDiagGaussian)
    assert module.get_train_action_dist_cls() is (BoundedEntropy if normalized else TorchDiagGaussian)
    assert module.get_exploration_action_dist_cls() is TorchDiagGaussian
