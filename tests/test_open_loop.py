"""M against standing still and untrained weights, where the truth is known: a latent that moves by the action."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from look_parts import agent

from wm_rllib.benchmark.open_loop import (
    ACTIONS,
    describe,
    mean_path,
    measure,
    play_episodes,
    squared_errors,
    untrained,
)
from wm_rllib.models.config import MDNRNNConfig, VAEConfig, WorldModelConfig
from wm_rllib.models.judging import Windows
from wm_rllib.models.mdn_rnn import MDNRNN
from wm_rllib.models.mixture import MixtureParams
from wm_rllib.models.world_model import WorldModel
from wm_rllib.runs.agents import Agent

HORIZON, BURN_IN = 6, 2


class Walk(MDNRNN):
    """z' = z + a, or z + a + 1, each half of the time."""

    def predict(self, next_h: torch.Tensor, z: torch.Tensor, action: torch.Tensor) -> MixtureParams:
        mean = z[..., None, :] + action[..., None, :1] + torch.tensor([[0.0], [1.0]])
        return MixtureParams(torch.full(mean.shape[:-1], np.log(0.5)), mean, torch.full_like(mean, -20.0))


def model() -> WorldModel:
    mdn = MDNRNNConfig(1, 1, 4, (4,), 2, "joint", False, (-20.0, 1.0), 0.0, 0.0, 0.1, 1.0, 5.0, 0)
    config = WorldModelConfig(
        VAEConfig((1,), 1, (), 1e-4), mdn, gym.spaces.Box(-1.0, 1.0, (1,)), True, False, "zh", mdn_rnn_class=Walk
    )
    return WorldModel(config).eval()


def windows(world_model: WorldModel) -> Windows:
    """Random walks in which the coin always fell half way: the mean of what M holds possible."""
    actions = torch.rand(50, BURN_IN + HORIZON, 1) * 2 - 1
    z = torch.cat([torch.zeros(50, 1, 1), (actions + 0.5).cumsum(1)], 1)
    mask = torch.ones(50, BURN_IN + HORIZON, dtype=torch.bool)
    return Windows(BURN_IN, world_model.vae.decode(z).detach(), actions, torch.zeros(50, 8), ~mask, mask)


def test_the_mean_of_paths_is_the_expectation():
    world_model = model()
    seen = windows(world_model)
    with torch.no_grad():
        real = world_model.vae.encode(seen.observations)[:, BURN_IN + 1 :]
        error = mean_path(world_model, seen) - real
    # 32 paths, each step's coin with a deviation of a half.
    deviation = 0.5 * torch.arange(1, HORIZON + 1).sqrt() / 32**0.5
    assert (error.square().mean((0, 2)).sqrt() / deviation).numpy() == pytest.approx(np.ones(HORIZON), abs=0.35)


def test_m_beats_standing_still_where_it_knows_the_walk():
    world_model = model()
    predicted, still, valid = squared_errors(world_model, windows(world_model))
    assert valid.all() and (predicted.mean(0) < 0.5 * still.mean(0)).all()


def test_an_untrained_m_has_the_units_and_v_of_the_trained_one():
    trained = model()
    trained.mdn_rnn.change_scale.fill_(3.0)
    fresh = untrained(trained.config, trained, 7)
    assert fresh.mdn_rnn.change_scale.item() == 3.0
    assert all(torch.equal(a, b) for a, b in zip(fresh.vae.parameters(), trained.vae.parameters(), strict=True))
    assert not torch.equal(fresh.mdn_rnn.lstm.weight_ih_l0, trained.mdn_rnn.lstm.weight_ih_l0)


def test_the_table_has_steps_that_were_measured():
    errors = {name: [1.0, 2.0, 3.0] for name in ("trained", "still", "untrained")}
    ends = {"steps": 90, "seen": 3, "foretold": 2.5, "cross_entropy": 0.1, "of_the_rate": 0.15}
    lines = describe({"errors": errors, "windows": [9.0] * 3, "steps": 3, "ends": ends}).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:5]] == ["1", "2", "3"]
    assert "3 came, M's probabilities add up to 2.5" in lines[-1]


def test_the_asked_one_acts_in_the_same_episodes_each_time():
    player = Agent(Path(), agent(), "CartPole-v1", {})
    acted = {}
    for actions in ACTIONS:
        first, again = ([e.actions.tolist() for e in play_episodes(player, 3, 5, actions)] for _ in range(2))
        assert first == again
        acted[actions] = first
    assert acted["random"] != acted["explore"] != acted["greedy"]


def test_the_measurement_says_who_acted():
    player = Agent(Path(), agent(), "CartPole-v1", {})
    found = measure(player, 3, 4, 5, "explore")
    assert (found["actions"], found["episodes"], len(found["errors"]["still"])) == ("explore", 3, 4)
    assert found["errors"]["still"] != measure(player, 3, 4, 5)["errors"]["still"]
