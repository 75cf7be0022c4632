"""A stand-in for a session, and the page of it in Debian's Chromium: real page, relay and QEMU.

Its fixtures are for modules that run all their tests in one event loop, as there is one browser for them.
"""

import asyncio
import io
import json
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import chromium
import pytest
import pytest_asyncio
from msgspec import structs
from PIL import Image
from playwright.async_api import Browser, Page, expect
from tiny_guest import tiny_guest
from tornado import httpserver, web
from tornado.testing import bind_unused_port
from tornado.websocket import WebSocketHandler

from qemuspawner.languages import choose_language
from qemuspawner.paths import STATIC
from qemuspawner.session.screen import rfb
from qemuspawner.session.screen.relay import Relay, Viewer
from qemuspawner.session.screen.visitors import CloseCode
from qemuspawner.session.screen.websocket import accept_websocket, offered_ticket
from qemuspawner.session.web.routes import ROUTES
from qemuspawner.session.web.routes.base import _CONTENT_SECURITY_POLICY
from qemuspawner.session.web.routes.page import render_page
from qemuspawner.spec import Extension, RemoteFolderStatus, SessionStatus, StaffMessage, Step, Trouble

PREFIX = "/user/alice/desk/"


def _picture() -> bytes:
    """What the desktop looked like."""
    made = io.BytesIO()
    Image.linear_gradient("L").resize((640, 400)).convert("RGB").save(made, "PNG")
    return made.getvalue()


PICTURE = _picture()


FILE_ROUTES = [route for route in ROUTES if route.path.startswith("api/files")]


class Session:
    """What a test sets, and what the page asked for."""

    def __init__(self, vnc_socket: Path) -> None:
        self.title = "Analysis"
        self.machine = "Debian desktop"
        self.role = "owner"
        self.state = "running"
        self.left_s = 7200.0
        self.max_left_s = 9000.0
        self.idle_left_s = 0.0
        self.message = ""
        self.hint = ""
        self.steps: tuple[Step, ...] = ()
        self.progress = 0
        self.suspends: tuple[str, ...] = ()
        self.suspend_obstacle = ""
        self.way, self.why = "", ""
        self.checkpoints: list[dict[str, Any]] = []
        self.files: dict[str, Any] = {"has_home": False, "in": "control", "out": "control", "max_mib": 16}
        self.web_tools: dict[str, Any] = {}
        self.remote_folders: tuple[RemoteFolderStatus, ...] = ()
        self.is_staff = False
        self.script: dict[str, Any] = {}  # as api/script has it; nothing where it is empty
        self.extension: Extension | None = None
        self.staff_message: StaffMessage | None = None
        self.trouble: Trouble | None = None
        self.keyboard = "us"  # what the browser in these tests has
        self.brings_ticket = True  # the page comes with its first status and ticket
        self.forgets_first_ticket = False
        self.statuses = 0  # how many were asked for
        self.refusal: tuple[int, str, str] | None = None  # status, message and hint for the next action
        self.gate = asyncio.Event()  # actions wait for it
        self.gate.set()
        self.answer: int | None = None  # an HTTP status instead of any answer; 302 as the hub has it
        self.requests: list[tuple[str, Any]] = []
        self.issued: list[str] = []
        self.tickets: set[str] = set()
        self.opened: list[str] = []  # the tickets that opened the screen
        self.people: dict[str, Any] = {}  # what the events tell; nothing where it is empty
        self.listeners: list[EventsRoute] = []
        self.told: list[dict[str, Any]] = []  # by pages
        self.inputs = 0
        self.forwarded: list[bytes] = []  # what people did, as it went to QEMU
        self.relay = Relay(session_id="test", vnc_socket=vnc_socket, name="desk", on_forward=self._note_input)
        listening, self.port = bind_unused_port()
        self.app = _application(self)
        self.server = httpserver.HTTPServer(self.app)
        self.server.add_sockets([listening])

    def _note_input(self, _viewer: Viewer, forward: rfb.Forward) -> None:
        self.inputs += forward.by_person
        self.forwarded.append(forward.data)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{PREFIX}"

    def status(self) -> dict[str, Any]:
        now = time.time() + 5000  # the session's clock is not the browser's
        status = SessionStatus(
            session_id="test",
            state=self.state,  # type: ignore[arg-type]
            message=self.message,
            hint=self.hint,
            steps=self.steps,
            progress=self.progress,
            machine=self.machine,
            now=now,
            started=now - 60,
            deadline=now + self.left_s,
            max_deadline=now + self.max_left_s,
            idle_deadline=now + self.idle_left_s if self.idle_left_s else 0,
            viewers=self.relay.viewers,
            script=self.script.get("state", ""),
            extension=self.extension,
            staff_message=self.staff_message,
            trouble=self.trouble,
            keyboard=self.keyboard,
            remote_folders=self.remote_folders,
            way=self.way,  # type: ignore[arg-type]
            why=self.why,
            suspends=self.suspends,  # type: ignore[arg-type]
            suspend_obstacle=self.suspend_obstacle,
            version=zlib.crc32(
                repr((self.state, self.steps, self.progress, self.script, self.remote_folders)).encode()
            ),
        )
        you = {"name": "alice", "role": self.role, "staff": self.is_staff}
        return json.loads(status.to_json()) | {"you": you}

    def issue_ticket(self) -> str:
        ticket = f"T{len(self.issued)}"
        self.issued.append(ticket)
        if self.issued != [ticket] or not self.forgets_first_ticket:
            self.tickets.add(ticket)
        return ticket

    def add_checkpoint(self, title: str, **differs: Any) -> str:
        name = f"19a{len(self.checkpoints):x}"
        facts = {"automatic": False, "age_s": 320, "expires_in_s": 13 * 86400, "size_bytes": 1_503_238_553}
        self.checkpoints.insert(0, {"name": name, "title": title, **facts, **differs})
        return name

    def set_folder(self, name: str, **changes: Any) -> None:
        """Another status of one of the servers' folders."""
        self.remote_folders = tuple(
            structs.replace(one, **changes) if one.name == name else one for one in self.remote_folders
        )

    def messages(self) -> list[bytes]:
        """What people did and copied, message by message."""
        cut = []
        for data in self.forwarded:
            at = 0
            while at < len(data):
                size = rfb.message_size(data, at)
                if data[at] == 6:
                    size = 8 + abs(int.from_bytes(data[at + 4 : at + 8], "big", signed=True))
                assert size
                cut.append(data[at : at + size])
                at += size
        return cut

    def actions(self) -> list[tuple[str, Any]]:
        """What people asked for: all but tickets."""
        return [request for request in self.requests if request[0] != "ticket"]

    async def stop(self) -> None:
        self.gate.set()
        await self.relay.close_all(CloseCode.ENDED, "over")
        self.server.stop()
        await self.server.close_all_connections()


