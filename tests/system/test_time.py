"""The time of a desktop as people meet it: on the hub's home page, at the desktop, as administrators."""

import json
import re

import live
import pytest
from axe import find_barriers_in_both_looks
from chromium import MOMENT, LogIn
from playwright.async_api import Page, expect
from yarl import URL

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

REASON = "The <b>night's</b> fit"


async def shoot(page: Page, name: str) -> None:
    folder = live.PROJECT / "screenshots"
    folder.mkdir(exist_ok=True)
    await page.screenshot(path=folder / f"{name}.png")
    assert await find_barriers_in_both_looks(page) == []


async def status(hub: live.LiveHub, desktop: URL, token: str) -> dict[str, float]:
    async with hub.person(token=token) as person:
        answer = json.loads((await person.request("GET", desktop / "api/status")).text)
    return dict(answer)


async def test_more_time_from_the_home_page_to_an_administrators_answer(
    hub: live.LiveHub, log_in: LogIn
) -> None:
    desktop = await hub.start_server("alice", "fit", machine="painter")
    token = await hub.new_token("alice")
    before = await status(hub, desktop, token)
    alice = await log_in("alice")

    # Within the longest lifetime it is theirs.
    running = alice.get_by_role("article", name="“fit”")
    await expect(running).to_contain_text(re.compile(f"Ends in 59 min, at {MOMENT}"))
    await shoot(alice, "home-running")
    await running.get_by_role("button", name="Extend").click()
    await expect(running).to_contain_text("Ends in 1 h 59 min, at")

    # Beyond it others decide.
    async with hub.person(token=token) as person:
        await person.request("POST", desktop / "api/extend", json={"seconds": 2 * 86400})
    await alice.reload()
    await running.get_by_label("Why do you need more time for").fill(REASON)
    await running.get_by_role("button", name="Ask for more time").click()
    await expect(running).to_contain_text("nobody has answered yet")

    admin = await log_in("admin")
    asking = admin.locator("#qs-asking article")
    await expect(asking).to_contain_text(f"alice asks for 1 h more for alice/fit (Painter): {REASON}")
    await shoot(admin, "home-asking")
    await asking.get_by_label("A word to them").fill("Good luck.")
    await asking.get_by_role("button", name="Grant").click()
    await expect(admin.locator("#qs-asking")).to_be_hidden()

    # At the desktop they read the answer.
    await alice.goto(str(desktop))
    await expect(alice.locator("#more-time-text")).to_have_text("admin has granted 1 h more. Good luck.")
    await shoot(alice, "granted")
    after = await status(hub, desktop, token)
    gained_s = (after["deadline"] - after["started"]) - (before["max_deadline"] - before["started"])
    assert gained_s == pytest.approx(3600, abs=2)
