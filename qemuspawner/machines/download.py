"""A file of a site of the web: resumed where it stopped, bounded, and led to nothing that may not be asked.

The address is an administrator's and is asked for as it is, also where it is one of the site's own network.
"""

import asyncio
import contextlib
import re
import time
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import aiohttp
import msgspec

from qemuspawner import __version__
from qemuspawner.errors import MachineError
from qemuspawner.machine import Machine
from qemuspawner.machines.catalogue import find_url_problem
from qemuspawner.machines.image_files import Progress, Step, check_room
from qemuspawner.units import render_mib

_SOURCE = "source.json"
_CONNECT_S = 30
_SILENCE_S = 60
_PIECE_BYTES = 1 << 20
_MAX_REDIRECTS = 5
# Tries in a row of which none brought anything.
_MAX_TRIES = 3
# A list of digests or a signature.
_MAX_DOCUMENT_BYTES = 4 << 20
_RANGE = re.compile(r"bytes ([0-9]{1,19})-[0-9]{1,19}/([0-9]{1,19}|\*)", re.ASCII)


class _Source(msgspec.Struct, frozen=True, kw_only=True):
    """`source.json`, beside a draft: what it is the beginning of."""

    url: str
    validator: str  # the server's strong ETag or the file's date; "" where it told none
    digest: str  # what the whole must have; ""


class _TryAgainError(Exception):
    """The connection broke; what came is kept."""


class _Refused(Exception):  # noqa: N818 - it is what the server was
    """The server leads where nothing is asked for."""


class Download:
    """An image by HTTP, into a draft."""

    def __init__(
        self,
        machine: Machine,
        url: str,
        draft: Path,
        *,
        digest: str,
        is_checked: bool,
        progress: Progress,
        max_bytes: int,
    ) -> None:
        """`is_checked`: whether the whole will be, by its digest or a signature."""
        self._machine = machine
        self._url = url
        self._digest = digest
        self._is_checked = is_checked
        self._draft = draft
        self._source = draft.with_name(_SOURCE)
        self._progress = progress
        self._max_bytes = max_bytes
        self._told_at = 0.0

    async def run(self, between_tries_s: float) -> None:
        """Raises MachineError where it cannot be had; what came is kept for the next time."""
        async with _open_http() as http:
            tries = 0
            while True:
                before = self._size()
                try:
                    await self._try(http)
                except _TryAgainError as exc:
                    tries = 1 if self._size() > before else tries + 1
                    if tries >= _MAX_TRIES:
                        raise MachineError(
                            f"Fetching the image of '{self._machine.id}' stopped: {exc}.",
                            hint="What has come is kept; try again later, and it goes on there.",
                        ) from exc
                    await asyncio.sleep(between_tries_s)
                else:
                    return

    async def _try(self, http: aiohttp.ClientSession) -> None:
        headers, offset = self._ask_for_the_rest()
        try:
            async with contextlib.AsyncExitStack() as stack:
                answer = await _get(http, self._url, headers, stack, is_checked=self._is_checked)
                await self._take(answer, offset)
        except _Refused as exc:
            raise self._refused(str(exc)) from exc
        except (aiohttp.ClientError, TimeoutError) as exc:
            raise _TryAgainError(str(exc) or "the server is silent") from exc

    def _ask_for_the_rest(self) -> tuple[dict[str, str], int]:
        """Headers that ask for what is missing, and where that begins."""
        size = self._size()
        source = self._load_source()
        if not size or source is None or source.digest != self._digest:
            return {}, 0
        if source.url == self._url and source.validator:
            return {"Range": f"bytes={size}-", "If-Range": source.validator}, size
        # Whatever it is put together from, also of several mirrors, the digest tells.
        return ({"Range": f"bytes={size}-"}, size) if self._digest else ({}, 0)

    async def _take(self, answer: aiohttp.ClientResponse, offset: int) -> None:
        total = self._check(answer, offset)
        if answer.status == 200:
            offset = 0
            self._note_source(answer)
        elif answer.status == 416:
            # Asked for what comes after the end: it is whole, or it is another file by now.
            if not answer.headers.get("Content-Range", "").endswith(f"*/{offset}"):
                self._draft.unlink()
                raise _TryAgainError("the file has changed meanwhile")
            return
        if total:
            check_room(self._machine, self._draft.parent, total - offset)
        with self._draft.open("r+b" if offset else "wb") as file:
            file.seek(offset)
            file.truncate()
            done = offset
            async for piece in answer.content.iter_chunked(_PIECE_BYTES):
                done += len(piece)
                if done > self._max_bytes:
                    raise self._too_large(done)
                file.write(piece)
                self._tell(done, total)
        if total and done < total:
            raise _TryAgainError(f"the connection ended after {done} of {total} bytes")

    def _check(self, answer: aiohttp.ClientResponse, offset: int) -> int:
        """How many bytes the file has, 0 where the server does not tell; raises MachineError."""
        if answer.status >= 500:
            raise _TryAgainError(f"the server answers {answer.status}")
        if answer.status not in (200, 206, 416):
            raise self._refused(f"the server answers {answer.status}")
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise self._refused("the server compresses it")
        total = answer.content_length or 0
        if answer.status == 206:
            match = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            if not offset or match is None or int(match[1]) != offset:
                raise self._refused("the server sends another part than that which was asked for")
            total = int(match[2]) if match[2] != "*" else 0
        if total > self._max_bytes:
            raise self._too_large(total)
        return total

    def _note_source(self, answer: aiohttp.ClientResponse) -> None:
        tag = answer.headers.get("ETag", "")
        # A weak one says that two files are alike, not that they are the same.
        strong = tag if tag.startswith('"') else ""
        validator = strong or answer.headers.get("Last-Modified", "")
        self._draft.unlink(missing_ok=True)
        source = _Source(url=self._url, validator=validator, digest=self._digest)
        self._source.write_bytes(msgspec.json.encode(source))

    def _load_source(self) -> _Source | None:
        try:
            return msgspec.json.decode(self._source.read_bytes(), type=_Source)
        except (OSError, msgspec.DecodeError):
            return None

    def _size(self) -> int:
        try:
            return self._draft.stat().st_size
        except FileNotFoundError:
            return 0

    def _tell(self, done: int, total: int) -> None:
        if time.monotonic() - self._told_at > 0.25 or done == total:
            self._told_at = time.monotonic()
            self._progress(Step(step="fetching", done=done, total=total))

    def _too_large(self, size: int) -> MachineError:
        self._draft.unlink(missing_ok=True)
        return self._refused(
            f"it has {render_mib(-(-size >> 20))} or more; {render_mib(self._max_bytes >> 20)} are allowed"
        )

    def _refused(self, why: str) -> MachineError:
        return refusal(self._machine, why)


