"""Every part an actor of its own: what each does, and what its death costs. Most tests share one algorithm."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO
from remote import assert_exact, dreamers, end, env_runners, everyone_is_there, hanging, learners, pid_of, train_until
from snapshots import assert_equal, learner_weights, snapshot
from tiny import RANDOM_STEPS, ROUNDS, tiny_config

from wm_rllib.actors.parameter_server import POLICY_VERSION, WORLD_MODEL_VERSION
from wm_rllib.columns import WORLD_MODEL_MODULE_ID
from wm_rllib.dreamers.pool import DreamerError
from wm_rllib.learners.calls import LearnerError

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("local_ray")]

RATIO = 0.9
FRACTIONS = {"num_cpus_per_dreamer": 0.2, "num_cpus_per_env_runner": 0.2, "num_cpus_for_replay": 0.1}


def remote_config(**overrides):
    return tiny_config(
        **{
            "imagination_ratio": RATIO,
            "num_env_runners": 2,
            "num_dreamers": 2,
            "num_learners": 1,
            "num_cpus_per_learner": 0.2,
            # A runner that raised waits this long before it ends itself (60 s in RLlib).
            "delay_between_env_runner_restarts_s": 0.1,
            **FRACTIONS,
            **overrides,
        }
    )


@pytest.fixture(scope="module")
def algorithm(local_ray):
    # An evaluation env runner too, though only tests ask for evaluations.
    algorithm = remote_config(
        evaluation_interval_steps=10**6, evaluation_num_env_runners=1, use_kl_loss=True
    ).build_algo()
    yield algorithm
    if algorithm._pool.num_healthy:  # else the last test has stopped it
        algorithm.stop()


@pytest.fixture
def mixed(algorithm):
    """The shared algorithm, in the mixed phase, with all its actors."""
    train_until(algorithm, lambda result: result["phase"] == "mixed" and everyone_is_there(algorithm))
    return algorithm


def steps_of(algorithm) -> int:
    return algorithm._state.num_env_steps


def all_pids(algorithm) -> list[int]:
    actors = [
        *env_runners(algorithm).values(),
        *dreamers(algorithm).values(),
        *learners(algorithm).values(),
        algorithm._server,
        algorithm._replay.service,
    ]
    return [pid_of(actor) for actor in actors]


def server_record(algorithm) -> dict:
    return ray.get(algorithm._server.pull_if_newer.remote(-1))


def versions(actor) -> tuple[int, int, int]:
    """(record, world model, policy) that an env runner or dreamer last took."""
    return ray.get(
        actor.__ray_call__.remote(
            lambda self: (self._client.sequence, self._client.world_model_version, self._client.policy_version)
        ),
        timeout=60,
    )


# --- a run without trouble -------------------------------------------------------------------------------------------


def test_every_part_is_a_process_of_its_own(algorithm):
    pids = all_pids(algorithm)
    assert len(pids) == 7
    assert len({*pids, os.getpid()}) == 8


def test_ratio_and_versions_through_the_phases(algorithm):
    results = [algorithm.train() for _ in range(5)]
    assert [result["phase"] for result in results] == ["random", "pretrain", "mixed", "mixed", "mixed"]
    steps = results[0]["num_env_steps_sampled_lifetime"]
    assert RANDOM_STEPS <= steps <= RANDOM_STEPS + 2
    for result in results[2:]:
        steps = assert_exact(result, RATIO, ROUNDS, steps)
    assert steps == results[-1]["num_env_steps_sampled_lifetime"]
    # All real steps, the random ones too, are in the replay.
    assert ray.get(algorithm._replay.service.stats.remote())["num_added_timesteps"] == steps
    assert [result["world_model"]["version"] for result in results] == [0, 1, 2, 3, 4]
    assert [result["policy"]["version"] for result in results] == [0, 0, ROUNDS, 2 * ROUNDS, 3 * ROUNDS]
    assert results[-1]["restarts"] == {"env_runners": 0, "dreamers": 0, "parameter_server": 0}


def test_the_server_only_grows_and_holds_references_alone(mixed):
    before = server_record(mixed)
    for _ in range(2):
        mixed.train()
        after = server_record(mixed)
        for name in (WEIGHTS_SEQ_NO, WORLD_MODEL_VERSION, POLICY_VERSION):
            assert after[name] > before[name]
        refs = [value for value in after.values() if isinstance(value, ray.ObjectRef)]
        assert len(refs) == 2 and all(isinstance(value, int | ray.ObjectRef) for value in after.values())
        before = after
    # An old record cannot take it back.
    ray.get(mixed._server.push.remote({**before, WEIGHTS_SEQ_NO: before[WEIGHTS_SEQ_NO] - 1}))
    assert server_record(mixed) == before


def test_everyone_works_with_what_the_server_published(mixed):
    start = server_record(mixed)
    mixed.train()
    end_ = server_record(mixed)
    # Env runners sampled with the record that stood when the iteration began,
    for runner in env_runners(mixed).values():
        assert versions(runner) == (start[WEIGHTS_SEQ_NO], start[WORLD_MODEL_VERSION], start[POLICY_VERSION])
    # dreamers with this iteration's fit and, in its last round, the last policy but one.
    for dreamer in dreamers(mixed).values():
        assert versions(dreamer) == (end_[WEIGHTS_SEQ_NO] - 1, end_[WORLD_MODEL_VERSION], end_[POLICY_VERSION] - 1)


def _runner_weights(runner) -> tuple[dict, dict]:
    runner.pull()
    return (
        {name: value.numpy() for name, value in runner.world_model.state_dict().items()},
        {name: np.asarray(value) for name, value in runner.module.get_state().items()},
    )


def _dreamer_weights(dreamer) -> tuple[dict, dict]:
    dreamer._pull()
    return (
        {name: value.numpy() for name, value in dreamer._world_model.state_dict().items()},
        {name: np.asarray(value) for name, value in dreamer._module.get_state().items()},
    )


def assert_everyone_has(algorithm, expected) -> None:
    """A pull, then equal weights element by element: no half of one version with half of another."""
    actors = [(runner, _runner_weights) for runner in env_runners(algorithm).values()]
    actors += [(dreamer, _dreamer_weights) for dreamer in dreamers(algorithm).values()]
    for actor, read in actors:
        world_model, policy = ray.get(actor.__ray_call__.remote(read))
        assert_equal(world_model, expected[0])
        assert_equal(policy, {name: expected[1][name] for name in policy})


def test_everyone_has_what_the_learner_has(mixed):
    mixed.train()
    assert_everyone_has(mixed, learner_weights(mixed))


def test_the_driver_receives_no_arrays(mixed, monkeypatch):
    """Contract 8: what dreamers and env runners answer is small, whatever the number of rows."""
    parts = []
    sampling, pool = mixed._stages.sampling, mixed._pool
    sample, receive = sampling.sample, pool._receive

    def receive_and_note(ticket):
        answers = receive(ticket)
        parts.extend(answer for _, answer in answers)
        return answers

    monkeypatch.setattr(sampling, "sample", lambda *a: parts.extend(got := sample(*a)) or got)
    monkeypatch.setattr(pool, "_receive", receive_and_note)
    mixed.train()
    assert len(parts) == 2 + 2 * ROUNDS
    for part in parts:
        # RLlib's metrics aside, numbers and references.
        values = [v for name, v in vars(part).items() if name != "metrics"]
        flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
        assert all(isinstance(item, int | float | ray.ObjectRef) for item in flat)


# --- checkpoint ------------------------------------------------------------------------------------------------------


def test_restored_in_place(mixed, tmp_path):
    """RLlib skips weights with an old sequence number and remembers the number: acting with the wrong ones."""
    path = mixed.save_to_path(str(tmp_path / "checkpoint"))
    # The replay is an actor; its contents are in the checkpoint, written by itself.
    assert (Path(path) / "replay" / "replay.pkl").stat().st_size > 1000
    saved, weights = snapshot(mixed), learner_weights(mixed)
    evaluation = mixed.evaluate_return(4)
    for _ in range(2):
        mixed.train()
    with pytest.raises(AssertionError):
        assert_equal(learner_weights(mixed), weights)
    sequence = server_record(mixed)[WEIGHTS_SEQ_NO]

    mixed.restore_from_path(path)
    assert_equal(snapshot(mixed), saved)
    assert_everyone_has(mixed, weights)
    assert server_record(mixed)[WEIGHTS_SEQ_NO] > sequence
    # The same seeds and weights, so the same episodes, on the evaluation env runner.
    assert mixed.evaluate_return(4) == evaluation

    # After the next fit the world model has a version that the dreamers have seen before, with other weights.
    mixed.train()
    assert_everyone_has(mixed, learner_weights(mixed))


def test_a_checkpoint_does_not_say_where_parts_run(mixed, tmp_path):
    """What actors learned goes on in a single process."""
    path = mixed.save_to_path(str(tmp_path / "checkpoint"))
    config = mixed.config.copy(copy_frozen=False)
    config.num_learners = config.num_env_runners = config.evaluation_num_env_runners = config.num_dreamers = 0
    single = config.build_algo()
    try:
        single.restore_from_path(path)
        assert_equal(snapshot(single), snapshot(mixed))
        assert single.train()["imagination"]["rows_by_round"]
    finally:
        single.stop()


# --- deaths ----------------------------------------------------------------------------------------------------------


def test_a_dreamer_dies_while_it_dreams(mixed, monkeypatch):
    """Its share goes to the other one; the ratio stays exact in every round; it comes back with the newest weights."""
    first, second = dreamers(mixed).values()
    victim, survivor = pid_of(first), pid_of(second)
    send, shares = mixed._pool._send, []

    def kill_during_the_first_call(order, requests, ids):
        if not shares:
            threading.Timer(0.5, end, [victim]).start()
        shares.append([sum(request.rows) for request in requests])
        return send(order, requests, ids)

    monkeypatch.setattr(mixed._pool, "_send", kill_during_the_first_call)
    os.kill(victim, signal.SIGSTOP)  # so that its order is surely not done when it dies
    steps = steps_of(mixed)
    steps = assert_exact(mixed.train(), RATIO, ROUNDS, steps)
    # From the other one, or from both if Ray was quick to restart the first.
    assert len(shares[0]) == 2 and sum(shares[1]) == shares[0][0], "the lost share was not ordered again"

    monkeypatch.undo()
    results = train_until(mixed, lambda result: result["restarts"]["dreamers"] and mixed._pool.num_healthy == 2)
    for result in [*results, mixed.train()]:
        steps = assert_exact(result, RATIO, ROUNDS, steps)
    assert mixed.train()["restarts"]["dreamers"] == 1
    assert pid_of(first) != victim and pid_of(second) == survivor
    assert versions(first) == versions(second)


@pytest.mark.slow
def test_both_dreamers_die_at_once(mixed):
    restarts = mixed.train()["restarts"]["dreamers"]
    steps = steps_of(mixed)
    for dreamer in dreamers(mixed).values():
        end(pid_of(dreamer))
    results = train_until(mixed, lambda result: mixed._pool.num_healthy == 2)
    for result in [*results, mixed.train()]:
        steps = assert_exact(result, RATIO, ROUNDS, steps)
    assert mixed.train()["restarts"]["dreamers"] == restarts + 2


def test_no_dreamer_in_time_means_no_update(mixed, monkeypatch):
    """Without patience, too, the ratio never drifts: rounds are left out and counted, real steps go on."""
    policy_version = mixed.train()["policy"]["version"]
    monkeypatch.setattr(mixed._pool, "_timeout_s", 0.1)
    for dreamer in dreamers(mixed).values():
        end(pid_of(dreamer))
    steps = steps_of(mixed)
    result = mixed.train()
    assert result["num_env_steps_sampled_lifetime"] > steps
    real_and_imagined = result["imagination"]["rows_by_round"]
    assert result["imagination"]["updates_skipped"] + len(real_and_imagined) == ROUNDS
    assert result["imagination"]["updates_skipped"] >= 1
    for real, imagined in real_and_imagined:
        assert abs(imagined - real * RATIO / (1 - RATIO)) <= 0.5 * RATIO / (1 - RATIO)
    assert result["policy"]["version"] == policy_version + len(real_and_imagined)
    monkeypatch.undo()
    train_until(mixed, lambda result: mixed._pool.num_healthy == 2)


def test_a_dreamer_that_hangs_is_waited_for_once(mixed, monkeypatch):
    """It hangs, or is cut off from the driver: the other one dreams all, and it is asked again when it has answered."""
    monkeypatch.setattr(mixed._pool, "_timeout_s", 5.0)
    stuck = pid_of(dreamers(mixed)[1])
    before, steps = mixed.train()["faults"]["dreamers_late"], steps_of(mixed)
    with hanging(stuck):
        results = [mixed.train() for _ in range(3)]
    for result in results:
        steps = assert_exact(result, RATIO, ROUNDS, steps)
        assert result["faults"]["dreamers_late"] == before + 1, "it was waited for again"
    train_until(mixed, lambda result: not mixed._pool._overdue)
    assert pid_of(dreamers(mixed)[1]) == stuck
    assert mixed.train()["restarts"]["dreamers"] == results[0]["restarts"]["dreamers"]


def test_an_env_runner_that_hangs_is_waited_for_once(mixed, monkeypatch):
    """What it was asked for comes late, and is counted and learned from like anything else that is not too old."""
    sampling = mixed._stages.sampling
    sample = sampling.sample
    monkeypatch.setattr(sampling, "sample", lambda request, timeout_s: sample(request, 5.0))
    stuck = pid_of(env_runners(mixed)[1])
    before, steps = mixed.train()["faults"]["env_runners_late"], steps_of(mixed)
    with hanging(stuck):
        results = [mixed.train() for _ in range(3)]
    for result in results:
        steps = assert_exact(result, RATIO, ROUNDS, steps)
        assert result["faults"]["env_runners_late"] == before + 1, "it was waited for again"
    for result in train_until(mixed, lambda result: not sampling._late):
        steps = assert_exact(result, RATIO, ROUNDS, steps)
    assert sampling._late_tags == []
    assert ray.get(mixed._replay.service.stats.remote())["num_added_timesteps"] == steps
    assert_exact(mixed.train(), RATIO, ROUNDS, steps)
    assert pid_of(env_runners(mixed)[1]) == stuck


def test_the_parameter_server_dies(mixed):
    assert mixed.train()["restarts"]["parameter_server"] == 0
    before, old = server_record(mixed), pid_of(mixed._server)
    steps = steps_of(mixed)
    end(old)
    result = mixed.train()
    assert_exact(result, RATIO, ROUNDS, steps)
    assert result["restarts"]["parameter_server"] == 1
    assert pid_of(mixed._server) != old
    after = server_record(mixed)
    assert after[WEIGHTS_SEQ_NO] == mixed._state.sequence > before[WEIGHTS_SEQ_NO]
    assert after[POLICY_VERSION] == result["policy"]["version"] == before[POLICY_VERSION] + ROUNDS
    assert after[WORLD_MODEL_VERSION] == result["world_model"]["version"] > before[WORLD_MODEL_VERSION]
    for dreamer in dreamers(mixed).values():
        assert versions(dreamer)[0] == after[WEIGHTS_SEQ_NO] - 1
    assert mixed.train()["restarts"]["parameter_server"] == 1


def test_an_env_runner_dies(mixed):
    first, second = env_runners(mixed).values()
    victim = pid_of(first)
    steps = steps_of(mixed)
    end(victim)
    results = train_until(
        mixed,
        lambda result: result["restarts"]["env_runners"] and mixed.env_runner_group.num_healthy_remote_workers() == 2,
    )
    results.append(mixed.train())
    for result in results:
        if result["imagination"]["rows_by_round"]:  # an iteration may have lost all its real rows
            steps = assert_exact(result, RATIO, ROUNDS, steps)
    assert results[-1]["restarts"]["env_runners"] == 1
    assert pid_of(first) != victim
    # It knows the parameter server again: newest weights, like the other one's.
    assert versions(first) == versions(second) > (0, 0, 0)
    start = server_record(mixed)
    mixed.train()
    assert versions(first)[0] == start[WEIGHTS_SEQ_NO]


@pytest.mark.slow
def test_all_env_runners_dead_at_once(mixed):
    """An iteration without real rows has no update and no NaN; then it goes on."""
    steps = steps_of(mixed)
    for runner in env_runners(mixed).values():
        end(pid_of(runner))
    result = mixed.train()
    if steps_of(mixed) == steps:
        assert result["imagination"]["rows_by_round"] == []
        assert result["imagination"]["ratio"] is None
    results = train_until(mixed, lambda result: mixed.env_runner_group.num_healthy_remote_workers() == 2)
    assert mixed.train()["num_env_steps_sampled_lifetime"] > steps
    assert all(result["rows"]["imagined"] >= 0 for result in results)


def test_the_evaluation_env_runner_dies(mixed):
    """Nobody else could have answered: it is asked again when it is back."""
    [runner] = mixed.eval_env_runner_group._worker_manager.actors().values()
    victim = pid_of(runner)
    os.kill(victim, signal.SIGSTOP)
    threading.Timer(1.0, end, [victim]).start()  # while it evaluates
    assert len(mixed.evaluate_return(3).returns) == 3
    assert pid_of(runner) != victim


def test_a_learner_that_raised_ends_training(mixed):
    """RLlib takes it out of service and goes on with no learner at all; and `stop` still ends every actor.

    Last test of the shared algorithm.
    """
    pids = all_pids(mixed)
    mixed.learner_group.foreach_learner(lambda learner: 1 // 0)
    with pytest.raises(LearnerError, match="Resume the run from its last checkpoint"):
        mixed.train()
    with pytest.raises(LearnerError):
        mixed.train()
    mixed.stop()
    assert_gone(pids)


def assert_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 60
    while alive := [pid for pid in pids if os.path.exists(f"/proc/{pid}")]:
        assert time.monotonic() < deadline, f"{len(alive)} of {len(pids)} processes are still there"
        time.sleep(0.2)


# --- two learners ----------------------------------------------------------------------------------------------------

SCHEDULE = [[0, 0.9], [130, 0.9], [131, 0.0]]


@pytest.fixture(scope="module")
def pair(local_ray):
    """Two learners with 17 real rows each: nothing divides evenly, and episodes end where they may."""
    algorithm = remote_config(
        imagination_ratio=SCHEDULE,
        num_learners=2,
        num_env_runners=0,
        num_envs_per_env_runner=3,
        num_dreamers=0,
        train_batch_size_per_learner=17,
    ).build_algo()
    yield algorithm
    algorithm.stop()


def _record_merges(learner) -> None:
    learner.merges, original = [], learner._merge

    def merge(sources):
        learner.merges.append([len(source["obs"]) for source in sources])
        return original(sources)

    learner._merge = merge


@pytest.mark.timeout(180)  # learners that wait for each other do so for ever
def test_two_learners_merge_exactly_and_stay_equal(pair):
    pair.learner_group.foreach_learner(_record_merges)
    steps, rows, ratios = 0, [], set()
    for _ in range(7):
        ratio = 0.9 if steps <= 130 else 0.0
        result = pair.train()
        real, steps = result["num_env_steps_sampled_lifetime"] - steps, result["num_env_steps_sampled_lifetime"]
        if result["phase"] == "mixed":
            expected = [real, round(real * ratio / (1 - ratio))]
            rows += [expected] * (ROUNDS if ratio else 1)
            assert result["imagination"]["rows_by_round"] == rows[-ROUNDS if ratio else -1 :]
            ratios.add(ratio)
    assert ratios == {0.0, 0.9}
    # What each learner really merged: shares of equal length, which make up the whole.
    first, second = (r.get() for r in pair.learner_group.foreach_learner(lambda learner: learner.merges))
    assert [[a + b for a, b in zip(*shares, strict=True)] for shares in zip(first, second, strict=True)] == [
        expected for expected in rows if expected[1]
    ]
    assert all(abs(a - b) <= 1 for shares in zip(first, second, strict=True) for a, b in zip(*shares, strict=True))
    first, second = (r.get()["rl_module"] for r in pair.learner_group.foreach_learner(lambda x: x.get_state()))
    for module_id in (DEFAULT_MODULE_ID, WORLD_MODEL_MODULE_ID):
        assert first[module_id].keys() == second[module_id].keys()
        for name, value in first[module_id].items():
            np.testing.assert_array_equal(value, second[module_id][name])


def test_one_of_two_learners_dies(pair):
    """Training on the other one alone would be silent, and half as much."""
    end(pid_of(learners(pair)[0]))
    with pytest.raises((LearnerError, ray.exceptions.RayError)):
        pair.train()


# --- dreamers with a defect ------------------------------------------------------------------------------------------


@pytest.fixture
def dreams_with(local_ray):
    """Builds an algorithm with a given M and one remote dreamer, and goes through the phases before the first dream."""
    algorithms = []

    def build(mdn_rnn_class):
        algorithm = remote_config(
            num_env_runners=0, num_learners=0, num_dreamers=1, mdn_rnn_class=mdn_rnn_class
        ).build_algo()
        algorithms.append(algorithm)
        assert [algorithm.train()["phase"] for _ in range(2)] == ["random", "pretrain"]
        return algorithm

    yield build
    for algorithm in algorithms:
        algorithm.stop()


def test_a_dreamer_whose_code_raises_ends_training(dreams_with):
    """FaultAwareApply would restart the actor for ever, with training going on at ratio 0."""
    algorithm = dreams_with("broken_models.RaisesInDreams")
    [dreamer] = dreamers(algorithm).values()
    pid = pid_of(dreamer)
    start = time.monotonic()
    with pytest.raises(DreamerError, match="this M cannot dream"):
        algorithm.train()
    assert time.monotonic() - start < 120
    assert pid_of(dreamer) == pid, "the actor was restarted for an error of its code"


def test_dreamers_that_cannot_be_built_end_training(dreams_with, tmp_path, monkeypatch):
    """Ray does not restart an actor whose constructor raised: waiting for it would be waiting for ever."""
    (tmp_path / "only_in_the_driver.py").write_text("from broken_models import RaisesInDreams\n")
    monkeypatch.syspath_prepend(tmp_path)
    algorithm = dreams_with("only_in_the_driver.RaisesInDreams")
    start = time.monotonic()
    with pytest.raises(DreamerError, match="only_in_the_driver"):
        algorithm.train()
    assert time.monotonic() - start < 120
