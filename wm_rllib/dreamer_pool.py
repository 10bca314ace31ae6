"""The driver's side of the dreamers: orders, redistribution after losses, and errors that must not go unseen."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.rllib.utils.actor_manager import FaultTolerantActorManager

from wm_rllib.calling import call
from wm_rllib.dream_orders import DreamHarvest, DreamOrder, DreamTicket
from wm_rllib.dreamer import Dreamed, Dreamer, DreamerSpec, DreamFailure, DreamRequest, NoWeights, num_lanes
from wm_rllib.mixing import split_evenly
from wm_rllib.seeding import stage_seed

logger = logging.getLogger(__name__)

MAX_FAILURES_IN_A_ROW = 3
RETRY_PAUSE_S = 0.5
DREAMERS_PER_STARTS = 16
"""Dreamers that share an object of start states, about a node's: one object for all of them would be copied to every
node, a hundred nodes times what a hundred nodes need."""


class DreamerError(RuntimeError):
    """Dreamers keep failing with an error of their own code (not by losing their process)."""


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
        self._failures_in_a_row = 0
        self._numbers = itertools.count()
        self._abandoned: set[str] = set()
        self._overdue: set[int] = set()
        self._local = None if num_dreamers else Dreamer(spec, server)
        self._manager = FaultTolerantActorManager([make_actor(i) for i in range(num_dreamers)], init_id=1)

    @property
    def num_restarts(self) -> int:
        """How often a lost dreamer came back."""
        return int(self._manager.total_num_restarts())

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
            DreamerError: Dreamers failed several times in a row with an error of their own.
        """
        harvest = DreamHarvest.empty(len(order.rows))
        deadline = time.monotonic() + self._timeout_s
        self._fill(order, harvest, deadline, 0, base_seed, is_stale)
        return harvest

    def order_ahead(self, order: DreamOrder, seed: int | None) -> DreamTicket:
        """Orders rows from all healthy dreamers without waiting for them.

        Args:
            order: Rows for each learner and how to dream.
            seed: Seed of the order, or None.
        """
        ids = self._ready_ids()
        requests = self._requests(order, order.rows, len(ids), seed) if ids else []
        ticket = DreamTicket(order, f"dreams/{next(self._numbers)}", tuple(ids[: len(requests)]))
        if requests:
            calls = [functools.partial(_dream, request=request) for request in requests]
            self._manager.foreach_actor_async(calls, tag=ticket.tag, remote_actor_ids=list(ticket.ids))
        return ticket

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
            DreamerError: Dreamers failed several times in a row with an error of their own.
        """
        harvest = DreamHarvest.empty(len(rows))
        deadline = time.monotonic() + self._timeout_s
        results = self._manager.fetch_ready_async_reqs(tags=ticket.tag, timeout_seconds=self._timeout_s)
        answered = {result.actor_id for result in results}
        for result in results.ignore_errors():
            self._take(result.get(), harvest, is_stale)
        self._overdue |= {i for i in ticket.ids if i not in answered and self._manager.is_actor_healthy(i)}
        self.drop(ticket)
        self._fill(dataclasses.replace(ticket.order, rows=rows), harvest, deadline, 1, base_seed, is_stale)
        return harvest

    def drop(self, ticket: DreamTicket) -> None:
        """Gives up what was ordered ahead; answers that still come are let go, so that they leave the object store."""
        self._abandoned.add(ticket.tag)
        self._let_go()

    def _fill(
        self,
        order: DreamOrder,
        harvest: DreamHarvest,
        deadline: float,
        attempt: int,
        base_seed: Callable[[int], int | None],
        is_stale: Callable[[Dreamed], bool],
    ) -> None:
        """Orders what is missing, again and again, until it is there or time is up; the first attempt always runs."""
        while True:
            missing = [max(0, want - have) for want, have in zip(order.rows, harvest.rows, strict=True)]
            if not any(missing):
                return
            if attempt and time.monotonic() > deadline:
                logger.warning("no dreamer delivered %s rows within %.0f s", missing, self._timeout_s)
                return
            self._attempt(order, missing, harvest, base_seed(attempt), is_stale)
            attempt += 1

    def _attempt(
        self,
        order: DreamOrder,
        missing: list[int],
        harvest: DreamHarvest,
        seed: int | None,
        is_stale: Callable[[Dreamed], bool],
    ) -> None:
        """Orders what is missing from all healthy dreamers and takes in what they deliver."""
        ids = self._ready_ids()
        if self._local is None and not ids:
            self._raise_if_none_can_come_back()
            return
        requests = self._requests(order, missing, len(ids) or 1, seed)
        for result in self._run(requests, ids):
            self._take(result, harvest, is_stale)

    def _take(
        self, result: Dreamed | DreamFailure | NoWeights, harvest: DreamHarvest, is_stale: Callable[[Dreamed], bool]
    ) -> None:
        """One dreamer's answer."""
        if isinstance(result, NoWeights):
            time.sleep(RETRY_PAUSE_S)
            self._push_again()
        elif isinstance(result, DreamFailure):
            self._count_failure(result)
        else:
            self._failures_in_a_row = 0
            if is_stale(result):
                harvest.dropped_rows += sum(result.rows)
            else:
                harvest.add(result)

    def _ready_ids(self) -> list[int]:
        """Dreamers that can be asked: those that are back are counted in, those with an overdue answer are not."""
        self._let_go()
        # A ping waits for an actor that is still restarting: with others alive it must not hold up the round.
        patience = 0.05 if self._manager.num_healthy_actors() else RETRY_PAUSE_S
        self._manager.probe_unhealthy_actors(timeout_seconds=patience, mark_healthy=True)
        return [i for i in self._manager.healthy_actor_ids() if i not in self._overdue]

    def _let_go(self) -> None:
        """Releases late answers to what was given up: RLlib's manager would hold them until they are fetched."""
        if not self._abandoned:
            return
        for late in self._manager.fetch_ready_async_reqs(tags=list(self._abandoned), timeout_seconds=0.0):
            self._overdue.discard(late.actor_id)
        self._abandoned = {tag for tag in self._abandoned if self._manager.num_outstanding_async_reqs(tag)}
        # An actor that was lost owes nothing any more.
        self._overdue &= set(self._manager.healthy_actor_ids()) if self._abandoned else set()

    def _requests(self, order: DreamOrder, missing: list[int], workers: int, seed: int | None) -> list[DreamRequest]:
        shares = zip(*(split_evenly(count, workers) for count in missing), strict=True)
        # Fewer rows than dreamers leave some without a share, and a dream of no lanes is none.
        rows = [list(share) for share in shares if sum(share)]
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

    def _run(self, requests: list[DreamRequest], ids: list[int]) -> list[Dreamed | DreamFailure | NoWeights]:
        if self._local is not None:
            return [self._local.dream(requests[0])]
        # A list of functions, one for each id: with a list of kwargs RLlib assigns them to the wrong actors as soon as
        # one is unhealthy.
        results = self._manager.foreach_actor(
            [functools.partial(_dream, request=request) for request in requests],
            remote_actor_ids=ids[: len(requests)],
            timeout_seconds=self._timeout_s,
        )
        return [result.get() for result in results.ignore_errors()]

    def _raise_if_none_can_come_back(self) -> None:
        """Ray does not restart an actor whose constructor raised: waiting for it would be waiting for ever."""
        error: Exception | None = None
        for actor in self._manager.actors().values():
            try:
                ray.get(actor.ping.remote(), timeout=RETRY_PAUSE_S)
                return
            except ray.exceptions.ActorDiedError as death:
                error = death
            except ray.exceptions.RayError:  # no answer in time, or it is restarting
                return
        raise DreamerError(f"all dreamers are dead for good; the last one's error was:\n{error}")

    def _count_failure(self, failure: DreamFailure) -> None:
        self._failures_in_a_row += 1
        logger.warning("a dreamer failed (%d in a row): %s", self._failures_in_a_row, failure.error)
        if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise DreamerError(
                f"dreamers failed {self._failures_in_a_row} times in a row; the last error was:\n{failure.traceback}"
            )

    def stop(self) -> None:
        """Ends the actors."""
        self._manager.clear()


def _dream(dreamer: Dreamer, request: DreamRequest) -> Dreamed | DreamFailure | NoWeights:
    return dreamer.dream(request)
