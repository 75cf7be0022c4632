"""JupyterHub's REST API, asked with the login of whoever asks us."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp
from jupyterhub.httpclient import fetch
from jupyterhub.utils import make_ssl_context

from qemuspawner.errors import QemuSpawnerError
from qemuspawner.texts import Text

# The hub itself waits for sessions, and 10 s for one that stops.
_TIMEOUT = aiohttp.ClientTimeout(total=30)
_MAX_ANSWER_BYTES = 16 * 1024 * 1024
# A browser takes nothing else for what the hub did not say it is.
_KINDS = ("application/json", "image/jpeg", "image/png")


class SilentHubError(QemuSpawnerError):
    """The hub does not answer, or not as the hub does."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the hub said."""

    status: int
    kind: str  # its media type
    body: bytes


async def ask_hub(
    method: str, path: Sequence[str], *, body: bytes | None, token: str, language: str
) -> Answer:
    """A route of the hub; each part of `path` is quoted, and `language` is the tag of what its person reads.

    Raises:
        SilentHubError: With a sentence for that person.
    """
    # Joined by hand: the default server's name is empty, and its URL ends with a slash.
    url = "/".join((os.environ["JUPYTERHUB_API_URL"].rstrip("/"), *(quote(part, safe="") for part in path)))
    try:
        async with await fetch(
            url,
            method=method,
            headers={"Authorization": f"token {token}", "Accept-Language": language},
            data=body,
            raise_for_status=False,
            allow_redirects=False,
            timeout=_TIMEOUT,
            **_ssl_options(),
        ) as response:
            answer = await _read(response)
    except (aiohttp.ClientError, OSError, TimeoutError) as exc:
        raise SilentHubError(Text("The hub does not answer. Try again in a moment.")) from exc
    kind = response.content_type
    if response.status != 204 and kind not in _KINDS:
        raise SilentHubError(Text("The hub answers something that is not understood."))
    return Answer(status=response.status, kind=kind, body=answer)


async def _read(response: Any) -> bytes:
    """The body; raises SilentHubError where it is longer than any that is expected."""
    body: bytes = b""
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > _MAX_ANSWER_BYTES:
            raise SilentHubError(Text("The hub answers more than can be shown."))
    return body


def _ssl_options() -> dict[str, Any]:
    """With internal_ssl both sides show a certificate."""
    key, certificate, authority = (
        os.environ.get(f"JUPYTERHUB_SSL_{name}") for name in ("KEYFILE", "CERTFILE", "CLIENT_CA")
    )
    return {"ssl": make_ssl_context(key, certificate, cafile=authority)} if key else {}
