"""Which actors were replaced, as their answers tell.

An actor that dies while nothing is asked of it is back, with a new and empty process, before anybody calls it again: no
call fails, and RLlib's actor manager never learns of it.
"""

from __future__ import annotations

import logging
import uuid

logger = logging.getLogger(__name__)

PROCESS = uuid.uuid4().hex
"""Names this process; a process id may come again, or be the same on two nodes."""


class RestartCounter:
    """Counts the actors of one kind that answer from another process than before.

    Args:
        kind: What the actors are, for messages ("env runner").

    Attributes:
        total: Replaced processes so far.
    """

    def __init__(self, kind: str):
        self._kind = kind
        self._processes: dict[int, str] = {}
        self.total = 0

    def answered(self, actor_id: int, process: str) -> None:
        """Takes note of the process that an actor answered from."""
        if self._processes.setdefault(actor_id, process) != process:
            self.total += 1
            logger.warning("%s %d was restarted (%d restarts in all)", self._kind, actor_id, self.total)
        self._processes[actor_id] = process
