"""Whoever owes an answer is asked nothing more; whoever died owes none. By stand-ins for RLlib's actor managers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from wm_rllib.dreamers import pool as dreamer_pool
from wm_rllib.dreamers.dreamer import Dreamed
from wm_rllib.dreamers.orders import DreamOrder
from wm_rllib.dreamers.pool import DreamerPool
from wm_rllib.env_runners.collection import EnvRunnerError, Sampling, end_env_runners
from wm_rllib.env_runners.env_runner import Collected, CollectRequest

WORKS, HANGS, DIES = "works", "hangs", "dies"


class Actors:
    """What both managers have in common: requests by tag, and RLlib's way with an actor whose request fails.

    It counts as unhealthy from then on, and all that it was asked is forgotten.
    """

    def __init__(self, count: int):
        self.healthy = dict.fromkeys(range(1, count + 1), True)
        self.requests: dict[tuple[str, int], tuple[str, Any]] = {}
        self.asked: list[int] = []

    def ask(self, tag: str, actor: int, how: str, request: Any) -> None:
        self.requests[tag, actor] = how, request

    def fetch(self, tags: list[str]) -> list[tuple[int, bool, Any]]:
        """Actor, whether it answered, and what it was asked."""
        answers = []
        for (tag, actor), (how, request) in list(self.requests.items()):
            if tag not in tags or (tag, actor) not in self.requests or how == HANGS:
                continue
            if how == DIES:
                self.healthy[actor] = False
                self.requests = {key: value for key, value in self.requests.items() if key[1] != actor}
            else:
                del self.requests[tag, actor]
            answers.append((actor, how == WORKS, request))
        return answers

    def outstanding(self, tag: str) -> int:
        return sum(of == tag for of, _ in self.requests)

    def become(self, actor: int, how: str) -> None:
        self.requests = {
            (tag, of): (how if of == actor else before, request)
            for (tag, of), (before, request) in self.requests.items()
        }


class EnvRunners(Actors):
    """RLlib's `EnvRunnerGroup`, as far as `Sampling` uses it."""

    def __init__(self, count: int):
        super().__init__(count)
        self.hanging: set[int] = set()
        self._worker_manager = SimpleNamespace(actors=dict)

    def num_remote_env_runners(self) -> int:
        return len(self.healthy)

    def healthy_worker_ids(self) -> list[int]:
        return [actor for actor, is_healthy in self.healthy.items() if is_healthy]

    def foreach_env_runner_async(self, _: Any, tag: str, remote_worker_ids: list[int]) -> None:
        self.asked = remote_worker_ids
        for actor in remote_worker_ids:
            self.ask(tag, actor, HANGS if actor in self.hanging else WORKS, None)

    def num_in_flight_async_reqs(self, tag: str) -> int:
        return self.outstanding(tag)

    def fetch_ready_async_reqs(self, tags: list[str], timeout_seconds: float) -> list[Any]:
        part = Collected([], [], None, 32, 0, 1, 1, 1, 0.0, None)
        return [(actor, (f"process {actor}", part)) for actor, answered, _ in self.fetch(tags) if answered]


REQUEST = CollectRequest(64, 1, random_actions=False, seed=None)


def test_an_env_runner_that_was_late_and_died_is_asked_again_when_it_is_back():
    group = EnvRunners(2)
    sampling = Sampling(group, 4, None)
    group.hanging = {2}
    assert len(sampling.sample(REQUEST, 1.0)) == 1 and sampling.num_late == 1
    group.hanging = set()
    sampling.sample(REQUEST, 1.0)
    assert group.asked == [1]
    group.become(2, DIES)
    sampling.sample(REQUEST, 1.0)
    group.healthy[2] = True  # RLlib restores it before the next iteration
    assert len(sampling.sample(REQUEST, 1.0)) == 2 and group.asked == [1, 2]


