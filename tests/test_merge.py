"""The learner's exact merge, against RLlib's own learner on the same steps."""

from __future__ import annotations

import copy
import logging
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from tiny import tiny_config

from wm_rllib import WorldModelPPOConfig
from wm_rllib.columns import MASK, WORLD_MODEL_MODULE_ID
from wm_rllib.learners.dreamed_rows import COLUMNS
from wm_rllib.learners.learner import WorldModelPPOLearner
from wm_rllib.replay.fresh import Fresh
from wm_rllib.replay.service import as_fit_batch
from wm_rllib.seeding import seed_process

pytestmark = pytest.mark.usefixtures("no_ray")

FEATURES = 11  # of the tiny config: 3 of z and 8 of h
REAL, IMAGINED = 1.0, -1.0
OBSERVATIONS = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
SPACES = {
    "discrete": gym.spaces.Discrete(2),
    "box": gym.spaces.Box(-1.0, 1.0, (2,)),
    "multi": gym.spaces.MultiDiscrete([2, 3]),
}
LENGTHS = ((7, "terminated"), (4, "truncated"), (1, "terminated"), (9, ""), (11, "terminated"))
NUM_REAL = sum(length for length, _ in LENGTHS)
Block = dict[str, np.ndarray]


def config_of(space: str = "discrete", **overrides: Any) -> WorldModelPPOConfig:
    """A tiny config with several epochs and minibatches, and all terms of PPO's loss."""
    settings = {"num_epochs": 3, "minibatch_size": 10, "use_kl_loss": True, "kl_coeff": 0.3, "grad_clip": 0.5}
    return tiny_config(None, **{**settings, **overrides}).environment(
        observation_space=OBSERVATIONS, action_space=SPACES[space]
    )


def specs(config: WorldModelPPOConfig) -> MultiRLModuleSpec:
    """The modules of a learner, for features as the tiny config has them."""
    features = gym.spaces.Box(-np.inf, np.inf, (FEATURES,), np.float32)
    spaces = {
        INPUT_ENV_SINGLE_SPACES: (config.observation_space or OBSERVATIONS, config.action_space),
        DEFAULT_MODULE_ID: (features, config.action_space),
    }
    return config.get_multi_rl_module_spec(spaces=spaces)


def make_learner(config: WorldModelPPOConfig, seed: int = 0) -> WorldModelPPOLearner:
    """This project's learner."""
    torch.manual_seed(seed)
    learner = WorldModelPPOLearner(config=config, module_spec=specs(config))
    learner.build()
    return learner


def make_stock(config: WorldModelPPOConfig, like: WorldModelPPOLearner) -> PPOTorchLearner:
    """RLlib's learner, with the policy module alone and the weights of `like`."""
    spec = specs(config)
    spec.rl_module_specs = {DEFAULT_MODULE_ID: spec.rl_module_specs[DEFAULT_MODULE_ID]}
    learner = PPOTorchLearner(config=config, module_spec=spec)
    learner.build()
    learner.module[DEFAULT_MODULE_ID].set_state(copy.deepcopy(like.module[DEFAULT_MODULE_ID].get_state()))
    return learner


