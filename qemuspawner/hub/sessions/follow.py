"""Follow a session from its first answer until its desktop is there or it failed."""

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import msgspec
from jupyterhub.httpclient import fetch
from yarl import URL

from qemuspawner.spec import SessionStatus

log = logging.getLogger(__name__)

TIMEOUT = aiohttp.ClientTimeout(total=5)
# A session holds a request for 10 s at most, and one that is not serving yet holds it by not answering.
_LONG_TIMEOUT = aiohttp.ClientTimeout(total=15)
# A large memory takes its time to be saved.
SUSPEND_TIMEOUT = aiohttp.ClientTimeout(total=300)
_MAX_ANSWER_BYTES = 1024 * 1024
_MAX_THUMBNAIL_BYTES = 256 * 1024
_JPEG = b"\xff\xd8\xff"
# How soon a process is missed that ended without closing the connection.
_ALIVE_EVERY_S = 1
# Between requests that bring nothing new.
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 0.5


async def follow_session(
    url: str,
    *,
    token: str,
    ssl_context: ssl.SSLContext | None,
    is_alive: Callable[[], Awaitable[bool]],
) -> AsyncGenerator[SessionStatus, None]:
    """Each new status of the session at `url`, from its first answer until its process ends."""
    version: int | None = None
    pause_s = _FIRST_PAUSE_S
    while True:
        asked = asyncio.create_task(fetch_status(url, token=token, ssl_context=ssl_context, after=version))
        try:
            while not (await asyncio.wait({asked}, timeout=_ALIVE_EVERY_S))[0]:
                if not await is_alive():
                    return
            status = asked.result()
        finally:
            asked.cancel()
        if status is not None and status.version != version:
            version = status.version
            pause_s = _FIRST_PAUSE_S
            yield status
            continue
        if not await is_alive():
            return
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


async def fetch_status(
    url: str, *, token: str, ssl_context: ssl.SSLContext | None, after: int | None = None
) -> SessionStatus | None:
    """The session's status, once it is not `after` any more; None where it does not answer, or not yet."""
    try:
        response = await _fetch(
            f"{url}api/status?texts" if after is None else f"{url}api/status?texts&after={after}",
            headers={"Authorization": f"token {token}"},
            timeout=_LONG_TIMEOUT,
            ssl_context=ssl_context,
        )
        async with response:
            if response.status != 200:
                log.debug("%s answers %s.", url, response.status)
                return None
            body = await response.content.read(_MAX_ANSWER_BYTES)
        return SessionStatus.from_json(body)
    except (aiohttp.ClientError, TimeoutError):
        return None
    except msgspec.DecodeError as exc:
        log.warning("%s answers, but not as a session does: %s", url, exc)
        return None


async def ask_session(
    method: str,
    url: str,
    body: object = None,
    *,
    token: str,
    ssl_context: ssl.SSLContext | None,
    language: str = "en",
    timeout: aiohttp.ClientTimeout = TIMEOUT,  # noqa: ASYNC109
) -> tuple[int, dict[str, Any]]:
    """A route of a session: HTTP status and JSON object of its answer; 0 and {} where it does not answer.

    What it says to people is in the `language` of this tag.
    """
    try:
        async with await _fetch(
            url,
            method=method,
            data=None if body is None else json.dumps(body),
            headers={"Authorization": f"token {token}", "Accept-Language": language},
            timeout=timeout,
            ssl_context=ssl_context,
        ) as response:
            answer = json.loads(await response.content.read(_MAX_ANSWER_BYTES))
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return 0, {}
    return (int(response.status), answer) if isinstance(answer, dict) else (0, {})


async def fetch_thumbnail(url: str, *, token: str, ssl_context: ssl.SSLContext | None) -> tuple[int, bytes]:
    """The session's thumbnail: HTTP status and a JPEG; 0 where it does not answer, or with something else."""
    try:
        async with await _fetch(
            f"{url}api/thumbnail",
            headers={"Authorization": f"token {token}"},
            timeout=TIMEOUT,
            ssl_context=ssl_context,
        ) as response:
            status = int(response.status)
            # `read(n)` gives what is there by now.
            picture = b""
            async for piece in response.content.iter_chunked(_MAX_THUMBNAIL_BYTES):
                picture += piece
                if len(picture) > _MAX_THUMBNAIL_BYTES:
                    return 0, b""
    except (aiohttp.ClientError, TimeoutError):
        return 0, b""
    if status != 200:
        return status, b""
    return (200, picture) if picture.startswith(_JPEG) else (0, b"")


async def desktop_answers(url: str, *, ssl_context: ssl.SSLContext | None) -> bool:
    """Whether the session says, without being asked who we are, that its desktop is there."""
    try:
        async with await _fetch(
            f"{url}api",
            timeout=TIMEOUT,
            ssl_context=ssl_context,
        ) as response:
            return int(response.status) < 500
    except (aiohttp.ClientError, TimeoutError):
        return False


async def _fetch(url: str, *, ssl_context: ssl.SSLContext | None, **kwargs: Any) -> aiohttp.ClientResponse:
    """What a session answers, whatever its status.

    What is escaped in its URL stays so: a name's comma would become another path than the session knows.
    """
    response: aiohttp.ClientResponse = await fetch(
        URL(url, encoded=True),
        allow_redirects=False,
        raise_for_status=False,
        ssl=True if ssl_context is None else ssl_context,
        **kwargs,
    )
    return response


class Progress:
    """What happened on the way to a desktop, as JupyterHub's progress events, for any number of readers."""

    def __init__(self) -> None:
        self._events: list[dict[str, object]] = []
        self._steps = 0
        self._closed = False
        self.knows_usual = False
        self._changed = asyncio.Event()

    def update(self, status: SessionStatus) -> None:
        """Note the steps that are new."""
        new = status.steps[self._steps :]
        self._steps = len(status.steps)
        self._events += [
            {"progress": status.progress, "message": step.text, "at": step.at, "level": step.level}
            for step in new
        ]
        if new:
            self._wake()

    def say(self, text: str) -> None:
        """Note what the hub itself has done for the desktop that is there."""
        self._events.append({"progress": 100, "message": text})
        self._wake()

    def note_usual(self, usual_s: float | None) -> None:
        """Note how long such a start usually takes; None where nobody knows."""
        self.knows_usual = True
        if usual_s is not None:
            self._events.append({"usual_s": round(usual_s, 1)})
            self._wake()

    def close(self) -> None:
        """Nothing more will happen: readers end."""
        self._closed = True
        self._wake()

    async def events(self) -> AsyncIterator[dict[str, object]]:
        """Everything from the beginning, then what comes, until the end."""
        told = 0
        while True:
            for event in self._events[told:]:
                told += 1
                # The hub's handler takes keys out of what it sends.
                yield dict(event)
            if told == len(self._events):
                if self._closed:
                    return
                await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
