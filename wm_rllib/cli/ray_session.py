"""Ray for one command: started inside this process, or a cluster that is already there."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

from wm_rllib.runs.errors import CommandError

logger = logging.getLogger(__name__)

CONNECT_S = 5.0
"""How long the head of a cluster may take to accept a connection."""


@contextmanager
def ray_session(address: str | None, *, verbose: bool, show_actor_logs: bool) -> Iterator[bool]:
    """Start Ray, or join a cluster, and leave it at the end.

    Args:
        address: Address of a cluster; None for RAY_ADDRESS, and for a local Ray where that is not set either.
        verbose: Whether Ray may log.
        show_actor_logs: Whether the output of the actors comes to this terminal.

    Yields:
        Whether this Ray is local, started for this process alone.

    Raises:
        CommandError: If there is no cluster at the address.
    """
    import ray

    address = address or os.environ.get("RAY_ADDRESS") or "local"
    local = address == "local"
    cluster_address(address)
    _check_answers(address)
    if local:
        # Else Ray would leave a token behind that makes clusters which are started later refuse this machine.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    level = logging.INFO if verbose else logging.ERROR
    only_local: dict[str, Any] = {"include_dashboard": False} if local else {}
    group: AbstractContextManager[None] = _processes_in_another_group() if local else nullcontext()
    try:
        with group:
            init_ray(address=address, log_to_driver=show_actor_logs, logging_level=level, **only_local)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        if local:
            raise
        reason = str(error).strip().split("\n")[0]
        raise CommandError(
            f"no Ray cluster at {address}: {reason} Fix: correct --address or RAY_ADDRESS, or its "
            "token (RAY_AUTH_TOKEN_PATH)."
        ) from None
    try:
        yield local
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise if nobody listens at HOST:PORT: Ray would try for many minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise CommandError(
            f"no Ray cluster at {address}: {error}. Fix: correct --address or RAY_ADDRESS (the port of the head's GCS, "
            "6379 unless it was started with another --port)."
        ) from None


def cluster_address(address: str) -> str:
    """Return the address of a cluster that this process can join.

    Raises:
        CommandError: It is one of Ray Client.
    """
    if address.startswith("ray://"):
        raise CommandError(
            f"{address} is an address of Ray Client, whose driver is no part of the cluster. Fix: `ray job submit` "
            "(docs/cluster.md), or --address auto on a machine of the cluster."
        )
    return address


def init_ray(**arguments: Any) -> None:
    """Starts or joins Ray, in a second attempt where the first was too slow.

    Ray gives its own processes 30 s, and no setting changes that. On a machine with more to do than it can they may
    take longer; the second time all their files are in memory.
    """
    import ray

    try:
        ray.init(**arguments)
    except Exception as error:  # Ray raises nothing more specific
        if "timed out during startup" not in str(error):
            raise
        logger.warning("Ray did not start in time on this busy machine; once more")
        ray.init(**arguments)


@contextmanager
def _processes_in_another_group() -> Iterator[None]:
    """Let processes that start meanwhile belong to another process group than this one.

    Shells, `timeout` and service managers send SIGTERM to a whole group. Ray's own processes would end at once,
    and the checkpoint that this process then wants to write would find no Ray to write it with.
    """
    original = os.getpgrp()
    # A group exists while it has a process: this one holds it until Ray's have joined.
    holder = subprocess.Popen(["sleep", "60"], preexec_fn=os.setpgrp)
    try:
        with suppress(OSError):  # the first process of a session cannot change its group
            os.setpgid(0, holder.pid)
        yield
    finally:
        try:
            os.setpgid(0, original)
        except OSError:
            with suppress(OSError):
                os.setpgid(0, 0)
        holder.kill()
        holder.wait()