def dist_inputs(space: gym.Space[Any], rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random inputs of the policy's distribution."""
    width = 2 if isinstance(space, gym.spaces.Discrete) else 5 if isinstance(space, gym.spaces.MultiDiscrete) else 4
    return rng.normal(size=(*shape, width)).astype(np.float32)


def features_of(rng: np.random.Generator, source: float, first: int, count: int) -> np.ndarray:
    """Features whose last two say which row they are, and of which source."""
    features = rng.normal(size=(count, FEATURES)).astype(np.float32)
    features[:, -2] = (first + np.arange(count)) / 64.0  # exact in float32
    features[:, -1] = source
    return features


def episode_of(columns: Block, end: str, last: np.ndarray) -> SingleAgentEpisode:
    """Rows as an RLlib episode; `last` is its last observation."""
    count = len(columns[Columns.REWARDS])
    return SingleAgentEpisode(
        observations=[*columns[Columns.OBS], last],
        actions=list(columns[Columns.ACTIONS]),
        rewards=columns[Columns.REWARDS].tolist(),
        infos=[{}] * (count + 1),
        terminated=end == "terminated",
        truncated=end == "truncated",
        extra_model_outputs={name: list(columns[name]) for name in (Columns.ACTION_DIST_INPUTS, Columns.ACTION_LOGP)},
        observation_space=gym.spaces.Box(-np.inf, np.inf, (FEATURES,), np.float32),
        len_lookback_buffer=0,
    ).to_numpy()


def rows_of(space: gym.Space[Any], rng: np.random.Generator, source: float, first: int, count: int) -> Block:
    """Random rows, with everything that PPO reads of them."""
    space.seed(int(rng.integers(1000)))
    return {
        Columns.OBS: features_of(rng, source, first, count),
        Columns.ACTIONS: np.array([space.sample() for _ in range(count)]),
        Columns.REWARDS: rng.normal(size=count).astype(np.float32),
        Columns.ACTION_DIST_INPUTS: dist_inputs(space, rng, count),
        Columns.ACTION_LOGP: -rng.random(count).astype(np.float32) - 0.2,
    }


def real_episodes(space: gym.Space[Any], seed: int = 0) -> list[SingleAgentEpisode]:
    """Terminated, truncated and cut episodes."""
    rng, first, episodes = np.random.default_rng(seed), 0, []
    for length, end in LENGTHS:
        rows = rows_of(space, rng, REAL, first, length)
        episodes.append(episode_of(rows, end, features_of(rng, REAL, 4000, 1)[0]))
        first += length
    return episodes


def imagined_block(space: gym.Space[Any], lanes: int, horizon: int, *, first: int = 0, seed: int = 1) -> Block:
    """A dream as dreamers deliver it, with terminations inside its lanes."""
    rng = np.random.default_rng(seed)
    flat = rows_of(space, rng, IMAGINED, first, lanes * horizon)
    block = {name: column.reshape(lanes, horizon, *column.shape[1:]) for name, column in flat.items()}
    block[Columns.TERMINATEDS] = rng.random((lanes, horizon)) < 0.2
    block["bootstrap_obs"] = features_of(rng, IMAGINED, 5000, lanes)
    return block


def as_episodes(block: Block) -> list[SingleAgentEpisode]:
    """The same dream as RLlib episodes, one for each stretch between terminations."""
    episodes = []
    for lane in range(len(block[Columns.REWARDS])):
        columns = {name: column[lane] for name, column in block.items()}
        start, horizon = 0, len(columns[Columns.REWARDS])
        for stop in [*(np.flatnonzero(columns[Columns.TERMINATEDS]) + 1), horizon]:
            if stop > start:
                part = {name: columns[name][start:stop] for name in columns if name != "bootstrap_obs"}
                over = bool(columns[Columns.TERMINATEDS][stop - 1])
                episodes.append(episode_of(part, "terminated" if over else "truncated", columns["bootstrap_obs"]))
            start = stop
    return episodes


def merged_batch(
    learner: WorldModelPPOLearner, monkeypatch: pytest.MonkeyPatch, **kwargs: Any
) -> dict[str, np.ndarray]:
    """The batch that an update of the learner trains on."""
    caught, original = [], learner._merged

    def catch(training_data: TrainingData) -> Any:
        caught.append(original(training_data))
        return caught[-1]

    with monkeypatch.context() as patch:
        patch.setattr(learner, "_merged", catch)
        learner.update(timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 1}, **kwargs)
    ((module_id, columns),) = caught
    assert module_id == DEFAULT_MODULE_ID
    assert set(columns) == set(COLUMNS)
    assert len({len(column) for column in columns.values()}) == 1
    return {name: column.numpy() for name, column in columns.items()}


def rllib_batch(stock: PPOTorchLearner, episodes: list[SingleAgentEpisode]) -> dict[str, np.ndarray]:
    """RLlib's own batch of episodes, valid rows only, in the order of their numbers."""
    data = TrainingData(episodes=copy.deepcopy(episodes))
    batch = stock._make_batch_if_necessary(data).policy_batches[DEFAULT_MODULE_ID]
    mask = batch[Columns.LOSS_MASK].numpy()
    return in_order({name: batch[name].numpy()[mask] for name in COLUMNS})


