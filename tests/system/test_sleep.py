"""Desktops that sleep and wake through the whole product: hub, proxy, session, QEMU."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import guests
import hubs
import live
import pytest
import pytest_asyncio
from processes import find_processes
from rfb_client import RfbClient
from yarl import URL

from qemuspawner.locks import find_holder
from qemuspawner.paths import SessionPaths, StatePaths, session_id
from qemuspawner.saved import find_suspended

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub() -> AsyncIterator[live.LiveHub]:
    async with live.live_hub(suspend_on=["stop", "lifetime"], named_servers=20) as hub:
        yield hub


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alice(hub: live.LiveHub) -> AsyncIterator[hubs.Person]:
    async with hub.person("alice", token=await hub.new_token("alice")) as person:
        yield person


def paths_of(hub: live.LiveHub, name: str) -> SessionPaths:
    return StatePaths(root=hub.state).session(session_id("alice", name))


async def ask(person: hubs.Person, method: str, url: URL, **kwargs: Any) -> dict[str, Any]:
    answer = await person.request(method, url, **kwargs)
    assert answer.status == 200, answer.text
    parsed: dict[str, Any] = json.loads(answer.text)
    return parsed


async def wait_for_colour(person: hubs.Person, desktop: URL, colour: tuple[int, int, int]) -> None:
    async with RfbClient(person, desktop) as client:
        await look_for(client, colour)


async def look_for(client: RfbClient, colour: tuple[int, int, int]) -> None:
    async with asyncio.timeout(30):
        while await client.pixel(client.size[0] // 2, client.size[1] // 2) != colour:
            await asyncio.sleep(0.1)


async def start_red(hub: live.LiveHub, alice: hubs.Person, name: str) -> URL:
    """Start a painter and turn its screen red, which a boot would not."""
    desktop = await hub.start_server("alice", name, machine="painter")
    async with RfbClient(alice, desktop) as client:
        await look_for(client, guests.GREEN)
        await client.press(ord("x"))
        await look_for(client, guests.RED)
    return desktop


async def wait_until_stopped(hub: live.LiveHub, name: str) -> None:
    async with asyncio.timeout(30):
        while (await hub.servers("alice")).get(name, {}).get("ready") or find_processes(paths_of(hub, name)):
            await asyncio.sleep(0.1)


async def test_a_desktop_is_put_to_sleep_and_woken(hub: live.LiveHub, alice: hubs.Person) -> None:
    """By its owner over the API, with a viewer on it; it comes back by the hub, and runs on."""
    desktop = await start_red(hub, alice, "asleep")

    status = await ask(alice, "POST", desktop / "api/suspend")
    await wait_until_stopped(hub, "asleep")
    desktop = await hub.start_server("alice", "asleep")
    woken = await ask(alice, "GET", desktop / "api/status")

    assert status["state"] == "suspended"
    assert (woken["state"], woken["way"]) == ("running", "woken")
    await wait_for_colour(alice, desktop, guests.RED)
    await hub.stop_server("alice", "asleep")


async def test_a_viewer_is_told_that_the_desktop_sleeps(hub: live.LiveHub, alice: hubs.Person) -> None:
    desktop = await start_red(hub, alice, "watched")
    async with RfbClient(alice, desktop) as client:
        closing = asyncio.create_task(client.wait_for_close())
        await ask(alice, "POST", desktop / "api/suspend")
        code, reason = await closing

    assert code == 4002
    assert "Start it again to go on where you were" in reason


async def test_the_hubs_stop_suspends_where_the_policy_says_so(hub: live.LiveHub, alice: hubs.Person) -> None:
    """A culler stops like this; nothing is lost."""
    await start_red(hub, alice, "culled")

    await hub.ask("DELETE", "users/alice/servers/culled")
    await wait_until_stopped(hub, "culled")

    assert find_suspended(paths_of(hub, "culled")) is not None
    desktop = await hub.start_server("alice", "culled")
    await wait_for_colour(alice, desktop, guests.RED)
    await hub.stop_server("alice", "culled")


async def test_what_was_shut_down_is_not_kept(hub: live.LiveHub, alice: hubs.Person) -> None:
    """Ending it for good is a word of its own, also for one that was woken."""
    desktop = await start_red(hub, alice, "ended")
    await ask(alice, "POST", desktop / "api/suspend")
    await wait_until_stopped(hub, "ended")
    desktop = await hub.start_server("alice", "ended")

    await ask(alice, "POST", desktop / "api/power", json={"action": "poweroff"})
    await wait_until_stopped(hub, "ended")

    async with asyncio.timeout(10):
        while paths_of(hub, "ended").root.exists():
            await asyncio.sleep(0.1)


async def test_a_killed_supervisor_loses_no_sleep(hub: live.LiveHub, alice: hubs.Person) -> None:
    """Woken and then killed -9, the desktop wakes once more as it was when it fell asleep."""
    desktop = await start_red(hub, alice, "killed")
    await ask(alice, "POST", desktop / "api/suspend")
    await wait_until_stopped(hub, "killed")
    await hub.start_server("alice", "killed")

    supervisor = find_holder(paths_of(hub, "killed").lock)
    assert supervisor is not None
    os.kill(supervisor, signal.SIGKILL)
    await wait_until_stopped(hub, "killed")

    desktop = await hub.start_server("alice", "killed")
    await wait_for_colour(alice, desktop, guests.RED)
    await hub.stop_server("alice", "killed")


async def test_a_checkpoint_is_saved_gone_back_to_and_deleted(hub: live.LiveHub, alice: hubs.Person) -> None:
    """Going back makes a checkpoint of the present, so one can go forward again."""
    desktop = await start_red(hub, alice, "travel")

    made = await ask(alice, "POST", desktop / "api/checkpoints", json={"title": "<b>red</b>"})
    name = made["checkpoints"][0]["name"]
    async with RfbClient(alice, desktop) as client:
        await client.press(ord("x"))
        await look_for(client, guests.GREEN)
    await ask(alice, "POST", desktop / "api/checkpoints" / name, json={})
    async with asyncio.timeout(30):
        status: dict[str, Any] = {}
        while (status.get("state"), status.get("way")) != ("running", "woken"):
            await asyncio.sleep(0.1)
            status = await ask(alice, "GET", desktop / "api/status")
    await wait_for_colour(alice, desktop, guests.RED)
    picture = await alice.request("GET", desktop / "api/checkpoints" / name)
    after = await ask(alice, "GET", desktop / "api/checkpoints")
    left = await ask(alice, "DELETE", desktop / "api/checkpoints" / name)

    assert picture.headers["Content-Type"] == "image/png"
    assert [row["title"] for row in after["checkpoints"]] == ["Before going back", "<b>red</b>"]
    assert [row["title"] for row in left["checkpoints"]] == ["Before going back"]
    await hub.stop_server("alice", "travel")
