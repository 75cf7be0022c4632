"""Real sessions are put to sleep and woken through the hub, with its pages and its API."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import hubs
import pytest
from yarl import URL

from qemuspawner.hub.desktops.kept import Kept, load_kept
from qemuspawner.paths import StatePaths, session_id

StartHub = Callable[..., Awaitable[hubs.Hub]]


@pytest.fixture
async def hub(start_hub: StartHub) -> hubs.Hub:
    """A hub whose sessions are real ones, and sleep when they are stopped."""
    return await start_hub(suspend_on=["stop"])


def kept(hub: hubs.Hub, user: str, server: str = "") -> Kept:
    return load_kept(StatePaths(root=hub.state_dir), user=user, server_name=server)


async def sleep_once(hub: hubs.Hub, person: hubs.Person, server: str = "") -> None:
    """Start a desktop with the larger memory, and stop it."""
    await hub.start(person, {"memory": "256 MiB"}, server_name=server)
    await hub.wait_until_ready(person.name, server_name=server)
    await stop(hub, person, server)
    assert kept(hub, person.name, server).suspended is not None, hub.session_folders()


async def stop(hub: hubs.Hub, person: hubs.Person, server: str = "") -> None:
    await hub.stop(person, server_name=server)
    await hub.wait_until_stopped(person.name, server_name=server)


async def status(hub: hubs.Hub, user: str, server: str = "") -> Any:
    url = await hub.wait_until_ready(user, server_name=server)
    person = await hub.with_token(user)
    return json.loads((await person.request("GET", url / "api/status")).text)


async def test_a_stopped_desktop_sleeps_and_wakes_without_options(hub: hubs.Hub) -> None:
    alice = await hub.log_in("alice")
    await sleep_once(hub, alice)

    home = await alice.request("GET", hub.url / "home")
    await hub.start(alice, {})
    woken = await status(hub, "alice")

    assert '"state": "asleep"' in home.text
    assert re.search("/saved/[0-9a-f]{20}/[0-9a-f]+/picture", home.text)
    assert (woken["way"], woken["memory_mib"]) == ("woken", 256)


async def test_visiting_the_link_wakes_the_desktop(hub: hubs.Hub) -> None:
    """What the page's script does is done by hand."""
    alice = await hub.log_in("alice")
    await sleep_once(hub, alice, "second")

    page = await alice.request("GET", hub.url / "user/alice/second/")
    form = re.search(r'<form id="qs-wake" action="([^"]*)".*?name="_xsrf" value="([^"]*)"', page.text, re.S)
    assert form is not None
    await alice.request(
        "POST",
        hub.url.join(URL(form[1].replace("&amp;", "&"), encoded=True)),
        data={"_xsrf": form[2], "sleeping": "wake"},
        allow_redirects=False,
    )

    assert "requestSubmit(" in page.text
    assert (await status(hub, "alice", "second"))["way"] == "woken"


async def test_a_sleeping_desktop_can_be_started_from_its_disk(hub: hubs.Hub) -> None:
    alice = await hub.log_in("alice")
    await sleep_once(hub, alice)

    await hub.submit_form(alice, sleeping="boot", kept_lifetime="1800")
    booted = await status(hub, "alice")

    assert (booted["way"], booted["memory_mib"]) == ("cold", 256)
    assert "disk" in booted["why"]


async def test_discarding_starts_a_new_desktop(hub: hubs.Hub) -> None:
    alice = await hub.log_in("alice")
    await sleep_once(hub, alice)

    await hub.submit_form(alice, sleeping="discard", machine="mini", memory="128")
    fresh = await status(hub, "alice")

    assert (fresh["way"], fresh["memory_mib"]) == ("cold", 128)
    assert not kept(hub, "alice")


async def test_a_server_that_is_removed_keeps_nothing(hub: hubs.Hub) -> None:
    """Though the stop that comes first puts it to sleep."""
    alice = await hub.log_in("alice")
    await hub.start(alice, {}, server_name="second")
    await hub.wait_until_ready("alice", server_name="second")

    await hub._ask(alice, "DELETE", hub.url / "api/users/alice/servers/second", json={"remove": True})
    async with asyncio.timeout(60):
        while hub.session_folders():
            await asyncio.sleep(0.05)

    assert "second" not in hub.user("alice").orm_spawners


async def test_what_sleeps_is_deleted_from_the_home_page(hub: hubs.Hub) -> None:
    """With real owners and modes of the folders."""
    alice = await hub.log_in("alice")
    await sleep_once(hub, alice)

    session = re.search(r'"session": "([0-9a-f]+)"', (await alice.request("GET", hub.url / "home")).text)
    assert session is not None
    answer = await hub._ask(alice, "DELETE", hub.url / "api/users/alice/saved" / session[1])

    assert answer.status == 204
    assert hub.session_folders() == []


async def test_a_checkpoint_is_gone_back_to_and_branched_off(hub: hubs.Hub) -> None:
    alice = await hub.log_in("alice")
    await hub.start(alice, {"memory": "256 MiB"})
    url = await hub.wait_until_ready("alice")
    token = await hub.with_token("alice")
    made = await token.request("POST", url / "api/checkpoints", json={"title": "<b>Before</b>"})
    assert made.status == 200, made.text
    await stop(hub, alice)
    [checkpoint] = kept(hub, "alice").checkpoints

    home = await alice.request("GET", hub.url / "home")
    await hub.start(alice, {"branch": f"/{checkpoint.name}"}, server_name="second")
    branch = await status(hub, "alice", "second")
    await hub.start(alice, {"sleeping": checkpoint.name})
    back = await status(hub, "alice")

    assert r"\u003cb\u003eBefore\u003c/b\u003e" in home.text
    assert (branch["way"], branch["memory_mib"]) == ("woken", 256)
    assert (back["way"], back["memory_mib"]) == ("woken", 256)


async def test_the_hub_follows_a_real_session_by_its_news(hub: hubs.Hub) -> None:
    alice = await hub.log_in("alice")

    await hub.submit_form(alice, machine="mini")
    answer = await alice.request("GET", hub.url / "api/users/alice/server/progress")

    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1]["ready"] is True
    assert session_id("alice", "") in hub.session_folders()
