"""Ctrl-C and SIGTERM: while a run trains, the first asks for an end with a checkpoint, a second ends it at once."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Takes the signals; a context, outside of which the handlers are what they were.

    Enter it after `ray.init`, which sets handlers of its own. A signal ends the process at once, since there is nothing
    to save, but for the time that `held` covers.

    Attributes:
        received: The signal that asked for the end; None if there was none.
    """

    def __init__(self) -> None:
        """Start with no signal."""
        self.received: int | None = None
        self._received_at = 0.0
        self._ask: Callable[[], None] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        """Take the signals."""
        self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self, ask: Callable[[], None]) -> Iterator[None]:
        """Hold the first signal while there is something to save.

        Args:
            ask: Called when it comes, in the main thread between two of its instructions: it may only set a flag.
        """
        self._ask = ask
        try:
            yield
        finally:
            self._ask = None

    @property
    def seconds_since(self) -> float:
        """Seconds since the first signal."""
        return time.monotonic() - self._received_at

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None or self._ask is None:
            raise SystemExit(exit_code(number))
        self.received, self._received_at = number, time.monotonic()
        self._ask()


def exit_code(number: int) -> int:
    """Return the exit code of a process that a signal ended, as shells give it."""
    return 128 + number
