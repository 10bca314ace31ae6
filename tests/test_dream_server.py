"""The local page: it talks to its own tabs and to nobody else."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from look_parts import world

from wm_rllib.look.server import bind, make_app
from wm_rllib.runs.errors import CommandError

Visit = Callable[[aiohttp.ClientSession, str], Awaitable[Any]]


def visit(client: Visit) -> Any:
    """What a client of a running server returns; it is given a session and the server's address."""

    async def run() -> Any:
        bound = bind(0)
        port = bound.getsockname()[1]
        runner = web.AppRunner(make_app(world(), port), shutdown_timeout=1.0)
        await runner.setup()
        await web.SockSite(runner, bound).start()
        try:
            async with aiohttp.ClientSession() as session:
                return await asyncio.wait_for(client(session, f"http://127.0.0.1:{port}"), 60)
        finally:
            await runner.cleanup()

    return asyncio.run(run())


async def ask(ws: Any, message: Any) -> dict[str, Any]:
    await (ws.send_str(message) if isinstance(message, str) else ws.send_json(message))
    return await ws.receive_json()


def test_the_page_brings_all_that_it_needs_and_may_load_nothing():
    async def client(session: aiohttp.ClientSession, url: str) -> tuple[str, str]:
        async with session.get(url) as response:
            assert response.status == 200
            return await response.text(), response.headers["Content-Security-Policy"]

    page, policy = visit(client)
    assert "{{" not in page
    nonces = set(re.findall(r'nonce="([^"]+)"', page))
    assert len(nonces) == 1 and f"'nonce-{nonces.pop()}'" in policy
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert not re.findall(r"""(?:src|href)=|url\(|@import|https?://""", page)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1.evil.example:{port}"])
def test_a_name_that_was_rebound_to_this_machine_is_refused(host: str):
    async def client(session: aiohttp.ClientSession, url: str) -> int:
        name = host.replace("{port}", url.rpartition(":")[2])
        async with session.get(url, headers={"Host": name}) as response:
            return response.status

    assert visit(client) == 403


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "http://127.0.0.1:1", "https://{own}"])
def test_a_page_of_elsewhere_cannot_steer(origin: str | None):
    async def client(session: aiohttp.ClientSession, url: str) -> int:
        headers = {} if origin is None else {"Origin": origin.replace("{own}", url.removeprefix("http://"))}
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(f"{url}/dream", headers=headers)
        return refused.value.status

    assert visit(client) == 403


def test_two_tabs_have_dreams_of_their_own():
    async def client(session: aiohttp.ClientSession, url: str) -> None:
        headers = {"Origin": url}
        async with (
            session.ws_connect(f"{url}/dream", headers=headers) as one,
            session.ws_connect(f"{url}/dream", headers=headers) as other,
        ):
            assert (await one.receive_json())["hello"]["env"] == "CartPole-v1"
            await other.receive_json()
            for count in range(3):
                assert (await ask(one, {"do": "step", "keys": ["ArrowLeft"]}))["t"] == count + 1
            assert (await ask(other, {"do": "look"}))["t"] == 0
            assert (await ask(other, {"do": "temperature", "value": 2.0}))["temperature"] == 2.0
            assert (await ask(one, {"do": "look"}))["temperature"] == 1.0

    visit(client)


@pytest.mark.parametrize("nonsense", ["", "{", "[1]", '{"do": "fly"}', '{"do": "start", "index": 1e99}'])
def test_nonsense_is_answered_and_the_dream_goes_on(nonsense: str):
    async def client(session: aiohttp.ClientSession, url: str) -> None:
        async with session.ws_connect(f"{url}/dream", headers={"Origin": url}) as ws:
            await ws.receive_json()
            assert set(await ask(ws, nonsense)) == {"error"}
            assert (await ask(ws, {"do": "step", "keys": []}))["t"] == 1

    visit(client)


def test_a_tab_that_is_open_is_told_of_the_end():
    async def run() -> Any:
        bound = bind(0)
        port = bound.getsockname()[1]
        runner = web.AppRunner(make_app(world(), port), shutdown_timeout=1.0)
        await runner.setup()
        await web.SockSite(runner, bound).start()
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{port}"
            ws = await session.ws_connect(f"{url}/dream", headers={"Origin": url})
            await ws.receive_json()
            waiting = asyncio.create_task(ws.receive())
            await runner.cleanup()
            return (await asyncio.wait_for(waiting, 10)).type

    assert asyncio.run(run()) is aiohttp.WSMsgType.CLOSE


def test_it_binds_this_machine_alone_and_names_a_taken_port():
    bound = bind(0)
    try:
        host, port = bound.getsockname()
        assert host == "127.0.0.1"
        bound.listen()
        with pytest.raises(CommandError, match=f"--port {port} cannot be used: Address already in use"):
            bind(port)
    finally:
        bound.close()