def fetch_document(machine: Machine, url: str, *, is_checked: bool) -> bytes:
    """A small file of the same site, such as a list of digests; raises MachineError."""
    if problem := find_url_problem(url, is_checked=is_checked):
        raise MachineError(f"Nothing is fetched from there: {problem}.")
    if urlsplit(url).scheme == "file":
        try:
            with Path(unquote(urlsplit(url).path)).open("rb") as file:
                return _bounded(machine, url, file.read(_MAX_DOCUMENT_BYTES + 1))
        except OSError as exc:
            raise refusal(machine, f"{url} cannot be read: {exc.strerror}") from exc
    return asyncio.run(_fetch_document(machine, url, is_checked=is_checked))


async def _fetch_document(machine: Machine, url: str, *, is_checked: bool) -> bytes:
    try:
        async with _open_http() as http, contextlib.AsyncExitStack() as stack:
            answer = await _get(http, url, {}, stack, is_checked=is_checked)
            if answer.status != 200:
                raise refusal(machine, f"the server answers {answer.status} for {url}")
            content = b""
            async for piece in answer.content.iter_chunked(_PIECE_BYTES):
                content = _bounded(machine, url, content + piece)
            return content
    except _Refused as exc:
        raise refusal(machine, str(exc)) from exc
    except (aiohttp.ClientError, TimeoutError) as exc:
        raise refusal(machine, f"{url} does not answer ({exc or 'it is silent'})") from exc


def _bounded(machine: Machine, url: str, content: bytes) -> bytes:
    if len(content) > _MAX_DOCUMENT_BYTES:
        raise refusal(machine, f"{url} has more than {_MAX_DOCUMENT_BYTES >> 20} MiB")
    return content


def _open_http() -> aiohttp.ClientSession:
    # No limit for the whole: nobody knows how large it is. Silence has one.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S)
    headers = {"User-Agent": f"qemuspawner/{__version__}", "Accept-Encoding": "identity"}
    # trust_env: many sites reach the world by a proxy.
    return aiohttp.ClientSession(timeout=timeout, headers=headers, auto_decompress=False, trust_env=True)


async def _get(
    http: aiohttp.ClientSession,
    url: str,
    headers: dict[str, str],
    stack: contextlib.AsyncExitStack,
    *,
    is_checked: bool,
) -> aiohttp.ClientResponse:
    """The answer, after redirects to what may be asked; raises _Refused."""
    for _ in range(_MAX_REDIRECTS + 1):
        answer = await stack.enter_async_context(http.get(url, headers=headers, allow_redirects=False))
        if answer.status not in (301, 302, 303, 307, 308):
            return answer
        url = urljoin(url, answer.headers.get("Location", ""))
        problem = find_url_problem(url, is_checked=is_checked)
        if problem or urlsplit(url).scheme == "file":
            problem = problem or "it is a file of this host"
            raise _Refused(f"the server leads to another address, and {problem}")
    raise _Refused(f"the server leads from one address to another more than {_MAX_REDIRECTS} times")


def refusal(machine: Machine, why: str) -> MachineError:
    return MachineError(
        f"The image of '{machine.id}' cannot be fetched: {why}.",
        hint="Look at the URL with a browser.",
    )