def in_order(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rows sorted by their numbers."""
    order = np.argsort(rows[Columns.OBS][:, -2], kind="stable")
    return {name: column[order] for name, column in rows.items()}


def of_source(rows: dict[str, np.ndarray], source: float) -> dict[str, np.ndarray]:
    """The rows of one source, in order."""
    which = rows[Columns.OBS][:, -1] == source
    return in_order({name: column[which] for name, column in rows.items()})


def policy_state(learner: Any) -> dict[str, np.ndarray]:
    """A copy of C's weights."""
    return copy.deepcopy(learner.module[DEFAULT_MODULE_ID].get_state())


def update_both(config: WorldModelPPOConfig, **settings: Any) -> tuple[Any, Any]:
    """Runs the same three updates in this project's learner and in RLlib's."""
    learner = make_learner(config)
    stock = make_stock(config, learner)
    for round_index in range(3):
        episodes = real_episodes(config.action_space, seed=round_index)
        timesteps = {NUM_ENV_STEPS_SAMPLED_LIFETIME: 100 * round_index}
        learner.update(episodes=copy.deepcopy(episodes), stage_seed=5, timesteps=timesteps, **settings)
        seed_process(5)
        stock.update(episodes=copy.deepcopy(episodes), timesteps=timesteps, **settings)
    return learner, stock


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    "settings",
    [
        {"num_epochs": 3, "minibatch_size": 10, "shuffle_batch_per_epoch": True},
        {"num_epochs": 2, "minibatch_size": 64, "shuffle_batch_per_epoch": True},
        {"num_epochs": 1, "minibatch_size": None},
    ],
    ids=["minibatches", "large minibatch", "whole batch"],
)
def test_ratio_zero_equals_rllibs_ppo_bit_for_bit(space: str, settings: dict[str, Any]):
    learner, stock = update_both(
        config_of(space, imagination_ratio=0.0, entropy_coeff=[[0, 0.1], [1000, 0.0]]), **settings
    )
    before = make_learner(config_of(space)).module[DEFAULT_MODULE_ID].get_state()
    ours, theirs = policy_state(learner), policy_state(stock)
    assert set(ours) == set(theirs)
    for name in ours:
        assert np.array_equal(ours[name], theirs[name]), name
    assert any(not np.array_equal(ours[name], np.asarray(before[name])) for name in ours)
    assert float(learner.curr_kl_coeffs_per_module[DEFAULT_MODULE_ID]) == float(
        stock.curr_kl_coeffs_per_module[DEFAULT_MODULE_ID]
    )


def test_an_update_leaves_the_world_model_untouched():
    learner = make_learner(config_of())
    before = copy.deepcopy(learner.world_model.state_dict())
    block = imagined_block(SPACES["discrete"], 6, 5)
    learner.update(episodes=real_episodes(SPACES["discrete"]), imagined=[[[block]]], num_epochs=2, minibatch_size=10)
    assert all(torch.equal(value, before[name]) for name, value in learner.world_model.state_dict().items())


@pytest.mark.parametrize("space", SPACES)
def test_merged_batch_holds_every_row_once_and_no_other(space: str, monkeypatch: pytest.MonkeyPatch):
    learner, blocks = (
        make_learner(config_of(space)),
        [imagined_block(SPACES[space], 6, 5), imagined_block(SPACES[space], 1, 3, first=30)],
    )
    rows = merged_batch(learner, monkeypatch, episodes=real_episodes(SPACES[space]), imagined=[[blocks]])
    assert len(rows[Columns.OBS]) == NUM_REAL + 33
    for source, count in ((REAL, NUM_REAL), (IMAGINED, 33)):
        numbers = of_source(rows, source)[Columns.OBS][:, -2] * 64
        assert numbers.tolist() == list(range(count))


@pytest.mark.parametrize("space", SPACES)
def test_real_rows_equal_rllibs(space: str, monkeypatch: pytest.MonkeyPatch):
    learner, episodes = make_learner(config_of(space)), real_episodes(SPACES[space])
    expected = rllib_batch(make_stock(config_of(space), learner), episodes)
    rows = merged_batch(learner, monkeypatch, episodes=episodes, imagined=[[[imagined_block(SPACES[space], 4, 5)]]])
    real = of_source(rows, REAL)
    for name in COLUMNS:
        if name != Postprocessing.ADVANTAGES:
            np.testing.assert_array_equal(real[name], expected[name], err_msg=name)
    # RLlib standardised over its masked rows as well: the same up to a shift and a positive factor.
    slope, shift = np.polyfit(expected[Postprocessing.ADVANTAGES], real[Postprocessing.ADVANTAGES], 1)
    fitted = slope * expected[Postprocessing.ADVANTAGES] + shift
    np.testing.assert_allclose(real[Postprocessing.ADVANTAGES], fitted, atol=1e-5)
    assert slope > 0


