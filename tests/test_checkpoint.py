"""Contract 7: a checkpoint is the whole state, and a run that was killed and resumed is the run that was not."""

from __future__ import annotations

import argparse
import json
import pickle
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO
from remote import train_until
from snapshots import assert_equal, snapshot
from tiny import tiny_config

from wm_rllib import WorldModelPPO, load_policy
from wm_rllib.acting.policy import WorldModelPolicy
from wm_rllib.metrics import progress_row
from wm_rllib.runs import checkpoints
from wm_rllib.runs.agents import load_agent

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("local_ray")]

ITERATIONS, SAVED_AT = 10, 6


def make_config(env="CartPole-v1", **overrides):
    """Everything that has a state switched on: KL penalty, fractions of updates, evaluations, several envs."""
    config = tiny_config(
        env,
        **{
            "imagination_ratio": 0.8,
            "num_envs_per_env_runner": 2,
            "updates_per_step": 0.11,
            "use_kl_loss": True,
            "kl_coeff": 0.3,
            "lr": 3e-3,
            "evaluation_interval_steps": 64,
            "evaluation_duration": 3,
            **overrides,
        },
    )
    return config


@pytest.fixture
def build():
    """Builds or restores algorithms, and stops them at the end of the test."""
    algorithms = []

    def build(config=None, checkpoint=None):
        algorithms.append(config.build_algo() if config else WorldModelPPO.from_checkpoint(str(checkpoint)))
        return algorithms[-1]

    yield build
    for algorithm in algorithms:
        algorithm.stop()


def without_times(result: dict) -> dict:
    """What two runs have in common, one of which was resumed."""
    row = progress_row(result)
    own = ("seconds/", "steps_per_second/", "faults/resumes")
    return {name: value for name, value in row.items() if not name.startswith(own)}


@dataclass(frozen=True)
class Saved:
    """An algorithm that was saved, and is not trained on: its results, what was in it before and after, and where."""

    algorithm: WorldModelPPO
    rows: list[dict]
    before: dict[str, Any]
    after: dict[str, Any]
    path: str


@pytest.fixture(scope="module")
def saved(local_ray, tmp_path_factory):
    """One for all tests that only read it."""
    algorithm = make_config().build_algo()
    rows = [without_times(algorithm.train()) for _ in range(SAVED_AT)]
    before = snapshot(algorithm)
    path = algorithm.save_to_path(str(tmp_path_factory.mktemp("saved") / "checkpoint"))
    yield Saved(algorithm, rows, before, snapshot(algorithm), path)
    algorithm.stop()


# --- what is in it ---------------------------------------------------------------------------------------------------


def test_everything_is_in_it(build, saved):
    expected = saved.before
    # Nothing of it is what a new algorithm has anyway.
    in_place = build(make_config())
    new = snapshot(in_place)
    assert expected["kl"][DEFAULT_MODULE_ID] != pytest.approx(0.3)
    for name in ("num_env_steps", "world_model_version", "policy_version", "num_evaluations", "evaluated_at"):
        assert expected["training"][name] > new["training"][name]
    assert 0 < expected["training"]["pending_updates"] < 1
    assert expected["training"]["phase"] == "mixed" != new["training"]["phase"]
    assert expected["replay"]["rng"] != new["replay"]["rng"]
    assert len(expected["optimizers"]) == 3  # V's, M's and C's
    for state in expected["optimizers"].values():
        assert all(moments["exp_avg"].any() for moments in state["state"]["state"].values())

    assert_equal(saved.after, expected)  # saving changes nothing
    restored = build(checkpoint=saved.path)
    assert_equal(snapshot(restored), expected)
    assert restored._state.sequence > saved.algorithm._state.sequence
    in_place.restore_from_path(saved.path)
    assert_equal(snapshot(in_place), expected)


def test_get_state_and_set_state_carry_the_replay_too(build, saved):
    state = pickle.loads(pickle.dumps(saved.algorithm.get_state()))
    other = build(make_config())
    other.set_state(state)
    assert_equal(snapshot(other), saved.before)


