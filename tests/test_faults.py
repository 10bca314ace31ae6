"""Errors of the environment's own code: one is survived and counted, the same one again and again ends the run."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import ray
from custom_envs import Breaks
from remote import assert_exact, env_runners, pid_of
from tiny import ROUNDS, tiny_config

from wm_rllib.acting.evaluation import EvaluationResult
from wm_rllib.actors.failures import (
    MAX_FAILURES_IN_A_ROW,
    MIN_PATIENCE_S,
    Failure,
    FailureCounter,
    Patience,
    death_of_all,
)
from wm_rllib.env_runners.collection import EnvRunnerError
from wm_rllib.env_runners.evaluation_runners import evaluate_on

RATIO = 0.5


class Broke(RuntimeError):
    pass


def test_the_same_actor_failing_again_and_again_is_an_error():
    counter = FailureCounter("dreamer", Broke)
    failure = Failure("ValueError: no", "Traceback ...\nValueError: no")
    for _ in range(MAX_FAILURES_IN_A_ROW - 1):
        for actor in (1, 2):  # one after the other
            counter.failed(actor, failure)
    counter.worked(1)
    counter.failed(1, failure)
    with pytest.raises(Broke, match=r"dreamer 2 failed 3 times in a row; the last error was:\nTraceback"):
        counter.failed(2, failure)
    assert counter.total == 2 * MAX_FAILURES_IN_A_ROW


def test_patience_ends_after_ten_timeouts_and_ten_minutes_without_anything():
    patience = Patience("env runner", Broke, "env_runners.sample_timeout_s")
    for _ in range(3):  # something came in between
        patience.waited(MIN_PATIENCE_S - 1.0, 60.0)
        patience.delivered()
    patience.waited(MIN_PATIENCE_S - 1.0, 60.0)
    said = r"no env runner has delivered anything in 601 s of waiting.*longer than env_runners.sample_timeout_s \(60\)"
    with pytest.raises(Broke, match=said):
        patience.waited(2.0, 60.0)
    patient = Patience("dreamer", Broke, "dreamers.dreamer_timeout_s")
    patient.waited(1999.0, 200.0)
    with pytest.raises(Broke):
        patient.waited(1.0, 200.0)


def test_a_failure_names_what_was_raised_first():
    try:
        try:
            raise KeyError("position")
        except KeyError as error:
            raise RuntimeError from error  # as RLlib does
    except RuntimeError as error:
        failure = Failure.of(error)
    assert failure.error == "KeyError: 'position'"
    assert "KeyError: 'position'" in failure.traceback and "RuntimeError" in failure.traceback


class EvaluationRunners:
    """Of RLlib's group what `evaluate_on` asks; runner 2 fails in the calls named."""

    def __init__(self, failing_calls: set[int]):
        self.failing_calls, self.calls, self.played = failing_calls, 0, []

    def num_remote_env_runners(self):
        return 2

    def healthy_worker_ids(self):
        return [1, 2]

    def foreach_env_runner(self, function, **_):
        self.calls += 1
        return [function(SimpleNamespace(worker_index=i, evaluate=self.play(i), make_env=int)) for i in (1, 2)]

    def play(self, index):
        def play(record, episodes, seed):
            if index == 2 and self.calls in self.failing_calls:
                raise KeyError("position")
            self.played.append((index, episodes, seed))
            return EvaluationResult([float(index)] * episodes, [1] * episodes)

        return play


def evaluated(runners, counter):
    how = {"restore": int, "timeout_s": 60.0, "failures": counter}
    return evaluate_on(runners, {}, 7, 11, **how).returns


def test_an_evaluation_plays_again_what_an_error_took(monkeypatch):
    monkeypatch.setattr("wm_rllib.env_runners.evaluation_runners.RETRY_PAUSE_S", 0.0)
    runners, counter = EvaluationRunners({1}), FailureCounter("evaluation env runner", Broke)
    assert sorted(evaluated(runners, counter)) == [1.0] * 6 + [2.0]
    assert counter.total == 1
    (_, _, first), (_, _, second), (_, _, other) = runners.played
    assert len({first, second, other}) == 3  # no episode twice


def test_an_evaluation_env_runner_that_fails_each_time_ends_the_run(monkeypatch):
    monkeypatch.setattr("wm_rllib.env_runners.evaluation_runners.RETRY_PAUSE_S", 0.0)
    counter = FailureCounter("evaluation env runner", Broke)
    with pytest.raises(Broke, match="evaluation env runner 2 failed 3 times in a row"):
        for _ in range(3):
            assert len(evaluated(EvaluationRunners({1, 2, 3}), counter)) == 7
    assert counter.total == 3


@pytest.mark.integration
def test_death_of_all(local_ray):
    class Actor:
        def __init__(self, fails):
            if fails:
                raise ValueError("this cannot be built")

        def ping(self):
            return "pong"

    actor = ray.remote(num_cpus=0, max_restarts=-1)(Actor)
    dead, alive = actor.remote(True), actor.remote(False)
    ray.get(alive.ping.remote())
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(dead.ping.remote())
    assert "this cannot be built" in str(death_of_all([dead, dead]))
    assert death_of_all([dead, alive]) is None
    assert death_of_all([]) is None


@pytest.fixture(scope="module")
def marker(tmp_path_factory):
    return tmp_path_factory.mktemp("road") / "broke"


@pytest.fixture(scope="module")
def algorithm(local_ray, marker):
    """Its environments break once, and once more for good."""
    algorithm = tiny_config(
        Breaks,
        imagination_ratio=RATIO,
        num_env_runners=2,
        num_cpus_per_env_runner=0.2,
        num_cpus_for_replay=0.1,
        evaluation_interval_steps=None,
        env_config={"marker": str(marker), "at": 50},
    ).build_algo()
    yield algorithm
    algorithm.stop()


@pytest.mark.integration
def test_an_environment_that_breaks_once(algorithm):
    """The env runner lives on, with new environments; what it had sampled is lost, and the ratio holds."""
    pids = [pid_of(runner) for runner in env_runners(algorithm).values()]
    steps = 0
    for _ in range(9):
        result = algorithm.train()
        if result["phase"] == "mixed" and result["imagination"]["rows_by_round"]:
            steps = assert_exact(result, RATIO, ROUNDS, steps)
        steps = result["num_env_steps_sampled_lifetime"]
    assert result["faults"]["env_runner_errors"] == 1
    assert ray.get(algorithm._replay.service.stats.remote())["num_added_timesteps"] == steps
    assert pids == [pid_of(runner) for runner in env_runners(algorithm).values()]


@pytest.mark.integration
def test_an_environment_that_always_breaks_ends_the_run(algorithm, marker):
    marker.with_name(f"{marker.name}.closed").touch()
    start = time.monotonic()
    with pytest.raises(EnvRunnerError, match=r"failed 3 times in a row(?s:.*)the road is closed"):
        for _ in range(20):
            algorithm.train()
    assert time.monotonic() - start < 120
