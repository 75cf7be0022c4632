"""A session's web side with stand-ins: for the hub, and for web servers in a hostile guest."""

import asyncio
import contextlib
import json
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import vms
from tornado import httpserver, web, websocket
from tornado.iostream import StreamClosedError
from tornado.testing import bind_unused_port
from tornado.web import create_signed_value
from yarl import URL

from qemuspawner.paths import StatePaths
from qemuspawner.policy import Policy, Role
from qemuspawner.scopes import AGENT
from qemuspawner.session.app import make_app
from qemuspawner.session.people.audit import Audit
from qemuspawner.session.people.logins import Logins
from qemuspawner.session.people.people import People

PREFIX = "/user/alice/desk/"
CLIENT_ID = "jupyterhub-user-alice-desk"
# By token, who the hub says it is; alice is the owner.
PEOPLE = {
    "alices": "alice",
    "alices program's": "alice",
    "bobs": "bob",
    "bobs program's": "bob",
    "vivs": "viv",
    "eves": "eve",
}
SCOPE = "access:servers!server=alice/desk"
HAND = f"{AGENT}!user=alice"


class _HubUser(web.RequestHandler):
    """The hub's answer about a token."""

    def get(self) -> None:
        token = self.request.headers["Authorization"].removeprefix("token ")
        if token not in PEOPLE:
            raise web.HTTPError(403)
        scopes = [SCOPE, HAND] if "program" in token else [SCOPE]
        about = {"groups": [], "session_id": None, "token_id": "a1"}
        self.finish({"kind": "user", "name": PEOPLE[token], "scopes": scopes, **about})


@dataclass
class Shares:
    """What the hub says with whom alice shares it."""

    roles: dict[str, Role] = field(default_factory=lambda: {"bob": "control", "viv": "view"})

    async def role_of(self, name: str, groups: Collection[str], *, by_group: bool = True) -> Role | None:
        return self.roles.get(name)

    def forget(self) -> None:
        """Nothing is remembered."""

    def had_lately(self, name: str, groups: Collection[str]) -> bool:
        return True


class Echo(web.RequestHandler):
    """Says what it was asked."""

    async def prepare(self) -> None:
        self.finish(
            {
                "method": self.request.method,
                "uri": self.request.uri,
                "headers": [[name.lower(), value] for name, value in self.request.headers.get_all()],
                "body_bytes": len(self.request.body),
            }
        )


class Says(web.RequestHandler):
    """Answers with the status and the headers that the query asks for, as a hostile guest may."""

    def get(self) -> None:
        self.set_status(int(self.get_query_argument("status", "200")))
        self.clear_header("Content-Type")
        for text in self.get_query_arguments("header"):
            name, _, value = text.partition(": ")
            self.add_header(name, value)
        self.finish("page" if self.get_status() == 200 else "")


class EchoSocket(websocket.WebSocketHandler):
    """Sends back what comes; picks the second subprotocol that is offered."""

    def check_origin(self, origin: str) -> bool:
        return True

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return subprotocols[1] if len(subprotocols) > 1 else None

    async def on_message(self, message: str | bytes) -> None:
        if message == "leave":
            self.close(4321, "as you wish")
        elif message == "headers":
            await self.write_message(json.dumps(dict(self.request.headers)))
        else:
            await self.write_message(message, binary=isinstance(message, bytes))


class FloodSocket(websocket.WebSocketHandler):
    """Messages without end; counts how much of them was taken."""

    sent_bytes = 0

    async def open(self) -> None:
        FloodSocket.sent_bytes = 0
        self.flooding = asyncio.create_task(self.flood())

    async def flood(self) -> None:
        with contextlib.suppress(websocket.WebSocketClosedError):
            while True:
                await self.write_message(bytes(65536), binary=True)
                FloodSocket.sent_bytes += 65536


class Drip(web.RequestHandler):
    """Events, one after the other, without end."""

    async def get(self) -> None:
        self.set_header("Content-Type", "text/event-stream")
        with contextlib.suppress(StreamClosedError):
            while True:
                self.write("data: x\n\n")
                await self.flush()
                await asyncio.sleep(0.05)


class NoSocket(web.RequestHandler):
    def get(self) -> None:
        raise web.HTTPError(404)


class Flood(web.RequestHandler):
    """An answer without end; counts how much of it was taken."""

    sent_bytes = 0
    over: asyncio.Event

    async def get(self) -> None:
        Flood.sent_bytes, Flood.over = 0, asyncio.Event()
        with contextlib.suppress(Exception):
            while not Flood.over.is_set():
                self.write(bytes(65536))
                await self.flush()
                Flood.sent_bytes += 65536

    def on_connection_close(self) -> None:
        Flood.over.set()


@dataclass(kw_only=True)
class Supervisor:
    """What the handler needs of one."""

    spec: Any
    ports: dict[str, int]
    inputs: int = 0
    clocks: Any = field(init=False)

    def __post_init__(self) -> None:
        self.clocks = self

    def note_input(self) -> None:
        self.inputs += 1

    async def connect_port(self, name: str) -> socket.socket:
        connection = socket.socket()
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self.ports[name]))
        return connection

    async def screenshot(self) -> bytes:
        raise NotImplementedError

    def steady(self) -> contextlib.AbstractAsyncContextManager[None]:
        return contextlib.nullcontext()


