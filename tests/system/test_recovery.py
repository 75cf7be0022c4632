"""What is killed, and what goes on: the hub, a supervisor, a QEMU, in the middle of a start and after."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator

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

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alice(hub: live.LiveHub) -> AsyncIterator[hubs.Person]:
    async with hub.person("alice", token=await hub.new_token("alice")) as person:
        yield person


def session(hub: live.LiveHub, name: str) -> SessionPaths:
    return StatePaths(root=hub.state).session(session_id("alice", name))


async def wait_until_gone(hub: live.LiveHub, name: str) -> None:
    """The hub has noticed, and nothing is left on the host."""
    paths = session(hub, name)
    async with asyncio.timeout(30):
        while name in await hub.servers("alice") or find_processes(paths):
            await asyncio.sleep(0.2)


async def look(client: RfbClient) -> tuple[int, int, int]:
    return await client.pixel(client.size[0] // 2, client.size[1] // 2)


async def wait_for_colour(client: RfbClient, colour: tuple[int, int, int]) -> None:
    async with asyncio.timeout(30):
        while await look(client) != colour:
            await asyncio.sleep(0.1)


async def test_a_key_reaches_the_guest_and_its_picture_comes_back(
    hub: live.LiveHub, alice: hubs.Person
) -> None:
    """Through proxy and relay, by a client that knows nothing of ours."""
    desktop = await hub.start_server("alice", "keys", machine="painter")

    async with RfbClient(alice, desktop) as client:
        await wait_for_colour(client, guests.GREEN)
        await client.press(ord("x"))
        await wait_for_colour(client, guests.RED)

    await hub.stop_server("alice", "keys")


@pytest.mark.parametrize("moment_s", [0.0, 0.15, 0.4, 0.8, 1.5])
async def test_a_hub_killed_while_a_desktop_starts_finds_it_again(
    moment_s: float, hub: live.LiveHub, alice: hubs.Person
) -> None:
    """From the request to the running machine; it is one session, and its owner gets in."""
    name = f"start{int(moment_s * 100)}"
    asking = asyncio.create_task(
        hub.ask("POST", f"users/alice/servers/{name}", json={"user_options": {"machine": "painter"}})
    )
    await asyncio.sleep(moment_s)
    hub.kill()
    with contextlib.suppress(Exception):
        await asking
    await hub.start()

    if find_holder(session(hub, name).lock) is None and not (await hub.servers("alice")).get(name):
        # Killed before the hub had taken the request.
        return
    async with asyncio.timeout(60):
        while True:
            server = (await hub.servers("alice"))[name]
            if server["ready"] or server["stopped"]:
                break
            await asyncio.sleep(0.2)
    if server["ready"]:
        async with RfbClient(alice, hub.url.join(URL(server["url"]))) as client:
            await wait_for_colour(client, guests.GREEN)
    # Either it was found again, or it was never started: nothing runs that the hub does not know.
    assert (find_holder(session(hub, name).lock) is not None) == server["ready"]
    await hub.stop_server("alice", name)
    assert find_processes(session(hub, name)) == []


async def test_a_killed_supervisor_is_noticed_and_started_again(
    hub: live.LiveHub, alice: hubs.Person
) -> None:
    await hub.start_server("alice", "super", machine="painter")
    supervisor = find_holder(session(hub, "super").lock)
    assert supervisor is not None

    os.kill(supervisor, signal.SIGKILL)

    await wait_until_gone(hub, "super")
    desktop = await hub.start_server("alice", "super", machine="painter")
    async with RfbClient(alice, desktop) as client:
        await wait_for_colour(client, guests.GREEN)
    await hub.stop_server("alice", "super")


async def test_a_stopped_desktop_closes_its_sockets_with_a_reason(
    hub: live.LiveHub, alice: hubs.Person
) -> None:
    desktop = await hub.start_server("alice", "stop", machine="painter")

    async with RfbClient(alice, desktop) as client:
        stopping = asyncio.create_task(hub.stop_server("alice", "stop"))
        code, reason = await client.wait_for_close()
        await stopping

    assert (code, reason) == (4001, "The desktop was stopped.")
    assert not session(hub, "stop").root.exists()
