"""Twenty kills at random in one run: whoever is killed comes back, is counted, and the run reaches its goal."""

from __future__ import annotations

import random
import threading
import time

import pytest
import ray
from remote import dreamers, end, env_runners, everyone_is_there, pid_of

from wm_rllib import WorldModelPPOConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.usefixtures("local_ray")]

NUM_KILLS = 20
SEED = 0
RATIO = 0.98
ROUNDS = 3
MOST_DELAY_S = 4.0


@pytest.fixture
def algorithm(local_ray):
    config = (
        WorldModelPPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=2, num_envs_per_env_runner=2, num_cpus_per_env_runner=0.3)
        .dreamers(
            num_dreamers=2,
            num_cpus_per_dreamer=0.3,
            num_cpus_for_replay=0.1,
            imagination_ratio=RATIO,
            num_dream_rounds=ROUNDS,
        )
        .learners(num_learners=1, num_cpus_per_learner=0.4)
        .debugging(log_level="ERROR", seed=0)
    )
    algorithm = config.build_algo()
    yield algorithm
    algorithm.stop()


def restarts(result: dict) -> dict[str, int]:
    return dict(result["restarts"])


def victims(algorithm) -> dict[str, list]:
    """Handles of what may be killed; the learner and the replay end the run."""
    return {
        "env_runners": list(env_runners(algorithm).values()),
        "dreamers": list(dreamers(algorithm).values()),
        "parameter_server": [algorithm._server],
    }


def test_twenty_kills(algorithm):
    """One at a time, at a random moment of an iteration; the next one when all are there and the last is counted."""
    rng = random.Random(SEED)
    result = algorithm.train()
    while result["phase"] != "mixed" or not everyone_is_there(algorithm):
        result = algorithm.train()
    kills = dict.fromkeys(victims(algorithm), 0)
    log = []
    while sum(kills.values()) < NUM_KILLS:
        kind = rng.choice(list(kills))
        pid = pid_of(rng.choice(victims(algorithm)[kind]))
        kills[kind] += 1
        delay = rng.uniform(0.0, MOST_DELAY_S)
        threading.Timer(delay, end, [pid]).start()
        start, iterations = time.monotonic(), 0
        while restarts(result) != kills or not everyone_is_there(algorithm):
            result = algorithm.train()
            iterations += 1
            for real, imagined in result["imagination"]["rows_by_round"]:
                assert imagined == round(real * RATIO / (1 - RATIO))
            assert time.monotonic() - start < 120, (kind, kills, restarts(result), log)
        log.append((kind, round(delay, 2), iterations, round(time.monotonic() - start, 1)))
        print(*log[-1], flush=True)
    assert restarts(result) == kills and sum(kills.values()) == NUM_KILLS
    while (evaluation := algorithm.evaluate_return(20)).mean < 475 and result[
        "num_env_steps_sampled_lifetime"
    ] < 10_000:
        result = algorithm.train()
    print(kills, result["num_env_steps_sampled_lifetime"], evaluation.mean, result["faults"])
    assert evaluation.mean >= 475
    assert ray.get(algorithm._replay.service.stats.remote())["num_added_timesteps"] == algorithm._state.num_env_steps
