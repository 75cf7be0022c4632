"""People together at one desktop, each in a browser of their own: share, ask, drive, take back."""

import asyncio
from collections.abc import Awaitable, Callable

import live
import pytest
import pytest_asyncio
from chromium import LogIn
from guests import GREEN, RED
from playwright.async_api import Page, expect
from yarl import URL

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

# For people to look at; not compared.
SCREENSHOTS = live.PROJECT / "screenshots"

expect.set_options(timeout=20_000)

Open = Callable[[str], Awaitable[Page]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desktop(hub: live.LiveHub) -> URL:
    for user in ("bob", "carol"):
        await hub.ask("POST", f"users/{user}")
    return await hub.start_server("alice", "desk", machine="painter")


@pytest_asyncio.fixture(loop_scope="module")
async def open_desktop(log_in: LogIn, desktop: URL) -> Open:
    """Opens alice's desktop in a new browser of somebody who has just logged in."""

    async def open_one(user: str) -> Page:
        page = await log_in(user, viewport={"width": 1100, "height": 760})
        await page.goto(str(desktop))
        if "oauth2/authorize" in page.url:
            await page.get_by_role("button", name="Authorize").click()
        await expect(page.locator("#title")).to_have_text("desk")
        return page

    return open_one


async def shoot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / f"{name}.png")


async def is_connected(page: Page) -> None:
    await expect(page.locator("body")).to_have_attribute("data-phase", "connected")
    await expect(page.locator("#bar")).to_have_attribute("aria-busy", "false")


async def colour(page: Page) -> tuple[int, int, int]:
    red, green, blue, _ = await page.evaluate(
        "Array.from(document.querySelector('#screen canvas').getContext('2d').getImageData(9, 9, 1, 1).data)"
    )
    return red, green, blue


async def wait_for_paint(page: Page, *wanted: tuple[int, int, int]) -> tuple[int, int, int]:
    async with asyncio.timeout(20):
        while (seen := await colour(page)) not in wanted:
            await asyncio.sleep(0.05)
    return seen


async def settled_box(page: Page) -> dict[str, float]:
    """Where the screen is, once it has taken the window's new size."""
    seen = None
    async with asyncio.timeout(20):
        while True:
            before, seen = seen, await page.locator("#screen canvas").bounding_box()
            if seen is not None and seen == before and seen["width"] <= 800:
                return dict(seen)
            await asyncio.sleep(0.5)


async def share_by_panel(owner: Page, name: str, role: str) -> None:
    await owner.get_by_role("button", name="People").click()
    await owner.get_by_label("Name on the hub").fill(name)
    await owner.get_by_label("What they may do", exact=True).select_option(role)
    await owner.get_by_role("button", name="Share", exact=True).click()
    await expect(owner.locator("#share-list")).to_contain_text(name)
    await owner.keyboard.press("Escape")


async def press_until(page: Page, other: Page, wanted: tuple[int, int, int]) -> None:
    """Type in one window until the other one shows it."""
    async with asyncio.timeout(20):
        while await colour(other) != wanted:
            await page.keyboard.press("a")
            await asyncio.sleep(0.3)


async def test_a_guest_looks_on_asks_and_drives_until_it_is_taken_back(open_desktop: Open) -> None:
    """Without loading any page anew."""
    alice = await open_desktop("alice")
    await is_connected(alice)
    await share_by_panel(alice, "bob", "view")

    bob = await open_desktop("bob")
    await is_connected(bob)
    await expect(bob.locator("#connection-text")).to_contain_text("View only")
    await expect(bob.get_by_role("button", name="Send keys")).to_be_hidden()
    before = await wait_for_paint(bob, GREEN, RED)
    await bob.locator("#screen canvas").press("a")

    await bob.get_by_role("button", name="People").click()
    await bob.get_by_role("button", name="Ask for control").click()
    await expect(alice.locator("#asking-text")).to_have_text("bob asks for control.")
    assert await colour(alice) == before
    await shoot(alice, "asked-for-control")
    await alice.get_by_role("button", name="Allow control: bob").click()

    await expect(bob.get_by_role("button", name="Send keys")).to_be_visible()
    await bob.locator("#screen canvas").focus()
    await press_until(bob, alice, RED if before == GREEN else GREEN)

    await alice.get_by_role("button", name="People").click()
    await alice.get_by_role("button", name="Take it back from bob").click()
    await expect(bob.locator("#notice-title")).to_have_text("No longer shared with you")
    await shoot(bob, "withdrawn")