def test_an_older_state_is_restored_in_place(build, saved):
    """Weights, too: RLlib's learner keeps its own if they carry the higher number."""
    algorithm = build(checkpoint=saved.path)
    older, before = pickle.loads(pickle.dumps((algorithm.get_state(), snapshot(algorithm))))
    for _ in range(2):
        algorithm.train()
    algorithm.set_state(older)
    assert_equal(snapshot(algorithm), before)


def test_restarts_and_faults_are_counted_on(build, saved, monkeypatch):
    names = list(saved.algorithm._counts_of_process())
    first = build(checkpoint=saved.path)
    monkeypatch.setattr(first, "_counts_of_process", lambda: dict.fromkeys(names, 3))
    state = pickle.loads(pickle.dumps(first.get_state()))
    second = build(make_config())
    second.set_state(state)
    assert second._restarts()["dreamers"] == 3 and second._faults()["env_runner_errors"] == 3
    monkeypatch.setattr(second, "_counts_of_process", lambda: dict.fromkeys(names, 2))
    assert second._restarts()["env_runners"] == 5 and second._faults()["nodes_lost"] == 5
    second.set_state(state)  # of before: what this process saw since is taken back with all the rest
    assert second._restarts()["env_runners"] == 3
    again = pickle.loads(pickle.dumps(second.get_state()))
    assert again["training_state"]["counted"] == dict.fromkeys(names, 3)


def test_weights_alone_change_nothing_else(build, saved):
    algorithm = build(checkpoint=saved.path)
    before = snapshot(algorithm)
    number = algorithm.learner_group.get_state()["learner"][WEIGHTS_SEQ_NO]
    algorithm.learner_group.set_weights(algorithm.learner_group.get_weights())
    assert_equal(snapshot(algorithm), before)
    # Whoever takes over this one's state compares the number with its own.
    assert algorithm.learner_group.get_state()["learner"][WEIGHTS_SEQ_NO] == number > 0


# --- killed and resumed ----------------------------------------------------------------------------------------------


def assert_goes_on(resumed: WorldModelPPO, rows: list[dict], never_killed: WorldModelPPO) -> None:
    """As the other one did, bit for bit: figures, evaluations and weights."""
    after = [without_times(resumed.train()) for _ in rows]
    assert_equal(after, rows)
    assert_equal(snapshot(resumed), snapshot(never_killed))
    assert any(row["evaluation/episode_return_mean"] is not None for row in after)


def test_killed_and_resumed_equals_never_killed(build, saved):
    """Nor was it ever saved."""
    never_killed = build(make_config())
    rows = [without_times(never_killed.train()) for _ in range(ITERATIONS)]
    assert [row["phase"] for row in rows[:3]] == ["random", "pretrain", "mixed"]
    assert_equal(saved.rows, rows[:SAVED_AT])
    assert_goes_on(build(checkpoint=saved.path), rows[SAVED_AT:], never_killed)


@pytest.mark.parametrize(
    ("env", "saved_at", "overrides"),
    [
        # Box actions, truncation alone, and iterations that publish no world model
        ("Pendulum-v1", 5, {"random_collection_steps": 250, "updates_per_step": 0.0}),
        ("CartPole-v1", 3, {"imagination_ratio": "auto", "max_disagreement": 0.8, "pretrain_epochs": 40}),
        (
            "CartPole-v1",
            6,
            {"controller_inputs": "z", "imagination_ratio": [[0, 0.0], [200, 1.0]], "dream_batch_size": 90},
        ),
    ],
)
def test_resumed_equals_the_run_that_went_on(build, tmp_path, env, saved_at, overrides):
    never_killed, rows = build(make_config(env, **overrides)), []
    for iteration in range(1, ITERATIONS + 1):
        rows.append(without_times(never_killed.train()))
        if iteration == saved_at:
            path = never_killed.save_to_path(str(tmp_path / "checkpoint"))
    assert [row["phase"] for row in rows[:3]] == ["random", "pretrain", "mixed"]
    assert_goes_on(build(checkpoint=path), rows[saved_at:], never_killed)


def test_without_its_replay_it_is_no_checkpoint_to_go_on_from(build, saved, tmp_path):
    path = shutil.copytree(saved.path, tmp_path / "one")
    shutil.rmtree(path / "replay")
    algorithm = build(make_config())
    with pytest.raises(FileNotFoundError, match=r"one/replay has no replay.*Fix: .*world_model\.transfer\.from"):
        algorithm.restore_from_path(str(path))
    component = str(path / "learner_group")
    algorithm.restore_from_path(component, component="learner_group")  # RLlib's way to take a part of it


