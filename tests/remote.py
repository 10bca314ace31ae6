"""What tests of a remote algorithm need: its actors' processes, and ways to end them."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from wm_rllib import WorldModelPPO


def pid_of(actor: Any) -> int:
    """The process of an actor; waits while it restarts."""
    return ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=60)


def dreamers(algorithm: WorldModelPPO) -> dict[int, Any]:
    return dict(algorithm._pool._manager.actors())


def env_runners(algorithm: WorldModelPPO) -> dict[int, Any]:
    return dict(algorithm.env_runner_group._worker_manager.actors())


def learners(algorithm: WorldModelPPO) -> dict[int, Any]:
    return dict(algorithm.learner_group._worker_manager.actors())


def everyone_is_there(algorithm: WorldModelPPO) -> bool:
    """Whether both env runners and both dreamers can be asked."""
    return algorithm._pool.num_healthy == algorithm.env_runner_group.num_healthy_remote_workers() == 2


def end(pid: int) -> None:
    """What the kernel does to a process that takes too much memory: it cannot clean up."""
    os.kill(pid, signal.SIGKILL)


@contextmanager
def hanging(pid: int) -> Iterator[None]:
    """A process that does not answer, and does not die either."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def train_until(algorithm: WorldModelPPO, done: Callable[[dict], bool], timeout_s: float = 150.0) -> list[dict]:
    """Trains until a result satisfies `done`; returns all results on the way."""
    deadline, results = time.monotonic() + timeout_s, []
    while True:
        results.append(algorithm.train())
        if done(results[-1]):
            return results
        assert time.monotonic() < deadline, f"not within {timeout_s} s; the last result was {results[-1]}"


def assert_exact(result: dict, ratio: float, rounds: int, steps_before: int) -> int:
    """Checks every round of a mixed iteration against the ratio; returns the real steps after it."""
    steps = result["num_env_steps_sampled_lifetime"]
    real = steps - steps_before
    expected = [[real, round(real * ratio / (1 - ratio))]] * rounds
    realised = result["imagination"]["rows_by_round"]
    assert realised == expected, f"real and imagined rows are {realised}, not {expected}: {result['imagination']}"
    assert result["imagination"]["updates_skipped"] == 0
    return steps


def report_placement(*, algorithm: WorldModelPPO, result: dict, **_: Any) -> None:
    """Callback `on_train_result`: in which placement group, and which of its bundles, the actors run."""

    def place(_: Any) -> dict[str, Any]:
        context = ray.get_runtime_context()
        # bundle_group_<bundle>_<group> is what every actor in that bundle holds a little of.
        resources = ray._private.worker.global_worker.core_worker.resource_ids()
        bundles = [re.match(r"bundle_group_(\d+)_", name) for name in resources]
        return {"group": context.get_placement_group_id(), "bundles": [int(found[1]) for found in bundles if found]}

    actors = {"dreamer": list(dreamers(algorithm).values()), "replay": [algorithm._replay.service]}
    result["placement"] = {
        "trial": place(None),
        **{f"{kind}s": [ray.get(a.__ray_call__.remote(place)) for a in found] for kind, found in actors.items()},
        "num_bundles": len(algorithm.default_resource_request(algorithm.config).bundles),
    }
