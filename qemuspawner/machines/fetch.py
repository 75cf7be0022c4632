"""A machine's image fetched from a URL: resumed where it stopped, bounded, and checked before it counts.

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
from qemuspawner.machines.image_files import Progress, Step, check_room, copy_file, draft_of, put_in_place
from qemuspawner.paths import StatePaths
from qemuspawner.units import render_mib

MAX_MIB = 256 * 1024

_SOURCE = "source.json"
_CONNECT_S = 30
_SILENCE_S = 60
_PIECE_BYTES = 1 << 20
_MAX_REDIRECTS = 5
# Tries in a row of which none brought anything.
_MAX_TRIES = 3
_BETWEEN_TRIES_S = 2.0
_RANGE = re.compile(r"bytes ([0-9]{1,19})-[0-9]{1,19}/([0-9]{1,19}|\*)", re.ASCII)


class _Source(msgspec.Struct, frozen=True, kw_only=True):
    """`source.json`, beside a draft: what it is the beginning of."""

    url: str
    validator: str  # the server's strong ETag or the file's date; "" where it told none
    digest: str  # what the whole must have; ""


class _TryAgainError(Exception):
    """The connection broke; what came is kept."""


def fetch_image(
    machine: Machine,
    *,
    state: StatePaths,
    progress: Progress,
    url: str = "",
    digest: str = "",
    max_mib: int = MAX_MIB,
    between_tries_s: float = _BETWEEN_TRIES_S,
) -> None:
    """Fetch the image from `url`, or else from the one in machine.toml, and put it in place.

    Interrupted it keeps what has come, and goes on there the next time where the server says that the file is
    still the same, or a digest will. With a `url` that is not the machine's, the machine's digest counts not.

    Raises:
        MachineError, ImageError: It cannot be; the old image is still in place.
    """
    if not url:
        url = machine.image.url
    if not digest and url == machine.image.url:
        digest = machine.image.digest
    if not url:
        raise MachineError(
            f"It is not known where the image of '{machine.id}' comes from.",
            hint="Set image.url in its machine.toml, or give a URL.",
        )
    if problem := find_url_problem(url, digest=digest):
        raise MachineError(f"No image is fetched from there: {problem}.")
    with draft_of(machine, state) as draft:
        if urlsplit(url).scheme == "file":
            draft.unlink(missing_ok=True)
            copy_file(machine, Path(unquote(urlsplit(url).path)), draft, progress=progress)
        else:
            fetching = _Fetching(machine, url, digest, draft, progress, max_mib << 20)
            asyncio.run(fetching.run(between_tries_s))
        put_in_place(machine, draft, digest=digest, state=state, progress=progress)


class _Fetching:
    """One file by HTTP."""

    def __init__(
        self, machine: Machine, url: str, digest: str, draft: Path, progress: Progress, max_bytes: int
    ) -> None:
        self._machine = machine
        self._url = url
        self._digest = digest
        self._draft = draft
        self._source = draft.with_name(_SOURCE)
        self._progress = progress
        self._max_bytes = max_bytes
        self._told_at = 0.0

    async def run(self, between_tries_s: float) -> None:
        # No limit for the whole: nobody knows how large it is. Silence has one.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S)
        headers = {"User-Agent": f"qemuspawner/{__version__}", "Accept-Encoding": "identity"}
        # trust_env: many sites reach the world by a proxy.
        async with aiohttp.ClientSession(
            timeout=timeout, headers=headers, auto_decompress=False, trust_env=True
        ) as http:
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
                answer = await self._get(http, headers, stack)
                await self._take(answer, offset)
        except (aiohttp.ClientError, TimeoutError) as exc:
            raise _TryAgainError(str(exc) or "the server is silent") from exc

    def _ask_for_the_rest(self) -> tuple[dict[str, str], int]:
        """Headers that ask for what is missing, and where that begins."""
        size = self._size()
        source = self._load_source()
        if not size or source is None or source.url != self._url or source.digest != self._digest:
            return {}, 0
        if source.validator:
            return {"Range": f"bytes={size}-", "If-Range": source.validator}, size
        # Whatever it is put together from, the digest tells.
        return ({"Range": f"bytes={size}-"}, size) if self._digest else ({}, 0)

    async def _get(
        self, http: aiohttp.ClientSession, headers: dict[str, str], stack: contextlib.AsyncExitStack
    ) -> aiohttp.ClientResponse:
        """The answer, after redirects to what may be asked."""
        url = self._url
        for _ in range(_MAX_REDIRECTS + 1):
            answer = await stack.enter_async_context(http.get(url, headers=headers, allow_redirects=False))
            if answer.status not in (301, 302, 303, 307, 308):
                return answer
            url = urljoin(url, answer.headers.get("Location", ""))
            problem = find_url_problem(url, digest=self._digest)
            if problem or urlsplit(url).scheme == "file":
                problem = problem or "it is a file of this host"
                raise self._refused(f"the server leads to another address, and {problem}")
        raise self._refused(f"the server leads from one address to another more than {_MAX_REDIRECTS} times")

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
        return MachineError(
            f"The image of '{self._machine.id}' cannot be fetched: {why}.",
            hint="Look at the URL with a browser.",
        )