@pytest.mark.parametrize("space", SPACES)
def test_imagined_rows_equal_rllibs_gae_of_the_same_episodes(space: str, monkeypatch: pytest.MonkeyPatch):
    learner = make_learner(config_of(space))
    blocks = [imagined_block(SPACES[space], 6, 5), imagined_block(SPACES[space], 1, 3, first=30, seed=2)]
    stock = make_stock(config_of(space), learner)
    expected = rllib_batch(stock, [episode for block in blocks for episode in as_episodes(block)])
    rows = merged_batch(
        learner, monkeypatch, episodes=real_episodes(SPACES[space]), imagined=[[blocks[:1], blocks[1:]]]
    )
    imagined = of_source(rows, IMAGINED)
    for name in COLUMNS:
        if name != Postprocessing.ADVANTAGES:
            np.testing.assert_allclose(imagined[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_advantages_are_standardised_in_each_source(monkeypatch: pytest.MonkeyPatch):
    block = imagined_block(SPACES["discrete"], 6, 5)
    block[Columns.REWARDS] = 100.0 + 50.0 * block[Columns.REWARDS]  # a unit of its own
    rows = merged_batch(
        make_learner(config_of()), monkeypatch, episodes=real_episodes(SPACES["discrete"]), imagined=[[[block]]]
    )
    for source in (REAL, IMAGINED):
        advantages = of_source(rows, source)[Postprocessing.ADVANTAGES]
        assert advantages.mean() == pytest.approx(0.0, abs=1e-5)
        assert advantages.std() == pytest.approx(1.0, abs=1e-5)


def with_greedy(episodes: list[SingleAgentEpisode], which: tuple[int, ...]) -> list[SingleAgentEpisode]:
    """The same episodes, of which some say that they were acted greedily."""
    for index, episode in enumerate(episodes):
        Fresh(len(episode), is_greedy=index in which).attach(episode)
    return episodes


def test_greedy_rows_have_no_advantage_and_are_no_part_of_the_others(monkeypatch: pytest.MonkeyPatch):
    episodes = with_greedy(real_episodes(SPACES["box"]), (1, 3))
    ends = np.cumsum([length for length, _ in LENGTHS])
    is_greedy = np.zeros(NUM_REAL, bool)
    is_greedy[ends[0] : ends[1]] = is_greedy[ends[2] : ends[3]] = True
    block = imagined_block(SPACES["box"], 6, 5)
    real = of_source(
        merged_batch(make_learner(config_of("box")), monkeypatch, episodes=episodes, imagined=[[[block]]]), REAL
    )
    advantages = real[Postprocessing.ADVANTAGES]
    assert (advantages[is_greedy] == 0.0).all()
    assert advantages[~is_greedy].mean() == pytest.approx(0.0, abs=1e-5)
    assert advantages[~is_greedy].std() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("with_dreams", [True, False])
@pytest.mark.parametrize("greedy", [(), (0, 1, 2, 3, 4), (3,)])
def test_the_policy_learns_nothing_from_what_was_done_greedily(greedy: tuple[int, ...], with_dreams: bool):
    """Whatever it was: the critic learns what became of it. Also when a gate has closed since it was asked for."""
    states = []
    for changed in (False, True):
        learner, episodes = make_learner(config_of("box", use_kl_loss=False)), real_episodes(SPACES["box"])
        if changed:
            for name in (Columns.ACTIONS, Columns.ACTION_LOGP):
                data = episodes[3].actions if name == Columns.ACTIONS else episodes[3].extra_model_outputs[name]
                data.data[:] = -0.5 * data.data
        block = imagined_block(SPACES["box"], 6, 5)
        imagined = [[[block]]] if with_dreams else None
        learner.update(episodes=with_greedy(episodes, greedy), imagined=imagined, stage_seed=1, num_epochs=2)
        states.append(policy_state(learner))
    same = all(np.array_equal(states[0][name], states[1][name]) for name in states[0])
    assert same == (3 in greedy)


def test_imagined_advantages_are_targets_minus_the_current_critic(monkeypatch: pytest.MonkeyPatch):
    learner = make_learner(config_of())
    stock = make_stock(config_of(), learner)  # the weights before the update
    block = imagined_block(SPACES["discrete"], 6, 5)
    rows = merged_batch(learner, monkeypatch, episodes=[], imagined=[[[block]]])
    with torch.no_grad():
        values = (
            stock.module[DEFAULT_MODULE_ID].compute_values({Columns.OBS: torch.as_tensor(rows[Columns.OBS])}).numpy()
        )
    raw = rows[Postprocessing.VALUE_TARGETS] - values
    expected = (raw - raw.mean()) / raw.std()
    np.testing.assert_allclose(rows[Postprocessing.ADVANTAGES], expected, rtol=1e-4, atol=1e-5)


def test_rows_of_both_sources_are_mixed(monkeypatch: pytest.MonkeyPatch):
    rows = merged_batch(
        make_learner(config_of()),
        monkeypatch,
        episodes=real_episodes(SPACES["discrete"]),
        imagined=[[[imagined_block(SPACES["discrete"], 6, 5)]]],
    )
    sources = rows[Columns.OBS][:, -1]
    assert 10 < np.count_nonzero(sources[1:] != sources[:-1])  # one if they merely followed each other


@pytest.mark.parametrize("limit", [0, 1, 5, NUM_REAL, NUM_REAL + 10])
def test_real_rows_limits_the_real_part(limit: int, monkeypatch: pytest.MonkeyPatch):
    rows = merged_batch(
        make_learner(config_of()),
        monkeypatch,
        episodes=real_episodes(SPACES["discrete"]),
        imagined=[[[imagined_block(SPACES["discrete"], 2, 5)]]],
        real_rows=[limit],
    )
    real = of_source(rows, REAL)
    assert len(real[Columns.OBS]) == min(limit, NUM_REAL)
    assert len(set(real[Columns.OBS][:, -2])) == len(real[Columns.OBS])
    assert len(of_source(rows, IMAGINED)[Columns.OBS]) == 10
    assert all(np.isfinite(column).all() for column in rows.values())


def test_kept_real_rows_have_the_advantages_they_have_among_all(monkeypatch: pytest.MonkeyPatch):
    def merge(limit: int | None) -> dict[str, np.ndarray]:
        imagined = [[[imagined_block(SPACES["discrete"], 2, 5)]]]
        limits = None if limit is None else [limit]
        episodes = real_episodes(SPACES["discrete"])
        return merged_batch(
            make_learner(config_of()), monkeypatch, episodes=episodes, imagined=imagined, real_rows=limits
        )

    everything, kept = of_source(merge(None), REAL), of_source(merge(6), REAL)
    numbers = np.round(kept[Columns.OBS][:, -2] * 64).astype(int)
    for name in COLUMNS:
        np.testing.assert_array_equal(kept[name], everything[name][numbers], err_msg=name)


def test_limits_do_not_outlive_their_update(monkeypatch: pytest.MonkeyPatch):
    learner, block = make_learner(config_of()), imagined_block(SPACES["discrete"], 2, 5)
    learner.update(episodes=real_episodes(SPACES["discrete"]), imagined=[[[block]]], real_rows=[3])
    rows = merged_batch(learner, monkeypatch, episodes=real_episodes(SPACES["discrete"]), imagined=[[[block]]])
    assert len(rows[Columns.OBS]) == NUM_REAL + 10


@pytest.mark.parametrize("space", SPACES)
def test_ratio_one_learns_from_dreams_alone(space: str, monkeypatch: pytest.MonkeyPatch):
    learner, block = make_learner(config_of(space)), imagined_block(SPACES[space], 6, 5)
    before = policy_state(learner)
    rows = merged_batch(learner, monkeypatch, episodes=[], imagined=[[[block]]], num_epochs=2, minibatch_size=10)
    assert len(rows[Columns.OBS]) == 30
    assert np.all(rows[Columns.OBS][:, -1] == IMAGINED)
    after = policy_state(learner)
    assert all(np.isfinite(value).all() for value in after.values())
    assert any(not np.array_equal(before[name], after[name]) for name in before)


def test_only_the_own_shard_is_merged(monkeypatch: pytest.MonkeyPatch):
    learner = make_learner(config_of())
    learner._learner_index = 1
    shards = [[[imagined_block(SPACES["discrete"], 2, 5)]], [[imagined_block(SPACES["discrete"], 3, 5)]]]
    rows = merged_batch(
        learner, monkeypatch, episodes=real_episodes(SPACES["discrete"]), imagined=shards, real_rows=[1, 4]
    )
    assert len(of_source(rows, IMAGINED)[Columns.OBS]) == 15
    assert len(of_source(rows, REAL)[Columns.OBS]) == 4


def fit_arrays(rows: int = 8, time: int = 6) -> dict[str, np.ndarray]:
    """Random raw sequences."""
    rng = np.random.default_rng(0)
    return {
        Columns.OBS: rng.normal(size=(rows, time + 1, 4)).astype(np.float32),
        Columns.ACTIONS: rng.integers(2, size=(rows, time)),
        Columns.REWARDS: rng.normal(size=(rows, time)).astype(np.float32),
        Columns.TERMINATEDS: rng.random((rows, time)) < 0.1,
        MASK: np.ones((rows, time), bool),
    }


def fit(learner: WorldModelPPOLearner, timestep: int = 500, *, rows: int = 8) -> None:
    """One fit, a gradient step for every four rows."""
    learner.update(
        batch=as_fit_batch(fit_arrays(rows)),
        minibatch_size=4,
        num_epochs=1,
        timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: timestep},
    )


def test_a_fit_moves_the_world_model_and_leaves_the_controller():
    learner = make_learner(config_of())
    policy, world_model = policy_state(learner), copy.deepcopy(learner.world_model.state_dict())
    fit(learner)
    after = learner.world_model.state_dict()
    moved = {name for name in after if not torch.equal(after[name], world_model[name])}
    measured = {
        f"mdn_rnn.{name}" for name in ("change_scale", "has_change_scale", "ensemble.usual", "outcome_ensemble.usual")
    }
    assert moved == {name for name, _ in learner.world_model.named_parameters()} | measured
    assert all(np.array_equal(value, policy[name]) for name, value in policy_state(learner).items())


@pytest.mark.parametrize("frozen", [False, True])
def test_units_of_change_grow_with_what_a_fit_sees_unless_m_is_frozen(frozen: bool):
    learner = make_learner(config_of(mdn_frozen=frozen))
    units = []
    for size in (1.0, 10.0, 0.1):
        arrays = fit_arrays(8)
        learner.update(
            batch=as_fit_batch({**arrays, Columns.OBS: size * arrays[Columns.OBS]}), minibatch_size=4, num_epochs=1
        )
        units.append(learner.world_model.mdn_rnn.change_scale.clone())
    assert (units[1] > 3.0 * units[0]).all() if not frozen else torch.equal(units[1], units[0])
    assert torch.equal(units[2], units[1])


@pytest.mark.parametrize("frozen", [False, True])
def test_units_of_rewards_grow_with_what_a_fit_sees_unless_m_is_frozen(frozen: bool):
    learner = make_learner(config_of(mdn_frozen=frozen))
    arrays = fit_arrays(8)
    rewards, last, mask = arrays[Columns.REWARDS], arrays[Columns.TERMINATEDS], arrays[MASK]
    rewards[~last] *= 1000.0
    rewards[last] = 50.0
    mask[:, -1] = False  # nor padding
    rewards[:, -1], last[:, -1] = 1e9, True
    assert last[:, :-1].any()
    ordinary = np.sqrt(np.square(rewards[~last & mask]).mean())
    learner.update(batch=as_fit_batch(arrays), minibatch_size=4, num_epochs=1)
    mdn_rnn = learner.world_model.mdn_rnn
    assert float(mdn_rnn.last_reward_scale) == (1.0 if frozen else 50.0)
    assert float(mdn_rnn.reward_scale) == pytest.approx(1.0 if frozen else ordinary)


def test_a_fit_takes_one_gradient_step_for_each_minibatch():
    learner = make_learner(config_of())
    fit(learner)
    for _, optimizer in learner.get_optimizers_for_module(WORLD_MODEL_MODULE_ID):
        assert {int(state["step"]) for state in optimizer.state.values()} == {2}


@pytest.mark.parametrize("fraction", [0.0, 0.05, 1.0])
def test_learning_rates_fall_linearly_within_each_fit(fraction: float):
    learner = make_learner(config_of(vae_lr=2e-3, mdn_lr=4e-3, fit_final_lr_fraction=fraction))
    used: list[list[float]] = []
    for _, optimizer in learner.get_optimizers_for_module(WORLD_MODEL_MODULE_ID):
        rates: list[float] = []
        optimizer.register_step_pre_hook(lambda own, *_, to=rates: to.append(own.param_groups[0]["lr"]))
        used.append(rates)
    for _ in range(2):
        fit(learner, rows=20)
    for base, rates in zip((2e-3, 4e-3), used, strict=True):
        assert rates == pytest.approx(2 * np.linspace(base, fraction * base, 5).tolist())


def test_a_fit_leaves_ppos_coefficients_and_warns_of_nothing(caplog: pytest.LogCaptureFixture):
    config = config_of(entropy_coeff=[[0, 0.1], [1000, 0.0]])
    learner = make_learner(config)
    learner.update(
        episodes=real_episodes(SPACES["discrete"]), timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 100}, minibatch_size=10
    )
    scheduler = learner.entropy_coeff_schedulers_per_module[DEFAULT_MODULE_ID]
    before = float(learner.curr_kl_coeffs_per_module[DEFAULT_MODULE_ID]), float(scheduler.get_current_value())
    logger = logging.getLogger("ray")
    logger.addHandler(caplog.handler)
    try:
        fit(learner, timestep=900)
    finally:
        logger.removeHandler(caplog.handler)
    after = float(learner.curr_kl_coeffs_per_module[DEFAULT_MODULE_ID]), float(scheduler.get_current_value())
    assert after == before
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_world_model_gradients_are_clipped_each_network_on_its_own():
    clipped, free = (make_learner(config_of(world_model_grad_clip=clip)) for clip in (0.01, None))
    norms = {}
    for name, learner in (("clipped", clipped), ("free", free)):
        fit(learner)
        networks = (learner.world_model.vae, learner.world_model.mdn_rnn)
        norms[name] = [
            torch.cat([p.grad.flatten() for p in network.parameters()]).norm().item() for network in networks
        ]
    assert norms["clipped"] == pytest.approx([0.01, 0.01], rel=1e-3)
    assert min(norms["free"]) > 0.02


