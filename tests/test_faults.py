"""Errors of the environment's own code: one is survived and counted, the same one again and again ends the run."""

from __future__ import annotations

import time

import pytest
import ray
from custom_envs import Breaks
from remote import assert_exact, env_runners, pid_of
from tiny import ROUNDS, tiny_config

from wm_rllib.collection import EnvRunnerError
from wm_rllib.failures import MAX_FAILURES_IN_A_ROW, Failure, FailureCounter, death_of_all

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


@pytest.fixture
def build(local_ray):
    algorithms = []

    def build(**env_config):
        config = tiny_config(
            Breaks,
            imagination_ratio=RATIO,
            num_env_runners=2,
            num_cpus_per_env_runner=0.2,
            num_cpus_for_replay=0.1,
            evaluation_interval_steps=None,
            env_config=env_config,
        )
        algorithms.append(config.build_algo())
        return algorithms[-1]

    yield build
    for algorithm in algorithms:
        algorithm.stop()


@pytest.mark.integration
def test_an_environment_that_breaks_once(build, tmp_path):
    """The env runner lives on, with new environments; what it had sampled is lost, and the ratio holds."""
    algorithm = build(marker=str(tmp_path / "broke"), at=50, times=1)
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
def test_an_environment_that_always_breaks_ends_the_run(build, tmp_path):
    algorithm = build(marker=str(tmp_path / "broke"), at=20, times=10**6)
    start = time.monotonic()
    with pytest.raises(EnvRunnerError, match=r"failed 3 times in a row(?s:.*)the road is closed"):
        for _ in range(20):
            algorithm.train()
    assert time.monotonic() - start < 30