def test_resumed_before_the_mixed_phase(build, tmp_path):
    config = make_config(random_collection_steps=1010)  # two iterations of random collection
    never_killed, rows, paths = build(config.copy(copy_frozen=False)), [], []
    for phase_after in ("random", "pretrain", "mixed", "mixed", "mixed"):
        rows.append(without_times(never_killed.train()))
        assert never_killed._state.phase.value == phase_after
        if phase_after != "mixed":
            paths.append(never_killed.save_to_path(str(tmp_path / phase_after)))
    assert [row["phase"] for row in rows] == ["random", "random", "pretrain", "mixed", "mixed"]
    for iterations, path in enumerate(paths, 1):
        assert_goes_on(build(checkpoint=path), rows[iterations:], never_killed)


# --- restored in place -----------------------------------------------------------------------------------------------


def test_restored_in_place_single_process(build, tmp_path):
    """What was learned after the checkpoint is gone everywhere, and training repeats itself."""
    algorithm = build(make_config())
    for _ in range(4):
        algorithm.train()
    path = algorithm.save_to_path(str(tmp_path / "checkpoint"))
    first = [without_times(algorithm.train()) for _ in range(3)]
    weights, sequence = snapshot(algorithm), algorithm._state.sequence
    algorithm.restore_from_path(path)
    assert algorithm._state.sequence > sequence
    assert_equal([without_times(algorithm.train()) for _ in range(3)], first)
    assert_equal(snapshot(algorithm), weights)


def test_changed_learning_rates_win(build, saved):
    """Population based training restores a checkpoint into an algorithm with other settings."""
    other = build(make_config(vae_lr=1e-4, mdn_lr=2e-4, lr=3e-4))  # each ten times less than before
    other.restore_from_path(saved.path)

    def rates():
        optimizers = other.learner_group.get_state()["learner"]["optimizer"]
        return {name: state["state"]["param_groups"][0]["lr"] for name, state in optimizers.items()}

    expected = {"vae": 1e-4, "mdn_rnn": 2e-4, DEFAULT_MODULE_ID: 3e-4}

    def rate_of(part):
        [rate] = [rate for name, rate in rates().items() if part in name]
        return rate

    assert {part: rate_of(part) for part in expected} == pytest.approx(expected)
    other.train()  # within a fit the rates of V and M fall; they never rise to the checkpoint's
    assert all(0 < rate_of(part) <= 1.001 * rate for part, rate in expected.items())


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        pytest.param({"num_learners": 1, "num_cpus_per_learner": 0.5}, marks=pytest.mark.slow),
        {"imagination_ratio": 0.0},
    ],
)
def test_the_report_says_what_the_optimisers_work_with(build, tmp_path, overrides):
    """After an exploit nobody may have to trust the config: also with a remote learner, and in RLlib's own update."""
    overrides = {"updates_per_step": 0.25, "vae_online_lr_fraction": 0.5, **overrides}
    algorithm = build(make_config(vae_lr=1e-3, mdn_lr=2e-3, lr=3e-3, **overrides))
    results = [algorithm.train() for _ in range(3)]
    assert results[0]["learning_rates"] == {"vae": None, "mdn_rnn": None, "policy": None}  # random steps alone
    assert results[1]["learning_rates"] == {"vae": 1e-3, "mdn_rnn": 2e-3, "policy": None}  # pretraining
    assert results[2]["learning_rates"] == pytest.approx({"vae": 0.5e-3, "mdn_rnn": 2e-3, "policy": 3e-3})
    path = algorithm.save_to_path(str(tmp_path / "checkpoint"))
    other = build(make_config(vae_lr=1e-4, mdn_lr=2e-4, lr=3e-4, **overrides))
    other.restore_from_path(path)
    row = progress_row(other.train())
    found = [row[f"learning_rates/{name}"] for name in ("vae", "mdn_rnn", "policy")]
    assert found == pytest.approx([0.5e-4, 2e-4, 3e-4])


