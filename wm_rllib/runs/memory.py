"""The peak memory of this process and its children, which are all of a local Ray's processes."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

_GB = 1e9


@dataclass(frozen=True)
class MemoryPeak:
    """Peak memory in bytes.

    Attributes:
        resident: Sum of the resident sizes. Pages that processes share count once for each, so it is an upper bound.
        proportional: Sum with each shared page counted once in all; 0 where the system does not tell.
    """

    resident: int
    proportional: int

    def __str__(self) -> str:
        """Return both, labelled."""
        text = f"{self.resident / _GB:.2f} GB resident (RSS summed, shared pages counted for each process)"
        if self.proportional:
            text += f", {self.proportional / _GB:.2f} GB with shared pages counted once (PSS)"
        return text


class MemoryMonitor:
    """Samples the memory in a thread."""

    def __init__(self, interval_s: float = 1.0, proportional_every: int = 5) -> None:
        """Prepare; `start` starts.

        Args:
            interval_s: Seconds between samples.
            proportional_every: Samples between two of the proportional size, which costs more to read.
        """
        self._interval_s = interval_s
        self._proportional_every = proportional_every
        self._peak = MemoryPeak(0, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wm_rllib-memory", daemon=True)

    def start(self) -> None:
        """Start sampling."""
        self._thread.start()

    @property
    def peak(self) -> MemoryPeak:
        """The peak so far."""
        return self._peak

    def stop(self) -> MemoryPeak:
        """Stop sampling, and return the peak."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        return self._peak

    def _run(self) -> None:
        count = 0
        while not self._stop.wait(self._interval_s):
            processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
            resident = sum(_sizes(processes, "rss"))
            proportional = sum(_sizes(processes, "pss")) if count % self._proportional_every == 0 else 0
            peak = self._peak
            self._peak = MemoryPeak(max(peak.resident, resident), max(peak.proportional, proportional))
            count += 1


def _sizes(processes: Iterable[psutil.Process], kind: str) -> Iterable[int]:
    for process in processes:
        try:
            info = process.memory_info() if kind == "rss" else process.memory_full_info()
        except psutil.Error:  # it has ended, or it is not ours to look at
            continue
        yield getattr(info, kind, 0)
