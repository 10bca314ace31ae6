"""Environments played to a point again: the same from there on, over the ends of episodes too."""

from __future__ import annotations

import logging
import pickle
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from tiny import TRAIN_BATCH, tiny_config

from wm_rllib.environments.replayable import ReplayableEnv

ENVS = ["CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCarContinuous-v0"]


def vector(env_id: str, num_envs: int = 3) -> gym.vector.SyncVectorEnv:
    return gym.vector.SyncVectorEnv([lambda: ReplayableEnv(gym.make(env_id)) for _ in range(num_envs)])


def play(env: gym.vector.VectorEnv, actions: list[np.ndarray]) -> list[tuple[np.ndarray, ...]]:
    return [tuple(np.array(part) for part in env.step(action)[:4]) for action in actions]


def brought_back(env: gym.vector.SyncVectorEnv, env_id: str) -> tuple[gym.vector.SyncVectorEnv, np.ndarray]:
    other = vector(env_id, env.num_envs)
    other.set_attr("coming", env.call("episode_so_far"))
    observations, _ = other.reset()
    return other, observations


def assert_same(left: list[tuple[np.ndarray, ...]], right: list[tuple[np.ndarray, ...]]) -> None:
    for one, other in zip(left, right, strict=True):
        for expected, actual in zip(one, other, strict=True):
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("env_id", ENVS)
@pytest.mark.parametrize("steps", [1, 57, 230])
def test_goes_on_as_the_other_does(env_id: str, steps: int):
    env = vector(env_id)
    env.action_space.seed(steps)
    env.reset(seed=7)
    seen = play(env, [env.action_space.sample() for _ in range(steps)])
    other, observations = brought_back(env, env_id)
    np.testing.assert_array_equal(observations, seen[-1][0])
    later = [env.action_space.sample() for _ in range(250)]
    expected = play(env, later)
    assert_same(expected, play(other, later))
    if env_id in ("CartPole-v1", "Pendulum-v1"):
        assert any(terminated.any() or truncated.any() for _, _, terminated, truncated in expected)


def test_an_environment_that_owes_a_reset_pays_it():
    env = vector("CartPole-v1")
    env.reset(seed=3)
    push = np.zeros(3, int)
    while True:
        _, _, terminateds, _, _ = env.step(push)
        if terminateds.any():
            break
    other, _ = brought_back(env, "CartPole-v1")
    later = [push] * 40
    expected = play(env, later)
    assert not expected[0][2][terminateds].any()
    assert (expected[0][1][terminateds] == 0).all()  # a reset, which pays nothing
    assert_same(expected, play(other, later))


def test_in_processes_of_their_own():
    make = [lambda: ReplayableEnv(gym.make("CartPole-v1"))] * 2
    env, other = gym.vector.AsyncVectorEnv(make), gym.vector.AsyncVectorEnv(make)
    try:
        env.action_space.seed(2)
        env.reset(seed=5)
        play(env, [env.action_space.sample() for _ in range(45)])
        other.set_attr("coming", env.call("episode_so_far"))
        other.reset()
        later = [env.action_space.sample() for _ in range(60)]
        assert_same(play(env, later), play(other, later))
    finally:
        env.close()
        other.close()


def test_brought_back_twice():
    env = vector("Pendulum-v1")
    env.action_space.seed(0)
    env.reset(seed=1)
    play(env, [env.action_space.sample() for _ in range(40)])
    other, _ = brought_back(env, "Pendulum-v1")
    between = [env.action_space.sample() for _ in range(190)]  # the first episode ends in between
    assert_same(play(env, between), play(other, between))
    third, _ = brought_back(other, "Pendulum-v1")
    later = [env.action_space.sample() for _ in range(210)]
    assert_same(play(env, later), play(third, later))


def test_episodes_differ_and_the_seed_decides():
    def beginnings(seed: int) -> np.ndarray:
        env = ReplayableEnv(gym.make("Pendulum-v1"))
        return np.stack([env.reset(seed=seed)[0], *(env.reset()[0] for _ in range(3))])

    assert len(np.unique(beginnings(4), axis=0)) == 4
    np.testing.assert_array_equal(beginnings(4), beginnings(4))
    assert not np.isin(beginnings(4), beginnings(5)).any(axis=1).all()


# --- in the algorithm ------------------------------------------------------------------------------------------------


