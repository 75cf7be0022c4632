"""The desktop page in Debian's Chromium: the real page, relay and QEMU; a stand-in for the session's API."""

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import jinja2
import pytest
import pytest_asyncio
from guests import GREEN, RED
from PIL import Image
from playwright.async_api import Browser, Page, async_playwright, expect
from tiny_guest import tiny_guest
from tornado import httpserver, web
from tornado.testing import bind_unused_port

from qemuspawner.paths import STATIC, TEMPLATES
from qemuspawner.session.app import _CONTENT_SECURITY_POLICY
from qemuspawner.session.relay import CloseCode, Relay, Viewer
from qemuspawner.session.websocket import accept_websocket, offered_ticket
from qemuspawner.spec import SessionStatus, Step

# One browser for all tests, so one event loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")

PREFIX = "/user/alice/desk/"
HOSTILE = """</script><img src=x onerror="document.title='owned'">'"{{7*7}}&amp;"""
TO_TOOLS = "Control+Alt+Shift+KeyM"


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
        self.answer: int | None = None  # an HTTP status instead of any answer
        self.requests: list[tuple[str, Any]] = []
        self.tickets: set[str] = set()
        self.inputs = 0
        self.relay = Relay(session_id="test", vnc_socket=vnc_socket, name="desk", on_input=self._note_input)
        listening, self.port = bind_unused_port()
        self.server = httpserver.HTTPServer(_application(self))
        self.server.add_sockets([listening])

    def _note_input(self) -> None:
        self.inputs += 1

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
        )
        return json.loads(status.to_json()) | {"you": {"name": "alice", "role": self.role}}

    async def stop(self) -> None:
        await self.relay.close_all(CloseCode.ENDED, "over")
        self.server.stop()
        await self.server.close_all_connections()


