"""Dreamers without a process: what a pool of hundreds asks of each can be seen in one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from wm_rllib.dreamers.dreamer import Dreamed, DreamRequest


class _Method:
    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def remote(self, *args: Any, **kwargs: Any) -> ray.ObjectRef:
        return self._function(*args, **kwargs)


class FakeDreamer:
    """What `FaultTolerantActorManager` sees of an actor; it answers at once, or when it is told to.

    Attributes:
        requests: What it was asked for.
    """

    def __init__(self, number: int):
        self.number = number
        self.requests: list[DreamRequest] = []
        self.apply = _Method(lambda func, **kwargs: ray.put(func(self, **kwargs)))
        self.ping = _Method(lambda: ray.put("pong"))

    def dream(self, request: DreamRequest) -> Dreamed:
        self.requests.append(request)
        return Dreamed(
            shard_refs=[request.starts_ref for _ in request.rows],
            rows=request.rows,
            num_segments=request.num_lanes,
            num_cuts=0,
            sequence=0,
            world_model_version=0,
            policy_version=0,
            seconds=0.001 * self.number,
        )


class FakeReplay:
    """Counts the starts it is asked for."""

    def __init__(self) -> None:
        self.num_starts: list[int] = []

    def starts(self, num_starts: int, burn_in: int) -> ray.ObjectRef:
        self.num_starts.append(num_starts)
        return ray.put(b"starts")

    def reseed(self, seed: int) -> None:
        pass
