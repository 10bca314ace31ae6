"""Ends that M foretells, where the truth is known: an episode ends where its latent passes 2."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
import torch

from wm_rllib.benchmark.foretold_ends import end_probabilities, foretold_ends
from wm_rllib.look.episodes import Episode
from wm_rllib.models.config import MDNRNNConfig, VAEConfig, WorldModelConfig
from wm_rllib.models.mdn_rnn import MDNRNN
from wm_rllib.models.mixture import MixtureParams
from wm_rllib.models.outcome import Outcome
from wm_rllib.models.world_model import WorldModel

RATE = 0.25


class Coin(MDNRNN):
    """z' = z + 1 or z, each half of the time; beyond 2 an episode ends, with a probability of a half before that."""

    def predict(self, next_h: torch.Tensor, z: torch.Tensor, action: torch.Tensor) -> MixtureParams:
        mean = z[..., None, :] + torch.tensor([[0.0], [1.0]])
        return MixtureParams(torch.full(mean.shape[:-1], math.log(0.5)), mean, torch.full_like(mean, -20.0))

    def outcome(self, z: torch.Tensor, action: torch.Tensor, next_z: torch.Tensor) -> Outcome:
        return Outcome(next_z[..., 0], torch.where(next_z[..., 0] > 2.0, 100.0, -100.0))


class Rate(Coin):
    """Knows how often ends come, and nothing else."""

    def outcome(self, z: torch.Tensor, action: torch.Tensor, next_z: torch.Tensor) -> Outcome:
        return Outcome(next_z[..., 0], torch.full_like(next_z[..., 0], math.log(RATE / (1.0 - RATE))))


def model(mdn_rnn_class: type[MDNRNN]) -> WorldModel:
    mdn = MDNRNNConfig(1, 1, 4, (4,), 2, "joint", False, (-20.0, 1.0), 0.0, 0.0, 0.1, 1.0, 5.0, 0)
    space = gym.spaces.Box(-1.0, 1.0, (1,))
    config = WorldModelConfig(VAEConfig((1,), 1, (), 1e-4), mdn, space, True, False, "zh", mdn_rnn_class=mdn_rnn_class)
    return WorldModel(config).eval()


def episode(world_model: WorldModel, latents: list[float], *, terminated: bool) -> Episode:
    with torch.no_grad():
        observations = world_model.vae.decode(torch.tensor(latents)[:, None]).numpy()
    steps = len(latents) - 1
    return Episode(observations, np.zeros((steps, 1), np.float32), np.zeros(steps, np.float32), terminated)


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """V's latents are the observations."""
    monkeypatch.setattr("wm_rllib.models.vae.VariationalAutoencoder.encode", lambda self, observations: observations)
    monkeypatch.setattr("wm_rllib.models.vae.VariationalAutoencoder.decode", lambda self, z: z)


def test_probabilities_are_of_what_may_come_and_of_no_step_after_it():
    """At 1.5 half of the draws pass 2; the observation that came, 2.5, is not looked at."""
    world_model = model(Coin)
    torch.manual_seed(0)
    seen = episode(world_model, [0.0, 1.5, 2.5], terminated=True)
    found = torch.stack([end_probabilities(world_model, seen) for _ in range(100)])
    assert (found[:, 0] < 1e-6).all()
    assert found[:, 1].mean().item() == pytest.approx(0.5, abs=0.06)


def test_who_knows_the_rate_alone_has_its_entropy_and_is_calibrated():
    world_model = model(Rate)
    ended = [episode(world_model, [0.0] * 3, terminated=True) for _ in range(4)]
    cut = [episode(world_model, [0.0] * 5, terminated=False) for _ in range(2)]
    found = foretold_ends(world_model, ended + cut)
    assert (found.steps, found.seen) == (16, 4)
    assert found.foretold == pytest.approx(4.0, rel=1e-5)
    assert found.cross_entropy == pytest.approx(found.of_the_rate, rel=1e-5)
    assert found.of_the_rate == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))


def test_who_knows_better_has_less():
    world_model = model(Coin)
    torch.manual_seed(0)
    seen = [episode(world_model, [0.0, 0.0, 1.5, 2.5], terminated=True) for _ in range(50)]
    found = foretold_ends(world_model, seen)
    assert found.cross_entropy < 0.6 * found.of_the_rate