def test_a_hung_env_runner_is_asked_again_when_it_has_answered():
    group = EnvRunners(2)
    sampling = Sampling(group, 4, None)
    group.hanging = {2}
    sampling.sample(REQUEST, 1.0)
    group.hanging = set()
    group.become(2, WORKS)
    assert len(sampling.sample(REQUEST, 1.0)) == 2 and group.asked == [1]
    assert len(sampling.sample(REQUEST, 1.0)) == 2 and group.asked == [1, 2]


def test_without_any_answer_for_long_sampling_gives_up(monkeypatch: pytest.MonkeyPatch):
    group = EnvRunners(1)
    group.hanging = {1}
    clock = iter(range(0, 100_000, 60))
    monkeypatch.setattr("wm_rllib.env_runners.collection.time.monotonic", lambda: float(next(clock)))
    sampling = Sampling(group, 4, None)
    with pytest.raises(EnvRunnerError, match="no env runner has delivered anything in 600 s of waiting"):
        for _ in range(20):
            sampling.sample(REQUEST, 60.0)


def test_env_runners_are_ended_within_a_time():
    asked: list[dict[str, Any]] = []
    killed: list[bool] = []
    group = SimpleNamespace(
        num_remote_env_runners=lambda: 2,
        foreach_env_runner=lambda function, **how: asked.append(how),
        _worker_manager=SimpleNamespace(clear=lambda: killed.append(True)),
    )
    end_env_runners(group)
    assert killed and asked[0]["timeout_seconds"] and not asked[0]["healthy_only"] and not asked[0]["local_env_runner"]


class Results(list[Any]):
    """RLlib's `RemoteCallResults`."""

    def ignore_errors(self) -> list[Any]:
        return [result for result in self if result.ok]


class Dreamers(Actors):
    """RLlib's `FaultTolerantActorManager`, as far as the pool uses it."""

    def __init__(self, count: int):
        super().__init__(count)
        self.waits: list[tuple[float, list[int]]] = []

    def healthy_actor_ids(self) -> list[int]:
        return [actor for actor, is_healthy in self.healthy.items() if is_healthy]

    def num_healthy_actors(self) -> int:
        return sum(self.healthy.values())

    def actors(self) -> dict[int, Any]:
        return {}

    def probe_unhealthy_actors(self, **_: Any) -> None:
        self.healthy = dict.fromkeys(self.healthy, True)

    def foreach_actor_async(self, work: Any, tag: str, remote_actor_ids: list[int]) -> None:
        (actor,) = remote_actor_ids
        self.ask(tag, actor, WORKS, work.keywords["request"])

    def num_outstanding_async_reqs(self, tag: str) -> int:
        return self.outstanding(tag)

    def fetch_ready_async_reqs(self, tags: list[str], timeout_seconds: float) -> Results:
        results = Results()
        hung = [of for tag, of in self.requests if tag in tags and self.requests[tag, of][0] == HANGS]
        if timeout_seconds and hung:
            self.waits.append((timeout_seconds, hung))
        for actor, answered, request in self.fetch(tags):
            dreamed = Dreamed([object()], request.rows, 1, 0, 1, 1, 1, 0.1) if answered else None  # type: ignore[list-item]
            answer = f"process {actor}", dreamed
            results.append(SimpleNamespace(actor_id=actor, ok=answered, get=lambda answer=answer: answer))
        return results


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(dreamer_pool, "FaultTolerantActorManager", lambda actors, init_id: Dreamers(3))
    monkeypatch.setattr(dreamer_pool, "call", lambda service, method, *args: None)
    return DreamerPool(
        None, None, None, num_dreamers=3, make_actor=lambda i: None, push_again=lambda: None, timeout_s=1.0
    )


ORDER = DreamOrder([30], 5, 1.0, None, 0.0, 0.0, 0)


def never(*_: Any) -> Any:
    return None


def test_a_dreamer_that_died_with_two_orders_in_flight_is_not_late(pool: Any):
    first, second = pool.order_ahead(ORDER, None), pool.order_ahead(ORDER, None)
    pool._manager.become(2, DIES)
    assert pool.gather(first, [30], never, never).rows == [30]
    assert pool.gather(second, [30], never, never).rows == [30]
    assert pool.num_late == 0
    assert pool._ready_ids() == [1, 2, 3]