class EventsRoute(WebSocketHandler):
    """The session's events."""

    def initialize(self, session: Session) -> None:
        self.session = session

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        assert subprotocols[0] == "events"
        self.session.tickets.remove(subprotocols[1].removeprefix("qs.ticket."))
        return "events"

    def open(self) -> None:
        self.session.listeners.append(self)
        if self.session.people:
            self.tell(people=self.session.people)

    def tell(self, **message: Any) -> None:
        self.write_message(json.dumps(message))

    def on_message(self, message: str | bytes) -> None:
        said = json.loads(message)
        self.session.told.append(said)
        if "ping" in said:
            self.tell(pong=said["ping"])

    def on_close(self) -> None:
        self.session.listeners.remove(self)


def people(*others: str, **you: Any) -> dict[str, Any]:
    """What the session tells of who is there, alice and others."""
    may = {"role": "owner", "drives": True, "sizes": True, "copies_in": True, "copies_out": True}
    return {
        "people": [
            {"name": name, "role": "view", "staff": False, "windows": 1, "drives": False}
            for name in ("alice", *others)
        ],
        "requests": [],
        "one_driver": False,
        "driver": "",
        "you": {"name": "alice", "staff": False} | may | you,
    }


def _application(session: Session) -> web.Application:
    class SessionRoute(web.RequestHandler):
        async def prepare(self) -> None:
            self.set_header("Content-Security-Policy", _CONTENT_SECURITY_POLICY)
            if session.answer == 302 and self.request.method == "GET":
                # It looks for the server, and a token that it does not know is told sooner.
                await asyncio.sleep(0.05)
                self.redirect("/hub/api/oauth2/authorize")
            elif session.answer == 302:
                self.send_error(403)
            elif session.answer:
                self.send_error(session.answer)

    class PageRoute(SessionRoute):
        def get(self) -> None:
            config = {
                "prefix": PREFIX,
                "static": f"{PREFIX}static/",
                "icons": f"{PREFIX}static/icons.svg",
                "hub_home": "/hub/home",
                "cookie_path": "/",
                "user": "alice",
                "owner": "alice",
                "server_name": "desk",
                "session_title": session.title,
                "machine": session.machine,
                "files": session.files,
                "web_tools": session.web_tools,
                "remote_folders": bool(session.remote_folders),
                "xsrf": "the-token",
                "status": session.status() if session.brings_ticket else None,
                "ticket": session.issue_ticket() if session.brings_ticket else "",
            }
            self.finish(render_page(choose_language(self.request), config))

    class StatusRoute(SessionRoute):
        async def get(self) -> None:
            session.statuses += 1
            after = self.get_query_argument("after", "")
            until = time.monotonic() + 10
            while after == str(session.status()["version"]) and time.monotonic() < until:
                await asyncio.sleep(0.02)
            self.finish(session.status())

    class ActionRoute(SessionRoute):
        async def act(self, action: str) -> bool:
            """Note an action; whether it is to be done."""
            assert self.request.headers["X-XSRFToken"] == "the-token"
            session.requests.append((action, json.loads(self.request.body or b"{}")))
            await session.gate.wait()
            if session.refusal:
                status, message, hint = session.refusal
                self.set_status(status)
                self.finish({"message": message, "hint": hint})
            return not session.refusal

        async def post(self, action: str) -> None:
            if action == "ticket":
                session.requests.append((action, {}))
                self.finish({"ticket": session.issue_ticket()})
            elif await self.act(action):
                body = session.requests[-1][1]
                if action == "extend" and "reason" in body:
                    session.extension = Extension(by="alice", reason=body["reason"], seconds=7200, at=0)
                    self.set_status(202)
                elif action == "extend":
                    session.left_s = session.max_left_s
                elif action == "extension" and session.extension is not None:
                    session.extension = structs.replace(
                        session.extension, answer="granted", answered_by="alice", granted_s=body["grant"]
                    )
                elif action == "keyboard":
                    session.keyboard = body["layout"]
                self.finish(session.status())

    class RemoteFoldersRoute(ActionRoute):
        async def post(self) -> None:  # type: ignore[override]
            if await self.act("connect"):
                session.set_folder(session.requests[-1][1]["name"], state="connected", problem="", asks=False)
                self.finish(session.status())

        async def delete(self) -> None:
            if await self.act("disconnect"):
                session.set_folder(session.requests[-1][1]["name"], state="off", asks=True)
                self.finish(session.status())

    class ScriptRoute(SessionRoute):
        def get(self) -> None:
            self.finish(session.script)

    class CheckpointsRoute(ActionRoute):
        def get(self) -> None:
            self.finish({"checkpoints": session.checkpoints, "most": 3})

        async def post(self) -> None:  # type: ignore[override]
            if await self.act("save"):
                session.add_checkpoint(json.loads(self.request.body)["title"], age_s=1)
                self.get()

    class CheckpointRoute(ActionRoute):
        def get(self, name: str) -> None:
            if name == session.checkpoints[-1]["name"]:
                raise web.HTTPError(404)
            # As JupyterHub has it: an image passes by its cookie, a script needs the token.
            assert self.request.headers["Sec-Fetch-Mode"] == "no-cors"
            assert self.request.headers["Sec-Fetch-Site"] == "same-origin"
            self.set_header("Content-Type", "image/png")
            self.finish(PICTURE)

        async def post(self, name: str) -> None:
            if await self.act(f"back to {name}"):
                self.finish(session.status())

        async def delete(self, name: str) -> None:
            if await self.act(f"delete {name}"):
                session.checkpoints = [one for one in session.checkpoints if one["name"] != name]
                self.finish({"checkpoints": session.checkpoints, "most": 3})

    class VncRoute(SessionRoute):
        async def get(self) -> None:
            ticket = offered_ticket(self.request) or ""
            if ticket not in session.tickets:
                raise web.HTTPError(403)
            session.tickets.remove(ticket)
            session.opened.append(ticket)
            websocket = await accept_websocket(self)
            allowed = rfb.VIEW if session.role == "view" else rfb.CONTROL
            viewer = Viewer(name="alice", allowed=allowed, is_owner=session.role == "owner")
            await session.relay.serve(websocket, viewer)

    class HubRoute(web.RequestHandler):
        def get(self) -> None:
            self.finish("<title>Hub</title>")

    return web.Application(
        [
            (PREFIX, PageRoute),
            (f"{PREFIX}api/status", StatusRoute),
            (f"{PREFIX}api/(ticket|extend|extension|keyboard|power|trouble|suspend)", ActionRoute),
            (f"{PREFIX}api/script", ScriptRoute),
            (f"{PREFIX}api/remote-folders", RemoteFoldersRoute),
            (f"{PREFIX}api/checkpoints", CheckpointsRoute),
            (f"{PREFIX}api/checkpoints/([0-9a-f]+)", CheckpointRoute),
            (f"{PREFIX}vnc", VncRoute),
            (f"{PREFIX}events", EventsRoute, {"session": session}),
            (f"{PREFIX}static/(.*)", web.StaticFileHandler, {"path": STATIC}),
            ("/hub/.*", HubRoute),
            *((PREFIX + path, handler) for path, handler in FILE_ROUTES),
        ],
        prefix=PREFIX,
        log_function=lambda _: None,
    )


