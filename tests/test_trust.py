"""Figures of trust by hand: open-loop error against standing still, calibration of ends, traversals, steered lanes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from test_judging import SHIFT, Perfect, certain, model_of, shortened, windows
from tiny_models import HIDDEN_DIM, LATENT_DIM, world_model
from torch import Tensor

from wm_rllib.models.mdn_rnn import MDNRNN
from wm_rllib.models.mixture import MixtureParams
from wm_rllib.models.outcome import Outcome
from wm_rllib.models.stepping import Place, Stepper
from wm_rllib.models.trust import NUM_DRAWS, calibrate, end_probabilities, open_loop_errors, traverse


class Still(Perfect):
    """Says that nothing changes."""

    def predict(self, next_h: Tensor, z: Tensor, action: Tensor) -> MixtureParams:
        return certain(z, self.config.num_mixtures)


class HalfWay(Perfect):
    """Half of each change."""

    def predict(self, next_h: Tensor, z: Tensor, action: Tensor) -> MixtureParams:
        return certain(z + 0.5 * SHIFT * (action[:, :1] - action[:, 1:]), self.config.num_mixtures)


class Wide(MDNRNN):
    """z stays, give or take a standard normal; an end is where it lands above 1."""

    def predict(self, next_h: Tensor, z: Tensor, action: Tensor) -> MixtureParams:
        mixture = certain(z, self.config.num_mixtures)
        return dataclasses.replace(mixture, log_sigma=torch.zeros_like(mixture.log_sigma))

    def outcome(self, z: Tensor, action: Tensor, next_z: Tensor) -> Outcome:
        return Outcome(next_z[..., 0], 1e4 * (next_z[..., 0] - 1.0))


# Open-loop error


def test_a_perfect_model_makes_no_error():
    errors = open_loop_errors(model_of(Perfect), windows())
    torch.testing.assert_close(errors.predicted, torch.zeros(4, 4), atol=1e-5, rtol=0)
    assert errors.steps_ahead == errors.num_measured == 4


def test_standing_still_is_no_better_than_standing_still():
    errors = open_loop_errors(model_of(Still), windows())
    torch.testing.assert_close(errors.relative, torch.ones(4), atol=1e-5, rtol=0)


def test_errors_by_hand():
    fresh = shortened(windows(count=6), {0: 1, 3: 3}, terminated=False)
    model = model_of(HalfWay)
    model.vae.set_normalisation(torch.zeros(4), torch.tensor([1.0, 2.0, 4.0, 1.0]))
    # Its latents are in units of their own, and so its steps are: half of SHIFT in latents, not in observations.
    start = fresh.observations[:, 2]
    path, guess = [], start / model.vae.obs_scale
    for t in range(4):
        turn = 1.0 - 2.0 * fresh.actions[:, 2 + t, None]
        guess = guess + torch.cat([0.5 * SHIFT, torch.zeros(1)]) * turn
        path.append(guess)
    errors = open_loop_errors(model, fresh)
    for t, rows in enumerate([range(6), [1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [1, 2, 4, 5]]):
        real = fresh.observations[list(rows), 3 + t] / model.vae.obs_scale
        predicted = (path[t][list(rows)] - real).square().mean(0).sqrt()
        still = (start[list(rows)] / model.vae.obs_scale - real).square().mean(0).sqrt()
        torch.testing.assert_close(errors.predicted[t], predicted)
        torch.testing.assert_close(errors.still[t], still)
        assert errors.counts[t] == len(rows)
        expected = math.sqrt(predicted.square().sum() / still.square().sum())
        assert errors.relative[t].item() == pytest.approx(expected, rel=1e-4)


def test_steps_ahead_end_at_the_first_that_is_worse():
    errors = open_loop_errors(model_of(Perfect), windows())
    predicted = errors.still.clone() * torch.tensor([0.5, 0.9, 1.5, 0.5])[:, None]
    assert dataclasses.replace(errors, predicted=predicted).steps_ahead == 2
    missing = torch.full_like(errors.still, torch.nan)
    nothing = dataclasses.replace(errors, predicted=missing, still=missing, counts=torch.zeros(4))
    assert (nothing.steps_ahead, nothing.num_measured) == (0, 0)


# Ends


def test_calibration_by_hand():
    probabilities = torch.tensor([0.1, 0.3, 0.2, 0.8, 1.0])
    ended = torch.tensor([False, True, False, True, False])
    table = calibrate(probabilities, ended, edges=(0.0, 0.25, 0.5, 1.0))
    assert table.counts == [2, 1, 2]
    assert table.predicted == pytest.approx([0.15, 0.3, 0.9])
    assert table.seen == pytest.approx([0.0, 1.0, 0.5])
    assert table.error == pytest.approx((2 * 0.15 + 1 * 0.7 + 2 * 0.4) / 5)
    assert (table.expected_ends, table.seen_ends, table.num_steps) == (pytest.approx(2.4), 2, 5)


def test_what_comes_as_often_as_it_is_said_is_calibrated():
    probabilities = torch.rand(20000) ** 3
    ended = torch.rand(20000) < probabilities
    assert calibrate(probabilities, ended).error < 0.01
    assert calibrate(probabilities.sqrt(), ended).error > 0.1
    empty = calibrate(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    assert (empty.error, empty.num_steps) == (0.0, 0)


@pytest.mark.parametrize(("temperature", "deviation"), [(1.0, 1.0), (0.25, 0.5)])
def test_probability_of_an_end_is_that_of_landing_on_one(temperature: float, deviation: float):
    fresh = windows(count=500)
    fresh = dataclasses.replace(fresh, observations=torch.zeros_like(fresh.observations))
    probabilities, ended = end_probabilities(model_of(Wide), fresh, temperature)
    tail = 0.5 * math.erfc(1.0 / deviation / math.sqrt(2))
    chance = math.sqrt(tail * (1 - tail) / (len(probabilities) * NUM_DRAWS))
    assert len(probabilities) == 2000
    assert probabilities.mean().item() == pytest.approx(tail, abs=4 * chance)
    assert not ended.any()


def test_ends_are_those_of_the_steps_that_happened():
    fresh = shortened(windows(count=6), {0: 1, 3: 3}, terminated=True)
    probabilities, ended = end_probabilities(model_of(Perfect), fresh)
    assert len(ended) == 4 * 4 + 1 + 3
    assert ended.nonzero().flatten().tolist() == [0, 1 + 4 + 4 + 2]
    assert probabilities.max() < 1e-6


# Latents


def test_traversal_moves_one_latent_at_a_time():
    observations = torch.randn(200, 4)
    found = traverse(model_of(Perfect), observations, steps=5)
    assert found.decoded.shape == (LATENT_DIM, 5, 4)
    mean, spread = observations.mean(0), observations.std(0, correction=0)
    for latent in range(LATENT_DIM):
        expected = mean.repeat(5, 1)
        expected[:, 3] = 0.0
        expected[:, latent] += torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]) * spread[latent]
        torch.testing.assert_close(found.decoded[latent], expected)


# Steered lanes


def place_of(z: list[list[float]]) -> Place:
    return Place(torch.tensor(z), (torch.zeros(len(z), HIDDEN_DIM), torch.zeros(len(z), HIDDEN_DIM)))


def test_a_lane_goes_where_the_actions_lead():
    lanes = Stepper(model_of(Perfect), place_of([[0.5, 0.0, 0.0], [0.5, 0.0, 0.0]]), seed=1)
    step = lanes.step(torch.tensor([0, 1]), 1.0)
    torch.testing.assert_close(lanes.place.z, 0.5 * torch.eye(3)[0] + torch.stack([SHIFT, -SHIFT]))
    torch.testing.assert_close(lanes.observations[:, :3], lanes.place.z)
    assert step.reward.tolist() == [5.0, 5.0]
    assert not step.terminated.any() and step.termination_prob.max() < 1e-6


def test_noise_is_the_seeds_and_nobody_elses():
    model = world_model().eval()
    actions = torch.tensor([0, 1])

    def walk(seed: int, temperature: float) -> Tensor:
        lanes = Stepper(model, place_of([[0.0] * 3, [0.1] * 3]), seed)
        for _ in range(4):
            torch.rand(3)  # somebody else draws
            lanes.step(actions, temperature)
        return lanes.place.z

    torch.testing.assert_close(walk(1, 1.0), walk(1, 1.0), atol=0, rtol=0)
    assert not torch.equal(walk(1, 1.0), walk(2, 1.0))
    assert not torch.equal(walk(1, 1.0), walk(1, 2.0))
    before = torch.random.get_rng_state()
    Stepper(model, place_of([[0.0] * 3]), 3).step(actions[:1], 1.0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_lane_that_is_put_back_goes_on_from_there():
    lanes = Stepper(model_of(Perfect), place_of([[0.5, 0.0, 0.0]]), seed=1)
    lanes.step(torch.tensor([0]), 1.0)
    kept = lanes.place
    lanes.step(torch.tensor([0]), 1.0)
    lanes.place = kept
    lanes.step(torch.tensor([1]), 1.0)
    torch.testing.assert_close(lanes.place.z, torch.tensor([[0.5, 0.0, 0.0]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("mixture", ["joint", "per_dimension"])
def test_ends_and_draws_have_the_models_own_distribution(mixture: str):
    model = world_model(mdn={"mixture": mixture}, mdn_rnn_class=Wide).eval()
    if mixture == "per_dimension":
        model.mdn_rnn.predict = lambda _, z, __: MixtureParams(  # type: ignore[method-assign, misc, assignment]
            torch.zeros(len(z), 4, 3).log_softmax(1), z[:, None].expand(-1, 4, -1), torch.zeros(len(z), 4, 3)
        )
    lanes = Stepper(model, place_of([[0.0] * 3] * 4000), seed=0)
    step = lanes.step(torch.zeros(4000, dtype=torch.int64), 4.0)
    z = lanes.place.z.numpy()
    np.testing.assert_allclose(z.std(0), 2.0, atol=0.1)
    np.testing.assert_allclose(z.mean(0), 0.0, atol=0.15)
    assert torch.equal(step.terminated, lanes.place.z[:, 0] > 1.0)
    torch.testing.assert_close(step.reward, lanes.place.z[:, 0])
