"""Errors of actors' own code: told to the driver as text, counted, and fatal where the same actor repeats them.

`FaultAwareApply.apply` would end the actor for such an error and Ray would restart it, over and over, while training
went on with fewer env runners or without dreams.
"""

from __future__ import annotations

import logging
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ray

logger = logging.getLogger(__name__)

MAX_FAILURES_IN_A_ROW = 3
PING_TIMEOUT_S = 0.5
MAX_TIMEOUTS = 10
MIN_PATIENCE_S = 600.0
"""In which actors may come back that were slow to start."""


@dataclass(frozen=True)
class Failure:
    """An exception in an actor; the actor lives on.

    Attributes:
        error: Type and message of what was raised first.
        traceback: All of it.
    """

    error: str
    traceback: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Text of an exception: its class may not be one that the driver can import."""
        cause = error.__cause__ or error
        return cls(f"{type(cause).__name__}: {cause}", "".join(traceback.format_exception(error)))


class FailureCounter:
    """Counts the failures of one kind of actor.

    Args:
        kind: What the actors are, for messages ("env runner").
        error_class: What is raised when one of them fails too often.

    Attributes:
        total: All failures so far.
    """

    def __init__(self, kind: str, error_class: type[Exception]):
        self._kind, self._error_class = kind, error_class
        self._in_a_row: Counter[int] = Counter()
        self.total = 0

    def worked(self, actor_id: int) -> None:
        """An actor delivered: its failures before that were not of the lasting kind."""
        self._in_a_row.pop(actor_id, None)

    def failed(self, actor_id: int, failure: Failure) -> None:
        """Counts a failure.

        Raises:
            The error class: The actor failed `MAX_FAILURES_IN_A_ROW` times, and did nothing else meanwhile.
        """
        self.total += 1
        self._in_a_row[actor_id] += 1
        count = self._in_a_row[actor_id]
        logger.warning("%s %d failed (%d in a row): %s", self._kind, actor_id, count, failure.error)
        if count >= MAX_FAILURES_IN_A_ROW:
            raise self._error_class(
                f"{self._kind} {actor_id} failed {count} times in a row; the last error was:\n{failure.traceback}"
            )


class Patience:
    """Ends when nobody has delivered for long, though nobody is known to be dead: all of them hang, or are cut off.

    Training without any would go on for ever and learn nothing; whoever starts it again gets other processes.

    Args:
        kind: What the actors are, for messages ("env runner").
        error_class: What is raised.
        timeout_setting: How long one wait is, by its path in YAML.
    """

    def __init__(self, kind: str, error_class: type[Exception], timeout_setting: str):
        self._kind, self._error_class, self._timeout_setting = kind, error_class, timeout_setting
        self._waited_s = 0.0

    def delivered(self) -> None:
        """Somebody did."""
        self._waited_s = 0.0

    def waited(self, seconds: float, timeout_s: float) -> None:
        """Nobody did in so many seconds of waiting.

        Raises:
            The error class: They add up to `MAX_TIMEOUTS` times `timeout_s`, and to `MIN_PATIENCE_S`.
        """
        self._waited_s += seconds
        if self._waited_s >= max(MIN_PATIENCE_S, MAX_TIMEOUTS * timeout_s):
            raise self._error_class(
                f"no {self._kind} has delivered anything in {self._waited_s:.0f} s of waiting, and none is known to be "
                f"dead: they hang, are cut off, or need longer than {self._timeout_setting} ({timeout_s:g}). Look at "
                "their logs and nodes, or raise it; the run goes on from its last checkpoint (--resume)."
            )


def death_of_all(actors: Iterable[Any]) -> Exception | None:
    """Returns the last error if all actors are dead for good, else None.

    Ray does not restart an actor whose constructor raised: waiting for it would be waiting for ever.
    """
    error: Exception | None = None
    for actor in actors:
        try:
            ray.get(actor.ping.remote(), timeout=PING_TIMEOUT_S)
            return None
        except ray.exceptions.ActorDiedError as death:
            error = death
        except ray.exceptions.RayError:  # no answer in time, or it is restarting
            return None
    return error