def test_kl_coefficient_is_saved_and_restored():
    learner = make_learner(config_of())
    learner.curr_kl_coeffs_per_module[DEFAULT_MODULE_ID].data.fill_(0.0125)
    restored = make_learner(config_of(), seed=1)
    restored.set_state(copy.deepcopy(learner.get_state()))
    assert float(restored.curr_kl_coeffs_per_module[DEFAULT_MODULE_ID]) == pytest.approx(0.0125)


def test_state_carries_all_weights_and_optimisers():
    learner, restored = make_learner(config_of()), make_learner(config_of(), seed=1)
    episodes = real_episodes(SPACES["discrete"])
    for _ in range(2):
        learner.update(episodes=copy.deepcopy(episodes), timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 1})
        fit(learner)
    restored.set_state(copy.deepcopy(learner.get_state()))
    for one in (learner, restored):
        one.update(episodes=copy.deepcopy(episodes), stage_seed=3, timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 1})
        seed_process(3)
        fit(one)
    assert all(np.array_equal(value, policy_state(restored)[name]) for name, value in policy_state(learner).items())
    theirs = restored.world_model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in learner.world_model.state_dict().items())


def test_learning_rates_of_the_config_win_over_a_restored_state():
    old = make_learner(config_of(lr=1e-3, vae_lr=2e-3, mdn_lr=3e-3))
    fit(old)
    old.update(episodes=real_episodes(SPACES["discrete"]), timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 1})
    new = make_learner(config_of(lr=4e-5, vae_lr=5e-5, mdn_lr=6e-5))
    new.set_state(copy.deepcopy(old.get_state()))
    (_, policy), *_ = new.get_optimizers_for_module(DEFAULT_MODULE_ID)
    world_model = dict(new.get_optimizers_for_module(WORLD_MODEL_MODULE_ID))
    rates = {name: float(optimizer.param_groups[0]["lr"]) for name, optimizer in world_model.items()}
    assert float(policy.param_groups[0]["lr"]) == pytest.approx(4e-5)
    assert {
        name.rpartition(WORLD_MODEL_MODULE_ID)[2].lstrip("_"): rate for name, rate in rates.items()
    } == pytest.approx({"vae": 5e-5, "mdn_rnn": 6e-5})