@pytest.fixture(scope="module", autouse=True)
def bundle() -> None:
    assert (STATIC / "vendor" / "novnc.js").is_file(), "The bundle is missing: run 'pip install .' once."


@pytest.fixture(scope="module")
def vnc_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with tiny_guest(tmp_path_factory.mktemp("guest")) as socket:
        yield socket


@pytest_asyncio.fixture(loop_scope="module")
async def session(vnc_socket: Path) -> AsyncIterator[Session]:
    session = Session(vnc_socket)
    yield session
    await session.stop()


# A script that notes in `sent` what the page sends to QEMU, message by message.
NOTE_MESSAGES = """
    window.sent = [];
    const send = WebSocket.prototype.send;
    WebSocket.prototype.send = function (data) {
        if (typeof data !== "string") {
            sent.push([...data]);
        }
        send.call(this, data);
    };
"""

Open = Callable[..., Awaitable[Page]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(chromium_url: str) -> AsyncIterator[Browser]:
    async with chromium.connected_browser(chromium_url) as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def open_page(session: Session, browser: Browser) -> AsyncIterator[Open]:
    """Opens the page; nothing may break its content security policy, and no script may fail."""
    complaints: list[str] = []
    async with AsyncExitStack() as stack:

        async def open_one(
            *, connected: bool = True, init_script: str = "", has_clock: bool = False, **options: Any
        ) -> Page:
            """`has_clock`: the page's time can be the test's; see `hurry`."""
            context = await browser.new_context(**options)
            stack.push_async_callback(context.close)
            await context.add_init_script(init_script)
            page = await context.new_page()
            if has_clock:
                await page.clock.install()
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda message: complaints.append(message.text))
            await page.goto(session.url)
            if connected:
                await expect(page.locator("body")).to_have_attribute("data-phase", "connected")
                await expect(page.locator("#bar")).to_have_attribute("aria-busy", "false")
            return page

        yield open_one
    # Chromium also reports requests that fail, which some tests make it do, and what could be faster; noVNC
    # reports a refused size.
    allowed = (
        "Failed to load resource",
        "Server did not accept the resize request",
        "WebSocket connection",
        "WebSocket on-error event",
        "Failed when connecting",
        "Canvas2D: Multiple readback operations",
    )
    assert [text for text in complaints if not text.startswith(allowed)] == []


async def hurry(page: Page, until: Awaitable[None]) -> None:
    """Let the page's time fly until something is there, instead of waiting as long as the page would."""
    waiting = asyncio.ensure_future(until)
    while not waiting.done():
        await page.clock.run_for(1000)
        await asyncio.wait([waiting], timeout=0.1)
    await waiting


async def colour(page: Page) -> tuple[int, ...]:
    """The colour in the middle of the desktop's canvas."""
    picture = Image.open(io.BytesIO(await page.locator("#screen canvas").screenshot()))
    return picture.convert("RGB").getpixel((picture.width // 2, picture.height // 2))  # type: ignore[return-value]


async def wait_for_colour(page: Page, *colours: tuple[int, ...]) -> tuple[int, ...]:
    async with asyncio.timeout(20):
        # JPEG and scaling make them approximate.
        while True:
            seen = await colour(page)
            for wanted in colours:
                if all(abs(a - b) < 24 for a, b in zip(seen, wanted, strict=True)):
                    return wanted
            await asyncio.sleep(0.05)
