"""One way to call a component that is an actor in a cluster and a plain object in a single process."""

from __future__ import annotations

from typing import Any

import ray
from ray.actor import ActorHandle


def call(target: Any, method: str, *args: Any, timeout_s: float | None = None, **kwargs: Any) -> Any:
    """Calls ``target.method(...)`` and waits for its result, whether `target` is an actor handle or an object.

    Raises:
        ray.exceptions.RayError: The actor is dead or did not answer within `timeout_s`.
    """
    if isinstance(target, ActorHandle):
        return ray.get(getattr(target, method).remote(*args, **kwargs), timeout=timeout_s)
    return getattr(target, method)(*args, **kwargs)
