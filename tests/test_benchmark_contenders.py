"""The contenders themselves: a few real steps of each, and what the measure relies on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import tiny_config

from wm_rllib import load_policy
from wm_rllib.benchmark.contenders import find_contender
from wm_rllib.benchmark.contenders.world_model import make_config, tuned_values
from wm_rllib.benchmark.contenders.zoo import _SETTINGS, zoo_settings
from wm_rllib.benchmark.job import Job, Measure
from wm_rllib.benchmark.measuring import SOLVED, STEP_LIMIT, measure
from wm_rllib.benchmark.store import Store, plain
from wm_rllib.benchmark.worker import run_job
from wm_rllib.runs.errors import CommandError

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("local_ray")]

SMALL = (
    "world_model.vae.hidden_dims=[16],world_model.mdn_rnn.hidden_dim=8,world_model.training.pretrain_epochs=4,"
    "world_model.training.imagination_ratio=0.5,world_model.data_collection.random_collection_steps=60,"
    "ppo.train_batch_size_per_learner=32,env_runners.num_envs_per_env_runner=1"
)


def a_job(contender, env_id="CartPole-v1", **rule):
    return Job("suite", env_id, contender, 3, Measure(**{"episodes": 2, "confirm_episodes": 2, "interval": 50, **rule}))


def make_trainer(job):
    contender, values = find_contender(job.contender)
    contender.check(job, values)
    return contender.make(job, values)


def test_a_whole_run_of_the_world_model(tmp_path):
    from contextlib import nullcontext

    job = a_job(f"wm@{SMALL}", threshold=1.0, max_steps=200)
    result = run_job(job, "command", Store(tmp_path), nullcontext)
    assert (result.status, result.error) == (SOLVED, None)
    assert [point.steps for point in result.curve] == [60]  # the random phase ends beyond the first multiple
    assert result.settings["world_model"]["training"]["imagination_ratio"] == 0.5
    assert result.settings["seed"] == 3 and result.settings["evaluation"]["interval"] is None
    assert result.setup_seconds > 0
    assert Store(tmp_path).read(job) == replace(result, settings=plain(result.settings))


@pytest.mark.slow
def test_runs_repeat_and_evaluations_do_not_touch_the_training():
    curves = []
    for interval in (32, 64):
        points = []
        trainer = make_trainer(a_job(f"wm@{SMALL}"))
        try:
            assert measure(trainer, a_job("wm", interval=interval, max_steps=190), points.append) == STEP_LIMIT
            curves.append({point.steps: trainer.policy().world_model for point in points[-1:]})
        finally:
            trainer.stop()
    (steps, one), (same, two) = (next(iter(curve.items())) for curve in curves)
    assert steps == same
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_the_policy_is_that_of_a_checkpoint(tmp_path):
    algorithm = tiny_config().build_algo()
    try:
        for _ in range(4):
            algorithm.train()
        policy, loaded = algorithm.get_policy(), load_policy(algorithm.save_to_path(str(tmp_path / "checkpoint")))
    finally:
        algorithm.stop()
    observations = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    actions, state = policy.act(observations, policy.initial_state(20))
    expected, expected_state = loaded.act(observations, loaded.initial_state(20))
    assert (actions == expected).all() and 0 < actions.mean() < 1
    assert all(torch.equal(a, b) for a, b in zip(state, expected_state, strict=True))


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_m_keeps_every_bit(frozen):
    algorithm = tiny_config(mdn_frozen=frozen).build_algo()
    base_rate = "mdn_rnn.outcome_head.3.bias"  # its last number starts at the base rate of termination, seen or not

    def weights():
        return {name: value.clone() for name, value in algorithm.get_policy().world_model.named_parameters()}

    try:
        before = weights()
        for _ in range(2):
            algorithm.train()
        pretrained = weights()
        assert torch.equal(before[base_rate][:2], pretrained[base_rate][:2]) is frozen
        assert before[base_rate][2] != pretrained[base_rate][2]
        before[base_rate][2] = pretrained[base_rate][2]
        for _ in range(2):
            algorithm.train()
        after = weights()
    finally:
        algorithm.stop()
    same = {name: torch.equal(before[name], after[name]) for name in before}
    assert not any(value for name, value in same.items() if name.startswith("vae."))
    of_m = [value for name, value in same.items() if name.startswith("mdn_rnn.")]
    assert of_m and (all(of_m) if frozen else not any(of_m))


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("name", ["rllib-ppo", "sb3-ppo"])
def test_peers_train_and_act_greedily(name, env_id, monkeypatch):
    if name == "sb3-ppo":
        pytest.importorskip("stable_baselines3")
    zoo = replace(zoo_settings(env_id), n_steps=32)  # CartPole's; Pendulum's rollout is 32 times as long
    monkeypatch.setitem(_SETTINGS, env_id, zoo)
    job = a_job(name, env_id, interval=1, max_steps=1)
    trainer = make_trainer(job)
    points = []
    try:
        assert measure(trainer, job, points.append) == STEP_LIMIT
        policy = trainer.policy()
        observations = trainer_observations(env_id)
        actions, _ = policy.act(observations, policy.initial_state(len(observations)))
        again, _ = policy.act(observations, policy.initial_state(len(observations)))
    finally:
        trainer.stop()
    rollout = zoo.n_envs * zoo.n_steps
    assert rollout <= points[0].steps <= rollout * 1.2
    assert (actions == again).all()
    assert trainer.settings["zoo"]["gamma"] == zoo.gamma
    if env_id == "Pendulum-v1":
        assert np.abs(actions).max() <= 2.0 and actions.shape == (8, 1)


def trainer_observations(env_id):
    import gymnasium as gym

    space = gym.spec(env_id).make().observation_space
    low, high = np.maximum(space.low, -1.0), np.minimum(space.high, 1.0)
    return np.random.default_rng(0).uniform(low, high, size=(8, *space.shape)).astype(np.float32)


def test_tuned_settings_are_found_by_environment(tmp_path):
    (tmp_path / "sweep.yaml").write_text("ppo: {gamma: {uniform: [0.9, 1.0]}}\n")
    (tmp_path / "walk.yaml").write_text("env: {id: CartPole-v1}\nppo: {gamma: 0.9}\nstop: {return: 475}\n")
    assert tuned_values("CartPole-v1", tmp_path)["ppo.gamma"] == 0.9
    with pytest.raises(CommandError, match=r"wm-tuned.*Acrobot-v1.*Fix"):
        tuned_values("Acrobot-v1", tmp_path)


def test_settings_that_contradict_are_one_error():
    with pytest.raises(CommandError, match="contender 'wm'"):
        make_config(a_job("wm"), {"ppo.num_learners": 2, "ppo.num_gpus_per_learner": 0.3, "ppo.minibatch_size": -1})
