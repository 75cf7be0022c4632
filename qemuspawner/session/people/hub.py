"""JupyterHub's REST API, asked by a session with its own token."""

import json
import os
import ssl
from typing import Any
from urllib.parse import quote

import aiohttp
from jupyterhub.httpclient import fetch
from jupyterhub.utils import make_ssl_context

from qemuspawner.errors import SessionError
from qemuspawner.texts import Text

_TIMEOUT = aiohttp.ClientTimeout(total=10)


class HubError(SessionError):
    """The hub refuses, or does not answer; `status` is 0 where it does not."""

    def __init__(self, message: str, *, status: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status


class Hub:
    """The hub that started this session."""

    def __init__(self, url: str, token: str, *, ssl_context: ssl.SSLContext | None = None) -> None:
        self._url = url
        self._token = token
        self._ssl_context = ssl_context

    @classmethod
    def from_environment(cls) -> "Hub":
        key, certificate, authority = (
            os.environ.get(f"JUPYTERHUB_SSL_{name}") for name in ("KEYFILE", "CERTFILE", "CLIENT_CA")
        )
        context = make_ssl_context(key, certificate, cafile=authority) if key else None
        return cls(os.environ["JUPYTERHUB_API_URL"], os.environ["JUPYTERHUB_API_TOKEN"], ssl_context=context)

    async def ask(self, method: str, *path: str, query: str = "", body: object = None) -> Any:
        """The answer's JSON, None where it has none; each part of `path` is quoted.

        Raises:
            HubError: It says no, in its own words, or it does not answer.
        """
        # Joined by hand: the default server's name is empty, and its URL ends with a slash.
        url = "/".join((self._url.rstrip("/"), *(quote(part, safe="") for part in path)))
        kwargs: dict[str, Any] = {} if self._ssl_context is None else {"ssl": self._ssl_context}
        try:
            response = await fetch(
                f"{url}?{query}" if query else url,
                method=method,
                headers={"Authorization": f"token {self._token}"},
                data=None if body is None else json.dumps(body),
                raise_for_status=False,
                timeout=_TIMEOUT,
                **kwargs,
            )
            text = await response.text()
            answer = json.loads(text) if text else None
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as exc:
            raise HubError(
                Text("The hub does not answer."), status=0, hint=Text("Try again in a moment.")
            ) from exc
        if response.status >= 400:
            message = answer.get("message") if isinstance(answer, dict) else None
            raise HubError(
                Text("The hub says: {words}", words=message or response.status), status=response.status
            )
        return answer
