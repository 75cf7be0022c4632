"""Who started, steered and ended a desktop, in the audit log: real sessions of a real hub."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import hubs
import pytest
from audit_log import audit_lines

StartHub = Callable[..., Awaitable[hubs.Hub]]


@pytest.fixture
async def hub(start_hub: StartHub) -> hubs.Hub:
    return await start_hub()


async def start(hub: hubs.Hub, by: hubs.Person, owner: str = "alice") -> None:
    await hub.start(by, {"machine": "mini"}, owner=owner)
    await hub.wait_until_ready(owner)


async def ask(hub: hubs.Hub, person: hubs.Person, method: str, path: str, body: object) -> None:
    """A route of alice's session."""
    url = f"{hub.spawner('alice').server.url}api/{path}"
    answer = await person.request(method, url, json=body)
    assert answer.status == 200, answer.text


async def lines(state_dir: Path, event: str) -> list[dict[str, Any]]:
    """Those of an event, once there is one: a session's last is written after it has answered."""
    async with asyncio.timeout(20):
        while not (found := [line for line in audit_lines(state_dir) if line["event"] == event]):
            await asyncio.sleep(0.05)
    return found


async def test_who_started_a_desktop_is_who_asked_the_hub_for_it(
    start_hub: StartHub, state_dir: Path
) -> None:
    """Its owner, an administrator, or a service, which may have anybody's name."""
    services = [{"name": "bob", "api_token": "x" * 32}]
    roles = [{"name": "starter", "services": ["bob"], "scopes": ["admin:servers", "read:users"]}]
    hub = await start_hub(jupyterhub={"services": services, "load_roles": roles})
    hub.user("bob")
    hub.user("carol")
    await start(hub, await hub.with_token("alice"), "alice")
    await start(hub, await hub.with_token("root", admin=True), "bob")
    await start(hub, await hub.person("carol", token="x" * 32), "carol")

    started = {line["owner"]: line["by"] for line in await lines(state_dir, "started")}

    assert started == {"alice": "alice", "bob": "root", "carol": "service bob"}


async def test_a_start_from_the_form_is_by_who_pressed_the_button(hub: hubs.Hub, state_dir: Path) -> None:
    alice = await hub.log_in("alice")
    await hub.submit_form(alice, machine="mini")
    await hub.wait_until_ready("alice")

    assert [line["by"] for line in await lines(state_dir, "started")] == ["alice"]


async def test_who_switches_a_desktop_off_has_ended_it(hub: hubs.Hub, state_dir: Path) -> None:
    alice = await hub.with_token("alice")
    await start(hub, await hub.with_token("root", admin=True))
    await ask(hub, alice, "POST", "power", {"action": "reset"})
    await ask(hub, alice, "POST", "power", {"action": "poweroff"})

    (ended,) = await lines(state_dir, "ended")

    assert (ended["by"], ended["cause"], ended["why"]) == ("alice", "", "The desktop was switched off.")
    assert [(line["by"], line["action"]) for line in await lines(state_dir, "power")] == [
        ("alice", "reset"),
        ("alice", "poweroff"),
    ]


async def test_a_stop_by_the_hub_is_not_the_owners(hub: hubs.Hub, state_dir: Path) -> None:
    """The session does not know who asked the hub; the hub's own log does."""
    admin = await hub.with_token("root", admin=True)
    await start(hub, await hub.with_token("alice"))
    await hub.stop(admin, owner="alice")

    (ended,) = await lines(state_dir, "ended")

    assert (ended["by"], ended["cause"], ended["why"]) == ("", "stop", "The desktop was stopped.")


async def test_who_puts_a_desktop_to_sleep_has_done_so(hub: hubs.Hub, state_dir: Path) -> None:
    alice = await hub.with_token("alice")
    await start(hub, alice)
    await ask(hub, alice, "POST", "suspend", {})

    (suspended,) = await lines(state_dir, "suspended")

    assert (suspended["by"], suspended["cause"]) == ("alice", "")


async def test_what_is_done_with_checkpoints_is_told_with_who_did_it(hub: hubs.Hub, state_dir: Path) -> None:
    alice = await hub.with_token("alice")
    await start(hub, alice)
    await ask(hub, alice, "POST", "checkpoints", {"title": "Before"})
    (saved,) = await lines(state_dir, "checkpoint-saved")
    await ask(hub, alice, "POST", f"checkpoints/{saved['checkpoint']}", {})
    await ask(hub, alice, "DELETE", f"checkpoints/{saved['checkpoint']}", {})

    (back,) = await lines(state_dir, "checkpoint-gone-back-to")
    (deleted,) = await lines(state_dir, "checkpoint-deleted")

    assert saved["title"] == "Before"
    assert {line["checkpoint"] for line in (back, deleted)} == {saved["checkpoint"]}
    assert {line["by"] for line in (saved, back, deleted)} == {"alice"}
