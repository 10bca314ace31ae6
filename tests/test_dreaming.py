"""Dreams: what every imagined row is made of, where lanes start again, and how rows are shared out."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.utils.numpy import convert_to_numpy
from tiny import tiny_config
from tiny_models import HIDDEN_DIM, LATENT_DIM, world_model
from torch import Tensor
from torch.distributions import Categorical, Normal

from wm_rllib.actors.parameter_server import ParameterServer, make_record
from wm_rllib.columns import MASK
from wm_rllib.dreamers.dreamer import (
    Dreamer,
    DreamerSpec,
    DreamRequest,
    NoWeights,
    num_lanes,
    shard_lanes,
    to_arrays,
)
from wm_rllib.env_runners.env_runner import WorldModelEnvRunner
from wm_rllib.models.dreaming import Dream, dream
from wm_rllib.models.mdn_rnn import MDNRNN, State
from wm_rllib.models.mixture import MixtureParams
from wm_rllib.models.outcome import Outcome
from wm_rllib.rl_modules.policy_network import make_policy

FIRST_BIRTH = 1000.0


class Clockwork(MDNRNN):
    """z = (where the lane was born, age, -); h is the age as well. Lives last as long as the birthplace says."""

    def step(self, z: Tensor, action: Tensor, state: State) -> State:
        return state[0] + 1.0, state[1] - 1.0

    def predict(self, next_h: Tensor, z: Tensor, action: Tensor) -> MixtureParams:
        mean = (z + torch.tensor([0.0, 1.0, 0.0])).unsqueeze(-2).expand(-1, self.config.num_mixtures, -1)
        log_pi = torch.zeros(mean.shape[:-1]).log_softmax(-1)
        return MixtureParams(log_pi, mean, torch.full_like(mean, -20.0))

    def outcome(self, z: Tensor, action: Tensor, next_z: Tensor) -> Outcome:
        dies = next_z[:, 1] >= next_z[:, 0] - FIRST_BIRTH
        return Outcome(next_z[:, 0] + 0.01 * z[:, 1], torch.where(dies, 1e3, -1e3))


EDGE = 1.0


class Cliff(MDNRNN):
    """Whoever steps beyond the edge dies, and is rewarded by where that step led."""

    def outcome(self, z: Tensor, action: Tensor, next_z: Tensor) -> Outcome:
        return Outcome(next_z[..., 0], torch.where(next_z[..., 0] > EDGE, 1e3, -1e3))


def counting_policy(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Actions, log-probabilities and inputs that tell which features they were chosen on."""
    return features[:, 1].long() % 2, -features[:, 1], torch.stack([features[:, 0], features[:, 1]], dim=-1)


def clockwork_dream(lifetimes: list[int], horizon: int) -> Dream:
    """One lane for each lifetime, each born at age 0."""
    model = world_model(mdn_rnn_class=Clockwork)
    start = torch.zeros(len(lifetimes), LATENT_DIM)
    start[:, 0] = FIRST_BIRTH + torch.tensor(lifetimes)
    h = torch.zeros(len(lifetimes), HIDDEN_DIM)
    return dream(model, counting_policy, start, (h, h.clone()), horizon, temperature=1.0)


