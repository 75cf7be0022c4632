"""Follow a session's status: news as they come, and a process that died is missed soon."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from jupyterhub.httpclient import JupyterHubHTTPClient

from qemuspawner.hub.sessions import follow as module
from qemuspawner.hub.sessions.follow import follow_session
from qemuspawner.spec import SessionStatus, State

Answer = Callable[[web.Request], Awaitable[web.Response]]


async def alive() -> bool:
    return True


@contextlib.asynccontextmanager
async def session(answer: Answer) -> AsyncIterator[str]:
    """A session that answers so; its URL."""
    app = web.Application()
    app.router.add_get("/api/status", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    try:
        yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/"
    finally:
        await runner.cleanup()
        await JupyterHubHTTPClient.loop_instance().close()


def status(state: State, version: int) -> web.Response:
    return web.Response(body=SessionStatus(session_id="x", state=state, version=version).to_json())


async def follow(url: str, is_alive: Callable[[], Awaitable[bool]] = alive) -> list[State]:
    states = []
    async with contextlib.aclosing(
        follow_session(url, token="t", ssl_context=None, is_alive=is_alive)
    ) as statuses:
        async for one in statuses:
            states.append(one.state)
            if one.state == "running":
                break
    return states


async def test_news_come_when_they_happen_and_are_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the hub looks after the process meanwhile."""
    monkeypatch.setattr(module, "_ALIVE_EVERY_S", 0.01)
    asked: list[str | None] = []
    looks = 0
    happened = asyncio.Event()

    async def is_alive() -> bool:
        nonlocal looks
        looks += 1
        if looks == 3:
            happened.set()
        return True

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.query.get("after"))
        if len(asked) == 1:
            return status("booting", 3)
        await happened.wait()
        return status("running", 4)

    async with session(answer) as url:
        states = await follow(url, is_alive)

    assert (states, asked) == (["booting", "running"], [None, "3"])


class RecordedPauses:
    """asyncio, whose pauses are noted and take no time."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, pause_s: float) -> None:
        self.pauses.append(pause_s)
        await asyncio.sleep(0)


async def test_a_session_that_holds_no_request_is_not_asked_without_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded = RecordedPauses()
    monkeypatch.setattr(module, "asyncio", recorded)
    asked = 0

    async def answer(_request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return status("booting" if asked < 6 else "running", asked // 6)

    async with session(answer) as url:
        await follow(url)

    assert recorded.pauses == [0.05, 0.1, 0.2, 0.4]


async def test_errors_are_waited_out() -> None:
    asked = 0

    async def answer(_request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(status=503) if asked < 4 else status("running", 1)

    async with session(answer) as url:
        assert await follow(url) == ["running"]


async def test_a_process_that_dies_before_it_serves_is_missed_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The port listens already, so the first request only waits."""
    monkeypatch.setattr(module, "_ALIVE_EVERY_S", 0.01)
    looks = [False, True]

    async def is_alive() -> bool:
        return looks.pop()

    # The request itself would wait for longer.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with asyncio.timeout(10):
            states = await follow(f"http://127.0.0.1:{listener.getsockname()[1]}/", is_alive)
    await JupyterHubHTTPClient.loop_instance().close()

    assert (states, looks) == ([], [])
