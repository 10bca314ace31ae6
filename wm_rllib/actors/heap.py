"""Memory that is free, and that the C library keeps."""

from __future__ import annotations

import ctypes
import time

TRIM_EVERY_S = 60.0


class Heap:
    """Gives free memory of this process's heap back to the system, once a minute.

    Batches are of another size in each update, so glibc's heap fragments: a learner that needs 555 MB held 615 after
    ten minutes and went on growing, by 1 MB a minute. A trim takes some 5 ms.
    """

    def __init__(self) -> None:
        # Other C libraries than glibc have no such function.
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._trimmed_at = time.monotonic()

    def trim(self) -> bool:
        """Does so if it is due; returns whether it was."""
        now = time.monotonic()
        if self._trim is None or now - self._trimmed_at < TRIM_EVERY_S:
            return False
        self._trimmed_at = now
        self._trim(0)
        return True