def test_a_state_from_before_the_first_update_takes_the_kl_coefficient_back():
    """RLlib makes coefficients when they are first read, so that such a state has none."""
    learner = make_learner(config_of(kl_coeff=0.3, use_kl_loss=True))
    state = copy.deepcopy(learner.get_state())
    learner.curr_kl_coeffs_per_module[DEFAULT_MODULE_ID].data.fill_(5.0)
    learner.set_state(state)
    assert float(learner.curr_kl_coeffs_per_module[DEFAULT_MODULE_ID]) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("lanes", "expected_rows", "left"),
    [
        (8, (2 * NUM_REAL, 40), NUM_REAL),
        (1, (NUM_REAL, NUM_REAL), 5),
        (1, (2 * NUM_REAL, 2 * NUM_REAL), 5),
    ],
    ids=["real rows lost", "dreams lost", "both lost"],
)
def test_what_is_left_of_lost_rows_keeps_the_ratio(
    monkeypatch: pytest.MonkeyPatch, lanes: int, expected_rows: tuple[int, int], left: int
):
    """An env runner or dreamer that died takes rows along; the update goes on with fewer of both sources."""
    rows = merged_batch(
        make_learner(config_of()),
        monkeypatch,
        episodes=real_episodes(SPACES["discrete"]),
        imagined=[[[imagined_block(SPACES["discrete"], lanes, 5)]]],
        ratio=0.5,
        expected_rows=[expected_rows],
    )
    assert len(of_source(rows, REAL)[Columns.OBS]) == left
    assert len(of_source(rows, IMAGINED)[Columns.OBS]) == left


