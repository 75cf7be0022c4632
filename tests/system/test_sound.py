"""What a guest plays is heard: by a script, in a browser, and from the demo desktop."""

import asyncio
import json
import os
import re
from pathlib import Path

import aiohttp
import guests
import hubs
import live
import pytest
import pytest_asyncio
import vms
from audit_log import audit_lines
from chromium import LogIn
from listening import FRAME_BYTES, NEAR_TONE, RATE_HZ, listen, loudest_hz
from playwright.async_api import Page, expect
from yarl import URL

from qemuspawner.machines.catalogue import load_machine
from qemuspawner.paths import EXAMPLE_MACHINES

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]

# For people to look at; not compared.
SCREENSHOTS = live.PROJECT / "screenshots"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desktop(hub: live.LiveHub) -> URL:
    """Alice's machine that plays a tone; each key stops it, or starts it again."""
    hubs.add_machine(hub.state / "machines", hub.state, "tone")
    (hub.state / "machines/tone/machine.toml").write_text(
        live.PAINTER.replace("[image]", "sound = true\n[image]")
    )
    disk = hub.state / "images/tone/disk.raw"
    disk.unlink()
    guests.make_disk(disk, sector=guests.TONE_SECTOR)
    return await hub.start_server("alice", "tone", machine="tone")


async def test_a_script_hears_the_tone(hub: live.LiveHub, desktop: URL) -> None:
    """Through the proxy, with a token; the first message says what the others are."""
    async with hub.person("alice", token=await hub.new_token("alice")) as alice:
        headers = {"Authorization": f"token {alice.token}"}
        async with alice.http.ws_connect(desktop / "sound", protocols=("binary",), headers=headers) as socket:
            form = json.loads(await socket.receive_bytes(timeout=10))
            heard = b""
            while len(heard) < 1.5 * RATE_HZ * FRAME_BYTES:
                heard += await socket.receive_bytes(timeout=10)

    assert form == {"format": "s16le", "channels": 2, "rate_hz": RATE_HZ}
    assert loudest_hz(heard) == NEAR_TONE


async def test_a_share_that_is_taken_back_is_heard_no_more(hub: live.LiveHub, desktop: URL) -> None:
    """The websocket that is open is closed, within seconds."""
    async with (
        hub.person("alice", token=await hub.new_token("alice")) as alice,
        hub.person("bob", token=await hub.new_token("bob")) as bob,
    ):
        share = {"user": "bob", "role": "view"}
        answer = await alice.request("POST", desktop / "api/shares", json=share)
        assert answer.status == 200, answer.text
        headers = {"Authorization": f"token {bob.token}"}
        async with bob.http.ws_connect(desktop / "sound", protocols=("binary",), headers=headers) as socket:
            assert len(await socket.receive_bytes(timeout=10)) > 0
            answer = await alice.request("DELETE", desktop / "api/shares", json={"user": "bob"})
            assert answer.status == 200, answer.text
            async with asyncio.timeout(20):
                while (await socket.receive()).type is aiohttp.WSMsgType.BINARY:
                    pass

        assert socket.close_code == 4403
    (line,) = [line for line in audit_lines(hub.state) if line["event"] == "listened" and line["by"] == "bob"]
    assert (line["role"], line["staff"], line["server"]) == ("view", False, "tone")


async def test_a_machine_without_a_card_has_no_sound(hub: live.LiveHub) -> None:
    """Neither a websocket, nor a button on its page."""
    silent = await hub.start_server("alice", "silent", machine="painter")
    async with hub.person("alice", token=await hub.new_token("alice")) as alice:
        answer = await alice.request("GET", silent / "sound")
        page = await alice.request("GET", silent)

    assert (answer.status, json.loads(answer.text)["message"]) == (404, "This machine has no sound card.")
    assert 'id="screen"' in page.text
    assert 'id="sound"' not in page.text
    await hub.stop_server("alice", "silent")


@pytest_asyncio.fixture(loop_scope="module")
async def page(log_in: LogIn, desktop: URL) -> Page:
    """The desktop of alice, who has logged in."""
    page = await log_in("alice", to=desktop)
    await expect(page.locator("body")).to_have_attribute("data-phase", "connected", timeout=60_000)
    await expect(page.locator("#bar")).to_have_attribute("aria-busy", "false")
    return page


async def test_the_page_plays_what_the_guest_plays(hub: live.LiveHub, page: Page) -> None:
    """Off until it is clicked, silent with the guest, back after a lost connection, remembered."""
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if "Security" in message.text else None)
    button = page.get_by_role("button", name="Sound")
    playing = re.compile("true")
    await expect(button).to_have_attribute("aria-pressed", "false")
    await expect(page.get_by_label("Volume")).to_be_hidden()

    await button.click()
    await expect(button).to_have_attribute("data-playing", playing, timeout=20_000)
    await expect(button).to_have_attribute("aria-pressed", "true")
    await page.get_by_label("Volume").fill("40")
    SCREENSHOTS.mkdir(exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / "sound.png")
    buffered_ms = int(await button.get_attribute("data-buffered-ms") or 0)
    assert 0 < buffered_ms <= 120

    # The guest stops, and plays again
    await page.locator("#screen canvas").press("a")
    await expect(button).to_have_attribute("data-playing", "false")
    await page.locator("#screen canvas").press("a")
    await expect(button).to_have_attribute("data-playing", playing)

    # The connection is lost
    hub.stop_proxy()
    await expect(page.locator("body")).to_have_attribute("data-phase", "reconnecting", timeout=30_000)
    await expect(button).to_have_attribute("data-playing", "false")
    hub.start_proxy()
    await hub.restore_routes()
    await expect(button).to_have_attribute("data-playing", playing, timeout=60_000)

    # Loaded anew: at the first thing that somebody does
    await page.reload()
    await expect(page.locator("body")).to_have_attribute("data-phase", "connected", timeout=60_000)
    await expect(page.locator("#bar")).to_have_attribute("aria-busy", "false")
    await expect(button).to_have_attribute("aria-pressed", "false")
    await page.locator("#screen canvas").click()
    await expect(button).to_have_attribute("data-playing", playing, timeout=20_000)
    await expect(page.get_by_label("Volume")).to_have_value("40")

    await button.click()
    await expect(button).to_have_attribute("aria-pressed", "false")
    assert problems == []


async def test_the_demo_desktop_is_heard(tmp_path: Path) -> None:
    """Its user plays a sine with Debian's own program: nothing is muted, and no level needs to be set."""
    machine = load_machine(EXAMPLE_MACHINES / "debian-desktop", Path(os.environ["QEMUSPAWNER_TEST_IMAGES"]))
    async with vms.running_guest(vms.make_spec(tmp_path, machine, memory_mib=1024)) as (guest, prepared):
        agent = guest.agent
        assert agent is not None
        assert await agent.wait_until_ready(timeout_s=240)
        play = "until [ -e /dev/snd/pcmC0D0p ]; do sleep 0.2; done; "
        play += "runuser -u user -- timeout 15 speaker-test -c 1 -r 48000 -t sine -f 440 -l 0"
        playing = asyncio.create_task(agent.run("/bin/sh", "-c", play, timeout_s=60))
        heard = await asyncio.wait_for(listen(prepared.paths.vnc_socket, seconds=4), 60)
        await playing

    assert loudest_hz(heard) == NEAR_TONE
