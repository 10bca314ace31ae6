"""The local page: it serves itself and one WebSocket a tab, to this machine alone.

The dream is a program that a web page could talk to, so that each request must be meant for this server (its Host
header, against names that were rebound to 127.0.0.1) and each WebSocket must come from its own page (Origin, which
browsers always send with one).
"""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Any

from aiohttp import WSMsgType, web

from wm_rllib.look.session import BadMessageError, DreamSession, World
from wm_rllib.runs.errors import CommandError

HOST = "127.0.0.1"
MAX_MESSAGE = 16 * 1024
WORKER: web.AppKey[ThreadPoolExecutor] = web.AppKey("worker", ThreadPoolExecutor)
SOCKETS: web.AppKey[Any] = web.AppKey("sockets")


def bind(port: int) -> socket.socket:
    """A socket on 127.0.0.1; a free port for 0.

    Raises:
        CommandError: If the port is taken, or not allowed.
    """
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((HOST, port))
    except OSError as error:
        bound.close()
        raise CommandError(
            f"--port {port} cannot be used: {error.strerror}. Fix: another --port, or none for a free one."
        ) from None
    return bound


def make_app(world: World, port: int) -> web.Application:
    """The application, for a server on this port."""
    names = {f"{name}:{port}" for name in (HOST, "localhost")}

    @web.middleware
    async def only_for_us(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.host not in names:
            raise web.HTTPForbidden(text="This server answers to 127.0.0.1 and localhost only.\n")
        return await handler(request)

    async def dream(request: web.Request) -> web.WebSocketResponse:
        if request.headers.get("Origin") not in {f"http://{name}" for name in names}:
            raise web.HTTPForbidden(text="Only this server's own page may steer the dream.\n")
        return await _serve(request, world)

    app = web.Application(middlewares=[only_for_us])
    # One thread: sessions take turns, and the loop stays free for Ctrl-C.
    app[WORKER] = ThreadPoolExecutor(1)
    app[SOCKETS] = set()
    app.router.add_get("/", _page)
    app.router.add_get("/dream", dream)
    app.on_shutdown.append(_close_all)
    return app


async def _page(request: web.Request) -> web.Response:
    nonce = secrets.token_urlsafe(16)
    page = resources.files("wm_rllib.look").joinpath("play.html").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; "
        f"connect-src ws://{request.host}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return web.Response(text=page.replace("{{nonce}}", nonce), content_type="text/html", headers=headers)


async def _serve(request: web.Request, world: World) -> web.WebSocketResponse:
    """One tab, with a dream of its own that ends with it."""
    app, loop = request.app, asyncio.get_running_loop()
    ws = web.WebSocketResponse(max_msg_size=MAX_MESSAGE, heartbeat=20)
    await ws.prepare(request)
    app[SOCKETS].add(ws)
    try:
        session = await loop.run_in_executor(app[WORKER], DreamSession, world)
        hello = await loop.run_in_executor(app[WORKER], session.hello)
        await ws.send_json({"hello": hello})
        async for message in ws:
            if message.type is WSMsgType.TEXT:
                answer = await loop.run_in_executor(app[WORKER], _answer, session, message.data)
                await ws.send_str(answer)
    except ConnectionResetError:  # the tab was closed while it was being answered
        pass
    finally:
        app[SOCKETS].discard(ws)
    return ws


def _answer(session: DreamSession, text: str) -> str:
    try:
        return json.dumps(session.handle(json.loads(text)), allow_nan=False)
    except (BadMessageError, json.JSONDecodeError) as error:
        return json.dumps({"error": str(error)})


async def _close_all(app: web.Application) -> None:
    for ws in list(app[SOCKETS]):
        await ws.close(code=1001, message=b"the server has ended")
    app[WORKER].shutdown(wait=False, cancel_futures=True)


def serve(world: World, port: int, announce: Callable[[str], None]) -> int:
    """Serves until Ctrl-C or SIGTERM; returns the signal that ended it.

    Args:
        world: What is dreamed of.
        port: Port, or 0 for a free one.
        announce: Told the page's address once it answers.

    Raises:
        CommandError: If the port cannot be used.
    """
    bound = bind(port)
    return asyncio.run(_run(world, bound, announce))


async def _run(world: World, bound: socket.socket, announce: Callable[[str], None]) -> int:
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def end(number: int) -> None:
        if not ended.done():
            ended.set_result(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end, int(number))
    port = bound.getsockname()[1]
    runner = web.AppRunner(make_app(world, port), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.SockSite(runner, bound).start()
        announce(f"http://{HOST}:{port}/")
        return await ended
    finally:
        await runner.cleanup()
