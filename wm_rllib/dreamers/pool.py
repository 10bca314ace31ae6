"""The driver's side of the dreamers: orders, redistribution after losses, and errors that must not go unseen."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import time
from collections.abc import Callable
from typing import Any

from ray.rllib.utils.actor_manager import FaultTolerantActorManager

from wm_rllib.actors.calling import call
from wm_rllib.actors.failures import Failure, FailureCounter, Patience, death_of_all
from wm_rllib.actors.restarts import PROCESS, RestartCounter
from wm_rllib.dreamers.dreamer import Dreamed, Dreamer, DreamerSpec, DreamRequest, NoWeights, num_lanes
from wm_rllib.dreamers.orders import DreamHarvest, DreamOrder, DreamTicket
from wm_rllib.mixing import split_lanes
from wm_rllib.seeding import stage_seed

logger = logging.getLogger(__name__)

Answer = Dreamed | Failure | NoWeights

LOCAL_ID = 0
RETRY_PAUSE_S = 0.5
POLL_S = 0.05
DREAMERS_PER_STARTS = 16
"""Dreamers that share an object of start states, about a node's: one object for all of them would be copied to every
node, a hundred nodes times what a hundred nodes need."""


class DreamerError(RuntimeError):
    """A dreamer keeps failing with an error of its own code (not by losing its process), or none can be started."""


class DreamerPool:
    """All dreamers of an algorithm.

    Args:
        spec: What each is built from.
        server: The parameter server.
        replay: The replay service, for start states.
        num_dreamers: Actors; 0 means one dreamer inside this process.
        make_actor: Creates one remote dreamer; given the index, so that the caller can place it.
        push_again: Pushes the newest record to the parameter server once more, when a dreamer found it empty.
        timeout_s: How long a round may wait for lost dreamers before it goes on with fewer rows.

    Attributes:
        num_late: Requests that were not answered within `timeout_s` so far.
    """

    def __init__(
        self,
        spec: DreamerSpec,
        server: Any,
        replay: Any,
        *,
        num_dreamers: int,
        make_actor: Callable[[int], Any],
        push_again: Callable[[], None],
        timeout_s: float,
    ):
        self._replay = replay
        self._push_again = push_again
        self._timeout_s = timeout_s
        self._failures = FailureCounter("dreamer", DreamerError)
        self._restarts = RestartCounter("dreamer")
        self._patience = Patience("dreamer", DreamerError, "dreamers.dreamer_timeout_s")
        self._numbers = itertools.count()
        self._abandoned: dict[str, int] = {}
        self._overdue: set[int] = set()
        self.num_late = 0
        self._local = None if num_dreamers else Dreamer(spec, server)
        self._manager = FaultTolerantActorManager([make_actor(i) for i in range(num_dreamers)], init_id=1)

    @property
    def num_restarts(self) -> int:
        """How often a lost dreamer has delivered again."""
        return self._restarts.total

    @property
    def num_failures(self) -> int:
        """Errors of the dreamers' own code so far."""
        return self._failures.total

    @property
    def num_healthy(self) -> int:
        """Dreamers ready to work."""
        return 1 if self._local else self._manager.num_healthy_actors()

    def dream(
        self, order: DreamOrder, base_seed: Callable[[int], int | None], is_stale: Callable[[Dreamed], bool]
    ) -> DreamHarvest:
        """Gets the ordered rows, from whichever dreamers are alive.

        A lost dreamer's share is ordered again from the others; with none left this waits for a restart, at most
        `timeout_s`.

        Args:
            order: Rows for each learner and how to dream.
            base_seed: Seed of this round's attempt number n (0, 1, ...), or None.
            is_stale: Whether a part was dreamed with weights too old to learn from; it is dropped and ordered again.

        Raises:
            DreamerError: A dreamer failed several times in a row with an error of its own, or none has delivered for
                long.
        """
        harvest = DreamHarvest.empty(len(order.rows))
        self._fill(order, harvest, 0, base_seed, is_stale)
        return harvest

    def order_ahead(self, order: DreamOrder, seed: int | None) -> DreamTicket:
        """Orders rows from all healthy dreamers without waiting for them.

        Args:
            order: Rows for each learner and how to dream.
            seed: Seed of the order, or None.
        """
        ids = self._ready_ids()
        requests = self._requests(order, order.rows, len(ids), seed) if ids else []
        return self._send(order, requests, ids)

    def gather(
        self,
        ticket: DreamTicket,
        rows: list[int],
        base_seed: Callable[[int], int | None],
        is_stale: Callable[[Dreamed], bool],
    ) -> DreamHarvest:
        """Waits for what was ordered ahead; what is missing of `rows` is ordered again, as `dream` does.

        Args:
            ticket: What `order_ahead` returned.
            rows: For each learner the rows that are needed, fewer or more than were ordered.
            base_seed: See `dream`; attempts count from 1.
            is_stale: See `dream`.

        Raises:
            DreamerError: A dreamer failed several times in a row with an error of its own, or none has delivered for
                long.
        """
        harvest = DreamHarvest.empty(len(rows))
        for dreamer_id, answer in self._receive(ticket):
            self._take(dreamer_id, answer, harvest, is_stale)
        self._fill(dataclasses.replace(ticket.order, rows=rows), harvest, 1, base_seed, is_stale)
        return harvest

    def drop(self, ticket: DreamTicket) -> None:
        """Gives up what was ordered ahead; answers that still come are let go, so that they leave the object store."""
        self._abandoned |= {ticket.tag_of(dreamer_id): dreamer_id for dreamer_id in ticket.ids}
        self._let_go()

    def _fill(
        self,
        order: DreamOrder,
        harvest: DreamHarvest,
        attempt: int,
        base_seed: Callable[[int], int | None],
        is_stale: Callable[[Dreamed], bool],
    ) -> None:
        """Orders what is missing, again and again, until it is there or time is up; the first attempt always runs."""
        started = time.monotonic()
        deadline = started + self._timeout_s
        while True:
            missing = [max(0, want - have) for want, have in zip(order.rows, harvest.rows, strict=True)]
            if not any(missing):
                self._patience.delivered()
                return
            if attempt and time.monotonic() > deadline:
                logger.warning("no dreamer delivered %s rows within %.0f s", missing, self._timeout_s)
                if any(harvest.rows):
                    self._patience.delivered()
                else:
                    self._patience.waited(time.monotonic() - started, self._timeout_s)
                return
            late = self.num_late
            self._attempt(order, missing, harvest, base_seed(attempt), is_stale)
            if self.num_late > late and self._ready_ids():
                # The time went into waiting for one that is asked no more; the others have not had theirs.
                deadline = time.monotonic() + self._timeout_s
            attempt += 1

    def _attempt(
        self,
        order: DreamOrder,
        missing: list[int],
        harvest: DreamHarvest,
        seed: int | None,
        is_stale: Callable[[Dreamed], bool],
    ) -> None:
        """Orders what is missing from all dreamers that are ready and takes in what they deliver."""
        ids = [LOCAL_ID] if self._local else self._ready_ids()
        if not ids:
            if error := death_of_all(self._manager.actors().values()):
                raise DreamerError(f"all dreamers are dead for good; the last one's error was:\n{error}")
            time.sleep(POLL_S)  # all may be at work on what they owe, and want the core that this is on
            return
        requests = self._requests(order, missing, len(ids), seed)
        for dreamer_id, answer in self._run(order, requests, ids):
            self._take(dreamer_id, answer, harvest, is_stale)

    def _run(self, order: DreamOrder, requests: list[DreamRequest], ids: list[int]) -> list[tuple[int, Answer]]:
        if self._local is not None:
            return [(LOCAL_ID, self._local.dream(requests[0]))]
        return self._receive(self._send(order, requests, ids))

    def _send(self, order: DreamOrder, requests: list[DreamRequest], ids: list[int]) -> DreamTicket:
        """Sends each request to one of `ids`, of which there may be more."""
        ticket = DreamTicket(order, f"dreams/{next(self._numbers)}", tuple(ids[: len(requests)]))
        for dreamer_id, request in zip(ticket.ids, requests, strict=True):
            work = functools.partial(_dream, request=request)
            self._manager.foreach_actor_async(work, tag=ticket.tag_of(dreamer_id), remote_actor_ids=[dreamer_id])
        return ticket

    def _receive(self, ticket: DreamTicket) -> list[tuple[int, Answer]]:
        """Waits for the answers, at most `timeout_s`; whoever has not answered by then is asked nothing until it does.

        A dreamer that hangs, or is cut off from the driver, would hold up every round for as long.
        """
        if not ticket.ids:
            return []
        self._let_go()  # whoever has answered meanwhile is not overdue any more
        known = self._overdue.intersection(ticket.ids)  # by another ticket: it was waited for
        answers = self._fetch(ticket, set(ticket.ids) - known, self._timeout_s)
        answers += self._fetch(ticket, known, 0.0)
        late = {i for i in ticket.ids if self._manager.num_outstanding_async_reqs(ticket.tag_of(i))}
        if new := late - known:
            logger.warning(
                "dreamers %s did not answer within %.0f s (dreamers.dreamer_timeout_s)", sorted(new), self._timeout_s
            )
            self.num_late += len(new)
            self._overdue |= new
        self.drop(ticket)
        return answers

    def _fetch(self, ticket: DreamTicket, ids: set[int], timeout_s: float) -> list[tuple[int, Answer]]:
        tags = [ticket.tag_of(dreamer_id) for dreamer_id in ids]
        if not tags:  # to RLlib no tags mean all
            return []
        results = self._manager.fetch_ready_async_reqs(tags=tags, timeout_seconds=timeout_s)
        answers = []
        for result in results.ignore_errors():
            process, answer = result.get()
            self._restarts.answered(result.actor_id, process)
            answers.append((result.actor_id, answer))
        return answers

    def _take(
        self, dreamer_id: int, answer: Answer, harvest: DreamHarvest, is_stale: Callable[[Dreamed], bool]
    ) -> None:
        """One dreamer's answer."""
        if isinstance(answer, NoWeights):
            time.sleep(RETRY_PAUSE_S)
            self._push_again()
        elif isinstance(answer, Failure):
            self._failures.failed(dreamer_id, answer)
        else:
            self._failures.worked(dreamer_id)
            if is_stale(answer):
                harvest.dropped_rows += sum(answer.rows)
            else:
                harvest.add(answer)

    def _ready_ids(self) -> list[int]:
        """Dreamers that can be asked: those that are back are counted in, those with an overdue answer are not."""
        self._let_go()
        # A ping waits for an actor that is still restarting: with others alive it must not hold up the round.
        patience = POLL_S if self._manager.num_healthy_actors() else RETRY_PAUSE_S
        self._manager.probe_unhealthy_actors(timeout_seconds=patience, mark_healthy=True)
        return [i for i in self._manager.healthy_actor_ids() if i not in self._overdue]

    def _let_go(self) -> None:
        """Releases late answers to what was given up: RLlib's manager would hold them until they are fetched."""
        if not self._abandoned:
            return
        for late in self._manager.fetch_ready_async_reqs(tags=list(self._abandoned), timeout_seconds=0.0):
            self._overdue.discard(late.actor_id)
        # An actor that was lost owes nothing any more.
        owed = {tag: i for tag, i in self._abandoned.items() if self._manager.num_outstanding_async_reqs(tag)}
        self._abandoned = owed
        self._overdue &= set(owed.values())

    def _requests(self, order: DreamOrder, missing: list[int], workers: int, seed: int | None) -> list[DreamRequest]:
        # Fewer dreams than dreamers leave some without a share, and a dream of no lanes is none.
        rows = [share for share in split_lanes(missing, workers, order.horizon) if sum(share)]
        if seed is not None:
            call(self._replay, "reseed", seed)
        requests: list[DreamRequest] = []
        for first in range(0, len(rows), DREAMERS_PER_STARTS):
            chunk = rows[first : first + DREAMERS_PER_STARTS]
            lanes = [num_lanes(share, order.horizon) for share in chunk]
            starts_ref = call(self._replay, "starts", sum(lanes), order.burn_in)
            for share, first_start in zip(chunk, itertools.accumulate(lanes, initial=0), strict=False):
                requests.append(
                    DreamRequest(
                        rows=share,
                        horizon=order.horizon,
                        temperature=order.temperature,
                        max_disagreement=order.max_disagreement,
                        exploration_bonus=order.exploration_bonus,
                        optimism=order.optimism,
                        starts_ref=starts_ref,
                        first_start=first_start,
                        seed=None if seed is None else stage_seed(seed, 0, "dreamer", len(requests)),
                    )
                )
        return requests

    def stop(self) -> None:
        """Ends the actors."""
        self._manager.clear()


def _dream(dreamer: Dreamer, request: DreamRequest) -> tuple[str, Answer]:
    return PROCESS, dreamer.dream(request)