class Fickle(gym.Env):
    """Shows something else in each process, ends sooner in the next, or fails there."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    fault: ClassVar[str | None] = None

    def __init__(self, config=None):
        self._steps = 0

    def reset(self, *, seed=None, options=None):
        self._steps = 0
        return self._observation(), {}

    def step(self, action):
        self._steps += 1
        if self.fault == "raises" and self._steps > 5:
            raise OSError("the game has gone")
        end = 5 if self.fault == "ends sooner" else 1000
        return self._observation(), 1.0, False, self._steps == end, {}

    def _observation(self):
        return np.full(2, self._steps + 0.5 * (self.fault == "shows something else"), np.float32)


def fickle(num_envs: int = 2) -> Any:
    return tiny_config(Fickle, num_envs_per_env_runner=num_envs).build_algo()


@pytest.fixture(scope="module")
def first(local_ray):
    """An algorithm after three iterations, which is not trained on, and its state."""
    algorithm = fickle()
    for _ in range(3):
        algorithm.train()
    yield algorithm, pickle.dumps(algorithm.get_state())
    algorithm.stop()


@pytest.fixture
def restored(first, caplog, monkeypatch):
    """Restores that state into a new algorithm, and returns that and what was logged."""
    algorithms = []

    def restore(num_envs: int = 2, fault: str | None = None) -> tuple[Any, str]:
        monkeypatch.setattr(Fickle, "fault", fault)
        algorithms.append(fickle(num_envs))
        logger = logging.getLogger("wm_rllib")
        logger.addHandler(caplog.handler)
        try:
            algorithms[-1].set_state(pickle.loads(first[1]))
        finally:
            logger.removeHandler(caplog.handler)
        monkeypatch.setattr(Fickle, "fault", None)
        return algorithms[-1], caplog.text

    yield restore
    for algorithm in algorithms:
        algorithm.stop()


def ongoing(algorithm: Any) -> list[str]:
    return [episode.id_ for episode in algorithm.env_runner._ongoing_episodes]


@pytest.mark.integration
def test_episodes_under_way_go_on(first, restored):
    other, logged = restored()
    assert ongoing(first[0]) == ongoing(other) and "new ones start" not in logged
    steps = [episode.t for episode in other.env_runner._ongoing_episodes]
    other.train()
    assert [episode.t for episode in other.env_runner._ongoing_episodes] == [step + TRAIN_BATCH // 2 for step in steps]


@pytest.mark.integration
@pytest.mark.parametrize("fault", ["shows something else", "ends sooner", "raises"])
def test_where_environments_do_not_come_back_new_episodes_start_and_it_is_said(first, restored, fault):
    other, logged = restored(fault=fault)
    assert "new ones start" in logged
    assert other.train()["phase"] == "mixed"
    assert not set(ongoing(first[0])) & set(ongoing(other))
    assert [episode.t for episode in other.env_runner._ongoing_episodes] == [TRAIN_BATCH // 2] * 2


@pytest.mark.integration
def test_another_number_of_environments_starts_new_episodes(restored):
    other, logged = restored(num_envs=1)
    assert "there are 1 environments, and were 2" in logged
    assert other.train()["phase"] == "mixed"


def test_an_episode_that_is_too_long_keeps_no_record(monkeypatch):
    monkeypatch.setattr("wm_rllib.environments.replayable.MAX_REPLAYED", 5)
    env = ReplayableEnv(gym.make("Pendulum-v1"))
    env.reset(seed=0)
    for _ in range(5):
        env.step(env.action_space.sample())
    assert len(env.episode_so_far().actions) == 5
    for _ in range(20):
        env.step(env.action_space.sample())
    assert env.episode_so_far() is None and len(env._actions) == 6
    env.reset()
    assert env.episode_so_far().actions == ()


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray")
def test_a_very_long_episode_is_not_kept_whole(monkeypatch, caplog):
    monkeypatch.setattr("wm_rllib.env_runners.env_runner.MAX_REPLAYED", 40)
    monkeypatch.setattr("wm_rllib.environments.replayable.MAX_REPLAYED", 40)
    config = tiny_config("Pendulum-v1", num_envs_per_env_runner=1, random_collection_steps=30)
    config.train_batch_size_per_learner = 30
    algorithm = config.build_algo()
    for _ in range(5):
        algorithm.train()
    runner = algorithm.env_runner
    (chunks,) = runner._ongoing_episodes_for_metrics.values()
    kept = [chunk.get_observations().size > 0 for chunk in chunks]
    assert kept == [chunk.t_started <= 40 for chunk in chunks] and not all(kept) and any(kept)
    assert runner.get_half_played() is None and "an episode has more than 40 steps" in caplog.text
    lengths = [algorithm.train()["env_runners"].get("episode_len_mean") for _ in range(3)]
    algorithm.stop()
    assert 200 in lengths


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray")
def test_saving_leaves_episodes_whole(tmp_path):
    """Pendulum's have 200 steps each; here a checkpoint comes every 30."""
    config = tiny_config("Pendulum-v1", num_envs_per_env_runner=2, random_collection_steps=60)
    config.train_batch_size_per_learner = 60
    algorithm = config.build_algo()
    lengths = []
    for _ in range(10):
        lengths.append(algorithm.train()["env_runners"].get("episode_len_mean"))
        algorithm.save_to_path(str(tmp_path / "checkpoint"))
    half_played = pickle.loads(algorithm.env_runner.get_half_played())
    algorithm.stop()
    delivered = [chunk for chunks in half_played.earlier_chunks.values() for chunk in chunks]
    assert delivered and all(chunk.get_observations().size == 0 for chunk in delivered)  # they would fill checkpoints
    assert {len(chunk.get_infos()) - len(chunk) for chunk in delivered} == {1}  # for callbacks
    assert all(chunk.get_return() == sum(chunk.get_rewards()) < 0 for chunk in delivered)
    assert 200 in lengths
