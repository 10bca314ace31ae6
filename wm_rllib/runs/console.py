"""What a training run shows: a live line in a terminal, one plain line per iteration in a pipe."""

from __future__ import annotations

import shutil
import time
from typing import TextIO

from wm_rllib.metrics import Row, Scalar

_CLEAR_LINE = "\r\x1b[K"
_BAR_CELLS = 20


def format_duration(seconds: float) -> str:
    """Return a duration as 42s, 3m05s or 2h07m."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def _number(value: Scalar, spec: str) -> str:
    return "-" if value is None or isinstance(value, str) else format(value, spec)


def _part(row: Row) -> str:
    """How far pretraining is, while it is not at its end."""
    done = row.get("pretraining/done")
    return "" if done in (None, 1.0) else f" ({_number(done, '.0%')} pretrained)"


class Console:
    """Shows rows and messages on a stream."""

    def __init__(
        self, stream: TextIO, total_steps: int | None, start_steps: int = 0, *, total_iterations: int | None = None
    ) -> None:
        """Start the clock.

        Args:
            stream: Where to write; a terminal gets the live line.
            total_steps: Real steps after which the run ends; None if nothing but the return ends it.
            start_steps: Real steps before this process started.
            total_iterations: Iterations of the mixed phase after which it ends; None if these do not end it.
        """
        self._stream = stream
        self._live = stream.isatty()
        self._total_steps = total_steps
        self._speed = 0.0
        self._last_steps, self._last_time = start_steps, time.monotonic()
        self._iterations = _IterationClock(total_iterations) if total_iterations else None
        self._last_evaluation: Scalar = None
        self._line_open = False

    def show(self, row: Row) -> None:
        """Show one iteration."""
        line = self._line(row)
        if self._live:
            width = shutil.get_terminal_size().columns
            self._stream.write(_CLEAR_LINE + line[: width - 1])
            self._line_open = True
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def say(self, message: str) -> None:
        """Print a message on a line of its own."""
        self._stream.write((_CLEAR_LINE if self._line_open else "") + message + "\n")
        self._line_open = False
        self._stream.flush()

    def close(self) -> None:
        """Leave the live line standing, and go to the next."""
        if self._line_open:
            self._stream.write("\n")
            self._stream.flush()
            self._line_open = False

    def _line(self, row: Row) -> str:
        steps = int(row["num_env_steps_sampled_lifetime"] or 0)
        self._measure(steps)
        if self._iterations is not None:
            self._iterations.see(row.get("mixed_iterations"))
        if row["evaluation/episode_return_mean"] is not None:
            self._last_evaluation = row["evaluation/episode_return_mean"]
        parts = [
            f"{row['phase'] or '-':<8}",
            f"iteration {row['training_iteration']}" + (self._iterations.text if self._iterations else "") + _part(row),
            f"steps {steps:,}" + (f"/{self._total_steps:,}" if self._total_steps else ""),
            f"return {_number(row.get('env_runners/episode_return_mean'), '.1f')}",
            f"evaluation {_number(self._last_evaluation, '.1f')}",
            f"imagination {_number(row['imagination/ratio'], '.3f')}",
            f"{self._speed:.0f} steps/s",
            f"ETA {self._eta(steps)}",
        ]
        bar = f"[{self._bar(steps)}] " if self._live and self._total_steps else ""
        return bar + "  ".join(parts)

    def _measure(self, steps: int) -> None:
        """Follow the speed; recent iterations count most, since the phases differ by far."""
        now = time.monotonic()
        recent = (steps - self._last_steps) / max(now - self._last_time, 1e-9)
        self._speed = recent if self._speed == 0 else 0.7 * self._speed + 0.3 * recent
        self._last_steps, self._last_time = steps, now

    def _eta(self, steps: int) -> str:
        if self._iterations is not None:
            return self._iterations.eta
        if not self._total_steps or self._speed <= 0:
            return "-"
        return format_duration(max(self._total_steps - steps, 0) / self._speed)

    def _bar(self, steps: int) -> str:
        assert self._total_steps
        full = min(_BAR_CELLS, _BAR_CELLS * steps // self._total_steps)
        return "#" * full + "." * (_BAR_CELLS - full)


class _IterationClock:
    """How far a run is that ends after some iterations of the mixed phase."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done, self._first, self._since = 0, 0, 0.0

    def see(self, done: Scalar) -> None:
        """Take in how many there were; None before pretraining has ended."""
        if not isinstance(done, int):
            return
        self._done = done
        if not self._since:
            self._first, self._since = done, time.monotonic()

    @property
    def text(self) -> str:
        """Which of them this is."""
        return f" ({self._done:,}/{self._total:,} mixed)" if self._since else ""

    @property
    def eta(self) -> str:
        """How long the rest will take at the mean speed so far."""
        if self._done == self._first:
            return "-"
        each = (time.monotonic() - self._since) / (self._done - self._first)
        return format_duration(max(self._total - self._done, 0) * each)
