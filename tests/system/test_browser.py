"""The main job, as a person does it in a real browser: log in, fill in the form, work on the desktop."""

import asyncio
import re

import guests
import live
import pytest
from axe import find_barriers_in_both_looks
from chromium import LogIn
from playwright.async_api import Browser, Locator, Page, expect

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

# For people to look at; not compared.
SCREENSHOTS = live.PROJECT / "screenshots"
# A boot by emulation, beside a browser, on a busy machine with two cores.
BOOT_MS = 400_000

GREEN = (0, 255, 0)
# Turns the terminal's background green: typed characters, run by a shell in the guest, drawn on its screen.
# No character that needs Shift: Playwright types those without it, which no keyboard does.
PAINT = r"clear; printf '\033]11;green\007'"
# A keyboard is not asked to press Tab more often than this.
MOST_TABS = 40


async def shoot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / f"{name}.png")


async def share_of_pixels(page: Page, colour: tuple[int, int, int]) -> float:
    """How much of the desktop's canvas has about this colour, from 0 to 1."""
    share: float = await page.evaluate(
        """([red, green, blue]) => {
            const canvas = document.querySelector("#screen canvas");
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            let count = 0;
            for (let i = 0; i < data.length; i += 4) {
                const off = [red, green, blue].map((value, part) => Math.abs(data[i + part] - value));
                count += Math.max(...off) < 8;
            }
            return count / (data.length / 4);
        }""",
        list(colour),
    )
    return share


async def count_colours(page: Page) -> int:
    count: int = await page.evaluate(
        """() => {
            const canvas = document.querySelector("#screen canvas");
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return new Set(new Uint32Array(data.buffer)).size;
        }"""
    )
    return count


async def wait_until_still(page: Page) -> None:
    """Wait until the guest has followed the window's size and nothing has moved for two seconds.

    A key typed while an emulated guest changes its resolution may be lost.
    """
    picture = ""
    async with asyncio.timeout(120):
        while True:
            await asyncio.sleep(2)
            before, picture = (
                picture,
                await page.evaluate("document.querySelector('#screen canvas').toDataURL()"),
            )
            width = await page.evaluate("document.querySelector('#screen canvas').width")
            if picture == before and width == 1280:
                return


async def type_until_green(page: Page) -> None:
    """Type PAINT and see its effect; as a person does, once more where a key was lost."""
    for _ in range(3):
        # Out of a line that went wrong.
        await page.keyboard.press("Control+c")
        await page.keyboard.type(PAINT, delay=60)
        await page.keyboard.press("Enter")
        for _ in range(60):
            if await share_of_pixels(page, GREEN) > 0.05:
                return
            await asyncio.sleep(0.5)
    await shoot(page, "typed-in-vain")
    raise AssertionError("The terminal did not turn green.")


async def test_from_the_login_to_work_on_the_desktop_and_back(hub: live.LiveHub, log_in: LogIn) -> None:
    """The whole way of the project's main job."""
    page = await log_in("demo")

    # The form
    await page.goto(str(hub.url / "hub/spawn"))
    await page.get_by_role("radio", name=re.compile("Debian 12 desktop")).check()
    await page.get_by_text("Advanced", exact=True).click()
    await page.get_by_label("CPUs").select_option("2")
    await page.get_by_label("Memory").select_option(label="1 GiB")
    await page.get_by_label(re.compile("Lifetime|time", re.IGNORECASE)).first.select_option(label="1 h")
    await shoot(page, "form")
    await page.get_by_role("button", name="Start").click()

    # The waiting page, with the session's own steps
    await expect(page.get_by_text("The machine is booting")).to_be_visible(timeout=60_000)
    await expect(page.get_by_text("It has been starting for")).to_be_visible()
    # What the firmware and the kernel write, as soon as the display answers
    await expect(page.get_by_role("img", name="The screen of the machine while it starts")).to_be_visible(
        timeout=60_000
    )
    await shoot(page, "starting")

    # The desktop
    await page.wait_for_url(re.compile("/user/demo/"), timeout=BOOT_MS)
    await expect(page.locator("body")).to_have_attribute("data-phase", "connected", timeout=60_000)
    async with asyncio.timeout(60):
        while await count_colours(page) < 50:
            await asyncio.sleep(0.5)
    await shoot(page, "desktop")
    assert await share_of_pixels(page, GREEN) < 0.05

    # Typed, run in the guest, seen
    await wait_until_still(page)
    await page.locator("#screen canvas").click(position={"x": 500, "y": 420})
    await type_until_green(page)
    await shoot(page, "typed")

    # Extended: the countdown grows
    await page.locator("#extend").click()
    await expect(page.locator("#time-left")).to_contain_text(re.compile(r"^1 h \d+ min"))

    # Shut down from inside
    await page.locator("#screen canvas").click(position={"x": 500, "y": 420})
    await wait_until_still(page)
    await page.keyboard.type("sudo poweroff", delay=60)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="This session has ended")).to_be_visible(timeout=90_000)
    await shoot(page, "ended")
    await page.get_by_role("link", name="Back to the hub").last.click()
    await page.wait_for_url(re.compile("/hub/home"))