@pytest.mark.parametrize(
    "space", [gym.spaces.Discrete(2), gym.spaces.MultiDiscrete([2, 3]), gym.spaces.Box(-1.0, 1.0, (2,))]
)
@pytest.mark.parametrize("mixture", ["joint", "per_dimension"])
@pytest.mark.parametrize(("lanes", "horizon"), [(1, 1), (1, 5), (4, 1), (4, 5)])
def test_shapes(lanes: int, horizon: int, mixture: str, space: Any):
    model = world_model(space, mdn={"mixture": mixture})
    action = torch.as_tensor(space.sample()).expand(lanes, *space.shape)

    def policy(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return action, torch.zeros(lanes), torch.zeros(lanes, 7)

    result = dream(model, policy, torch.randn(lanes, LATENT_DIM), model.mdn_rnn.initial_state(lanes), horizon, 1.0)
    assert result.features.shape == (lanes, horizon, LATENT_DIM + HIDDEN_DIM)
    assert result.actions.shape == (lanes, horizon, *space.shape)
    assert result.action_dist_inputs.shape == (lanes, horizon, 7)
    assert result.action_logp.shape == result.rewards.shape == result.terminateds.shape == (lanes, horizon)
    assert result.bootstrap_features.shape == (lanes, LATENT_DIM + HIDDEN_DIM)
    assert result.terminateds.dtype == torch.bool


def test_rows_equal_the_world_models_own_steps():
    model = world_model()
    start, state = torch.randn(3, LATENT_DIM), (torch.randn(3, HIDDEN_DIM), torch.randn(3, HIDDEN_DIM))
    with torch.no_grad():
        model.mdn_rnn.outcome_head[-1].bias[-1] = -1e4  # nobody dies
    result = dream(model, counting_policy, start, state, 6, temperature=1.0)
    z = torch.cat([result.features[..., :LATENT_DIM], result.bootstrap_features[:, None, :LATENT_DIM]], dim=1)
    h = torch.cat([result.features[..., LATENT_DIM:], result.bootstrap_features[:, None, LATENT_DIM:]], dim=1)
    assert torch.equal(z[:, 0], start)
    assert torch.equal(h[:, 0], state[0])
    encoded = torch.nn.functional.one_hot(result.actions, 2).float()
    torch.testing.assert_close(h[:, 1:], model.mdn_rnn.unroll(z[:, :-1], encoded, state)[0])
    outcome = model.mdn_rnn.outcome(z[:, :-1], encoded, z[:, 1:])
    torch.testing.assert_close(result.rewards, outcome.reward)
    assert not result.terminateds.any()


@pytest.mark.parametrize("horizon", [1, 12])
def test_reward_and_termination_belong_to_the_latent_that_was_sampled(horizon: int):
    model = world_model(mdn_rnn_class=Cliff)
    start = torch.zeros(200, LATENT_DIM)  # inside the edge, wherever a lane starts again
    result = dream(model, counting_policy, start, model.mdn_rnn.initial_state(200), horizon, temperature=1.0)
    z = torch.cat([result.features, result.bootstrap_features[:, None]], dim=1)[..., :LATENT_DIM]
    encoded = torch.nn.functional.one_hot(result.actions, 2).float()
    outcome = model.mdn_rnn.outcome(z[:, :-1], encoded, z[:, 1:])
    restarted = result.terminateds.clone()
    restarted[:, -1] = False  # a lane's last step shows where it led, even if that was its end
    assert 0 < result.terminateds[:, -1].sum() < 200
    assert torch.equal(result.rewards[~restarted], outcome.reward[~restarted])
    assert torch.equal(result.terminateds[~restarted], outcome.termination_logit[~restarted] > 0)
    assert torch.equal(result.terminateds, result.rewards > EDGE)  # also where a restart hides the latent
    assert horizon == 1 or restarted.any()
    assert not z[:, 1:][restarted].any()


def test_h_has_no_say_in_reward_and_termination():
    model = world_model()
    with torch.no_grad():
        for parameter in model.mdn_rnn.mixture_head[-1].parameters():
            parameter.zero_()  # nor in the latent
    start, results = torch.randn(100, LATENT_DIM), []
    for scale in (0.0, 5.0):
        state = (scale * torch.ones(100, HIDDEN_DIM), scale * torch.ones(100, HIDDEN_DIM))
        torch.manual_seed(1)
        results.append(dream(model, counting_policy, start, state, 4, temperature=1.0))
    one, other = results
    assert not torch.allclose(one.features[..., LATENT_DIM:], other.features[..., LATENT_DIM:])
    assert one.terminateds.any()
    assert not one.terminateds.all()
    assert torch.equal(one.features[..., :LATENT_DIM], other.features[..., :LATENT_DIM])
    assert torch.equal(one.rewards, other.rewards)
    assert torch.equal(one.terminateds, other.terminateds)


def test_policy_outputs_belong_to_the_features_they_stand_beside():
    result = clockwork_dream([3, 5, 99], horizon=8)
    age = result.features[..., 1]
    assert torch.equal(result.actions, age.long() % 2)
    assert torch.equal(result.action_logp, -age)
    assert torch.equal(result.action_dist_inputs, result.features[..., :2])


def test_a_lane_that_terminates_starts_again_from_a_start_state():
    lifetimes = [1, 3, 5, 99]
    result = clockwork_dream(lifetimes, horizon=12)
    for lane, lifetime in enumerate(lifetimes):
        birth, age = FIRST_BIRTH + lifetime, 0
        for t in range(12):
            z0, z1, h0 = (
                result.features[lane, t, 0].item(),
                result.features[lane, t, 1].item(),
                result.features[lane, t, LATENT_DIM],
            )
            assert (round(z0), round(z1), h0.item()) == (birth, age, age)
            dies = age + 1 >= birth - FIRST_BIRTH
            assert bool(result.terminateds[lane, t]) is dies
            assert result.rewards[lane, t].item() == pytest.approx(birth + 0.01 * age, rel=1e-6)
            age += 1
            if dies and t < 11:
                birth, age = round(result.features[lane, t + 1, 0].item()), 0
                assert birth - FIRST_BIRTH in lifetimes
    assert result.terminateds[3].sum() == 0


def test_restarts_are_spread_over_all_starts():
    result = clockwork_dream([1] * 50, horizon=100)
    assert result.terminateds.all()
    model = world_model(mdn_rnn_class=Clockwork)
    start = torch.zeros(5, LATENT_DIM)
    start[:, 0] = FIRST_BIRTH + 1
    start[:, 2] = torch.arange(5)
    h = torch.arange(5.0)[:, None].expand(5, HIDDEN_DIM) * 7
    spread = dream(model, counting_policy, start, (h, h.clone()), 2000, temperature=1.0)
    born, counts = spread.features[:, 1:, 2].round().unique(return_counts=True)
    assert born.tolist() == [0, 1, 2, 3, 4]
    assert torch.all((counts / 2000.0 - 1999 / 2000).abs() < 0.15)
    # z and h come from the same start.
    torch.testing.assert_close(spread.features[:, 1:, LATENT_DIM], 7 * spread.features[:, 1:, 2].round())


def test_the_horizon_is_no_termination_and_is_bootstrapped_from_the_step_after():
    result = clockwork_dream([99, 99], horizon=4)
    assert not result.terminateds.any()
    assert result.bootstrap_features[:, 1].round().tolist() == [4.0, 4.0]
    assert result.bootstrap_features[:, LATENT_DIM].tolist() == [4.0, 4.0]


def test_num_segments_counts_trajectories():
    # Lifetimes of 4, 2 and 3 in 4 steps; the termination at the very end starts no further trajectory.
    terminateds = torch.tensor([[0, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0]]).bool()
    result = dataclasses.replace(clockwork_dream([9, 9, 9], horizon=4), terminateds=terminateds)
    assert result.num_segments == 4
    assert clockwork_dream([1] * 3, horizon=4).num_segments == 12


@pytest.mark.parametrize("mixture", ["joint", "per_dimension"])
@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
def test_temperature_reaches_the_draw_of_the_latent(temperature: float, mixture: str):
    model = world_model(mdn={"mixture": mixture, "log_sigma_range": (0.0, 0.0), "residual": False})
    with torch.no_grad():
        for parameter in model.mdn_rnn.mixture_head[-1].parameters():
            parameter.zero_()  # every component is N(0, 1)
    start = torch.zeros(20_000, LATENT_DIM)
    result = dream(model, counting_policy, start, model.mdn_rnn.initial_state(20_000), 1, temperature)
    z = result.bootstrap_features[:, :LATENT_DIM]
    error = 5.0 / np.sqrt(20_000)
    assert torch.all(z.mean(0).abs() < error * np.sqrt(temperature))
    assert torch.all((z.std(0) / np.sqrt(temperature) - 1.0).abs() < error)


@pytest.mark.parametrize("logit", [-2.0, 0.0, 3.0])
def test_termination_is_sampled_from_its_probability(logit: float):
    model = world_model()
    with torch.no_grad():
        for parameter in model.mdn_rnn.outcome_head[-1].parameters():
            parameter.zero_()
        model.mdn_rnn.outcome_head[-1].bias[-1] = logit
    result = dream(model, counting_policy, torch.zeros(1000, LATENT_DIM), model.mdn_rnn.initial_state(1000), 20, 1.0)
    probability = 1.0 / (1.0 + np.exp(-logit))
    assert abs(result.terminateds.float().mean().item() - probability) < 5 * np.sqrt(
        probability * (1 - probability) / 20_000
    )


def test_the_seed_decides_everything():
    model = world_model()
    start, state = torch.randn(4, LATENT_DIM), model.mdn_rnn.initial_state(4)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(vars(dream(model, counting_policy, start, state, 6, 1.0)))
    drawn = [name for name, value in results[0].items() if value is not None]
    assert len(drawn) == 7
    assert all(torch.equal(results[0][name], results[1][name]) for name in drawn)
    assert not torch.equal(results[0]["features"], results[2]["features"])


def numbered_dream(lanes: int, horizon: int) -> Dream:
    """A dream whose every row says which lane and time it is."""
    grid = torch.arange(lanes)[:, None] * 100 + torch.arange(horizon + 1)[None]
    column = grid[:, :horizon]
    return Dream(
        features=column[..., None].float(),
        actions=column,
        action_logp=column.float(),
        action_dist_inputs=column[..., None].float(),
        rewards=column.float(),
        terminateds=column % 7 == 3,
        bootstrap_features=grid[:, horizon:].float(),
    )


@pytest.mark.parametrize("horizon", [1, 5])
@pytest.mark.parametrize("rows", [[10], [1], [7, 8], [5, 0, 11], [0, 4], [3, 3, 3, 3]])
def test_shards_have_exactly_the_rows_ordered(rows: list[int], horizon: int):
    lanes = numbered_dream(num_lanes(rows, horizon), horizon)
    shards = shard_lanes(lanes, rows, horizon)
    assert [sum(block.rewards.numel() for block in shard) for shard in shards] == rows
    seen = [int(row) for shard in shards for block in shard for row in block.rewards.flatten()]
    assert len(set(seen)) == sum(rows)


def test_a_cut_lane_is_bootstrapped_from_the_step_after_its_last_row():
    shards = shard_lanes(numbered_dream(4, 5), [7, 8], 5)
    assert [[block.rewards.tolist() for block in shard] for shard in shards] == [
        [[[0, 1, 2, 3, 4]], [[100, 101]]],
        [[[200, 201, 202, 203, 204]], [[300, 301, 302]]],
    ]
    bootstraps = [[block.bootstrap_features.flatten().tolist() for block in shard] for shard in shards]
    assert bootstraps == [[[5], [102]], [[205], [303]]]


def test_blocks_are_cut_alike_in_every_column():
    for shard in shard_lanes(numbered_dream(3, 5), [4, 6], 5):
        for block in shard:
            assert torch.equal(block.features[..., 0], block.rewards)
            assert torch.equal(block.action_dist_inputs[..., 0], block.rewards)
            assert torch.equal(block.actions.float(), block.rewards)
            assert torch.equal(block.action_logp, block.rewards)
            assert torch.equal(block.terminateds, block.actions % 7 == 3)


def test_arrays_bear_rllibs_names():
    arrays = to_arrays(numbered_dream(2, 3))
    assert arrays[Columns.REWARDS].tolist() == [[0, 1, 2], [100, 101, 102]]
    assert arrays["bootstrap_obs"].tolist() == [[3], [103]]
    assert all(isinstance(value, np.ndarray) for value in arrays.values())


def by_hand(logits: Tensor, actions: Tensor, space: gym.Space[Any]) -> Tensor:
    """Log-probabilities by torch's own distributions; a bounded Box's actions count as clipped to [-1, 1]."""
    if isinstance(space, gym.spaces.Discrete):
        return Categorical(logits=logits).log_prob(actions)
    if isinstance(space, gym.spaces.MultiDiscrete):
        parts = logits.split(tuple(int(n) for n in space.nvec), dim=-1)
        return sum(Categorical(logits=part).log_prob(actions[:, i]) for i, part in enumerate(parts))  # type: ignore[return-value]
    mean, log_std = logits.chunk(2, dim=-1)
    normal = Normal(mean.double(), log_std.double().exp())
    found = normal.log_prob(actions.double())
    if not space.is_bounded():  # type: ignore[attr-defined]
        return found.sum(-1).float()
    one = torch.ones((), dtype=torch.float64)
    found = torch.where(actions <= -1.0, normal.cdf(-one).log(), found)
    return torch.where(actions >= 1.0, (1.0 - normal.cdf(one)).log(), found).sum(-1).float()


class AnyActions(gym.Env[np.ndarray, Any]):
    """An environment that is only asked for its spaces."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)

    def __init__(self, config: dict[str, Any]):
        self.action_space = config["action_space"]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(4, np.float32), {}


@pytest.mark.parametrize(
    "space", [gym.spaces.Discrete(3), gym.spaces.MultiDiscrete([2, 3]), gym.spaces.Box(-2.0, 6.0, (2,))], ids=str
)
def test_log_probabilities_are_those_of_the_distribution(space: gym.Space[Any]):
    config = tiny_config(AnyActions).environment(env_config={"action_space": space})
    module = WorldModelEnvRunner(config=config).module
    with torch.no_grad():
        actions, logp, inputs = make_policy(module)(torch.randn(50, module.observation_space.shape[0]))
    assert actions.shape == (50, *space.shape)
    torch.testing.assert_close(logp, by_hand(inputs, actions, space))


class Bench:
    """A dreamer as a plain object, its server, and starts for it."""

    def __init__(self) -> None:
        config = tiny_config(AnyActions).environment(env_config={"action_space": gym.spaces.Discrete(3)})
        self.runner = WorldModelEnvRunner(config=config)
        spaces = self.runner.get_spaces()
        policy = config.get_rl_module_spec(spaces=spaces, inference_only=True)
        policy.observation_space, policy.action_space = spaces[DEFAULT_MODULE_ID]
        spec = DreamerSpec(self.runner.world_model.config, policy, log_level="warning", num_threads=0, device="cpu")
        self.server = ParameterServer()
        self.dreamer = Dreamer(spec, self.server)
        rng = np.random.default_rng(0)
        self.starts = {
            Columns.OBS: rng.normal(size=(20, 5, 4)).astype(np.float32),
            Columns.ACTIONS: rng.integers(3, size=(20, 4)),
            MASK: np.arange(4)[None] >= rng.integers(5, size=20)[:, None],
        }

    def publish(self, sequence: int) -> None:
        """Puts the runner's weights on the server."""
        weights = convert_to_numpy(self.runner.world_model.state_dict())
        policy = convert_to_numpy(self.runner.module.get_state())
        self.server.push(make_record(sequence, (ray.put(weights), 10 + sequence), (ray.put(policy), 20 + sequence)))

    def dream(self, rows: list[int], *, seed: int = 0, first_start: int = 0, horizon: int = 5) -> Any:
        """One order."""
        return self.dreamer.dream(DreamRequest(rows, horizon, 1.0, None, 0.0, 0.0, self.starts, first_start, seed))


@pytest.fixture
def bench(no_ray: None) -> Bench:
    """A dreamer with weights."""
    made = Bench()
    made.publish(3)
    return made


@pytest.mark.parametrize("rows", [[10], [7, 8], [0, 4]])
def test_dreamer_delivers_exactly_the_rows_ordered(bench: Bench, rows: list[int]):
    dreamed = bench.dream(rows)
    assert dreamed.rows == rows
    assert [sum(block[Columns.REWARDS].size for block in shard) for shard in ray.get(dreamed.shard_refs)] == rows
    assert (dreamed.sequence, dreamed.world_model_version, dreamed.policy_version) == (3, 13, 23)


def test_dreamer_counts_the_trajectories_in_the_rows_it_delivers(bench: Bench):
    with torch.no_grad():
        bench.runner.world_model.mdn_rnn.outcome_head[-1].bias[-1] = 1e4  # every step is the last
    bench.publish(4)
    assert bench.dream([7, 8]).num_segments == 15


def test_dreamer_starts_where_real_experience_led(bench: Bench):
    (shard,) = ray.get(bench.dream([20], first_start=6).shard_refs)
    arrays = [torch.as_tensor(bench.starts[name][6:10]) for name in (Columns.OBS, Columns.ACTIONS, MASK)]
    world_model = bench.runner.world_model
    with torch.no_grad():
        z, (h, _) = world_model.burn_in(*arrays)
    np.testing.assert_allclose(shard[0][Columns.OBS][:, 0], world_model.features(z, h).numpy(), rtol=1e-5, atol=1e-6)


def test_dreamer_acts_with_the_published_policy(bench: Bench):
    (shard,) = ray.get(bench.dream([20]).shard_refs)
    with torch.no_grad():
        batch = {Columns.OBS: torch.as_tensor(shard[0][Columns.OBS])}
        expected = bench.runner.module.forward_exploration(batch)[Columns.ACTION_DIST_INPUTS]
    np.testing.assert_allclose(shard[0][Columns.ACTION_DIST_INPUTS], expected.numpy(), rtol=1e-5, atol=1e-6)


def test_dreamer_repeats_itself_for_a_seed(bench: Bench):
    (one,), (again,), (other,) = (ray.get(bench.dream([20], seed=seed).shard_refs) for seed in (1, 1, 2))
    assert all(np.array_equal(one[0][name], again[0][name]) for name in one[0])
    assert not np.array_equal(one[0][Columns.OBS], other[0][Columns.OBS])


def test_dreamer_without_weights_says_so_and_lives_on(no_ray: None):
    bench = Bench()
    assert isinstance(bench.dream([5]), NoWeights)
    bench.publish(0)
    assert bench.dream([5]).rows == [5]
