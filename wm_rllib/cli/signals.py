"""Ctrl-C and SIGTERM: the first asks the run to end after the iteration, a second ends it at once."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Holds the first signal; a context, outside of which the handlers are what they were.

    Enter it after `ray.init`, which sets handlers of its own.
    """

    def __init__(self, on_first: Callable[[int], None] | None = None) -> None:
        """Start with no signal.

        Args:
            on_first: Called with the first signal's number, in its handler.
        """
        self.received: int | None = None
        self._on_first = on_first
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

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise SystemExit(exit_code(number))
        self.received = number
        if self._on_first is not None:
            self._on_first(number)


def exit_code(number: int) -> int:
    """Return the exit code of a process that a signal ended, as shells give it."""
    return 128 + number