async def tab_to(page: Page, target: Locator) -> None:
    """Press Tab until it has the focus, and see that the focus shows."""
    for _ in range(MOST_TABS):
        await page.keyboard.press("Tab")
        if await target.evaluate_all("found => found.includes(document.activeElement)"):
            assert await target.evaluate("found => found.matches(':focus-visible')")
            return
    raise AssertionError(f"{MOST_TABS} times Tab did not lead to {target}.")


async def test_the_keyboard_alone_leads_from_the_login_to_a_desktop_and_back(
    hub: live.LiveHub, browser: Browser
) -> None:
    """From page to page with nothing but keys; nothing is given the focus by the test."""
    problems: list[str] = []
    async with await browser.new_page() as page:
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: dialog.accept())
        await page.goto(str(hub.url / "hub/home"))
        await page.keyboard.type("carol")
        await tab_to(page, page.get_by_label("Password"))
        await page.keyboard.type("mistyped")
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("Invalid username or password")).to_be_visible()
        assert await find_barriers_in_both_looks(page) == []
        await tab_to(page, page.get_by_label("Password"))
        await page.keyboard.type(hub.password("carol"))
        await page.keyboard.press("Enter")

        # Past the hub's bar, on each of its pages
        await page.wait_for_url("**/hub/home")
        await tab_to(page, page.get_by_role("link", name="Skip to the page"))
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("main")).to_be_focused()
        await tab_to(page, page.get_by_role("link", name="Start: Your default desktop"))
        await page.keyboard.press("Enter")

        await page.wait_for_url("**/hub/spawn/carol")
        await tab_to(page, page.get_by_role("link", name="Skip to the page"))
        await page.keyboard.press("Enter")
        await tab_to(page, page.get_by_role("radio", checked=True))
        painter = page.get_by_role("radio", name="Painter")
        async with asyncio.timeout(30):
            while not await painter.is_checked():
                await page.keyboard.press("ArrowDown")
        await tab_to(page, page.get_by_role("button", name="Start", exact=True))
        await page.keyboard.press("Enter")

        # The desktop has the keyboard as soon as it is there; a key turns it red
        await page.wait_for_url("**/user/carol/", timeout=60_000)
        await expect(page.locator("body")).to_have_attribute("data-phase", "connected", timeout=30_000)
        await page.keyboard.press("Space")
        async with asyncio.timeout(30):
            while await share_of_pixels(page, guests.RED) < 0.9:
                await asyncio.sleep(0.1)
        await page.keyboard.press("Control+Alt+Shift+KeyM")
        await expect(page.get_by_role("link", name="Back to the hub")).to_be_focused()
        await page.keyboard.press("Enter")

        await page.wait_for_url("**/hub/home")
        await tab_to(page, page.get_by_role("button", name="Stop: Your default desktop"))
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("link", name="Start: Your default desktop")).to_be_visible(
            timeout=30_000
        )
        assert await hub.servers("carol") == {}
        assert problems == []


async def test_a_refused_option_is_explained_and_what_was_typed_stays(
    hub: live.LiveHub, log_in: LogIn
) -> None:
    """A form that a program has tampered with, as the page itself offers nothing wrong."""
    page = await log_in("bob")
    await page.goto(str(hub.url / "hub/spawn"))
    await page.get_by_role("radio", name=re.compile("Painter")).check()
    await page.evaluate(
        """() => {
            const option = document.querySelector("select[name=cpus] option");
            option.value = "2,foo=bar";
            option.selected = true;
        }"""
    )
    await page.get_by_role("button", name="Start").click()

    await expect(page.get_by_text("2,foo=bar").first).to_be_visible()
    await expect(page.get_by_role("radio", name=re.compile("Painter"))).to_be_checked()
    await shoot(page, "refused")
    assert await hub.servers("bob") == {}


async def test_stop_on_the_waiting_page_stops_the_named_server_that_starts(
    hub: live.LiveHub, log_in: LogIn
) -> None:
    page = await log_in("bob")
    other = await hub.start_server("bob", machine="painter")
    await page.goto(str(hub.url / "hub/spawn/bob/slow"))
    await page.get_by_role("radio", name=re.compile("Debian 12 desktop")).check()
    await page.get_by_role("button", name="Start").click()
    await expect(page.get_by_text("The machine is booting")).to_be_visible(timeout=60_000)

    await page.get_by_role("button", name="Cancel").click()

    async with asyncio.timeout(60):
        while "slow" in await hub.servers("bob"):
            await asyncio.sleep(0.3)
    servers = await hub.servers("bob")
    assert servers[""]["ready"]
    assert str(other).endswith(servers[""]["url"])
    await shoot(page, "stopped")


async def test_the_page_reconnects_by_itself_after_the_proxy_is_gone_for_a_moment(
    hub: live.LiveHub, log_in: LogIn
) -> None:
    page = await log_in("alice")
    desktop = await hub.start_server("alice", "again", machine="painter")
    await page.goto(str(desktop))
    await expect(page.locator("body")).to_have_attribute("data-phase", "connected", timeout=30_000)
    await expect(page.locator("#bar")).to_have_attribute("aria-busy", "false")

    hub.stop_proxy()
    await expect(page.locator("body")).to_have_attribute("data-phase", "reconnecting", timeout=30_000)
    await shoot(page, "reconnecting")
    hub.start_proxy()
    await hub.restore_routes()

    await expect(page.locator("body")).to_have_attribute("data-phase", "connected", timeout=60_000)
    await hub.stop_server("alice", "again")
