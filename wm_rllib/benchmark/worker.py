"""One job in this process: the file of its result is up to date after each evaluation, however the process ends."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from typing import Any

from wm_rllib.benchmark.contenders import find_contender
from wm_rllib.benchmark.job import Job
from wm_rllib.benchmark.measuring import FAILED, Point, measure
from wm_rllib.benchmark.provenance import provenance
from wm_rllib.benchmark.store import Result, Store
from wm_rllib.runs.memory import MemoryMonitor


def run_job(job: Job, command: str, store: Store, ray_session: Callable[[], AbstractContextManager[Any]]) -> Result:
    """Measures a job and writes its result; a failure is written too, and not raised.

    Args:
        job: What to measure.
        command: The command that asked for it.
        store: Where the result goes.
        ray_session: Starts Ray, for contenders that need it.
    """
    memory = MemoryMonitor()
    memory.start()
    writer = _Writer(store, Result(job, provenance=provenance(command, job.measure.num_threads)), memory)
    try:
        _run(job, writer, ray_session)
    except Exception:
        writer.update(status=FAILED, error=traceback.format_exc())
    finally:
        memory.stop()
    return writer.result


def _run(job: Job, writer: _Writer, ray_session: Callable[[], AbstractContextManager[Any]]) -> None:
    started = time.perf_counter()
    import torch

    torch.set_num_threads(job.measure.num_threads)
    contender, values = find_contender(job.contender)
    with ray_session() if contender.needs_ray else nullcontext():
        trainer = contender.make(job, values)
        try:
            writer.update(settings=dict(trainer.settings), setup_seconds=time.perf_counter() - started)
            status = measure(trainer, job, writer.add)
        finally:
            trainer.stop()
    writer.update(status=status)


class _Writer:
    """The newest result, in memory and in its file."""

    def __init__(self, store: Store, result: Result, memory: MemoryMonitor):
        self._store, self._memory = store, memory
        self.result = result
        self.update()

    def update(self, **changes: Any) -> None:
        self.result = replace(self.result, peak_memory=asdict(self._memory.peak), **changes)
        self._store.write(self.result)

    def add(self, point: Point) -> None:
        self.update(curve=(*self.result.curve, point))
        print(f"steps {point.steps}  train {point.train_seconds:.1f} s  return {point.mean:.1f}", flush=True)
