"""The search for plans, on world models whose best plan is known."""

from __future__ import annotations

import itertools
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tiny_models import HIDDEN_DIM, LATENT_DIM, world_model
from torch import Tensor

from wm_rllib.models.lookahead import Forecast, Lookahead, Values
from wm_rllib.models.mdn_rnn import MDNRNN, State
from wm_rllib.models.mixture import MixtureParams
from wm_rllib.models.outcome import Outcome
from wm_rllib.models.plan_distributions import first_distribution
from wm_rllib.models.search import SearchConfig, search, shifted, softmax_weights
from wm_rllib.models.world_model import WorldModel

PLANNERS = ["random", "cem", "mppi"]
BOX = gym.spaces.Box(-1.0, 1.0, (1,))


class Known(MDNRNN):
    """Goes where `move` says, without noise, and brings what `outcome` says."""

    def move(self, z: Tensor, action: Tensor) -> Tensor:
        raise NotImplementedError

    def step(self, z: Tensor, action: Tensor, state: State) -> State:
        return state[0] + 1.0, state[1]

    def predict(self, next_h: Tensor, z: Tensor, action: Tensor) -> MixtureParams:
        mean = self.move(z, action).unsqueeze(-2).expand(-1, self.config.num_mixtures, -1)
        return MixtureParams(torch.zeros(mean.shape[:-1]).log_softmax(-1), mean, torch.full_like(mean, -30.0))


class Cart(Known):
    """A point on a line: each action moves it by half of itself, and both distance and effort cost."""

    GAIN, EFFORT = 0.5, 0.2

    def move(self, z: Tensor, action: Tensor) -> Tensor:
        return z + self.GAIN * torch.nn.functional.pad(action, (0, LATENT_DIM - 1))

    def outcome(self, z: Tensor, action: Tensor, next_z: Tensor) -> Outcome:
        return Outcome(-next_z[:, 0].square() - self.EFFORT * action[:, 0].square(), torch.full((len(z),), -1e3))


SECRETS = {
    "Discrete(2)": (gym.spaces.Discrete(2), [[1], [0], [0], [1], [1], [0]]),
    "MultiDiscrete([2 3])": (gym.spaces.MultiDiscrete([2, 3]), [[1, 2], [0, 1], [1, 0]]),
}


class Lock(Known):
    """Pays 1 when it opens, after one sequence of actions alone; z counts the right ones, and is -1 after a wrong one.

    Nothing on the way tells whether it is right.
    """

    secret: Tensor

    def move(self, z: Tensor, action: Tensor) -> Tensor:
        place = z[:, 0].long()
        wanted = self.secret[place.clamp(0, len(self.secret) - 1)]
        right = (place >= 0) & (place < len(self.secret)) & (wanted == action).all(-1)
        return torch.where(right, z[:, 0] + 1.0, -1.0)[:, None].expand(-1, LATENT_DIM)

    def outcome(self, z: Tensor, action: Tensor, next_z: Tensor) -> Outcome:
        return Outcome((next_z[:, 0] == len(self.secret)).float(), torch.full((len(z),), -1e3))


class Trap(Known):
    """Action 0 brings 1 and goes on; action 1 brings 10 and ends the episode."""

    def move(self, z: Tensor, action: Tensor) -> Tensor:
        return z

    def outcome(self, z: Tensor, action: Tensor, next_z: Tensor) -> Outcome:
        return Outcome(torch.ones(len(z)), torch.where(action[:, 1] > 0.5, 1e3, -1e3), torch.full((len(z),), 10.0))


class Drunk(MDNRNN):
    """The next latent is noise of standard deviation 1, whatever is done; the reward is its first dimension."""

    def predict(self, next_h: Tensor, z: Tensor, action: Tensor) -> MixtureParams:
        mean = torch.full((len(z), self.config.num_mixtures, LATENT_DIM), 5.0)
        return MixtureParams(torch.zeros(mean.shape[:-1]).log_softmax(-1), mean, torch.zeros_like(mean))

    def outcome(self, z: Tensor, action: Tensor, next_z: Tensor) -> Outcome:
        return Outcome(next_z[:, 0], torch.full((len(z),), -1e3))


class SameAsStock(MDNRNN):
    """Overrides a method without changing it, so that M's public methods are called."""

    def outcome(self, z: Tensor, action: Tensor, next_z: Tensor) -> Outcome:
        return super().outcome(z, action, next_z)


