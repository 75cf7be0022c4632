"""Sharing on the hub's pages, as people do it in real browsers: the dialog, links, asking for access."""

import asyncio
import re

import live
import pytest
import pytest_asyncio
from axe import find_barriers_in_both_looks
from chromium import LogIn
from playwright.async_api import Locator, Page, expect
from yarl import URL

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

# For people to look at; not compared.
SCREENSHOTS = live.PROJECT / "screenshots"
# A session believes its list of shares for seconds; the home page asks each 10 s.
SOON_MS = 30_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desktop(hub: live.LiveHub) -> URL:
    for user in live.USERS:
        await hub.ask("POST", f"users/{user}")
    return await hub.start_server("alice", "desk", machine="painter")


async def shoot(page: Page, name: str) -> None:
    """A picture in a wide and in a narrow window; and nothing keeps anybody out."""
    SCREENSHOTS.mkdir(exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
    await page.set_viewport_size({"width": 390, "height": 800})
    await page.screenshot(path=SCREENSHOTS / f"{name}-narrow.png", full_page=True)
    await page.set_viewport_size({"width": 1280, "height": 800})
    assert await find_barriers_in_both_looks(page) == []


async def open_dialog(page: Page) -> Locator:
    await page.get_by_role("button", name="Share “desk”").click()
    return page.get_by_role("dialog", name="Share “desk”")


async def enter(page: Page) -> None:
    """Let the hub tell the desktop who one is, and see it."""
    authorize = page.get_by_role("button", name="Authorize")
    await expect(authorize.or_(page.locator("body[data-phase]"))).to_be_visible()
    if await authorize.is_visible():
        await authorize.click()
    await expect(page.locator("body")).to_have_attribute("data-phase", "connected", timeout=SOON_MS)


async def ask_desktop(page: Page) -> tuple[int, str]:
    """What the session says to whom this page of a desktop is: HTTP status, role."""
    status, role = await page.evaluate(
        """async () => {
            const xsrf = document.cookie.match(/(?:^|; )_xsrf=([^;]*)/)[1];
            const answer = await fetch("api/status", { headers: { "X-XSRFToken": xsrf } });
            return [answer.status, (await answer.json()).you?.role ?? ""];
        }"""
    )
    return int(status), str(role)


async def wait_for_role(page: Page, wanted: tuple[int, str]) -> None:
    async with asyncio.timeout(SOON_MS / 1000):
        while await ask_desktop(page) != wanted:
            await asyncio.sleep(0.3)


async def test_a_person_is_let_in_raised_and_sent_off_by_the_dialog(
    hub: live.LiveHub, log_in: LogIn, desktop: URL
) -> None:
    alice = await log_in("alice")
    dialog = await open_dialog(alice)
    await dialog.get_by_label("Name on this hub").fill("bob")
    await dialog.get_by_label("Name on this hub").press("Enter")
    role = dialog.get_by_label("What bob may do")
    await expect(role).to_have_value("view")
    end = dialog.get_by_label("When it ends for bob", exact=True)
    await end.select_option(label="1 day")
    await expect(end.locator("option:checked")).to_have_text(re.compile("^until .*\\d"))

    bob = await log_in("bob")
    row = bob.get_by_role("row", name=re.compile("“desk” of alice"))
    await expect(row).to_contain_text("View only")
    await expect(row.get_by_role("img", name="The screen of “desk” of alice")).to_have_js_property(
        "complete", True, timeout=SOON_MS
    )
    await shoot(bob, "shared-with-me")
    await row.get_by_role("link", name="Open").click()
    await enter(bob)
    assert await ask_desktop(bob) == (200, "view")

    await role.select_option(label="Control")
    await wait_for_role(bob, (200, "control"))
    await expect(end.locator("option:checked")).to_have_text(re.compile("^until .*\\d"))
    await shoot(alice, "share-dialog")

    await role.select_option(label="View only")
    await wait_for_role(bob, (200, "view"))

    await dialog.get_by_role("button", name="Take back from bob").click()
    await expect(dialog.get_by_text("Nobody.")).to_be_visible()
    await wait_for_role(bob, (403, ""))
    await bob.goto(str(hub.url / "hub/home"))
    await expect(bob.get_by_role("heading", name="Shared with me")).to_be_hidden()


async def test_a_link_is_shown_once_accepted_and_revoked(
    hub: live.LiveHub, log_in: LogIn, desktop: URL
) -> None:
    alice = await log_in("alice")
    await alice.context.grant_permissions(["clipboard-read", "clipboard-write"])
    dialog = await open_dialog(alice)
    await dialog.get_by_label("Who opens it may").select_option(label="Control")
    await dialog.get_by_label("Good for", exact=True).select_option(label="1 hour")
    await dialog.get_by_role("button", name="Make a link").click()
    await dialog.get_by_role("button", name="Copy").click()
    await expect(dialog.get_by_role("button", name="Copied")).to_be_visible()
    link = await dialog.get_by_label("The link; it is shown this once").input_value()
    assert await alice.evaluate("navigator.clipboard.readText()") == link
    await shoot(alice, "share-link")

    carol = await log_in("carol")
    await carol.goto(link)
    await expect(carol.get_by_text("Control: you see the desktop, and use its mouse")).to_be_visible()
    await shoot(carol, "accept-share")
    await carol.get_by_role("button", name="Accept").click()
    await enter(carol)
    assert await ask_desktop(carol) == (200, "control")

    await alice.keyboard.press("Escape")
    await expect(dialog).to_be_hidden()
    await open_dialog(alice)
    await expect(dialog.get_by_label("The link; it is shown this once")).to_be_hidden()
    await expect(dialog.get_by_text("Control, good until")).to_contain_text("used once")
    await dialog.get_by_role("button", name="Revoke all links").click()
    await expect(dialog.get_by_text("No link is good now.")).to_be_visible()
    assert (await carol.goto(link)).status == 404  # type: ignore[union-attr]

    # What the link gave stays, until its user leaves
    await carol.goto(str(hub.url / "hub/home"))
    await carol.get_by_role("button", name="Leave: “desk” of alice").click()
    await expect(carol.get_by_role("heading", name="Shared with me")).to_be_hidden()


async def test_who_has_no_access_asks_and_the_owner_answers_on_the_home_page(
    hub: live.LiveHub, log_in: LogIn, desktop: URL
) -> None:
    """The owner's page goes on when the hub was restarted, and has lost the server's token."""
    alice = await log_in("alice")
    dave = await log_in("dave")
    await dave.goto(str(desktop))
    await expect(dave.get_by_role("heading", name="This desktop belongs to alice")).to_be_visible()
    await expect(dave.get_by_text("Forbidden")).to_be_hidden()
    await shoot(dave, "ask-access")
    await dave.get_by_label(re.compile("Why you would like")).fill("I <b>teach</b> the course")
    await dave.get_by_role("button", name="Ask for access").click()
    await expect(dave.get_by_role("status")).to_contain_text("Asked at")
    await shoot(dave, "asked")

    request = alice.get_by_role("listitem").filter(
        has_text="dave asks to come in: “I <b>teach</b> the course”"
    )
    await expect(request).to_be_visible(timeout=SOON_MS)
    await shoot(alice, "home-request")
    await request.get_by_role("button", name="Grant view only: dave").click()
    await expect(request).to_be_hidden()
    await dave.wait_for_url(re.compile("oauth2/authorize|/user/alice/desk/$"), timeout=SOON_MS)
    await enter(dave)
    assert await ask_desktop(dave) == (200, "view")

    hub.kill()
    await hub.start()
    await alice.reload()
    await expect(alice.get_by_role("heading", name="At your desktops")).to_be_visible(timeout=SOON_MS)
    await shoot(alice, "home-people")
    await alice.get_by_role("button", name="Send away: dave").click()
    await expect(alice.get_by_role("button", name="Send away: dave")).to_be_hidden()
    await expect(dave.locator("body")).not_to_have_attribute("data-phase", "connected")


async def test_what_the_hub_refuses_is_a_sentence_beside_the_field(
    hub: live.LiveHub, log_in: LogIn, desktop: URL
) -> None:
    alice = await log_in("alice")
    dialog = await open_dialog(alice)
    name = dialog.get_by_label("Name on this hub")

    await name.fill("<img src=x>")
    await name.press("Enter")

    await expect(dialog.get_by_role("alert")).to_have_text("There is no user “<img src=x>” on this hub.")
    await expect(name).to_be_focused()
    await expect(name).to_have_value("<img src=x>")
    await shoot(alice, "share-refused")
