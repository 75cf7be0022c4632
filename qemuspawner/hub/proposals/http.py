"""Proposals of a web service that answers with JSON, such as SciCat or ICAT."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import msgspec
import yarl
from traitlets import Dict, Integer, List, TraitError, Unicode, validate

from qemuspawner.hub.proposals.data import check_templates, fill_in
from qemuspawner.hub.proposals.dotted import find_all, find_first, find_value
from qemuspawner.hub.proposals.proposal import FIELDS, Asker, make_all, not_offered, number_of
from qemuspawner.hub.proposals.source import Loaded, ProposalSource, SourceError
from qemuspawner.texts import Text
from qemuspawner.units import render_mib

_MAX_TOKEN_BYTES = 64 * 1024
_PIECE_BYTES = 64 * 1024
# Each can be a problem with a sentence of its own.
_MAX_ENTRIES = 50_000
_USER = "{username}"
# What an administrator may write in a URL as it is sent; the rest is quoted.
_URL = "%/:?#[]@!$&'()*+,;="
_LISTS = ("members", "groups")
_MAPPED = tuple(name for name in FIELDS if name != "data")

# As of version 4 of its backend, `/api/v3/proposals`.
_SCICAT = {
    "id": "proposalId",
    "title": "title",
    "abstract": "abstract",
    "starts": "startTime",
    "ends": "endTime",
    "groups": ["ownerGroup", "accessGroups"],
}


class HttpProposals(ProposalSource):
    """Asked by GET; the answer is a list of objects, or has one in it."""

    url = Unicode(
        help="""The URL of the list; "{username}" in it is the name of the user whose proposals it is.

        With that in it, whatever is in the answer is that user's; without it, `fields` has to say whose.
        """,
    ).tag(config=True)
    token_file = Unicode(help="A file with a token, sent as `Authorization: Bearer TOKEN`.").tag(config=True)
    entries = Unicode(
        help="""Where in the answer the list is: a dotted path such as "data.items"; "": it is the answer."""
    ).tag(config=True)
    fields = Dict(
        default_value=_SCICAT,
        help="""Where in an entry our fields are: a dotted path, or several, of which the first value counts.

        `id`, `title`, `abstract`, `starts`, `ends`, and `members` and `groups` of the hub, where all that is
        found at several paths counts. A path through a list means each of its entries, such as
        "investigationUsers.user.name".
        """,
    ).tag(config=True)
    data = List(
        Dict(),
        help="""Folders of each proposal: `[{"name": "raw", "path": "/data/{id}/raw", "read_only": True}]`.

        A placeholder is one of our fields, or else a dotted path in the entry.
        """,
    ).tag(config=True)
    timeout = Integer(10, min=1, max=300, help="After how many seconds an answer is waited for no more.").tag(
        config=True
    )
    max_answer = Integer(8, min=1, max=64, help="How many MiB an answer may have.").tag(config=True)

    @validate("url")
    def _is_url(self, proposal: Any) -> str:
        url = str(proposal["value"])
        if not url.startswith(("https://", "http://")):
            raise TraitError(f"url is {url!r}; it begins with 'https://' or 'http://'.")
        return url

    @validate("fields")
    def _are_fields(self, proposal: Any) -> dict[str, Any]:
        fields: dict[str, Any] = proposal["value"]
        for name, paths in fields.items():
            if name not in _MAPPED:
                raise TraitError(f"fields has the key {name!r}; its keys are {', '.join(_MAPPED)}.")
            if not isinstance(paths, str) and not (
                isinstance(paths, list | tuple) and all(isinstance(path, str) for path in paths)
            ):
                raise TraitError(
                    f"fields has {paths!r} for '{name}'; it is a dotted path, or a list of them."
                )
        if "id" not in fields:
            raise TraitError("fields has no 'id', and without one there is no proposal.")
        return fields

    @validate("data")
    def _are_templates(self, proposal: Any) -> list[dict[str, Any]]:
        try:
            check_templates(proposal["value"])
        except ValueError as exc:
            raise TraitError(f"data is {proposal['value']!r}: {exc}.") from None
        return list(proposal["value"])

    def key(self, asker: Asker) -> str:
        return asker.name if _USER in self.url else ""

    async def load(self, asker: Asker) -> Loaded:
        url = quote(self.url.replace(_USER, quote(asker.name, safe="")), safe=_URL)
        # yarl would unquote some of a name again.
        answer = await self._fetch(yarl.URL(url, encoded=True))
        # Large answers take a while, and the hub has other things to do.
        loaded = await asyncio.to_thread(self._read, answer)
        if not self.key(asker):
            return loaded
        theirs = {
            name: replace(proposal, members=proposal.members | {asker.name})
            for name, proposal in loaded.proposals.items()
        }
        return replace(loaded, proposals=theirs)

    async def _fetch(self, url: yarl.URL) -> bytes:
        try:
            headers = await asyncio.to_thread(self._make_headers)
            async with (
                aiohttp.ClientSession(
                    timeout=aiohttp.ClientTimeout(total=self.timeout),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    # A megabyte can be a gigabyte, compressed.
                    auto_decompress=False,
                ) as http,
                # Another address need not be told the token.
                http.get(url, headers=headers, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    raise self._problem(
                        Text("it answers with the HTTP status {status}", status=response.status)
                    )
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise self._problem(Text("its answer is compressed, which was not asked for"))
                return await self._read_bounded(response.content)
        except TimeoutError:
            raise self._problem(Text("it does not answer within {seconds} s", seconds=self.timeout)) from None
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise self._problem(Text("it cannot be reached")) from exc

    def _make_headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if self.token_file:
            with Path(self.token_file).open("rb") as file:
                headers["Authorization"] = f"Bearer {file.read(_MAX_TOKEN_BYTES).decode().strip()}"
        return headers

    async def _read_bounded(self, content: aiohttp.StreamReader) -> bytes:
        answer = bytearray()
        async for piece in content.iter_chunked(_PIECE_BYTES):
            answer += piece
            if len(answer) > self.max_answer << 20:
                raise self._problem(Text("its answer has more than {size}", size=render_mib(self.max_answer)))
        return bytes(answer)

    def _read(self, answer: bytes) -> Loaded:
        try:
            entries = find_value(msgspec.json.decode(answer), self.entries)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            raise self._problem(Text("its answer is no JSON")) from None
        if not isinstance(entries, list):
            raise self._problem(Text("its answer has no list of proposals"))
        if len(entries) > _MAX_ENTRIES:
            raise self._problem(Text("its answer has more than {most} of them", most=_MAX_ENTRIES))
        found, unread = [], []
        for number, entry in enumerate(entries, 1):
            try:
                found.append(self._find_fields(entry))
            except ValueError as exc:
                unread.append(not_offered(number_of(number), exc))
        proposals, problems = make_all(found)
        return Loaded(proposals=proposals, problems=(*unread, *problems))

    def _find_fields(self, entry: object) -> Mapping[str, object]:
        """Raises ValueError."""
        if not isinstance(entry, Mapping):
            raise ValueError(Text("it is no object"))
        fields = {
            name: find_all(entry, paths) if name in _LISTS else find_first(entry, paths)
            for name, paths in self.fields.items()
        }

        def find(placeholder: str) -> object:
            return fields[placeholder] if placeholder in fields else find_value(entry, placeholder)

        return {**fields, "data": fill_in(self.data, find)}

    def _problem(self, why: Text) -> SourceError:
        """`why` is the end of a sentence, and tells users nothing about the site's hosts."""
        return SourceError(Text("The list of proposals cannot be read from its source: {why}.", why=why))