def start_of(model: WorldModel, place: float = 0.0, rows: int = 1) -> tuple[Tensor, State]:
    z = torch.zeros(rows, LATENT_DIM)
    z[:, 0] = place
    return z, model.mdn_rnn.initial_state(rows)


def lookahead_in(model: WorldModel, values: Values | None = None, **changes: Any) -> Lookahead:
    how = {"discount": 1.0, "num_particles": 1, "temperature": 1.0, **changes}
    return Lookahead(model.mdn_rnn, values, **how)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def found_in(
    model: WorldModel,
    config: SearchConfig,
    start: tuple[Tensor, State],
    *,
    values: Values | None = None,
    discount: float = 1.0,
    previous: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """The plans [B, H, A] that a search finds."""
    first = first_distribution(model.codec, len(start[0]), config.horizon, torch.device("cpu"))
    lookahead = lookahead_in(model, values, discount=discount)
    return search(lookahead, first, start, config, generator(seed), previous)[0]


def lock(space: gym.Space[Any], secret: list[list[int]]) -> tuple[WorldModel, Tensor]:
    """A lock, and the plan [H, A] that opens it."""
    model = world_model(space, mdn_rnn_class=Lock)
    numbers = torch.tensor(secret)
    opens = model.codec.encode(numbers[:, 0] if isinstance(space, gym.spaces.Discrete) else numbers)
    model.mdn_rnn.secret = opens
    return model, opens


# --- the best plan is known ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planner", ["cem", "mppi"])
@pytest.mark.parametrize("bootstrap", [0.0, 3.0])
def test_linear_quadratic_optimum(planner: str, bootstrap: float):
    horizon, discount, place = 5, 0.9, 0.7
    model = world_model(BOX, mdn_rnn_class=Cart)
    # Least squares: minimise the sum of gamma^t ((place + gain (a_0 + .. + a_t))^2 + effort a_t^2) and of the last
    # position's square times what the value makes of it.
    moves = Cart.GAIN * np.tril(np.ones((horizon, horizon)))
    weights = discount ** np.arange(horizon)
    weights_of_places = weights.copy()
    weights_of_places[-1] += discount**horizon * bootstrap
    system = moves.T @ np.diag(weights_of_places) @ moves + Cart.EFFORT * np.diag(weights)
    best = np.linalg.solve(system, -moves.T @ weights_of_places * place)
    assert np.abs(best).max() < 1.0  # no bound is in the way

    config = SearchConfig(planner=planner, horizon=horizon, num_samples=300, num_iterations=20)
    plan = found_in(
        model,
        config,
        start_of(model, place),
        discount=discount,
        values=lambda z, h: -bootstrap * z[:, 0].square(),
    )
    np.testing.assert_allclose(plan[0, :, 0], best, atol=0.06)


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("name", SECRETS)
def test_the_one_sequence_that_pays(planner: str, name: str):
    model, opens = lock(*SECRETS[name])
    config = SearchConfig(planner=planner, horizon=len(opens), num_samples=1000, num_iterations=3)
    plan = found_in(model, config, start_of(model))
    assert torch.equal(plan[0], opens)


@pytest.mark.parametrize("planner", PLANNERS)
def test_a_trap_is_worth_what_it_pays_and_nothing_after(planner: str):
    model = world_model(mdn_rnn_class=Trap)
    config = SearchConfig(planner=planner, horizon=4, num_samples=64, num_iterations=4)
    going_on, ending = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    with_value = found_in(model, config, start_of(model), values=lambda z, h: torch.full((len(z),), 50.0))
    assert torch.equal(with_value[0], going_on.expand(4, 2))  # 4 + 50
    without = found_in(model, config, start_of(model))
    assert torch.equal(without[0], torch.stack([going_on] * 3 + [ending]))  # 3 + 10


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("space", [gym.spaces.Discrete(5), gym.spaces.MultiDiscrete([3, 4]), BOX], ids=str)
def test_horizon_of_one(planner: str, space: gym.Space[Any]):
    class Prefers(Known):
        def move(self, z: Tensor, action: Tensor) -> Tensor:
            return z

        def outcome(self, z: Tensor, action: Tensor, next_z: Tensor) -> Outcome:
            reward = action @ torch.linspace(-1.0, 1.0, action.shape[1]) if action.shape[1] > 1 else -action[:, 0]
            return Outcome(reward, torch.full((len(z),), -1e3))

    model = world_model(space, mdn_rnn_class=Prefers)
    config = SearchConfig(planner=planner, horizon=1, num_samples=100, num_iterations=5)
    action = model.codec.decode(found_in(model, config, start_of(model)))[0, 0]
    best = {"Discrete": [4], "MultiDiscrete": [2, 3], "Box": [-1.0]}[type(space).__name__]
    np.testing.assert_allclose(np.atleast_1d(action), best, atol=0.02)


# --- what a plan is expected to bring --------------------------------------------------------------------------------


def test_each_step_counts_with_the_probability_that_it_is_reached():
    class Risky(Known):
        """Each step brings 1 and ends the episode with a probability of a quarter, which brings 3."""

        def move(self, z: Tensor, action: Tensor) -> Tensor:
            return z

        def outcome(self, z: Tensor, action: Tensor, next_z: Tensor) -> Outcome:
            return Outcome(torch.ones(len(z)), torch.full((len(z),), -math.log(3.0)), torch.full((len(z),), 3.0))

    model = world_model(mdn_rnn_class=Risky)
    plans = torch.zeros(2, 3, 3, 2)
    plans[..., 0] = 1.0
    lookahead = lookahead_in(model, lambda z, h: 7.0 * h[:, 0], discount=0.9)  # h counts the steps
    forecast = lookahead(*start_of(model, rows=2), plans, generator())
    step = 0.75 * 1 + 0.25 * 3
    expected = step * (1 + 0.9 * 0.75 + 0.9**2 * 0.75**2) + 0.9**3 * 0.75**3 * 7 * 3
    torch.testing.assert_close(forecast.returns, torch.full((2, 3), expected))
    torch.testing.assert_close(forecast.survival, torch.tensor([0.75, 0.75**2, 0.75**3]).expand(2, 3, 3))
    torch.testing.assert_close(forecast.rewards, step * torch.tensor([1.0, 0.75, 0.75**2]).expand(2, 3, 3))


def test_nothing_is_expected_after_the_horizon_without_a_value():
    model = world_model(mdn_rnn_class=Trap)
    plans = torch.tensor([[[1.0, 0.0]] * 3, [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])[None]
    returns = lookahead_in(model)(*start_of(model), plans, generator()).returns
    torch.testing.assert_close(returns, torch.tensor([[3.0, 1.0 + 10.0]]))


def test_particles_are_independent_runs_and_shared_by_all_plans():
    model = world_model(mdn_rnn_class=Drunk)
    plans = torch.rand(2, 3, 4, 2)

    def forecast(num_particles: int, temperature: float = 1.0) -> Forecast:
        lookahead = lookahead_in(model, num_particles=num_particles, temperature=temperature)
        return lookahead(*start_of(model, rows=2), plans, generator())

    many = forecast(20_000)
    assert many.rewards.std() < 0.1 < forecast(1).rewards.std()
    torch.testing.assert_close(many.rewards, torch.full((2, 3, 4), 5.0), atol=0.04, rtol=0.0)  # 5 standard errors
    torch.testing.assert_close(forecast(1).rewards, forecast(1).rewards[:1, :1].expand(2, 3, 4))
    torch.testing.assert_close(forecast(1, temperature=0.0).rewards, torch.full((2, 3, 4), 5.0))


@pytest.mark.parametrize("space", [gym.spaces.Discrete(3), gym.spaces.MultiDiscrete([2, 3]), BOX], ids=str)
@pytest.mark.parametrize("mixture", ["joint", "per_dimension"])
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_the_fast_forecast_is_the_plain_one(space: gym.Space[Any], mixture: str, temperature: float):
    torch.manual_seed(1)
    stock = world_model(space, mdn={"mixture": mixture, "log_sigma_range": (-2.0, 1.0)})
    plain = world_model(space, mdn={"mixture": mixture, "log_sigma_range": (-2.0, 1.0)}, mdn_rnn_class=SameAsStock)
    plain.load_state_dict(stock.state_dict())
    rows, horizon = 2, 6
    first = first_distribution(stock.codec, rows, horizon, torch.device("cpu"))
    plans = first.sample(5, generator())
    start = torch.randn(rows, LATENT_DIM), (torch.randn(rows, HIDDEN_DIM), torch.randn(rows, HIDDEN_DIM))

    def forecast(model: WorldModel, seed: int = 3) -> Forecast:
        lookahead = lookahead_in(model, lambda z, h: z.sum(-1) + h.sum(-1), num_particles=4, temperature=temperature)
        return lookahead(*start, plans, generator(seed))

    fast, slow = forecast(stock), forecast(plain)
    for name in ("returns", "rewards", "survival"):
        torch.testing.assert_close(getattr(fast, name), getattr(slow, name), atol=1e-4, rtol=1e-4)
    assert torch.equal(fast.returns, forecast(stock, seed=4).returns) == (temperature == 0.0)


# --- weights, warm starts, seeds -------------------------------------------------------------------------------------


def test_mppi_weights_are_the_softmax_of_returns_in_their_own_spread():
    returns = np.array([[3.0, -1.0, 0.5, 2.0], [1e4, 1e4 + 1, 1e4 - 1, 1e4]])
    temperature = 0.7
    scores = np.exp((returns - returns.mean(1, keepdims=True)) / (temperature * returns.std(1, keepdims=True)))
    weights = softmax_weights(torch.as_tensor(returns), temperature)
    np.testing.assert_allclose(weights, scores / scores.sum(1, keepdims=True), rtol=1e-9)
    assert torch.equal(softmax_weights(torch.full((1, 4), 6.0), temperature), torch.full((1, 4), 0.25))


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("space", [gym.spaces.Discrete(3), gym.spaces.MultiDiscrete([2, 3]), BOX], ids=str)
def test_one_candidate_and_a_previous_plan_is_the_shifted_plan(planner: str, space: gym.Space[Any]):
    model = world_model(space)
    config = SearchConfig(planner=planner, horizon=4, num_samples=1, num_iterations=2)
    first = first_distribution(model.codec, 2, 4, torch.device("cpu"))
    before = first.sample(1, generator(5))[:, 0]
    later = shifted(before, first)
    assert torch.equal(later[:, :3], before[:, 1:])
    plan = found_in(model, config, start_of(model, rows=2), previous=later)
    torch.testing.assert_close(plan, later)


def test_a_previous_plan_is_found_again_where_samples_alone_would_not_find_it():
    model, opens = lock(*SECRETS["Discrete(2)"])
    done = 2
    start = start_of(model, place=float(done))  # two of the six are done
    rest = torch.cat([opens[done:], torch.tensor([[1.0, 0.0]] * done)])[None]
    few = {"horizon": len(opens), "num_samples": 2, "num_iterations": 1}
    for planner, seed in itertools.product(PLANNERS, range(5)):
        config = SearchConfig(planner=planner, **few)
        warm = found_in(model, config, start, previous=rest, seed=seed)
        assert torch.equal(warm[0, :4], opens[done:]), (planner, seed)
    cold = [found_in(model, SearchConfig(planner="random", **few), start, seed=seed) for seed in range(5)]
    assert not all(torch.equal(plan[0, :4], opens[done:]) for plan in cold)


@pytest.mark.parametrize("planner", PLANNERS)
def test_one_sample_is_the_plan(planner: str):
    model = world_model(gym.spaces.Discrete(3))
    config = SearchConfig(planner=planner, horizon=5, num_samples=1, num_iterations=1)
    first = first_distribution(model.codec, 1, 5, torch.device("cpu"))
    assert torch.equal(found_in(model, config, start_of(model)), first.sample(1, generator())[:, 0])


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("space", [gym.spaces.Discrete(3), BOX], ids=str)
def test_a_seed_makes_the_plan_and_leaves_torch_alone(planner: str, space: gym.Space[Any]):
    model = world_model(space)
    config = SearchConfig(planner=planner, horizon=6, num_samples=8, num_iterations=2)
    before = torch.get_rng_state()
    one, again, other = (found_in(model, config, start_of(model), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("planner", PLANNERS)
def test_a_row_gets_the_plan_that_it_would_get_alone(planner: str):
    model = world_model(BOX, mdn_rnn_class=Cart)
    config = SearchConfig(planner=planner, horizon=4, num_samples=16, num_iterations=3)
    places = [-1.0, 0.2, 2.0]
    z, state = start_of(model, rows=3)
    z[:, 0] = torch.tensor(places)
    together = found_in(model, config, (z, state))
    for row, place in enumerate(places):
        torch.testing.assert_close(together[row : row + 1], found_in(model, config, start_of(model, place)))


def test_box_actions_stay_within_their_bounds_and_are_not_clipped_where_there_are_none():
    space = gym.spaces.Box(np.array([-2.0, -np.inf], np.float32), np.array([6.0, np.inf], np.float32))
    model = world_model(space)
    first = first_distribution(model.codec, 1, 3, torch.device("cpu"))
    plans = model.codec.decode(first.sample(2000, generator()))
    assert plans[..., 0].min() == -2.0 and plans[..., 0].max() == 6.0
    assert plans[..., 1].abs().max() > 2.5
    torch.testing.assert_close(model.codec.encode(plans), first.sample(2000, generator()))