def test_lost_dreams_leave_an_exact_ratio_in_each_learner(monkeypatch: pytest.MonkeyPatch):
    """Rounded by up to half a real row each, two learners would be nine dreams off."""
    rows = merged_batch(
        make_learner(config_of()),
        monkeypatch,
        episodes=real_episodes(SPACES["discrete"]),
        imagined=[[[imagined_block(SPACES["discrete"], 8, 5)]]],
        ratio=0.9,
        expected_rows=[(NUM_REAL, 9 * NUM_REAL)],
    )
    assert len(of_source(rows, REAL)[Columns.OBS]) == 4
    assert len(of_source(rows, IMAGINED)[Columns.OBS]) == 36


def test_schedules_go_on_where_they_were():
    """RLlib's schedulers keep no state: a restored learner must not start its schedules again."""
    config = config_of()
    config.lr = [[0, 1e-3], [1000, 1e-4]]
    config.entropy_coeff = [[0, 0.1], [1000, 0.0]]
    first, second = make_learner(config), make_learner(config)
    timesteps = {"num_env_steps_sampled_lifetime": 1000}
    first.update(episodes=real_episodes(SPACES["discrete"]), timesteps=timesteps)
    second.set_state(first.get_state())
    [(_, optimizer)] = second.get_optimizers_for_module("default_policy")
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(1e-4)
    coefficient = second.entropy_coeff_schedulers_per_module["default_policy"].get_current_value()
    assert float(coefficient) == pytest.approx(0.0)


def test_real_rows_that_were_all_lost_leave_an_update_without_dreams_out():
    learner = make_learner(config_of(imagination_ratio=0.0))
    before = policy_state(learner)
    timesteps = {NUM_ENV_STEPS_SAMPLED_LIFETIME: 1}
    result = learner.update(episodes=[], timesteps=timesteps, minibatch_size=10, num_epochs=3)
    after = policy_state(learner)
    assert all(np.array_equal(after[name], value) for name, value in before.items())
    assert result[DEFAULT_MODULE_ID]["num_real_rows"].peek() == 0
