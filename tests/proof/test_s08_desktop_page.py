"""S8: nothing that people or guests write is run by the desktop page, and it speaks to its own host alone."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from clipboard_peer import clipboard_peer
from pages import Session, browser, bundle, people, session, vnc_socket
from payloads import EVIL, PAYLOADS, Watch
from playwright.async_api import Browser, Page, expect
from proofs import Proof

from qemuspawner.spec import Extension, RemoteFolderStatus, StaffMessage, Step, Trouble

# One browser for all tests, so one event loop.
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.goal("S8")]

__all__ = ["browser", "bundle", "session", "vnc_socket"]


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest_asyncio.fixture(loop_scope="module")
async def page(session: Session, browser: Browser, watch: Watch) -> AsyncIterator[Page]:
    """Of a browser with nothing in it."""
    context = await browser.new_context()
    await watch.over(context, session.url)
    yield await context.new_page()
    await context.close()


def write_everywhere(session: Session, number: int) -> None:
    """What has one place has another payload each time; what is a list has them all."""
    one, two, three, four, five = [PAYLOADS[(number + 11 * place) % len(PAYLOADS)] for place in range(5)]
    session.title, session.machine, session.why = one, two, three
    session.message, session.hint = four, five
    session.trouble = Trouble(kind="disk-limit", acts=("retry",))
    session.steps = tuple(Step(at=1, text=text, level="warning") for text in PAYLOADS)
    session.script = {"state": "failed", "code": 3, "output": "\n".join(PAYLOADS)}
    session.staff_message = StaffMessage(by=one, text=two, at=0, number=number + 1)
    session.extension = Extension(by=three, reason=four, seconds=3600, at=0)
    session.is_staff = True
    session.people = people(*PAYLOADS)
    session.people["requests"] = [
        {"name": text, "wants": "view", "reason": text, "age_s": 1} for text in PAYLOADS[:20]
    ]
    session.web_tools = {"tool": {"title": two}}
    session.remote_folders = tuple(
        RemoteFolderStatus(
            name=text, kind="cifs", server=text, mount=text, read_only=False, asks=True, problem=text,
            state="failed",
        )
        for text in PAYLOADS
    )  # fmt: skip
    session.checkpoints = []
    for text in PAYLOADS:
        session.add_checkpoint(text)


async def open_all(page: Page) -> None:
    """Each panel that shows what somebody wrote."""
    for button, shown in (
        ("#checkpoints-button", "#checkpoint-list li"),
        ("#people-button", "#people-list li"),
        ("#remote-button", "#remote-list li"),
        ("#script-button", "#script-output"),
    ):
        await page.locator(button).click()
        await expect(page.locator(shown).first).to_be_visible()


async def test_texts_of_people_and_guests_stay_texts(
    session: Session, page: Page, vnc_socket: Path, watch: Watch, proof: Proof
) -> None:
    """In names, messages, lists, the script's output and the clipboard, while it runs and after it failed."""
    for number in range(0, len(PAYLOADS), proof.rounds(short=10, full=1)):
        write_everywhere(session, number)
        session.state = "running"
        await page.goto(session.url)
        await expect(page.locator("body")).to_have_attribute("data-phase", "connected")
        await open_all(page)
        async with clipboard_peer(vnc_socket) as guest:
            guest.copy(PAYLOADS[number].encode() + b"\0")
            await expect(page.locator("#clipboard-text")).to_have_value(PAYLOADS[number])
        await watch.look(page)
        # Of a title a browser makes one line; HTML's white space is ASCII's.
        assert await page.title() == " ".join(re.findall(r"[^ \t\n\f\r]+", session.title))
        session.state = "failed"
        await page.goto(session.url)
        await expect(page.locator("body")).to_contain_text(session.hint)
        await watch.look(page)

    proof.note(
        done=f"the desktop page opened {watch.pages} times with 50 payloads in 20 places",
        found=watch.describe(),
        limit="0 of each",
    )
    assert watch.troubles == {}


async def test_what_is_watched_for_would_be_seen(session: Session, browser: Browser) -> None:
    """By a page that has taken a text for more, under the same policy."""
    watch = Watch()
    context = await browser.new_context()
    await watch.over(context, session.url)
    page = await context.new_page()
    await page.goto(session.url)

    for text in PAYLOADS[4:8]:
        await page.evaluate("text => document.body.insertAdjacentHTML('beforeend', text)", text)
    await page.evaluate(f"new Image().src = '//{EVIL}/'; owned()")
    await page.wait_for_function("window.broken.length > 3")
    await watch.look(page)

    assert watch.troubles.keys() >= {"ran", "broken", "errors"}
    await context.close()


@pytest.mark.parametrize(
    "query",
    [
        f"?host={EVIL}&port=1&path=vnc&encrypt=1&autoconnect=true",
        f"?server={EVIL}&url=wss://{EVIL}/&token=x&password=y",
        f"#host={EVIL}&port=1",
    ],
)
async def test_no_parameter_leads_the_page_elsewhere(
    session: Session, page: Page, watch: Watch, proof: Proof, query: str
) -> None:
    await page.goto(session.url + query)
    await expect(page.locator("body")).to_have_attribute("data-phase", "connected")
    await watch.look(page)

    proof.note(
        done=f"the desktop page with {query}",
        found=watch.describe(),
        limit="0 of each",
    )
    assert session.opened
    assert watch.troubles == {}