async def test_everyones_pointer_is_seen_with_a_name(open_desktop: Open) -> None:
    """Where it is on the screen, whatever size each window has."""
    alice = await open_desktop("alice")
    await is_connected(alice)
    await share_by_panel(alice, "bob", "control")
    bob = await open_desktop("bob")
    await is_connected(bob)
    await expect(alice.locator("#people-count")).to_have_text("2")
    await expect(bob.locator("#people-count")).to_have_text("2")
    await bob.set_viewport_size({"width": 800, "height": 600})
    canvas = await settled_box(bob)

    pointer = alice.locator(".pointer", has_text="bob")
    async with asyncio.timeout(20):
        while not await pointer.count():
            for step in range(4):
                await bob.mouse.move(
                    canvas["x"] + canvas["width"] / 4 + step, canvas["y"] + canvas["height"] / 2
                )
                await asyncio.sleep(0.1)

    seen = await alice.evaluate(
        """() => {
            const canvas = document.querySelector("#screen canvas").getBoundingClientRect();
            const mark = document.querySelector(".pointer").getBoundingClientRect();
            return [(mark.x - canvas.x) / canvas.width, (mark.y - canvas.y) / canvas.height];
        }"""
    )
    assert seen == pytest.approx([0.25, 0.5], abs=0.02)
    assert await bob.locator(".pointer", has_text="bob").count() == 0
    await shoot(alice, "pointer")


async def test_only_one_drives_where_the_owner_wants_it(open_desktop: Open) -> None:
    """The other asks for mouse and keyboard, and gets them."""
    alice = await open_desktop("alice")
    await is_connected(alice)
    await share_by_panel(alice, "bob", "control")
    bob = await open_desktop("bob")
    await is_connected(bob)

    await alice.get_by_role("button", name="People").click()
    await alice.get_by_label("Only one person at a time has mouse and keyboard").check()
    await bob.get_by_role("button", name="People").click()
    await expect(bob.locator("#drive-about")).to_have_text("alice has mouse and keyboard.")
    await bob.get_by_role("button", name="Ask for mouse and keyboard").click()
    await alice.get_by_role("button", name="Give it: bob").click()

    await expect(bob.locator("#people-list")).to_contain_text("has mouse and keyboard")
    before = await wait_for_paint(bob, GREEN, RED)
    await bob.locator("#screen canvas").focus()
    await press_until(bob, alice, RED if before == GREEN else GREEN)
    await alice.get_by_role("button", name="People").click()
    await alice.get_by_label("Only one person at a time has mouse and keyboard").uncheck()


async def test_site_staff_wait_for_the_owners_consent(open_desktop: Open) -> None:
    """They see nothing before, and the owner sees who asks."""
    alice = await open_desktop("alice")
    await is_connected(alice)
    admin = await open_desktop("admin")
    await expect(admin.locator("#notice-title")).to_have_text("alice has not let you in")
    assert await admin.locator("#screen canvas").count() == 0
    await shoot(admin, "staff-waits")

    await admin.get_by_role("button", name="Ask to look on").click()
    await alice.get_by_role("button", name="View only: admin").click()

    await is_connected(admin)
    await wait_for_paint(admin, GREEN, RED)
    await expect(admin.get_by_role("button", name="Send keys")).to_be_hidden()
    await alice.get_by_role("button", name="People").click()
    await expect(alice.locator("#people-list")).to_contain_text("site staff")


async def test_nobody_can_be_invited_who_is_not_there(open_desktop: Open) -> None:
    """The panel says it, and keeps the name."""
    alice = await open_desktop("alice")
    await is_connected(alice)
    await alice.get_by_role("button", name="People").click()
    name = '<img src=x onerror="document.title=1">'
    await alice.get_by_label("Name on the hub").fill(name)
    await alice.get_by_role("button", name="Share", exact=True).click()

    await expect(alice.locator("#share-note")).to_contain_text("No such user")
    await expect(alice.get_by_label("Name on the hub")).to_have_value(name)
    assert await alice.locator("#share-note img").count() == 0
