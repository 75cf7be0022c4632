"""The HTTP client that speaks with the web servers in the guest."""

import socket
from typing import Protocol

import aiohttp
from aiohttp.client_proto import ResponseHandler

# Slots for all requests and websockets of a session; further ones wait.
_MAX_CONNECTIONS = 100
_CONNECT_TIMEOUT_S = 15
# So long an answer may let wait for its beginning, or for what comes next.
SILENCE_S = 120


class PortSource(Protocol):
    """The supervisor's part."""

    async def connect_port(self, name: str) -> socket.socket: ...


class _Connector(aiohttp.BaseConnector):
    """Connects with the port that a URL's host names."""

    def __init__(self, source: PortSource) -> None:
        super().__init__(limit=_MAX_CONNECTIONS)
        self._source = source

    async def _create_connection(self, req: aiohttp.ClientRequest, *_: object) -> ResponseHandler:
        connection = await self._source.connect_port(req.url.host or "")
        try:
            _transport, protocol = await self._loop.create_connection(self._factory, sock=connection)
        except BaseException:
            connection.close()
            raise
        return protocol


def make_client(source: PortSource) -> aiohttp.ClientSession:
    """A client for URLs such as `http://terminal/`; nothing of an answer is followed, kept or unpacked."""
    return aiohttp.ClientSession(
        connector=_Connector(source),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        # Only what the browser says.
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_TIMEOUT_S, sock_read=SILENCE_S),
    )
