"""Jobs, each in a process of its own, with a time limit; complete results are kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import psutil

from wm_rllib.benchmark.contenders import find_contender
from wm_rllib.benchmark.job import Job
from wm_rllib.benchmark.measuring import FAILED, RUNNING, TIME_LIMIT
from wm_rllib.benchmark.store import Result, Store, plain
from wm_rllib.settings.settings import flat

POLL_S = 0.2
PATIENCE_S = 10.0
"""How long a process may take to end by itself when it is asked to."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
Say = Callable[[str], None]


def pending_jobs(jobs: Iterable[Job], store: Store, *, force: bool, say: Say) -> list[Job]:
    """Return the jobs that have no complete result yet, and say which are skipped.

    Raises:
        CommandError: If a result cannot be read.
    """
    pending = []
    for job in jobs:
        found = None if force else store.read(job)
        if found is None or not found.is_complete:
            pending.append(job)
            continue
        say(f"{job}: skipped, {store.path(job)} is complete ({found.status}{_differences(found, job)})")
    return pending


def _differences(found: Result, job: Job) -> str:
    """How a result was measured otherwise than the job would be now; empty if it was not."""
    again = "(--force measures it again)"
    if not found.job.measured_like(job):
        return f", measured with other settings {again}"
    contender, values = find_contender(job.contender)
    if contender.resolve is None:
        return ""
    before = flat(found.settings)
    now = flat(plain(contender.resolve(job, values)))
    changed = [key for key in now.keys() | before.keys() if now.get(key) != before.get(key)]
    if not changed:
        return ""
    first = min(changed)
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    words = f"{first} {json.dumps(before.get(first))}, now {json.dumps(now.get(first))}{more}"
    return f", measured with other settings: {words} {again}"


def run_jobs(jobs: list[Job], store: Store, *, command: str, num_parallel: int, say: Say) -> list[Result]:
    """Run jobs, so many at a time, and return their results; what still runs when this is left is ended with it.

    Args:
        jobs: What to measure.
        store: Where results go.
        command: The command that asks for it, for the results.
        num_parallel: Processes at a time.
        say: Takes a line for each start and end.
    """
    waiting, running, results = deque(jobs), list[_Process](), list[Result]()
    try:
        while waiting or running:
            while waiting and len(running) < num_parallel:
                running.append(_Process.start(waiting.popleft(), store, command))
                say(f"{running[-1].job}: started")
            time.sleep(POLL_S)
            for process in [process for process in running if process.is_over()]:
                running.remove(process)
                results.append(process.finish())
                say(describe(results[-1]))
    finally:
        for process in running:
            process.end()
    return results


def describe(result: Result) -> str:
    """Return one line on how a run ended."""
    line = f"{result.job}: {result.status}"
    if result.curve:
        last = result.curve[-1]
        line += f" at {last.steps:,} steps, return {last.mean:.1f}, {last.train_seconds:.0f} s of training"
    if result.error:
        line += f": {result.error.strip().splitlines()[-1]}"
    return line


@dataclass
class _Process:
    """A worker."""

    job: Job
    store: Store
    popen: subprocess.Popen[bytes]
    log: IO[bytes]
    deadline: float

    @classmethod
    def start(cls, job: Job, store: Store, command: str) -> _Process:
        store.write(Result(job))
        log_path = store.log_path(job)
        log = log_path.open("wb")
        request = json.dumps({"job": job.to_dict(), "command": command})
        arguments = [sys.executable, "-m", "wm_rllib", "benchmark", "worker", request, "--results", str(store.root)]
        popen = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(job.measure.num_threads),
            start_new_session=True,  # a process group of its own: all of it can be ended, and nothing else
        )
        return cls(job, store, popen, log, time.monotonic() + job.measure.time_limit_s)

    def is_over(self) -> bool:
        return self.popen.poll() is not None or time.monotonic() >= self.deadline

    def finish(self) -> Result:
        """End the process if it has not ended, and settle its result."""
        timed_out = self.popen.poll() is None
        self.end()
        result = self.store.read_partial(self.job) or self.store.read(self.job) or Result(self.job)
        if result.status == RUNNING:
            status, error = (TIME_LIMIT, None) if timed_out else (FAILED, self._last_lines())
            result = replace(result, status=status, error=error)
            self.store.write(result)
        return result

    def end(self) -> None:
        """End the process and all that it has started, by their ids."""
        tree = _tree(self.popen.pid)
        if self.popen.poll() is None:
            self.popen.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(PATIENCE_S)
        for process in tree:
            with suppress(psutil.Error):
                process.kill()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        self.log.close()

    def _last_lines(self) -> str:
        text = Path(self.log.name).read_text(encoding="utf-8", errors="replace").strip()
        return "\n".join(text.splitlines()[-20:]) or f"the process ended with code {self.popen.returncode}"


def _tree(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _environment(num_threads: int) -> dict[str, str]:
    threads = dict.fromkeys(THREAD_VARIABLES, str(num_threads))
    return {**os.environ, **threads, "RAY_AUTH_MODE": "disabled"}
