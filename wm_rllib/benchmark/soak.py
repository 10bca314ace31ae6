"""Whether memory stays flat: a small run with every part an actor, and what each process holds over its time.

    python -m wm_rllib benchmark soak --minutes 30 --json benchmarks/results/speed/soak.json

The replay is full and every actor warm before what counts begins: a third of the time. From then on the growth of each
process's resident memory is the slope of a line through all its samples, in MB a minute.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from ray._private.internal_api import node_stats

from wm_rllib.algorithm import WorldModelPPO
from wm_rllib.benchmark.provenance import provenance
from wm_rllib.benchmark.store import write_json
from wm_rllib.config import WorldModelPPOConfig

SAMPLE_EVERY_S = 10.0
COUNTS_FROM = 1.0 / 3.0
CAPACITY = 2000
"""Real steps that the replay holds: a few minutes' worth."""
OBJECT_STORE = "object store"


def soak_config(overlap: bool) -> WorldModelPPOConfig:
    """CartPole on 2 env runners, 2 dreamers and 1 learner, in short iterations: many, so that leaks add up."""
    config = (
        WorldModelPPOConfig()
        .environment("CartPole-v1")
        .world_model(updates_per_step=0.1, pretrain_epochs=5, replay_capacity=CAPACITY)
        .env_runners(num_env_runners=2, num_envs_per_env_runner=2, num_cpus_per_env_runner=0.2)
        .dreamers(
            num_dreamers=2, num_cpus_per_dreamer=0.2, num_cpus_for_replay=0.1, imagination_ratio=0.9, num_dream_rounds=2
        )
        .learners(num_learners=1, num_cpus_per_learner=0.4)
        .evaluation(evaluation_duration=2)
        .debugging(seed=0, log_level="ERROR")
    )
    config.overlap = overlap
    config.evaluation_interval_steps = 2000
    return config


def processes_of(algorithm: WorldModelPPO) -> dict[str, int]:
    """The process ids of the driver and of every actor, by name."""
    assert algorithm._pool is not None
    actors = {
        **{f"env runner {i}": a for i, a in algorithm.env_runner_group._worker_manager.actors().items()},
        **{f"dreamer {i}": a for i, a in algorithm._pool._manager.actors().items()},
        **{f"learner {i}": a for i, a in algorithm.learner_group._worker_manager.actors().items()},
        "replay": algorithm._replay.service,
        "parameter server": algorithm._server,
    }
    pids = ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in actors.values()])
    return {"driver": os.getpid(), **dict(zip(actors, pids, strict=True))}


def object_store_mb() -> float:
    """What is in this node's object store."""
    [node] = [node for node in ray.nodes() if node["Alive"]]
    stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False).store_stats
    return float(stats.object_store_bytes_used) / 1e6


def soak(minutes: float, *, overlap: bool, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Trains for so long, and returns samples, growth and what was done; Ray must be running."""
    algorithm = soak_config(overlap).build_algo()
    samples: list[dict[str, float]] = []
    start = time.monotonic()
    full_at: float | None = None
    try:
        pids = processes_of(algorithm)
        result: dict[str, Any] = {}
        while (passed := time.monotonic() - start) < 60 * minutes:
            result = algorithm.train()
            if full_at is None and result["num_env_steps_sampled_lifetime"] >= CAPACITY:
                full_at = passed / 60
            if passed >= SAMPLE_EVERY_S * len(samples):
                samples.append({"minute": passed / 60, **memory(pids), OBJECT_STORE: object_store_mb()})
                if len(samples) % 30 == 0:
                    report(f"minute {passed / 60:.1f}: {result['training_iteration']} iterations")
        assert pids == processes_of(algorithm), "an actor was restarted: its memory is another process's"
    finally:
        algorithm.stop()
    return {
        "minutes": minutes,
        "overlap": overlap,
        "iterations": result["training_iteration"],
        "real_steps": result["num_env_steps_sampled_lifetime"],
        "replay_full_at_minute": full_at,
        "growth_mb_a_minute": growth(samples, COUNTS_FROM * minutes),
        "samples": samples,
    }


def memory(pids: Mapping[str, int]) -> dict[str, float]:
    """Resident megabytes of each process."""
    return {name: psutil.Process(pid).memory_info().rss / 1e6 for name, pid in pids.items()}


def growth(samples: Sequence[Mapping[str, float]], from_minute: float) -> dict[str, float]:
    """Megabytes a minute of everything sampled, from a minute on: the least-squares slope."""
    counted = [sample for sample in samples if sample["minute"] >= from_minute]
    minutes = [sample["minute"] for sample in counted]
    names = [name for name in counted[0] if name != "minute"]
    return {name: float(np.polyfit(minutes, [sample[name] for sample in counted], 1)[0]) for name in names}


def table(result: Mapping[str, Any]) -> list[str]:
    """What came of it, to read."""
    counted = [s for s in result["samples"] if s["minute"] >= COUNTS_FROM * result["minutes"]]
    first, last = counted[0], counted[-1]
    head = (
        f"{result['iterations']} iterations, {result['real_steps']} real steps, replay full at minute "
        f"{result['replay_full_at_minute']:.1f}; from minute {first['minute']:.1f} to {last['minute']:.1f}:"
    )
    lines = [
        f"{name:<18} {first[name]:8.1f} MB -> {last[name]:8.1f} MB   {slope:+.3f} MB a minute"
        for name, slope in result["growth_mb_a_minute"].items()
    ]
    return [head, *lines]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the soak from the command line."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long")
    parser.add_argument("--overlap", action="store_true", help="with stages that overlap")
    parser.add_argument("--json", type=Path, help="file for the result")
    args = parser.parse_args(argv)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        command = f"python -m wm_rllib benchmark soak --minutes {args.minutes:g}{' --overlap' if args.overlap else ''}"
        result = {"provenance": provenance(command, 1), **soak(args.minutes, overlap=args.overlap)}
    finally:
        ray.shutdown()
    print(*table(result), sep="\n")
    if args.json:
        write_json(args.json, result)
    return 0
