"""Ray for one command: what happens where it does not start."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import ray

from wm_rllib.cli.ray_session import ray_session
from wm_rllib.runs.errors import CommandError

TOO_SLOW = Exception("The current node timed out during startup. This could happen because ...")


def attempts(monkeypatch: pytest.MonkeyPatch, *outcomes: Exception | None) -> list[dict[str, Any]]:
    """Has `ray.init` raise these, one after the other, and returns what it was called with."""
    calls: list[dict[str, Any]] = []

    def init(**arguments: Any) -> None:
        calls.append(arguments)
        if (outcome := outcomes[len(calls) - 1]) is not None:
            raise outcome

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return calls


def test_a_start_that_took_too_long_is_tried_once_more(monkeypatch: pytest.MonkeyPatch):
    calls = attempts(monkeypatch, TOO_SLOW, None)
    with ray_session("local", verbose=False, show_actor_logs=False) as local:
        assert local
    assert len(calls) == 2 and calls[0] == calls[1]


@pytest.mark.parametrize("outcomes", [(TOO_SLOW, TOO_SLOW), (RuntimeError("no disk"),)])
def test_anything_else_is_not(monkeypatch: pytest.MonkeyPatch, outcomes: tuple[Exception, ...]):
    calls = attempts(monkeypatch, *outcomes)
    with (
        pytest.raises(type(outcomes[-1]), match=str(outcomes[-1])[:7]),
        ray_session("local", verbose=False, show_actor_logs=False),
    ):
        pass
    assert len(calls) == len(outcomes)


def test_ray_ends_with_the_session_whatever_happens_in_it(monkeypatch: pytest.MonkeyPatch):
    attempts(monkeypatch, None)
    ends: list[bool] = []
    monkeypatch.setattr(ray, "shutdown", lambda: ends.append(True))
    with (
        pytest.raises(CommandError, match="too large"),
        ray_session("local", verbose=False, show_actor_logs=False),
    ):
        raise CommandError("too large")
    assert ends == [True]


def test_no_cluster_is_one_message(monkeypatch: pytest.MonkeyPatch):
    attempts(monkeypatch, ConnectionError("nobody there\nmore"))
    with (
        pytest.raises(CommandError, match=r"no Ray cluster at auto: nobody there Fix:"),
        ray_session("auto", verbose=False, show_actor_logs=False),
    ):
        pass


def test_an_address_at_which_nobody_listens_is_one_message_at_once(monkeypatch: pytest.MonkeyPatch):
    calls = attempts(monkeypatch, None)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))  # not listening: nobody else gets the port meanwhile
        address = f"127.0.0.1:{one.getsockname()[1]}"
        with (
            pytest.raises(CommandError, match=rf"no Ray cluster at {address}: .*refused.*Fix: correct --address"),
            ray_session(address, verbose=False, show_actor_logs=False),
        ):
            pass
    assert not calls


def test_an_address_at_which_somebody_listens_is_left_to_ray(monkeypatch: pytest.MonkeyPatch):
    calls = attempts(monkeypatch, None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with ray_session(address, verbose=False, show_actor_logs=False) as local:
            assert not local and len(calls) == 1
