"""Greedy actions of a Gaussian whose actions are clipped, held to what sampling it gives on average."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical, TorchDiagGaussian
from tiny import tiny_config

from wm_rllib.models.clipped import clipped_divergence, clipped_log_likelihood, clipped_mean
from wm_rllib.models.controller import GaussianSampler
from wm_rllib.rl_modules.clipped_gaussian import ClippedGaussian, as_clipped
from wm_rllib.rl_modules.policy_module import NORMALIZE_ACTIONS

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
    assert as_clipped(distribution, space, normalized=normalized) is expected


@pytest.mark.parametrize(("mean", "std"), [(0.1, 0.3), (0.9, 0.5), (-1.4, 0.7), (0.0, 4.0)])
@pytest.mark.parametrize(("other_mean", "other_std"), [(0.0, 0.4), (1.5, 1.0), (-0.5, 3.0)])
def test_divergence_is_the_mean_log_ratio_of_what_is_drawn(mean, std, other_mean, other_std):
    generator = torch.Generator().manual_seed(0)
    drawn = mean + std * torch.randn(1_000_000, generator=generator, dtype=torch.float64)
    ours, theirs = (
        clipped_log_likelihood(drawn, *torch.tensor([m, math.log(s)], dtype=torch.float64))
        for m, s in ((mean, std), (other_mean, other_std))
    )
    error = 5.0 * float((ours - theirs).std()) / 1_000
    result = clipped_divergence(*torch.tensor([[mean], [std], [other_mean], [other_std]]))
    assert float(result) == pytest.approx(float((ours - theirs).mean()), abs=error + 1e-6)


def test_what_lies_beyond_the_same_bound_does_not_diverge():
    logits = torch.tensor([[5.0, math.log(0.1)], [6.0, math.log(0.1)], [-5.0, math.log(0.1)]])
    first, second, other_side = (ClippedGaussian.from_logits(each[None]) for each in logits)
    assert float(first.kl(second)) == pytest.approx(0.0, abs=1e-9)
    assert float(TorchDiagGaussian.from_logits(logits[:1]).kl(TorchDiagGaussian.from_logits(logits[1:2]))) > 40
    assert float(first.kl(other_side)) > 40


def test_divergence_has_a_gradient_everywhere():
    inputs = torch.tensor([[0.2, -1.0], [8.0, -3.0], [-30.0, 2.0], [0.0, 6.0]], requires_grad=True)
    reference = ClippedGaussian.from_logits(torch.tensor([[0.0, 0.0], [7.0, -3.0], [20.0, 1.0], [0.5, -2.0]]))
    reference.kl(ClippedGaussian.from_logits(inputs)).sum().backward()
    assert inputs.grad.isfinite().all() and (inputs.grad[[0, 2, 3]] != 0).any(1).all()


def test_entropy_is_rllibs_up_to_a_deviation_of_one_and_pays_nothing_beyond():
    log_std = torch.tensor([[-2.0, -0.5, 0.5, 6.0]], requires_grad=True)
    inputs = torch.cat([torch.zeros(1, 4), log_std], -1)
    entropy = ClippedGaussian.from_logits(inputs).entropy()
    narrow = torch.cat([torch.zeros(1, 4), log_std.detach().clamp(max=0.0)], -1)
    torch.testing.assert_close(entropy, TorchDiagGaussian.from_logits(narrow).entropy())
    entropy.sum().backward()
    assert log_std.grad.tolist() == [[1.0, 1.0, 0.0, 0.0]]
    same = ClippedGaussian.from_logits(inputs).kl(TorchDiagGaussian.from_logits(inputs))
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
    expected = ClippedGaussian if normalized else TorchDiagGaussian
    assert module.get_inference_action_dist_cls() is expected
    assert module.get_train_action_dist_cls() is expected
    assert module.get_exploration_action_dist_cls() is expected


# --- likelihoods -----------------------------------------------------------------------------------------------------


def inputs(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Means [N], log deviations [N] and actions drawn from them."""
    generator = torch.Generator().manual_seed(seed)
    mean = 2.0 * torch.randn(rows, generator=generator)
    log_std = torch.randn(rows, generator=generator)
    return mean, log_std, mean + log_std.exp() * torch.randn(rows, generator=generator)