def _application(session: Session) -> web.Application:
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True)

    class Route(web.RequestHandler):
        def prepare(self) -> None:
            self.set_header("Content-Security-Policy", _CONTENT_SECURITY_POLICY)
            if session.answer == 302:
                self.redirect("/hub/api/oauth2/authorize")
            elif session.answer:
                self.send_error(session.answer)

    class PageRoute(Route):
        def get(self) -> None:
            config = {
                "prefix": PREFIX,
                "static": f"{PREFIX}static/",
                "hub_home": "/hub/home",
                "user": "alice",
                "session_title": session.title,
                "machine": session.machine,
                "xsrf": "the-token",
            }
            self.finish(templates.get_template("session.html").render(config=config))

    class StatusRoute(Route):
        def get(self) -> None:
            self.finish(session.status())

    class ActionRoute(Route):
        def post(self, action: str) -> None:
            assert self.request.headers["X-XSRFToken"] == "the-token"
            session.requests.append((action, json.loads(self.request.body or b"{}")))
            if action == "ticket":
                ticket = f"T{len(session.requests)}"
                session.tickets.add(ticket)
                self.finish({"ticket": ticket})
                return
            if action == "extend":
                session.left_s = session.max_left_s
            self.finish(session.status())

    class VncRoute(Route):
        async def get(self) -> None:
            session.tickets.remove(offered_ticket(self.request) or "")
            websocket = await accept_websocket(self)
            await session.relay.serve(websocket, Viewer(name="alice", role=session.role))  # type: ignore[arg-type]

    class HubRoute(web.RequestHandler):
        def get(self) -> None:
            self.finish("<title>Hub</title>")

    return web.Application(
        [
            (PREFIX, PageRoute),
            (f"{PREFIX}api/status", StatusRoute),
            (f"{PREFIX}api/(ticket|extend|power)", ActionRoute),
            (f"{PREFIX}vnc", VncRoute),
            (f"{PREFIX}static/(.*)", web.StaticFileHandler, {"path": STATIC}),
            ("/hub/.*", HubRoute),
        ],
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


Open = Callable[..., Awaitable[Page]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def open_page(session: Session, browser: Browser) -> AsyncIterator[Open]:
    """Opens the page; nothing may break its content security policy, and no script may fail."""
    complaints: list[str] = []
    async with AsyncExitStack() as stack:

        async def open_one(*, connected: bool = True, **options: Any) -> Page:
            context = await browser.new_context(**options)
            stack.push_async_callback(context.close)
            page = await context.new_page()
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda message: complaints.append(message.text))
            await page.goto(session.url)
            if connected:
                await expect(page.locator("body")).to_have_attribute("data-phase", "connected")
            return page

        yield open_one
    # Chromium also reports requests that fail, which some tests make it do, and noVNC a refused size.
    allowed = ("Failed to load resource", "Server did not accept the resize request", "WebSocket connection")
    assert [text for text in complaints if not text.startswith(allowed)] == []


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


async def test_the_page_shows_the_desktop_and_passes_keys_on(session: Session, open_page: Open) -> None:
    """Connected in one step, the keyboard is the desktop's, and a key changes the picture."""
    page = await open_page()
    before = await wait_for_colour(page, GREEN, RED)

    await page.keyboard.press("a")

    assert await wait_for_colour(page, RED if before == GREEN else GREEN) != before
    assert session.inputs > 0


async def test_a_hostile_name_is_only_text(session: Session, open_page: Open) -> None:
    """In the title, in the bar and in the configuration."""
    session.title = session.machine = HOSTILE

    page = await open_page()

    assert await page.title() == HOSTILE
    assert await page.locator("#title").text_content() == HOSTILE
    assert await page.locator("img").count() == 0


async def test_everything_can_be_done_without_a_mouse(session: Session, open_page: Open) -> None:
    """A chord leads to the tools, arrows along them, Enter into a menu, Escape back in steps."""
    page = await open_page()
    await page.keyboard.press(TO_TOOLS)
    await expect(page.locator("#home")).to_be_focused()

    await page.locator("#view-button").focus()
    await page.keyboard.press("ArrowLeft")
    await expect(page.locator("#keys-button")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.locator("#keys-menu")).to_be_visible()
    await page.keyboard.press("ArrowDown")
    await expect(page.locator("[data-chord='AltLeft Tab']")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(page.locator("#keys-menu")).to_be_hidden()
    await expect(page.locator("#keys-button")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(page.locator("#screen canvas")).to_be_focused()


async def test_every_tool_has_a_name(open_page: Open) -> None:
    """For a screen reader; icons alone say nothing."""
    page = await open_page()

    names = await page.locator("#bar button:visible, #bar a:visible").evaluate_all(
        "all => all.map(one => one.textContent.trim())"
    )

    assert "" not in names
    assert {"Back to the hub", "Clipboard", "Send keys", "View", "Full screen", "Power", "Help"} <= set(names)


async def test_a_menu_sends_a_chord(session: Session, open_page: Open) -> None:
    """And gives the keyboard back to the desktop."""
    page = await open_page()
    before = await wait_for_colour(page, GREEN, RED)

    await page.locator("#keys-button").click()
    await page.get_by_role("button", name="Esc", exact=True).click()

    await wait_for_colour(page, RED if before == GREEN else GREEN)
    await expect(page.locator("#screen canvas")).to_be_focused()


async def test_a_text_is_typed_as_keys(session: Session, open_page: Open) -> None:
    """For machines without a clipboard; three keys are an odd number of colours."""
    page = await open_page()
    before = await wait_for_colour(page, GREEN, RED)

    await page.locator("#clipboard-button").click()
    await page.locator("#clipboard-text").fill("a1b")
    await page.locator("#clipboard-type").click()

    await wait_for_colour(page, RED if before == GREEN else GREEN)


async def test_the_page_comes_back_after_a_lost_connection(session: Session, open_page: Open) -> None:
    """With a fresh ticket, by itself."""
    page = await open_page()

    await session.relay.close_all(CloseCode.UNREACHABLE, "The desktop ended the connection.")

    await expect(page.locator("#notice")).to_be_hidden()
    await expect(page.locator("body")).to_have_attribute("data-phase", "connected")
    await wait_for_colour(page, GREEN, RED)
    assert [action for action, _ in session.requests] == ["ticket", "ticket"]


async def test_the_end_is_told_with_its_reason(session: Session, open_page: Open) -> None:
    """And leads back to the hub."""
    page = await open_page()

    await session.relay.close_all(CloseCode.ENDED, "The time was over.")

    await expect(page.locator("#notice-title")).to_have_text("This session has ended")
    await expect(page.locator("#notice-text")).to_have_text("The time was over.")
    await page.keyboard.press("Enter")
    await expect(page).to_have_title("Hub")


@pytest.mark.parametrize(
    ("answer", "title"),
    [(403, "You are logged out"), (404, "This session has ended")],
)
async def test_a_lost_login_and_a_lost_session_are_told_apart(
    session: Session, open_page: Open, answer: int, title: str
) -> None:
    """By what the status request is answered."""
    page = await open_page()
    session.answer = answer

    await session.relay.close_all(CloseCode.UNREACHABLE, "")

    await expect(page.locator("#notice-title")).to_have_text(title, timeout=20_000)


async def test_a_failure_shows_message_and_hint(session: Session, open_page: Open) -> None:
    """As the supervisor wrote them."""
    session.state, session.message = "failed", "The disk is full."
    session.hint = "Ask for a larger one."

    page = await open_page(connected=False)

    await expect(page.locator("#notice-text")).to_have_text("The disk is full.")
    await expect(page.locator("#notice-hint")).to_have_text("Ask for a larger one.")


async def test_the_way_to_the_desktop_is_shown(session: Session, open_page: Open) -> None:
    """Steps and progress until there is a picture, then the picture."""
    session.state, session.progress = "preparing", 40
    session.steps = (Step(at=0.1, text="The disk is made"), Step(at=0.4, text="QEMU starts"))
    page = await open_page(connected=False)
    await expect(page.locator("#notice-steps li")).to_have_count(2)
    await expect(page.locator("#notice-progress")).to_have_js_property("value", 40)

    session.state = "running"

    await expect(page.locator("#notice")).to_be_hidden()
    await wait_for_colour(page, GREEN, RED)


async def test_the_end_is_announced_and_can_be_put_off(session: Session, open_page: Open) -> None:
    """By the session's clock; ten minutes before, with a button."""
    session.left_s = 9 * 60
    page = await open_page()
    await expect(page.locator("#time-left")).to_have_text("8:59")
    await expect(page.locator("#banner")).to_have_attribute("data-level", "warning")

    await page.locator("#banner-action").click()

    await expect(page.locator("#banner")).to_be_hidden()
    await expect(page.locator("#time-left")).to_have_text("2 h 29 min")
    await expect(page.locator("#extend")).to_be_hidden()
    assert session.requests[-1] == ("extend", {})


async def test_the_last_two_minutes_are_urgent(session: Session, open_page: Open) -> None:
    """And what cannot be put off says so."""
    session.left_s = session.max_left_s = 100

    page = await open_page()

    await expect(page.locator("#banner")).to_have_attribute("data-level", "urgent")
    await expect(page.locator("#banner-text")).to_contain_text("Save your work now.")
    await expect(page.locator("#banner-action")).to_be_hidden()


async def test_an_idle_desktop_asks_whether_somebody_is_there(session: Session, open_page: Open) -> None:
    """The answer counts as input and reaches no guest."""
    session.idle_left_s = 60
    page = await open_page()
    await expect(page.locator("#banner-text")).to_contain_text("Nobody has used this desktop")
    before = session.inputs
    session.idle_left_s = 3600

    await page.locator("#banner-action").click()

    await expect(page.locator("#banner")).to_be_hidden()
    assert session.inputs > before


@pytest.mark.parametrize(
    ("answer", "sent"), [("Cancel", []), ("Force off", [("power", {"action": "poweroff"})])]
)
async def test_power_is_asked_twice(
    session: Session, open_page: Open, answer: str, sent: list[tuple[str, Any]]
) -> None:
    """Only a confirmed wish is sent."""
    page = await open_page()
    await page.locator("#power-button").click()
    await page.locator("[data-power=poweroff]").click()

    await page.locator("#confirm").get_by_role("button", name=answer).click()

    await expect(page.locator("#confirm")).to_be_hidden()
    await expect(page.locator("#screen canvas")).to_be_focused()
    assert session.requests[1:] == sent


async def test_a_viewer_gets_no_tools_that_act(session: Session, open_page: Open) -> None:
    """The relay would drop what they send anyway."""
    session.role = "view"
    page = await open_page()
    before = await wait_for_colour(page, GREEN, RED)

    await page.keyboard.press("a")

    for name in ("clipboard-button", "keys-button", "power-button", "extend"):
        await expect(page.locator(f"#{name}")).to_be_hidden()
    await expect(page.locator("#connection-text")).to_have_text("View only")
    assert await colour(page) == before
    assert session.inputs == 0


async def test_a_third_window_lets_the_first_one_go(session: Session, open_page: Open) -> None:
    """Which says so, and takes the desktop back only when asked."""
    first = await open_page()
    for _ in range(2):
        await open_page()
    await expect(first.locator("#notice-title")).to_have_text("Open in another window")

    await first.get_by_role("button", name="Use it here").click()

    await expect(first.locator("body")).to_have_attribute("data-phase", "connected")


async def test_the_screenshot_is_the_desktops_picture(open_page: Open) -> None:
    """Of its own size, not the window's."""
    page = await open_page()
    await wait_for_colour(page, GREEN, RED)

    async with page.expect_download() as downloading:
        await page.locator("#screenshot").click()

    download = await downloading.value
    assert download.suggested_filename.startswith("Analysis-")
    assert Image.open(await download.path()).size == (640, 400)


async def test_the_view_can_be_changed_and_is_remembered(session: Session, open_page: Open) -> None:
    """Scaled to the window, or pixel for pixel."""
    page = await open_page()
    await wait_for_colour(page, GREEN, RED)
    fitted = await page.locator("#screen canvas").bounding_box()

    await page.locator("#view-button").click()
    await page.get_by_label("Actual size").check()
    actual = await page.locator("#screen canvas").bounding_box()
    await page.reload()

    assert fitted and actual
    assert (fitted["width"] > 640, actual["width"]) == (True, 640)
    await expect(page.locator("[value=actual]")).to_be_checked()


async def test_full_screen_and_back(open_page: Open) -> None:
    """By keyboard too."""
    page = await open_page()

    await page.keyboard.press("Control+Alt+Shift+KeyF")
    await expect(page.locator("#fullscreen")).to_have_attribute("aria-pressed", "true")
    await page.keyboard.press("Control+Alt+Shift+KeyF")

    await expect(page.locator("#fullscreen")).to_have_attribute("aria-pressed", "false")


async def test_a_phone_folds_the_tools_and_can_type(session: Session, open_page: Open) -> None:
    """All tools in one sheet; its own keyboard writes to the desktop."""
    phone = {"viewport": {"width": 390, "height": 800}, "has_touch": True, "is_mobile": True}
    page = await open_page(**phone)
    before = await wait_for_colour(page, GREEN, RED)
    await expect(page.locator("#power-button")).to_be_hidden()

    await page.locator("#fold").tap()
    await expect(page.locator("#power-button")).to_be_visible()
    await page.locator("#keyboard").tap()
    await page.keyboard.insert_text("x")

    await wait_for_colour(page, RED if before == GREEN else GREEN)
    assert await page.evaluate("document.documentElement.scrollWidth") == 390