@dataclass(kw_only=True)
class Session:
    """The web side as browsers see it."""

    url: URL  # ends with a slash
    supervisor: Supervisor
    http: aiohttp.ClientSession
    cookie_secret: bytes
    shares: Shares

    def login(self, token: str = "alices") -> str:
        """The cookie of somebody who is logged in."""
        value = create_signed_value(self.cookie_secret, CLIENT_ID, token).decode()
        return f"{CLIENT_ID}={value}"

    def headers(self, token: str = "alices", **more: str) -> dict[str, str]:
        """Of a request by a page of this origin."""
        ours = {"Cookie": self.login(token), "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
        return {**ours, **{name.replace("_", "-"): value for name, value in more.items()}}

    async def ask(self, path: str, *, method: str = "GET", **kwargs: Any) -> "Answer":
        headers = kwargs.pop("headers", None) or self.headers()
        url = URL(f"{self.url}{path}", encoded=True)
        async with self.http.request(method, url, headers=headers, allow_redirects=False, **kwargs) as got:
            headers_got = [(name.decode(), value.decode("latin-1")) for name, value in got.raw_headers]
            return Answer(status=got.status, text=await got.text(errors="replace"), headers=headers_got)


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    text: str
    headers: list[tuple[str, str]]

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def listen(exits: contextlib.ExitStack, target: Any) -> int:
    """Serve a Tornado application on a free port until the test is over; the port."""
    listener, port = bind_unused_port()
    server = httpserver.HTTPServer(target)
    server.add_socket(listener)
    exits.callback(server.stop)
    return int(port)


Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


async def _listen_raw(exits: contextlib.ExitStack, connected: Connected) -> int:
    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    exits.callback(server.close)
    return int(server.sockets[0].getsockname()[1])


async def _close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As QEMU does where nobody listens in the guest."""
    writer.close()


async def _babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    writer.write(b"SSH-2.0-OpenSSH_9.2p1\r\n")
    writer.close()


async def _cut_short(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\n")
    await writer.drain()
    writer.close()


async def _keep_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


@contextlib.asynccontextmanager
async def session(
    monkeypatch: pytest.MonkeyPatch,
    *,
    policy: Policy | None = None,
    ports: Mapping[str, int] | None = None,
    absolute: bool = False,
) -> AsyncIterator[Session]:
    """A running session whose machine declares a web tool "tool", and some that do not work.

    `ports` are further ones, of servers of the test's own.
    """
    with contextlib.ExitStack() as exits:
        state = Path(exits.enter_context(tempfile.TemporaryDirectory()))
        (state / "sessions").mkdir()
        hub = listen(exits, web.Application([("/hub/api/user", _HubUser)]))
        tool = web.Application(
            [
                ("/says", Says), ("/flood", Flood), ("/drip", Drip), ("/socket", EchoSocket),
                ("/flood-socket", FloodSocket),
                ("/no-socket", NoSocket), (".*", Echo),
            ],
        )  # fmt: skip
        given = {
            "tool": listen(exits, tool),
            "closed": await _listen_raw(exits, _close),
            "babbler": await _listen_raw(exits, _babble),
            "cut": await _listen_raw(exits, _cut_short),
            "silent": await _listen_raw(exits, _keep_silent),
            **(ports or {}),
        }
        environment = {
            "JUPYTERHUB_API_TOKEN": "the-session's",
            "JUPYTERHUB_API_URL": f"http://127.0.0.1:{hub}/hub/api",
            "JUPYTERHUB_CLIENT_ID": CLIENT_ID,
            "JUPYTERHUB_SERVICE_PREFIX": PREFIX,
            "JUPYTERHUB_SERVICE_URL": "http://127.0.0.1:1",
            "JUPYTERHUB_OAUTH_ACCESS_SCOPES": json.dumps([SCOPE]),
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        Logins.clear_instance()
        exits.callback(Logins.clear_instance)
        machine = vms.make_machine(
            image={"file": "disk", "format": "raw"},
            ports={name: {"port": port, "absolute_url": absolute} for name, port in given.items()},
        )
        spec = vms.make_spec(state, machine, policy=policy or Policy())
        supervisor = Supervisor(spec=spec, ports=given)
        shares, audit = Shares(), Audit(StatePaths(root=state).audit, spec)
        people = People(spec, shares, Logins.instance(), audit=audit)  # type: ignore[arg-type]
        watching = asyncio.create_task(people.watch())
        exits.callback(watching.cancel)
        # Nobody looks at the screen or listens here.
        app = make_app(supervisor, None, None, people, audit=audit, prefix=PREFIX)  # type: ignore[arg-type]
        port = listen(exits, app)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
            yield Session(
                url=URL(f"http://127.0.0.1:{port}{PREFIX}"),
                supervisor=supervisor,
                http=http,
                cookie_secret=app.settings["cookie_secret"],
                shares=shares,
            )
            if client := app.settings.get("port_client"):
                await client.close()