def test_a_dreamer_that_hangs_keeps_no_other_from_being_asked(pool: Any):
    first, second = pool.order_ahead(ORDER, None), pool.order_ahead(ORDER, None)
    pool._manager.become(2, DIES)
    tag = first.tag_of(3)
    pool._manager.requests[tag, 3] = HANGS, pool._manager.requests[tag, 3][1]
    assert pool.gather(first, [30], never, never).rows == [30] and pool.num_late == 1
    pool.gather(second, [30], never, never)
    assert pool._ready_ids() == [1, 2]
    pool._manager.requests[tag, 3] = WORKS, pool._manager.requests[tag, 3][1]
    assert pool._ready_ids() == [1, 2, 3] and not pool._abandoned


def test_a_dreamer_that_hangs_with_two_orders_in_flight_is_waited_for_once(pool: Any):
    first, second = pool.order_ahead(ORDER, None), pool.order_ahead(ORDER, None)
    pool._manager.become(3, HANGS)
    assert pool.gather(first, [30], never, never).rows == [30]
    assert pool.gather(second, [30], never, never).rows == [30]
    assert pool._manager.waits == [(1.0, [3])] and pool.num_late == 1
    pool._manager.become(3, WORKS)
    assert pool._ready_ids() == [1, 2, 3] and not pool._abandoned


def test_what_an_overdue_dreamer_has_finished_meanwhile_counts(pool: Any):
    first, second = pool.order_ahead(ORDER, None), pool.order_ahead(ORDER, None)
    pool._manager.requests[first.tag_of(3), 3] = HANGS, pool._manager.requests[first.tag_of(3), 3][1]
    pool.gather(first, [20], never, never)
    asked = pool._manager.requests
    assert pool.gather(second, [30], never, never).rows == [30]
    assert set(asked) == {(first.tag_of(3), 3)}, "all three answered the second order: nothing was ordered again"


def test_a_dreamer_that_has_answered_meanwhile_is_waited_for_again(pool: Any, monkeypatch: pytest.MonkeyPatch):
    """Its second order is at work, and would be thrown away and ordered anew."""
    first, second = pool.order_ahead(ORDER, None), pool.order_ahead(ORDER, None)
    asked, tags = pool._manager.requests, (first.tag_of(3), second.tag_of(3))
    for tag in tags:
        asked[tag, 3] = HANGS, asked[tag, 3][1]
    pool.gather(first, [20], never, never)
    pool._manager.requests[tags[0], 3] = WORKS, pool._manager.requests[tags[0], 3][1]
    fetch = pool._manager.fetch_ready_async_reqs

    def fetch_once_at_work(tags: list[str], timeout_seconds: float) -> Results:
        if timeout_seconds:  # who is waited for answers
            pool._manager.become(3, WORKS)
        return fetch(tags, timeout_seconds)

    monkeypatch.setattr(pool._manager, "fetch_ready_async_reqs", fetch_once_at_work)
    numbers = next(pool._numbers)
    assert pool.gather(second, [30], never, never).rows == [30]
    assert next(pool._numbers) == numbers + 1, "nothing was ordered again"
    assert pool.num_late == 1 and not pool._manager.requests


def test_while_all_dreamers_are_overdue_the_driver_leaves_them_the_core(pool: Any, monkeypatch: pytest.MonkeyPatch):
    clock, looks = [0.0], []
    stand_in = SimpleNamespace(
        monotonic=lambda: clock[0], sleep=lambda seconds: clock.__setitem__(0, clock[0] + seconds)
    )
    monkeypatch.setattr(dreamer_pool, "time", stand_in)
    monkeypatch.setattr(pool, "_ready_ids", lambda: looks.append(clock[0]) or [])
    assert pool.dream(ORDER, never, never).rows == [0]
    assert looks[:3] == pytest.approx([0.0, 0.05, 0.1]) and looks[-1] == pytest.approx(1.0, abs=0.06)
