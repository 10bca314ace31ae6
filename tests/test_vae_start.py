"""V before its first gradient step: the identity as far as its latent allows, with little noise."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import vae_config

from wm_rllib.models import VariationalAutoencoder
from wm_rllib.models.layers import SKIP_START, SkipMLP, mlp
from wm_rllib.models.vae import GAIN, LOG_VARIANCE_RANGE


def vae_of(observation_dim: int, latent_dim: int, **changes: float) -> VariationalAutoencoder:
    config = vae_config(observation_shape=(observation_dim,), latent_dim=latent_dim, hidden_dims=(64, 64), **changes)
    return VariationalAutoencoder(config).eval()


def test_a_skip_mlp_starts_as_its_matrix_plus_a_small_mlp():
    matrix, x = torch.randn(3, 5), torch.randn(200, 5)
    torch.manual_seed(4)
    network = SkipMLP(matrix, (16,), 7)
    torch.manual_seed(4)
    torch.nn.Linear(5, 3, bias=False)  # the linear part takes its numbers first
    plain = mlp(5, (16,), 7)
    expected = SKIP_START * plain(x)
    expected[:, :3] += x @ matrix.t()
    torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-6)
    assert network(x)[:, :3].sub(x @ matrix.t()).abs().max() < 0.2


def test_a_skip_mlps_linear_part_learns():
    network = SkipMLP(torch.eye(2), (), 2)
    network(torch.ones(1, 2)).sum().backward()
    assert network.linear.weight.grad is not None and torch.all(network.linear.weight.grad == 1.0)


def test_the_bias_of_a_skip_mlp_is_that_of_its_output():
    network, x = SkipMLP(torch.eye(2), (8,), 4), torch.randn(3, 2)
    before = network(x)
    with torch.no_grad():
        network.bias[1] += 5.0
    torch.testing.assert_close(
        network(x) - before, torch.tensor([[0.0, 5.0, 0.0, 0.0]]).expand(3, 4), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(("observation_dim", "latent_dim"), [(4, 4), (4, 8), (1, 8), (6, 3)])
def test_reconstruction_is_near_exact_from_the_start(observation_dim: int, latent_dim: int):
    vae, observations = vae_of(observation_dim, latent_dim, beta=1e-4), torch.randn(500, observation_dim)
    kept = min(observation_dim, latent_dim)
    with torch.no_grad():
        decoded, posterior = vae(observations)
    # Root mean square errors, of observations with a spread of one.
    assert (decoded - observations)[:, :kept].square().mean().sqrt() < 0.15
    assert (posterior.mean[:, :kept] / GAIN - observations[:, :kept]).square().mean().sqrt() < 0.1


@pytest.mark.parametrize("beta", [1e-4, 1e-2, 0.5])
def test_log_variance_starts_at_log_beta_where_a_latent_is_used(beta: float):
    vae = vae_of(2, 5, beta=beta)
    with torch.no_grad():
        log_variance = vae.posterior(torch.randn(300, 2)).log_variance
    # The latent is GAIN times the observation, and so is its noise; never more than the prior's.
    assert (log_variance[:, :2] - min(0.0, math.log(GAIN**2 * beta))).abs().max() < 0.25
    assert log_variance[:, 2:].abs().max() < 0.25  # a latent without an observation keeps the prior's variance


@pytest.mark.parametrize("beta", [0.0, 1.0, 60.0, 1e5])
def test_no_beta_starts_beyond_the_clip(beta: float):
    vae = vae_of(2, 2, beta=beta)
    with torch.no_grad():
        vae.encoder[-1].mlp[-1].weight.zero_()  # type: ignore[index]
        log_variance = vae.posterior(torch.randn(3, 2)).log_variance
    low, high = LOG_VARIANCE_RANGE
    assert torch.all(log_variance < min(0.1, high))
    assert torch.all(log_variance > low - 1e-6)


def test_a_large_beta_moves_the_variance():
    vae = vae_of(2, 2, beta=1e3).train()
    vae.losses(torch.randn(1, 50, 2), torch.ones(1, 50, dtype=torch.bool)).total.backward()
    bias = vae.encoder[-1].mlp[-1].bias  # type: ignore[index]
    assert torch.all(bias.grad[2:] != 0.0)