def test_changed_coefficients_win(build, saved):
    adapted = kl_coeff(saved.algorithm)
    assert adapted != pytest.approx(0.3) and saved.algorithm.config.entropy_coeff != pytest.approx(0.05)
    for configured, expected in ((0.3, adapted), (0.7, 0.7)):  # one that was not changed stays as RLlib adapted it
        other = build(make_config(kl_coeff=configured, entropy_coeff=0.05))
        other.restore_from_path(saved.path)
        assert kl_coeff(other) == pytest.approx(expected)
        schedulers = other.learner_group._learner.entropy_coeff_schedulers_per_module
        assert schedulers[DEFAULT_MODULE_ID].get_current_value() == pytest.approx(0.05)


def kl_coeff(algorithm) -> float:
    return float(algorithm.learner_group._learner.curr_kl_coeffs_per_module[DEFAULT_MODULE_ID])


# --- inference -------------------------------------------------------------------------------------------------------


def observations_and_actions(policy: WorldModelPolicy, env_id: str, steps: int = 60):
    """A greedy episode, with what the agent saw and did."""
    env, seen, done = gym.make(env_id), [], []
    observation, _ = env.reset(seed=5)
    policy.reset()
    for _ in range(steps):
        seen.append(observation)
        done.append(policy.compute_action(observation))
        observation, _, terminated, truncated, _ = env.step(done[-1])
        if terminated or truncated:
            break
    return seen, done


def assert_loaded_acts_as(algorithm: WorldModelPPO, path: str, env: str) -> None:
    loaded = load_policy(path)
    runner = algorithm.env_runner_group.local_env_runner
    runner.pull()
    observations, actions = observations_and_actions(WorldModelPolicy(runner.world_model, runner.module), env)
    loaded.reset()
    for observation, action in zip(observations, actions, strict=True):
        np.testing.assert_array_equal(loaded.compute_action(observation), action)


def test_loaded_policy_is_the_algorithms(saved):
    assert_loaded_acts_as(saved.algorithm, saved.path, "CartPole-v1")


def test_the_command_line_knows_its_environment(saved, tmp_path):
    agent = load_agent(argparse.Namespace(checkpoint=saved.path, env=None))
    assert (agent.env_id, agent.env_config) == ("CartPole-v1", {})
    (tmp_path / "copy").mkdir()
    for place in Path(saved.path).iterdir():
        if place.name != "class_and_ctor_args.pkl":
            (tmp_path / "copy" / place.name).symlink_to(place)
    (tmp_path / "copy" / "class_and_ctor_args.pkl").write_bytes(b"cnobody\nhere\n.")
    assert checkpoints.read_environment(tmp_path / "copy") == {}


def test_an_observation_of_another_shape_is_one_clear_error(saved):
    with pytest.raises(ValueError, match=r"must be of shape \(4,\), and is of \(3,\)"):
        load_policy(saved.path).compute_action(np.zeros(3))


def test_loaded_policy_is_the_algorithms_with_box_actions(build, tmp_path):
    algorithm = build(make_config("Pendulum-v1"))
    train_until(algorithm, lambda result: result["phase"] == "mixed")
    assert_loaded_acts_as(algorithm, algorithm.save_to_path(str(tmp_path / "checkpoint")), "Pendulum-v1")


def test_loaded_policy_needs_no_ray(saved):
    """In a process of its own: observation in, action out, Ray never started."""
    observations, actions = observations_and_actions(load_policy(saved.path), "CartPole-v1")
    program = textwrap.dedent(
        """
        import json, sys
        import numpy as np, ray
        from wm_rllib import load_policy
        policy = load_policy(sys.argv[1])
        observations = np.asarray(json.loads(sys.stdin.read()), np.float32)
        actions = [int(policy.compute_action(observation)) for observation in observations]
        print(json.dumps({"actions": actions, "ray": ray.is_initialized()}))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program, saved.path],
        input=json.dumps([observation.tolist() for observation in observations]),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == {"actions": [int(a) for a in actions], "ray": False}


def test_no_checkpoint_is_one_clear_error(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, said in (("missing", "missing does not exist"), ("empty", "is not a checkpoint of WorldModelPPO")):
        with pytest.raises(FileNotFoundError, match=said):
            load_policy(tmp_path / name)
