"""The web servers in the guest: jupyter-server-proxy's handler with our login, walls and transport.

Its own transport keeps whole answers in memory and lets a fast side run away from a slow one. Here nothing is
read from one side before the other has taken the last piece.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any
from urllib.parse import urlparse

import aiohttp
from jupyter_server_proxy.handlers import ProxyHandler
from tornado import httputil, web
from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketClosedError
from yarl import URL

from qemuspawner.errors import QemuSpawnerError, SessionError
from qemuspawner.languages import load_languages
from qemuspawner.session.people.people import Seat
from qemuspawner.session.web.forwarding import OutsideError, from_guest, locate, to_guest
from qemuspawner.session.web.port_client import SILENCE_S, make_client
from qemuspawner.session.web.routes.base import Handler, Refusal
from qemuspawner.texts import Text
from qemuspawner.units import render_mib

_MAX_MESSAGE_BYTES = 16 << 20
_PING_EVERY_S = 30
# An answer that takes longer, such as one of events, is ended when its reader may no longer see it.
_LASTING_S = 5
# Of a websocket's close frame (RFC 6455, 5.5).
_MAX_REASON_BYTES = 123

_PAGES = {tag: language.template("web_tool.html") for tag, language in load_languages().items()}


class PortError(QemuSpawnerError):
    """A web tool did not answer as it should; `passes` where it may do so in a moment."""

    def __init__(self, status: int, message: str, *, hint: str = "", passes: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.passes = passes


@web.stream_request_body
class PortHandler(Handler, ProxyHandler):  # type: ignore[misc]
    """One request, or one websocket, of a port that the machine declares."""

    _asking: asyncio.Task[aiohttp.ClientResponse] | None = None
    _websocket: aiohttp.ClientWebSocketResponse | None = None
    _pumping: asyncio.Task[None] | None = None
    _working: asyncio.Task[Any] | None = None

    # Who may

    async def prepare(self) -> None:
        # Made before anything is awaited: the body comes as soon as this returns.
        self._body: asyncio.Queue[bytes] = asyncio.Queue(1)
        await super().prepare()
        if self._finished:
            return
        self._name = self.path_args[0]
        policy = self.supervisor.spec.policy
        if not self.person.may(policy.ports):
            raise Refusal(
                403,
                Text(
                    "Web tools need the role '{least}'; yours is '{role}'.",
                    least=policy.ports,
                    role=self.person.role,
                ),
            )
        tool = self.supervisor.spec.machine.web_tools.get(self._name)
        if tool is None:
            raise Refusal(404, Text("This machine has no such web tool."))
        if self.path_args[1] is None:
            self.redirect(f"{self.request.path}/" + (f"?{self.request.query}" if self.request.query else ""))
            return
        self._tool = tool
        self._check_length(policy.max_file_mib)
        self.request.connection.set_max_body_size(policy.max_file_mib << 20)  # type: ignore[union-attr]
        if self._is_websocket:
            self._check_websocket()
            self._note_opened()
            return
        if self.request.headers.get("Sec-Fetch-User") == "?1":
            self.supervisor.clocks.note_input()
        self._note_opened()
        self._asking = asyncio.create_task(self._ask())

    def _note_opened(self) -> None:
        """Once for each person and tool."""
        opened: set[tuple[str, str]] = self.settings.setdefault("opened_ports", set())
        if (self.person.name, self._name) not in opened:
            opened.add((self.person.name, self._name))
            self.audit("web-tool-opened", tool=self._name)

    def _check_length(self, max_mib: int) -> None:
        length = self.request.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > max_mib << 20:
            raise Refusal(
                413, Text("More than {size} cannot be sent to a web tool.", size=render_mib(max_mib))
            )

    def on_unknown_person(self) -> None:
        headers = self.request.headers
        is_page = headers.get("Sec-Fetch-Mode", "navigate") == "navigate" and not self._is_websocket
        if self.request.method != "GET" or not is_page:
            super().on_unknown_person()
        self.redirect(self.get_login_url())

    def check_xsrf_cookie(self) -> None:
        """Let in what a page of our own origin has sent.

        Called for requests with cookies that do more than show a page. The guest's tools know nothing of our
        token; that of their own is theirs to check.
        """
        site = self.request.headers.get("Sec-Fetch-Site")
        if site is None and self._is_own_origin(self.request.headers.get("Origin", "")):
            return
        if site not in ("same-origin", "none"):
            raise Refusal(403, Text("A web tool takes requests from its own pages only."))

    def check_origin(self, origin: str | None = None) -> bool:
        return not self.is_browser or self._is_own_origin(origin or "")

    def _check_websocket(self) -> None:
        # Tornado lets a websocket without any Origin pass.
        if not self.check_origin(self.request.headers.get("Origin")):
            raise Refusal(403, Text("A web tool's websocket opens from its own pages only."))

    def _is_own_origin(self, origin: str) -> bool:
        return urlparse(origin).netloc.lower() in self._own_hosts

    @property
    def _own_hosts(self) -> set[str]:
        return {self.request.host.lower(), *self.settings["public_hosts"]}

    # What is asked of the guest

    @property
    def _is_websocket(self) -> bool:
        return self.request.headers.get("Upgrade", "").lower() == "websocket"

    @property
    def _folder(self) -> str:
        """The path of the port; it ends with a slash."""
        prefix: str = self.settings["prefix"]
        return f"{prefix}proxy/{self._name}/"

    @property
    def _path(self) -> str:
        """What the guest is asked for, as the browser has quoted it."""
        path = self.request.path
        return path if self._tool.absolute_url else path.removeprefix(self._folder.rstrip("/"))

    def _target(self) -> URL:
        query = f"?{self.request.query}" if self.request.query else ""
        return URL(f"http://{self._name}{self._path}{query}", encoded=True)

    def _headers_to_guest(self) -> list[tuple[str, str]]:
        headers = to_guest(self.request.headers.get_all())
        if length := self.request.headers.get("Content-Length"):
            headers.append(("Content-Length", length))
        if not self._tool.absolute_url:
            # As jupyter-server-proxy tells it; the last one is Flask's word.
            folder = self._folder.rstrip("/")
            headers += [(name, folder) for name in ("X-ProxyContextPath", "X-Forwarded-Prefix")]
        return headers

    @property
    def _client(self) -> aiohttp.ClientSession:
        if "port_client" not in self.settings:
            self.settings["port_client"] = make_client(self.supervisor)
        client: aiohttp.ClientSession = self.settings["port_client"]
        return client

    def _seated(self, dismiss: Callable[[int, str], None]) -> contextlib.AbstractContextManager[Seat]:
        """What lasts is ended by `dismiss` when this person may no longer."""
        return self.people.seated(
            self.person,
            self.login,
            is_browser=self.is_browser,
            least=self.supervisor.spec.policy.ports,
            dismiss=dismiss,
        )

    def _break_off(self, _code: int = 0, _reason: str = "") -> None:
        """End a request half-way."""
        self._cut_off()
        for task in (self._asking, self._working):
            if task is not None:
                task.cancel()

    def _cut_off(self) -> None:
        """Close the connection, so that half an answer does not look whole."""
        self.request.connection.stream.close()  # type: ignore[union-attr]

    # HTTP

    async def data_received(self, chunk: bytes) -> None:
        await self._hand_on(chunk)

    async def http_get(self, *_: str | None) -> None:
        assert self._asking is not None
        self._working = asyncio.current_task()
        # After the last piece of the body.
        await self._hand_on(b"")
        try:
            async with await self._asking as answer:
                await self._show(answer)
        except asyncio.CancelledError:
            if not self.request.connection.stream.closed():  # type: ignore[union-attr]
                raise self._silent() from None
            # The browser has left.
        except StreamClosedError:
            pass
        except (aiohttp.ClientError, OSError, ValueError, SessionError) as exc:
            if not self._headers_written:
                raise self._explain(exc) from exc
            self._cut_off()

    post = put = patch = delete = head = options = http_get

    async def _ask(self) -> aiohttp.ClientResponse:
        headers = self.request.headers
        has_body = headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in headers
        return await self._client.request(
            self.request.method or "",
            self._target(),
            headers=[*self._headers_to_guest(), ("Host", self.request.host)],
            data=self._pieces() if has_body else None,
            allow_redirects=False,
        )

    async def _pieces(self) -> AsyncIterator[bytes]:
        while piece := await self._body.get():
            yield piece

    async def _hand_on(self, piece: bytes) -> None:
        """Return when the guest has taken the piece before, or wants no more."""
        if self._asking is None:
            return
        putting = asyncio.ensure_future(self._body.put(piece))
        done, _ = await asyncio.wait(
            {putting, self._asking}, timeout=SILENCE_S, return_when=asyncio.FIRST_COMPLETED
        )
        if putting not in done:
            putting.cancel()
        if not done:
            self._asking.cancel()

    async def _show(self, answer: aiohttp.ClientResponse) -> None:
        if not 200 <= answer.status <= 599:
            raise ValueError(answer.status)
        raw = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in answer.raw_headers]
        self.set_status(answer.status)
        # Ours are for our own page.
        self._headers = httputil.HTTPHeaders()
        for name, value in from_guest(raw, folder=self._folder):
            self.add_header(name, value)
        if "Location" in answer.headers:
            self.set_header("Location", self._locate(answer.headers["Location"]))
        if answer.content_length is not None and "Transfer-Encoding" not in answer.headers:
            self.set_header("Content-Length", str(answer.content_length))
        # Tornado's own: jupyter-server-proxy has put one in its place that nobody can wait for.
        flush = partial(web.RequestHandler.flush, self)
        await flush()
        began = time.monotonic()
        with contextlib.ExitStack() as lasting:
            is_seated = False
            async for piece in answer.content.iter_any():
                if not is_seated and time.monotonic() - began > _LASTING_S:
                    lasting.enter_context(self._seated(self._break_off))
                    is_seated = True
                self.write(piece)
                await flush()

    def _locate(self, location: str) -> str:
        hosts = {*self._own_hosts, "localhost", "127.0.0.1", f"localhost:{self._tool.port}"}
        try:
            return locate(location, asked=self._path, folder=self._folder, hosts=hosts)
        except OutsideError as exc:
            raise PortError(
                502,
                Text(
                    "The web tool '{name}' leads to another site, and that is not followed.", name=self._name
                ),
                hint=Text("Open other sites with the browser in the desktop."),
            ) from exc

    # Websockets

    async def get(self, *args: str | None) -> None:
        if not self._is_websocket:
            await self.http_get(*args)
            return
        # Before the browser's is accepted: the guest chooses the subprotocol, and may refuse.
        self._websocket = await self._connect()
        try:
            with self._seated(self.close):
                # Returns when the browser's side is over.
                await ProxyHandler.get(self, *args)
        finally:
            if self._pumping is not None:
                self._pumping.cancel()
            await self._websocket.close(code=_passable(self.close_code))

    async def _connect(self) -> aiohttp.ClientWebSocketResponse:
        offered = self.request.headers.get("Sec-WebSocket-Protocol", "")
        try:
            return await self._client.ws_connect(
                self._target(),
                protocols=[name.strip() for name in offered.split(",") if name.strip()],
                headers=[*self._headers_to_guest(), ("Host", self.request.host)],
                max_msg_size=_MAX_MESSAGE_BYTES,
            )
        except aiohttp.WSServerHandshakeError as exc:
            status = exc.status if 400 <= exc.status <= 599 else 502
            raise PortError(
                status, Text("The web tool '{name}' opens no websocket here.", name=self._name)
            ) from exc
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise self._explain(exc) from exc

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:  # noqa: ARG002
        assert self._websocket is not None
        return self._websocket.protocol

    @property
    def max_message_size(self) -> int:
        return _MAX_MESSAGE_BYTES

    @property
    def ping_interval(self) -> float:
        return _PING_EVERY_S

    async def open(self, *_: str | None) -> None:
        self._pumping = asyncio.create_task(self._pump())

    async def on_message(self, message: str | bytes) -> None:
        assert self._websocket is not None
        self.supervisor.clocks.note_input()
        with contextlib.suppress(aiohttp.ClientError, OSError):
            if isinstance(message, bytes):
                await self._websocket.send_bytes(message)
            else:
                await self._websocket.send_str(message)

    async def _pump(self) -> None:
        """Copy from the guest to the browser until one of them closes."""
        assert self._websocket is not None
        with contextlib.suppress(WebSocketClosedError, StreamClosedError):
            async for message in self._websocket:
                await self.write_message(message.data, binary=message.type is aiohttp.WSMsgType.BINARY)
        self.close(_passable(self._websocket.close_code))

    # What went wrong

    def on_connection_close(self) -> None:
        super().on_connection_close()
        if not self._is_websocket:
            self._break_off()

    def _explain(self, exc: Exception) -> PortError:
        match exc:
            case TimeoutError():
                return self._silent()
            case aiohttp.ServerDisconnectedError() | OSError():
                return PortError(
                    502,
                    Text(
                        "The web tool '{name}' does not answer: nothing listens at port {port} of the "
                        "machine, or it closed the connection.",
                        name=self._name,
                        port=self._tool.port,
                    ),
                    hint=Text("Start it on the desktop; where it starts by itself, it may need a moment."),
                    passes=True,
                )
        return PortError(
            502,
            Text(
                "What answers at port {port} of the machine does not speak HTTP as it should.",
                port=self._tool.port,
            ),
            hint=Text("Is it the right port?"),
        )

    def _silent(self) -> PortError:
        return PortError(
            504,
            Text(
                "The web tool '{name}' has not answered for {silence_s} s.",
                name=self._name,
                silence_s=SILENCE_S,
            ),
            hint=Text("It may be busy; look on the desktop, and try again."),
        )

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        match kwargs.get("exc_info", (None, None, None))[1]:
            case PortError() as exc:
                status_code = exc.status
        super().send_error(status_code, **kwargs)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        if self.request.headers.get("Sec-Fetch-Dest") != "document":
            super().write_error(status_code, **kwargs)
            return
        passes = False
        match kwargs.get("exc_info", (None, None, None))[1]:
            case QemuSpawnerError() as exc:
                message, hint = exc.message, exc.hint
                passes = isinstance(exc, PortError) and exc.passes
            case Refusal() as exc:
                message, hint = exc.text, ""
            case web.HTTPError(log_message=str(text)):
                message, hint = text, ""
            case _:
                message, hint = Text("The request failed."), ""
        page, say = _PAGES[self.language.tag], self.language.say
        static = f"{self.settings['prefix']}static/"
        self.finish(page.render(static=static, message=say(message), hint=say(hint), passes=passes))


def _passable(code: int | None) -> int:
    """A close code that may be said (RFC 6455, 7.4); for all others the normal one."""
    return code if code is not None and (code == 1001 or 3000 <= code <= 4999) else 1000