def test_a_density_inside_and_a_probability_at_the_bounds():
    mean, log_std, action = inputs(2_000)
    found = clipped_log_likelihood(action, mean, log_std)
    normal = torch.distributions.Normal(mean.double(), log_std.double().exp())
    below, above = action <= -1.0, action >= 1.0
    expected = normal.log_prob(action.double())
    expected[below] = normal.cdf(torch.tensor(-1.0).double()).log()[below]
    expected[above] = (1.0 - normal.cdf(torch.tensor(1.0).double())).log()[above]
    assert below.sum() > 200 < above.sum()
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("mean", "std"), [(0.2, 0.3), (-1.4, 0.8), (3.0, 5.0)])
def test_it_sums_to_one(mean: float, std: float):
    grid = torch.linspace(-1.0, 1.0, 20_001, dtype=torch.float64)[1:-1]
    terms = torch.tensor(mean).double(), torch.tensor(std).double().log()
    inside = torch.trapezoid(clipped_log_likelihood(grid, *terms).exp(), grid)
    ends = clipped_log_likelihood(torch.tensor([-9.0, 9.0]).double(), *terms).exp().sum()
    assert float(inside + ends) == pytest.approx(1.0, abs=2e-3)


def policy_gradient(
    log_likelihood, mean: float, log_std: float, rows: int = 400_000
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of reward times score, [2] each; the reward is the clipped action."""
    parameters = [torch.full((rows,), value, requires_grad=True) for value in (mean, log_std)]
    generator = torch.Generator().manual_seed(0)
    action = (mean + np.exp(log_std) * torch.randn(rows, generator=generator)).float()
    scores = torch.autograd.grad(log_likelihood(action, *parameters).sum(), parameters)
    terms = torch.stack(scores) * action.clamp(-1.0, 1.0)
    return terms.mean(-1), terms.std(-1)


@pytest.mark.parametrize(("mean", "log_std"), [(0.3, -0.5), (-1.5, -0.3), (0.8, 1.0)])
def test_the_policy_gradient_is_that_of_the_mean_of_clipped_actions_with_less_variance(mean: float, log_std: float):
    parameters = [torch.tensor(value, requires_grad=True) for value in (mean, log_std)]
    expected = torch.stack(torch.autograd.grad(clipped_mean(parameters[0], parameters[1].exp()), parameters))
    found, spread = policy_gradient(clipped_log_likelihood, mean, log_std)
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0.02)
    plain, plain_spread = policy_gradient(
        lambda a, m, s: torch.distributions.Normal(m, s.exp()).log_prob(a), mean, log_std
    )
    torch.testing.assert_close(plain, expected, atol=0.02, rtol=0.04)
    assert (spread < plain_spread).all()


def test_a_mean_beyond_a_bound_makes_no_large_gradients():
    """What PPO asks of rows that acted greedily there: by the plain density they were 3,500 deviations away."""
    mean, log_std = torch.tensor([-7.0], requires_grad=True), torch.tensor([np.log(0.0017)], requires_grad=True)
    greedy = clipped_mean(mean, log_std.exp()).detach().float()
    assert greedy.tolist() == [-1.0]
    likelihood = clipped_log_likelihood(greedy, mean, log_std)
    assert likelihood.tolist() == [0.0]
    assert [float(one) for one in torch.autograd.grad(likelihood, [mean, log_std])] == [0.0, 0.0]


@pytest.mark.parametrize(("distribution", "clipped"), [(ClippedGaussian, True), (TorchDiagGaussian, False)])
def test_dreams_have_the_likelihoods_of_rllibs_class(distribution, clipped: bool):
    mean, log_std, action = (column.view(-1, 2) for column in inputs(400))
    logits = torch.cat([mean, log_std], -1)
    found = GaussianSampler(2, clipped=clipped).logp(logits, action)
    torch.testing.assert_close(found, distribution.from_logits(logits).logp(action))
