"""Quotas and what is free, on the hub's pages in a real browser."""

from collections.abc import Awaitable, Callable

import hubs
import pytest
from axe import find_barriers_in_both_looks
from chromium import LogIn
from playwright.async_api import Page, expect

GROUP = "<img src=x onerror=document.title='ran'>\"'&"


@pytest.fixture
async def hub(quick_hub: Callable[..., Awaitable[hubs.Hub]]) -> hubs.Hub:
    quotas = {"user": {"sessions": 3, "cpu_hours": 200}, "groups": {GROUP: {"cpus": 2}}}
    hub = await quick_hub(quotas=quotas, cpu_overcommit=4)
    hub.user("alice", groups=(GROUP,))
    return hub


@pytest.fixture
async def page(hub: hubs.Hub, log_in: LogIn) -> Page:
    """The home page of alice, on a phone."""
    page = await log_in(hub, "alice", viewport={"width": 360, "height": 800}, has_clock=True)
    await page.get_by_role("heading", name="What you may use").wait_for()
    return page


async def test_the_home_page_has_the_quotas_for_everybody_to_read(hub: hubs.Hub, page: Page) -> None:
    alice = await hub.log_in("alice")
    await hub.start(alice, {"machine": "mini", "cpus": 2}, server_name="scan")
    await page.set_viewport_size({"width": 1000, "height": 800})
    await page.reload()

    row = page.get_by_role("row").filter(has_text="CPUs")
    await expect(row).to_contain_text("Used by 'scan' (2)")
    await expect(page.get_by_role("meter", name=f"CPUs of the group “{GROUP}”: 100 % used")).to_be_visible()
    assert await page.title() != "ran"
    assert await find_barriers_in_both_looks(page) == []


async def test_the_form_says_what_is_free_and_looks_again_by_itself(hub: hubs.Hub, page: Page) -> None:
    await page.goto(str(hub.url / "spawn" / "alice" / "desk"))
    host = page.locator("#qs-capacity tbody tr")
    total = int((await host.locator("td").first.inner_text()).split()[2])
    await expect(host).to_contain_text(f"{total} of {total} free")

    bob = await hub.log_in("bob")
    await hub.start(bob, {"machine": "mini", "cpus": 2})
    await page.clock.run_for(10_000)

    await expect(host).to_contain_text(f"{total - 2} of {total} free")
    assert await find_barriers_in_both_looks(page) == []


async def test_what_nobody_answers_is_not_shown_as_free(hub: hubs.Hub, page: Page) -> None:
    await page.goto(str(hub.url / "spawn" / "alice" / "desk"))
    section = page.locator("#qs-capacity")
    await expect(section).to_be_visible()

    await page.route("**/api/desktops/capacity", lambda route: route.abort())
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

    await expect(section).to_be_hidden()
