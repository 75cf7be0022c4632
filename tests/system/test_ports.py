"""The demo machine's web tool, a terminal: in a browser, for whom, and however the desktop came up."""

import asyncio
import re
from pathlib import Path

import hubs
import live
import pytest
import pytest_asyncio
import vms
from chromium import LogIn
from playwright.async_api import expect
from yarl import URL

from qemuspawner.machines.catalogue import load_machine
from qemuspawner.paths import EXAMPLE_MACHINES
from qemuspawner.session.vm.guest import Guest
from qemuspawner.session.web.port_client import make_client

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

SCREENSHOTS = live.PROJECT / "screenshots"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desktop(hub: live.LiveHub) -> URL:
    """Alice's, booted once for all tests here; carol looks on, and dave may drive."""
    for user in ("carol", "dave"):
        await hub.ask("POST", f"users/{user}")
    url = await hub.start_server("alice", "desk", machine="debian-desktop", cpus=1, memory="1 GiB")
    async with hub.person("alice", token=await hub.new_token("alice")) as alice:
        for name, role in (("carol", "view"), ("dave", "control")):
            shared = await alice.request("POST", url / "api/shares", json={"user": name, "role": role})
            assert shared.status == 200, shared.text
    return url


async def ask(person: hubs.Person, desktop: URL, method: str = "GET", **headers: str) -> hubs.Answer:
    mode = {"Sec-Fetch-Mode": "navigate" if method == "GET" else "cors"}
    return await person.request(
        method, desktop / "proxy/terminal/", headers=mode | headers, allow_redirects=False
    )


async def test_a_terminal_works_in_a_tab(desktop: URL, log_in: LogIn) -> None:
    """Opened from the desktop's page; what is typed there happens in the machine."""
    problems: list[str] = []
    page = await log_in("alice", to=desktop)
    await expect(page.locator("body")).to_have_attribute("data-phase", "connected", timeout=60_000)
    await expect(page.locator("#bar")).to_have_attribute("aria-busy", "false")
    await page.locator("#ports-button").click()
    SCREENSHOTS.mkdir(exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / "web-tools.png")

    async with page.expect_popup() as opening:
        await page.get_by_role("link", name="Terminal").click()
    tab = await opening.value
    tab.on("pageerror", lambda error: problems.append(str(error)))
    await expect(tab.locator("#console")).to_contain_text(re.compile("user@.*\\$"), timeout=60_000)
    await tab.locator("#vt100").click()
    await tab.keyboard.type("echo $((6 * 7))-$USER", delay=50)
    await tab.keyboard.press("Enter")

    await expect(tab.locator("#console")).to_contain_text("42-user", timeout=60_000)
    await tab.screenshot(path=SCREENSHOTS / "web-terminal.png")
    assert problems == []


async def test_it_is_there_for_the_owner_and_who_may_drive(hub: live.LiveHub, desktop: URL) -> None:
    for name in ("alice", "dave"):
        async with hub.person(name) as person:
            await hub.open_session(person, desktop)
            answer = await ask(person, desktop)
            assert answer.status == 200
            assert "ShellInABox" in answer.text


async def test_it_is_there_for_nobody_else(hub: live.LiveHub, desktop: URL) -> None:
    async with hub.person() as anonymous, hub.person("bob") as bob:
        for person in (anonymous, bob):
            assert (await ask(person, desktop)).status == 302
            assert (await ask(person, desktop, "POST")).status == 403
    async with hub.person("carol") as viewer:
        assert (await hub.open_session(viewer, desktop)).status == 200
        assert (await ask(viewer, desktop)).status == 403
    async with hub.person("bob", token=await hub.new_token("bob")) as script:
        assert (await ask(script, desktop)).status == 403


async def test_a_page_of_another_site_sends_it_nothing(hub: live.LiveHub, desktop: URL) -> None:
    async with hub.person("alice") as alice:
        await hub.open_session(alice, desktop)
        foreign = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}

        assert (await ask(alice, desktop, "POST", **foreign)).status == 403


class Source:
    """A guest as the session's client asks for it."""

    def __init__(self, guest: Guest) -> None:
        self.connect_port = guest.ports.connect


async def is_answering(guest: Guest) -> bool:
    async with (
        asyncio.timeout(60),
        make_client(Source(guest)) as client,
        client.get("http://terminal/") as got,
    ):
        return got.status == 200 and "ShellInABox" in await got.text()


async def test_it_is_there_however_the_desktop_came_up(warm_state: Path) -> None:
    """Restored from a template, after a save that did not end it, and woken in another QEMU."""
    machine = load_machine(EXAMPLE_MACHINES / "debian-desktop", warm_state / "images")
    spec = vms.make_spec(warm_state, machine, memory_mib=1024, server_name="ports")
    async with vms.running_guest(spec) as (guest, prepared):
        assert guest.plan.way == "restored"
        assert await is_answering(guest)
        await guest.pause()
        await guest.go_on()
        assert await is_answering(guest)
        await vms.suspend(guest, prepared)

    async with vms.running_guest(spec) as (guest, _):
        assert guest.plan.way == "woken"
        assert await is_answering(guest)
