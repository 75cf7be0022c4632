"""The home page as people meet it: a card for each desktop, whatever its state, and what it offers."""

import asyncio
import re
from collections.abc import AsyncIterator

import live
import pytest
import pytest_asyncio
from chromium import MOMENT, LogIn
from playwright.async_api import Dialog, Locator, Page, expect

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

# For people to look at; not compared.
SCREENSHOTS = live.PROJECT / "screenshots"
# The page looks each 15 s, and sooner at what is under way.
SOON_MS = 30_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub() -> AsyncIterator[live.LiveHub]:
    async with live.live_hub(suspend_on=["lifetime"]) as hub:
        for user in live.USERS:
            await hub.ask("POST", f"users/{user}")
        yield hub


async def shoot(page: Page, name: str) -> None:
    """Wide and narrow, light and dark."""
    SCREENSHOTS.mkdir(exist_ok=True)
    for theme in ("light", "dark"):
        await page.evaluate(f"document.documentElement.setAttribute('data-bs-theme', '{theme}')")
        for width, size in ((1280, "wide"), (390, "phone")):
            await page.set_viewport_size({"width": width, "height": 800})
            await page.screenshot(path=SCREENSHOTS / f"{name}-{theme}-{size}.png", full_page=True)
    await page.set_viewport_size({"width": 1280, "height": 800})


def card(page: Page, name: str) -> Locator:
    return page.get_by_role("article", name=name)


async def has_picture(card: Locator) -> None:
    """The guest's screen is there, not a placeholder."""
    image = card.get_by_role("img")
    async with asyncio.timeout(SOON_MS / 1000):
        while await image.evaluate("image => image.complete && image.naturalWidth") == 0:
            await asyncio.sleep(0.2)


async def test_a_desktop_from_its_card(hub: live.LiveHub, log_in: LogIn) -> None:
    """Running, put to sleep, woken, stopped, and started again with the same settings."""
    await hub.start_server("alice", "desk", machine="painter")
    page = await log_in("alice")
    desk = card(page, "“desk”")
    await expect(desk).to_contain_text("running")
    await expect(desk).to_contain_text("Painter · 1 CPU, 64 MiB")
    await expect(desk).to_contain_text(re.compile(f"Falls asleep in 59 min, at {MOMENT}"))
    await expect(card(page, "Your default desktop")).to_contain_text("not running")
    await has_picture(desk)
    await shoot(page, "home-cards")

    # Asleep, with the picture of when it was put to sleep
    await desk.get_by_role("button", name="Suspend: “desk”").click()
    await expect(desk.get_by_text("asleep", exact=True)).to_be_visible(timeout=SOON_MS)
    await expect(desk).to_contain_text("Ended less than a minute ago: alice has put the desktop to sleep.")
    await has_picture(desk)
    await shoot(page, "home-asleep")

    # Awake again
    await desk.get_by_role("button", name="Wake: “desk”").click()
    await expect(page.locator("body")).to_have_attribute("data-phase", "connected", timeout=60_000)
    await expect(page.locator("#bar")).to_have_attribute("aria-busy", "false")
    await page.goto(str(hub.url / "hub/home"))

    # Stopped for good, as this hub keeps nothing then
    questions: list[str] = []

    async def agree(dialog: Dialog) -> None:
        questions.append(dialog.message)
        await dialog.accept()

    page.on("dialog", agree)
    await expect(desk).to_contain_text("Falls asleep in")
    await desk.get_by_role("button", name="Stop: “desk”").click()
    await expect(desk).to_contain_text("not running", timeout=SOON_MS)
    await expect(desk).to_contain_text("Ended less than a minute ago: The desktop was stopped.")
    assert questions == ["Stop “desk”? Everything on it is lost."]

    # The same once more, by one click and never by a link
    await desk.get_by_role("button", name="Start again: “desk”").click()
    await expect(page.locator("body")).to_have_attribute("data-phase", "connected", timeout=60_000)
    servers = await hub.servers("alice")
    assert servers["desk"]["user_options"]["machine"] == "painter"
    await expect(page.locator("#bar")).to_have_attribute("aria-busy", "false")
    await hub.stop_server("alice", "desk")
