"""`benchmark`: measure contenders under one measure, and report from the raw results."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from wm_rllib.runs.errors import CommandError
from wm_rllib.runs.signals import exit_code
from wm_rllib.settings.yaml_files import parse_yaml

_FLAGS = {
    "interval": "--interval",
    "episodes": "--episodes",
    "threshold": "--threshold",
    "max_steps": "--max-steps",
    "time_limit_s": "--time-limit",
    "num_threads": "--threads",
}
"""Flags of `run` that are values of the measure."""


def run(args: argparse.Namespace) -> int:
    """Run one of the subcommands; returns the exit code."""
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "run": _run,
        "report": _report,
        "list": _list,
        "speed": _speed,
        "soak": _soak,
        "worker": _worker,
    }
    return commands[args.benchmark_command](args)


def _run(args: argparse.Namespace) -> int:
    from wm_rllib.benchmark.running import pending_jobs, run_jobs
    from wm_rllib.benchmark.store import Store
    from wm_rllib.benchmark.suite import Wishes, check_measure, make_jobs

    measure = {
        key: check_measure(key, parse_yaml(getattr(args, key), flag), flag)
        for key, flag in _FLAGS.items()
        if getattr(args, key) is not None
    }
    if args.stop_when_solved is not None:
        measure["stop_when_solved"] = args.stop_when_solved
    num_parallel = _whole(args.jobs, "--jobs", 1)
    wishes = Wishes(args.suite, args.env, args.contender, _seeds(args.seeds), measure)
    jobs = make_jobs(args.config, wishes)
    store, say = Store(Path(args.results)), partial(print, flush=True)
    pending = pending_jobs(jobs, store, force=args.force, say=say)
    say(f"{len(pending)} of {len(jobs)} runs to do, results in {store.root / jobs[0].suite}")
    command = "python -m wm_rllib " + shlex.join(args.argv)
    signal.signal(signal.SIGTERM, _exit)  # so that the workers end too
    with store.writing(jobs[0].suite):
        results = run_jobs(pending, store, command=command, num_parallel=num_parallel, say=say)
    failed = [result for result in results if not result.is_complete]
    for result in failed:
        say(f"{result.job}: failed, see {store.log_path(result.job)}")
    return 1 if failed else 0


def _exit(number: int, _: FrameType | None) -> None:
    raise SystemExit(exit_code(number))


def _seeds(text: str | None) -> list[int] | None:
    if text is None:
        return None
    return [_whole(part, "--seeds", 0) for part in text.split(",")]


def _whole(text: str, flag: str, low: int) -> int:
    value = parse_yaml(text, flag)
    if type(value) is not int or value < low:
        raise CommandError(f"{flag} is {text!r}, but must be a whole number of at least {low}. Fix: {flag} {low}.")
    return value


def _list(args: argparse.Namespace) -> int:
    from wm_rllib.benchmark.contenders import CONTENDERS

    width = max(map(len, CONTENDERS))
    for contender in CONTENDERS.values():
        print(f"{contender.name:<{width}}  {contender.description}")
    print("\nA wm contender takes settings: wm@world_model.training.imagination_ratio=0.8,ppo.gamma=0.97")
    print("One of your own is its import path: package.module:CONTENDER (wm_rllib.benchmark.trainer.Contender)")
    return 0


def _speed(args: argparse.Namespace) -> int:
    turns = str(_whole(args.turns, "--turns", 1))
    to_file = ["--json", args.json] if args.json else []
    if args.what == "dream":
        from wm_rllib.benchmark import speed_dream

        return speed_dream.main(["--repeats", turns, *to_file])
    if args.what == "scaling":
        from wm_rllib.benchmark import scaling

        return scaling.main(["--rounds", turns, *to_file])
    if args.what == "overlap":
        from wm_rllib.benchmark import speed_overlap

        return speed_overlap.main(["--iterations", turns, *to_file])
    if args.what == "gpu":
        return _speed_gpu(args, to_file)
    from wm_rllib.benchmark import speed_env

    speed_env.main(["--turns", turns, *to_file])
    return 0


def _speed_gpu(args: argparse.Namespace, to_file: list[str]) -> int:
    from wm_rllib.benchmark import speed_gpu

    limit = str(_whole(args.time_limit, "--time-limit", 1))
    only = [flag for text in args.only for flag in ("--only", text)]
    return speed_gpu.main(["--device", args.device, "--time-limit", limit, *only, *to_file])


def _soak(args: argparse.Namespace) -> int:
    from wm_rllib.benchmark import soak

    minutes = str(_whole(args.minutes, "--minutes", 1))
    overlap = ["--overlap"] if args.overlap else []
    return soak.main(["--minutes", minutes, *overlap, *(["--json", args.json] if args.json else [])])


def _report(args: argparse.Namespace) -> int:
    from wm_rllib.benchmark.report import write_report
    from wm_rllib.benchmark.store import Store

    text = write_report(Store(Path(args.results)), args.suite, files=list(map(Path, args.into)), plot=Path(args.plot))
    print(text, end="")
    return 0


def _worker(args: argparse.Namespace) -> int:
    """One job in this process; `run` starts it."""
    from wm_rllib.benchmark.job import Job
    from wm_rllib.benchmark.store import Store
    from wm_rllib.benchmark.worker import run_job
    from wm_rllib.cli.ray_session import ray_session

    _end_with_parent()
    request: dict[str, Any] = json.loads(args.request)
    # Ray's own processes stay in this one's group, so that all of them can be ended together.
    session = partial(ray_session, "local", verbose=args.verbose, show_actor_logs=True)
    result = run_job(Job.from_dict(request["job"]), request["command"], Store(Path(args.results)), session)
    if result.error:
        print(result.error, file=sys.stderr)
    return 0 if result.is_complete else 1


def _end_with_parent() -> None:
    """End this process when the one that started it is gone: nobody would keep its time limit."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGKILL)  # Ray's processes end with the process that started them

    threading.Thread(target=watch, name="wm_rllib-parent", daemon=True).start()
