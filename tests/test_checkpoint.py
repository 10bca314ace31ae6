"""Contract 7: a checkpoint is the whole state, and a run that was killed and resumed is the run that was not."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import textwrap

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.core import DEFAULT_MODULE_ID
from remote import train_until
from snapshots import assert_equal, snapshot
from tiny import tiny_config

from wm_rllib import WorldModelPPO, load_policy
from wm_rllib.metrics import progress_row
from wm_rllib.policy import WorldModelPolicy

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("local_ray")]

ITERATIONS = 10


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


# --- what is in it ---------------------------------------------------------------------------------------------------


def test_everything_is_in_it(build, tmp_path):
    algorithm = build(make_config())
    for _ in range(6):
        algorithm.train()
    saved = snapshot(algorithm)
    # Nothing of it is what a new algorithm has anyway.
    new = snapshot(build(make_config()))
    assert saved["kl"][DEFAULT_MODULE_ID] != pytest.approx(0.3)
    for name in ("num_env_steps", "world_model_version", "policy_version", "num_evaluations", "evaluated_at"):
        assert saved["training"][name] > new["training"][name]
    assert 0 < saved["training"]["pending_updates"] < 1
    assert saved["training"]["phase"] == "mixed" != new["training"]["phase"]
    assert saved["replay"]["rng"] != new["replay"]["rng"]
    assert len(saved["optimizers"]) == 3  # V's, M's and C's
    for state in saved["optimizers"].values():
        assert all(moments["exp_avg"].any() for moments in state["state"]["state"].values())

    path = algorithm.save_to_path(str(tmp_path / "checkpoint"))
    assert_equal(snapshot(algorithm), saved)  # saving changes nothing
    restored = build(checkpoint=path)
    assert_equal(snapshot(restored), saved)
    assert restored._state.sequence > algorithm._state.sequence
    in_place = build(make_config())
    in_place.restore_from_path(path)
    assert_equal(snapshot(in_place), saved)


def test_get_state_and_set_state_carry_the_replay_too(build):
    algorithm = build(make_config())
    for _ in range(3):
        algorithm.train()
    state = pickle.loads(pickle.dumps(algorithm.get_state()))
    other = build(make_config())
    other.set_state(state)
    assert_equal(snapshot(other), snapshot(algorithm))


# --- killed and resumed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "saved_at", "overrides"),
    [
        ("CartPole-v1", 4, {}),
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
def test_killed_and_resumed_equals_never_killed(build, tmp_path, env, saved_at, overrides):
    """Bit for bit: figures, evaluations and weights, for several iterations after the checkpoint."""
    config = make_config(env, **overrides)
    never_killed = build(config.copy(copy_frozen=False))
    rows = [without_times(never_killed.train()) for _ in range(ITERATIONS)]
    expected = snapshot(never_killed)

    killed = build(config.copy(copy_frozen=False))
    before = [without_times(killed.train()) for _ in range(saved_at)]
    path = killed.save_to_path(str(tmp_path / "checkpoint"))
    killed.train()  # lost with the kill
    resumed = build(checkpoint=path)
    after = [without_times(resumed.train()) for _ in range(ITERATIONS - saved_at)]
    assert_equal(before + after, rows)
    assert_equal(snapshot(resumed), expected)
    evaluations = [row["evaluation/episode_return_mean"] for row in after]
    assert any(value is not None for value in evaluations)
    phases = [row["phase"] for row in rows]
    assert phases[:3] == ["random", "pretrain", "mixed"]


def test_without_its_replay_it_is_no_checkpoint_to_go_on_from(build, tmp_path):
    algorithm = build(make_config())
    algorithm.train()
    path = algorithm.save_to_path(str(tmp_path / "one"))
    shutil.rmtree(tmp_path / "one" / "replay")
    with pytest.raises(FileNotFoundError, match=r"one/replay has no replay.*Fix: .*world_model\.transfer\.from"):
        algorithm.restore_from_path(path)
    component = f"{path}/learner_group"
    algorithm.restore_from_path(component, component="learner_group")  # RLlib's way to take a part of it


@pytest.mark.parametrize(("iterations", "phase"), [(1, "random"), (2, "pretrain")])
def test_resumed_before_the_mixed_phase(build, tmp_path, iterations, phase):
    config = make_config(random_collection_steps=1500)  # two iterations of random collection
    never_killed = build(config.copy(copy_frozen=False))
    rows, path = [], None
    for iteration in range(1, 6):
        rows.append(without_times(never_killed.train()))
        if iteration == iterations:
            path = never_killed.save_to_path(str(tmp_path / "checkpoint"))
            assert never_killed._state.phase.value == phase
    assert [row["phase"] for row in rows] == ["random", "random", "pretrain", "mixed", "mixed"]
    resumed = build(checkpoint=path)
    assert_equal([without_times(resumed.train()) for _ in range(5 - iterations)], rows[iterations:])
    assert_equal(snapshot(resumed), snapshot(never_killed))


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


def test_changed_learning_rates_win(build, tmp_path):
    """Population based training restores a checkpoint into an algorithm with other settings."""
    algorithm = build(make_config(vae_lr=1e-3, mdn_lr=2e-3, lr=3e-3))
    for _ in range(3):
        algorithm.train()
    path = algorithm.save_to_path(str(tmp_path / "checkpoint"))
    other = build(make_config(vae_lr=1e-4, mdn_lr=2e-4, lr=3e-4))
    other.restore_from_path(path)

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


def test_changed_coefficients_win(build, tmp_path):
    algorithm = build(make_config(kl_coeff=0.3, entropy_coeff=0.01))
    for _ in range(3):
        algorithm.train()
    path = algorithm.save_to_path(str(tmp_path / "checkpoint"))
    adapted = kl_coeff(algorithm)
    assert adapted != pytest.approx(0.3)
    for configured, expected in ((0.3, adapted), (0.7, 0.7)):  # one that was not changed stays as RLlib adapted it
        other = build(make_config(kl_coeff=configured, entropy_coeff=0.05))
        other.restore_from_path(path)
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


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_loaded_policy_is_the_algorithms(build, tmp_path, env):
    algorithm = build(make_config(env))
    train_until(algorithm, lambda result: result["phase"] == "mixed")
    path = algorithm.save_to_path(str(tmp_path / "checkpoint"))
    loaded = load_policy(path)
    runner = algorithm.env_runner_group.local_env_runner
    runner.pull()
    observations, actions = observations_and_actions(WorldModelPolicy(runner.world_model, runner.module), env)
    loaded.reset()
    for observation, action in zip(observations, actions, strict=True):
        np.testing.assert_array_equal(loaded.compute_action(observation), action)


def test_loaded_policy_needs_no_ray(build, tmp_path):
    """In a process of its own: observation in, action out, Ray never started."""
    algorithm = build(make_config())
    train_until(algorithm, lambda result: result["phase"] == "mixed")
    path = algorithm.save_to_path(str(tmp_path / "checkpoint"))
    observations, actions = observations_and_actions(load_policy(path), "CartPole-v1")
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
        [sys.executable, "-c", program, path],
        input=json.dumps([observation.tolist() for observation in observations]),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == {"actions": [int(a) for a in actions], "ray": False}


def test_no_checkpoint_is_one_clear_error(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "missing", tmp_path / "empty"):
        with pytest.raises(FileNotFoundError, match="is not a checkpoint of WorldModelPPO"):
            load_policy(path)
