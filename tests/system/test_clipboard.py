"""The clipboard between a browser and the demo machine: page, relay, QEMU, SPICE agent, editor, all real."""

# ruff: noqa: F811  (fixtures of pages are named as what is given)

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import vms
from pages import Open, Session, browser, bundle, open_page, session  # noqa: F401
from playwright.async_api import expect

from qemuspawner.machines.catalogue import load_machine
from qemuspawner.paths import EXAMPLE_MACHINES
from qemuspawner.qemu.agent import GuestAgent
from qemuspawner.session.vm.guest import Guest
from qemuspawner.session.vm.prepare import Prepared

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

TEXT = "é 你好 😀 שלום\n\tsecond line \x1b[31m"
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/home/user",
    "DISPLAY": ":0",
    "XAUTHORITY": "/run/desktop/cookie",
    "LANG": "C.UTF-8",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desktop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Guest, Prepared]]:
    """One boot for all tests here."""
    machine = load_machine(EXAMPLE_MACHINES / "debian-desktop", Path(os.environ["QEMUSPAWNER_TEST_IMAGES"]))
    spec = vms.make_spec(tmp_path_factory.mktemp("state"), machine, memory_mib=1024)
    async with vms.running_guest(spec) as (guest, prepared):
        assert guest.agent is not None
        assert await guest.agent.wait_until_ready(timeout_s=240)
        await run(guest, "until systemctl is-active desktop-clipboard; do sleep 0.2; done")
        yield guest, prepared


@pytest.fixture(scope="module")
def guest(desktop: tuple[Guest, Prepared]) -> Guest:
    return desktop[0]


@pytest.fixture(scope="module")
def vnc_socket(desktop: tuple[Guest, Prepared]) -> Path:
    return desktop[1].paths.vnc_socket


async def run(guest: Guest, command: str, *, stdin: str = "") -> str:
    """Run a shell command on the guest's desktop."""
    agent: GuestAgent = guest.agent  # type: ignore[assignment]
    argv = ("/usr/sbin/runuser", "-u", "user", "--", "/bin/sh", "-c", command)
    code, output = await agent.run(*argv, stdin=stdin.encode(), env=ENVIRONMENT, timeout_s=60)
    assert code == 0, output
    return output


async def test_what_is_copied_in_the_guest_is_on_the_device(guest: Guest, open_page: Open) -> None:
    """At once, with nothing allowed beforehand."""
    page = await open_page()

    await run(guest, "setsid xclip -selection clipboard >/dev/null 2>&1", stdin=TEXT)

    await expect(page.locator("#clipboard-text")).to_have_value(TEXT, timeout=20_000)
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    assert await page.evaluate("navigator.clipboard.readText()") == TEXT


async def test_ctrl_v_pastes_what_was_copied_on_the_device(guest: Guest, open_page: Open) -> None:
    """In an editor, where reading the clipboard was not allowed: the text is there before the key."""
    await run(guest, "printf old | setsid xclip -selection clipboard >/dev/null 2>&1")
    page = await open_page()
    await run(guest, "touch /tmp/note.txt; setsid mousepad /tmp/note.txt >/dev/null 2>&1 &")
    shown = "xprop -id $(xprop -root -notype 32x ' $0' _NET_ACTIVE_WINDOW | cut -d' ' -f2) WM_NAME"
    await run(guest, f"until {shown} | grep -q note.txt; do sleep 0.2; done")
    await page.evaluate("text => navigator.clipboard.writeText(text)", TEXT)
    await page.locator("#screen canvas").focus()

    await page.keyboard.press("Control+v")

    async with asyncio.timeout(60):
        while (saved := await run(guest, "cat /tmp/note.txt")).strip() == "":
            await page.keyboard.press("Control+s")
            await asyncio.sleep(1)
    assert saved.strip() == TEXT.strip()
