"""A sleeping desktop in a real browser: its link wakes it, the hub's home page deletes it."""

import asyncio
import json
import re
from collections.abc import AsyncIterator

import live
import pytest
import pytest_asyncio
from axe import find_barriers_in_both_looks
from chromium import LogIn
from playwright.async_api import Page, expect

from qemuspawner.paths import StatePaths, session_id
from qemuspawner.saved import find_suspended

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

# For people to look at; not compared.
SCREENSHOTS = live.PROJECT / "screenshots"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub() -> AsyncIterator[live.LiveHub]:
    async with live.live_hub(suspend_on=["stop"]) as hub:
        yield hub


@pytest_asyncio.fixture(loop_scope="module")
async def page(log_in: LogIn) -> Page:
    """Of alice, who has logged in."""
    return await log_in("alice")


async def shoot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


async def put_to_sleep(hub: live.LiveHub) -> None:
    paths = StatePaths(root=hub.state).session(session_id("alice", ""))
    await hub.stop_server("alice")
    async with asyncio.timeout(30):
        while find_suspended(paths) is None or (await hub.servers("alice")):
            await asyncio.sleep(0.1)


async def way_of(hub: live.LiveHub) -> str:
    async with hub.person("alice", token=await hub.new_token("alice")) as person:
        answer = await person.request("GET", hub.url / "user/alice/api/status")
    assert answer.status == 200, answer.text
    return str(json.loads(answer.text)["way"])


async def test_a_link_wakes_the_desktop_and_home_deletes_it(hub: live.LiveHub, page: Page) -> None:
    desktop = await hub.start_server("alice", machine="painter")
    await put_to_sleep(hub)

    # Seen as it is before its script wakes the desktop, which is quicker than a picture of it.
    quiet = await page.context.browser.new_context(  # type: ignore[union-attr]
        storage_state=await page.context.storage_state()
    )
    await quiet.add_init_script("HTMLFormElement.prototype.requestSubmit = () => {};")
    asleep = await quiet.new_page()
    await asleep.goto(str(desktop))
    await expect(asleep.get_by_role("heading", name="is asleep")).to_be_visible()
    await shoot(asleep, "asleep")
    assert await find_barriers_in_both_looks(asleep) == []
    await quiet.close()

    # Its link wakes it by itself
    await page.goto(str(desktop))
    await expect(page.locator("body")).to_have_attribute("data-phase", "connected", timeout=60_000)
    await expect(page.locator("#bar")).to_have_attribute("aria-busy", "false")
    assert await way_of(hub) == "woken"

    # Asleep again, it is on the home page; deleted there, it is gone
    await put_to_sleep(hub)
    await page.goto(str(hub.url / "hub/home"))
    card = page.get_by_role("article", name="Your default desktop")
    await expect(card).to_contain_text("asleep")
    await shoot(page, "home")
    assert await find_barriers_in_both_looks(page) == []
    page.on("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
    await page.get_by_role("button", name="Delete: Your default desktop").click()
    await expect(card).to_contain_text("not running")
    assert not StatePaths(root=hub.state).session(session_id("alice", "")).root.exists()


async def test_the_second_of_two_tabs_leads_to_the_desktop_too(hub: live.LiveHub, page: Page) -> None:
    """JupyterHub refuses a start of what another tab has started."""
    desktop = await hub.start_server("alice", machine="painter")
    await put_to_sleep(hub)
    await page.goto(str(hub.url / "hub/home"))
    await hub.start_server("alice")

    await page.get_by_role("button", name="Wake: Your default desktop").click()

    await page.wait_for_url(re.compile(re.escape(desktop.path)))
    await expect(page.locator("body")).to_have_attribute("data-phase", "connected", timeout=60_000)
    await expect(page.locator("#bar")).to_have_attribute("aria-busy", "false")
    await put_to_sleep(hub)


async def test_a_wake_of_what_is_gone_says_so(hub: live.LiveHub, page: Page) -> None:
    """And starts nothing."""
    await hub.start_server("alice", machine="painter")
    await put_to_sleep(hub)
    await page.goto(str(hub.url / "hub/home"))
    status, _ = await hub.ask("DELETE", f"users/alice/saved/{session_id('alice', '')}")
    assert status == 204

    await page.get_by_role("button", name="Wake: Your default desktop").click()

    await expect(page.get_by_text("Nothing sleeps here any more")).to_be_visible()
    assert await hub.servers("alice") == {}
