"""Whether all of the pixel pipeline works, and in which time: CarRacing and TakeCover at reduced size.

    python -m wm_rllib.benchmark.pixel_pipeline --json benchmarks/results/pixels/pipeline.json

Each task is three commands, as a user would type them: a run that collects, fits V and M, dreams, updates, evaluates
and saves; its resumption, for as many iterations again; and an evaluation of what it saved. The configs are those of
tune_configs/ with less of everything, and a bound on the replay's bytes that the task would exceed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from wm_rllib.benchmark.provenance import provenance
from wm_rllib.benchmark.store import write_json

Row = Mapping[str, Any]

POLL_S = 0.5
MAX_GIGABYTES = "world_model.data_collection.replay_max_gigabytes"


@dataclass(frozen=True)
class Task:
    """A config, and how much less of it.

    Attributes:
        config: The YAML file.
        settings: What is set to other values, by key.
        stop: The key of what ends the run.
        stops: Its value for the run, and for the resumption.
    """

    config: Path
    settings: Mapping[str, float]
    stop: str
    stops: tuple[int, int]


def reduced_tasks(folder: Path) -> dict[str, Task]:
    """CarRacing and TakeCover for minutes on two cores, from the YAML files in a folder.

    Their frames of 12,288 and 6,144 bytes would take 25 and 37 MB.
    """
    collection, evaluation = "world_model.data_collection.", {"evaluation.episodes": 3, "checkpoint.frequency": 2}
    return {
        "CarRacing-v3": Task(
            folder / "carracing.yaml",
            {
                f"{collection}random_collection_steps": 1500,
                MAX_GIGABYTES: 0.02,
                "ppo.train_batch_size_per_learner": 256,
                "evaluation.interval": 256,
                **evaluation,
            },
            "stop.total_timesteps",
            (2012, 2524),
        ),
        "VizdoomTakeCover-v1": Task(
            folder / "takecover.yaml",
            {
                f"{collection}random_collection_steps": 6000,
                MAX_GIGABYTES: 0.03,
                "world_model.vae.pretrain_epochs": 9,  # of a fiftieth of the frames
                "world_model.training.pretrain_epochs": 50,
                "world_model.training.dream_batch_size": 3840,
                "evaluation.interval_iterations": 2,
                **evaluation,
            },
            "stop.iterations",
            (4, 8),
        ),
    }


def run_task(task: Task, run_dir: Path) -> dict[str, Any]:
    """Runs a task's three commands, and returns what they took and what came of it.

    Raises:
        RuntimeError: A command failed; with the last of what it printed.
    """
    settings = [f"--set={key}={value:g}" for key, value in task.settings.items()]
    train = ["train", "--config", str(task.config), *settings, "--run-dir", str(run_dir)]
    first = timed([*train, f"--set={task.stop}={task.stops[0]}"])
    rows = rows_of(run_dir)
    resumed = timed([*train, f"--set={task.stop}={task.stops[1]}", "--resume", "auto"])
    evaluated = timed(["evaluate", str(run_dir), "--episodes", "3", "--json"])
    parts = {"train": first, "resume": resumed, "evaluate": evaluated}
    return {
        "settings": dict(task.settings),
        "seconds": {name: part.seconds for name, part in parts.items()},
        "peak_gigabytes": max(part.peak_bytes for part in parts.values()) / 1e9,
        "iterations": [len(rows), len(rows_of(run_dir))],
        **summary(rows_of(run_dir)),
        "evaluation": json.loads(evaluated.output.strip().splitlines()[-1]),
    }


@dataclass(frozen=True)
class Timed:
    """What a command took: seconds, the most memory at once of it and all its children, and what it printed."""

    seconds: float
    peak_bytes: int
    output: str


def timed(arguments: Sequence[str]) -> Timed:
    """Runs `python -m wm_rllib` with these arguments to its end; see `run_task`."""
    command, start, peak = [sys.executable, "-m", "wm_rllib", *arguments], time.monotonic(), 0
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                peak = max(peak, memory_of_tree(process.pid))
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            process.wait()  # it got the signal too, and saves
            raise
        log.seek(0)
        output = log.read()
    if process.returncode:
        raise RuntimeError(f"{shlex.join(arguments)} exited with {process.returncode}:\n{output[-2000:]}")
    return Timed(time.monotonic() - start, peak, output)


def memory_of_tree(pid: int) -> int:
    """Bytes of a process and its children; pages that several of them share count once (Linux's PSS)."""
    total = 0
    try:
        for process in (root := psutil.Process(pid), *root.children(recursive=True)):
            total += process.memory_full_info().pss
    except psutil.NoSuchProcess:
        pass  # ended while it was looked at
    return total


def rows_of(run_dir: Path) -> list[Row]:
    """All iterations of a run."""
    return [json.loads(line) for line in (run_dir / "progress.jsonl").read_text(encoding="utf-8").splitlines()]


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Losses at the start and at the end of pretraining, the replay's bytes, and the seconds of each stage."""
    pretraining: dict[str, Any] = {}
    for row in rows:
        if row["phase"] == "pretrain":
            pretraining |= {name: value for name, value in row.items() if value is not None}
    stages: dict[str, float] = {}
    for row in rows:
        for name, seconds in row.items():
            if name.startswith("seconds/") and seconds is not None:
                stages[name.removeprefix("seconds/")] = stages.get(name.removeprefix("seconds/"), 0.0) + seconds
    return {
        "reconstruction_loss": [pretraining[f"vae/reconstruction_loss{at}"] for at in ("_at_start", "")],
        "explained": [pretraining["vae/explained"], pretraining["vae/moving_explained"]],
        "nll": [pretraining[f"mdn/nll{at}"] for at in ("_at_start", "")],
        "real_steps": rows[-1]["num_env_steps_sampled_lifetime"],
        "replay_steps": max(row.get("replay/steps", 0) for row in rows),
        "replay_gigabytes": max(row.get("replay/gigabytes", 0.0) for row in rows),
        "stage_seconds": stages,
    }


def describe(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A line of a table for each task."""
    lines = [
        "| task | train + resume + evaluate, s | iterations | reconstruction | explained, moving | nll "
        "| replay GB (bound) | peak GB | returns |",
        "|---" * 9 + "|",
    ]
    for name, found in results.items():
        seconds = found["seconds"]
        cells = [
            name,
            f"{' + '.join(f'{s:.0f}' for s in seconds.values())} = {sum(seconds.values()):.0f}",
            " -> ".join(map(str, found["iterations"])),
            " -> ".join(f"{value:.3g}" for value in found["reconstruction_loss"]),
            ", ".join(f"{value:.2f}" for value in found["explained"]),
            " -> ".join(f"{value:.2f}" for value in found["nll"]),
            f"{found['replay_gigabytes']:.3f} ({found['settings'][MAX_GIGABYTES]:g})",
            f"{found['peak_gigabytes']:.2f}",
            f"{found['evaluation']['episode_return_mean']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tasks that the arguments ask for; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m wm_rllib.benchmark.pixel_pipeline", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--configs", type=Path, default=Path("tune_configs"), metavar="FOLDER", help="of the YAML files"
    )
    parser.add_argument("--env", default=None, metavar="ID", help="of one task (both)")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="where the figures go")
    args = parser.parse_args(argv)
    tasks = reduced_tasks(args.configs)
    problem = None
    if args.env is not None and args.env not in tasks:
        problem = f"--env is {args.env!r}, but must be one of {', '.join(tasks)}."
    elif not args.configs.is_dir():
        problem = f"--configs is {str(args.configs)!r}, but there is no such folder. Fix: start where tune_configs/ is."
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    results = {}
    with tempfile.TemporaryDirectory(prefix="wm_rllib-pixels-") as folder:
        for number, name in enumerate([args.env] if args.env else tasks):
            results[name] = run_task(tasks[name], Path(folder) / str(number))
            print(describe({name: results[name]}), flush=True)
    if args.json:
        command = shlex.join(
            ["python", "-m", "wm_rllib.benchmark.pixel_pipeline", *(sys.argv[1:] if argv is None else argv)]
        )
        write_json(args.json, {"provenance": provenance(command, 0), "tasks": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
