"""The hub's REST API for its staff: all desktops, a word to who is at them, hosts that are drained."""

import asyncio
import json
import platform
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import hubs
import pytest
from audit_log import audit_lines

StartHub = Callable[..., Awaitable[hubs.Hub]]
HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m"

# Where nobody but staff gets anything.
ROUTES = [
    ("GET", "desktops"),
    ("GET", "desktops/hosts"),
    ("POST", "desktops/hosts/here/drain"),
    ("DELETE", "desktops/hosts/here/drain"),
    ("POST", "users/alice/desktops//message"),
]


@pytest.fixture
async def hub(start_hub: StartHub) -> hubs.Hub:
    """A hub whose sessions are real ones."""
    return await start_hub()


async def ask(
    hub: hubs.Hub, person: hubs.Person, method: str, path: str, body: Any = None
) -> tuple[int, Any]:
    answer = await person.request(method, hub.url / "api" / path, json=body)
    return answer.status, json.loads(answer.text or "null")


async def start(hub: hubs.Hub, name: str, *, server_name: str = "") -> hubs.Person:
    person = await hub.with_token(name)
    answer = await hub.start(person, {"machine": "mini"}, server_name=server_name)
    assert answer.status in (201, 202), answer.text
    await hub.wait_until_ready(name, server_name=server_name)
    return person


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_nobody_but_staff_gets_anything(hub: hubs.Hub, method: str, path: str) -> None:
    await start(hub, "alice")
    alice, bob = await hub.with_token("alice"), await hub.with_token("bob")

    answers = [await ask(hub, person, method, path, {"text": "x", "reason": "x"}) for person in (alice, bob)]

    assert all(status in (403, 404) for status, _ in answers)
    assert all(set(answer) == {"status", "message"} for _, answer in answers)


async def test_staff_see_everybodys_desktops(hub: hubs.Hub) -> None:
    await start(hub, "alice", server_name="desk")
    await start(hub, "bob")
    admin = await hub.with_token("root", admin=True)

    status, answer = await ask(hub, admin, "GET", "desktops")

    assert status == 200
    rows = {row["user"]: row for row in answer["desktops"]}
    assert rows.keys() == {"alice", "bob"}
    row = rows["alice"]
    assert (row["server"], row["machine"], row["state"]) == ("desk", "Mini", "running")
    assert (row["cpus"], row["memory_mib"], row["node"]) == (1, 128, platform.node())
    assert 3500 < row["left_s"] <= 3600
    assert 0 <= row["age_s"] < 60
    assert (row["viewers"], row["answers"], row["sleeps"]) == (0, True, False)


async def test_who_starts_between_two_looks_is_asked_as_well(hub: hubs.Hub) -> None:
    """What sessions said is good for some seconds; that is not for who could not say anything yet."""
    await start(hub, "alice")
    admin = await hub.with_token("root", admin=True)
    await ask(hub, admin, "GET", "desktops")
    await start(hub, "bob")

    _, answer = await ask(hub, admin, "GET", "desktops")

    assert [(row["user"], row["answers"]) for row in answer["desktops"]] == [("alice", True), ("bob", True)]


async def test_staff_of_a_group_see_the_desktops_of_that_group_only(start_hub: StartHub) -> None:
    role = {"name": "lab", "groups": ["heads"], "scopes": ["admin:servers!group=lab"]}
    settings = {"load_groups": {"lab": {}, "heads": {}}, "load_roles": [role]}
    hub = await start_hub(jupyterhub=settings)
    hub.user("alice", groups=("lab",))
    hub.user("carol", groups=("heads",))
    await start(hub, "alice")
    await start(hub, "bob")
    carol = await hub.with_token("carol")

    _, answer = await ask(hub, carol, "GET", "desktops")

    assert [row["user"] for row in answer["desktops"]] == ["alice"]
    assert (await ask(hub, carol, "GET", "desktops/hosts"))[0] == 403
    assert (await ask(hub, carol, "POST", "users/bob/desktops//message", {"text": "x"}))[0] == 404


async def test_a_message_reaches_the_session_in_the_name_of_who_sent_it(
    hub: hubs.Hub, state_dir: Path
) -> None:
    """The administrator learns nothing of a desktop whose owner has not let them in."""
    alice = await start(hub, "alice")
    admin = await hub.with_token("root", admin=True)

    status, answer = await ask(hub, admin, "POST", "users/alice/desktops//message", {"text": HOSTILE})

    assert status == 200
    assert answer.keys() == {"state", "you"}
    read = await alice.request("GET", f"{hub.spawner('alice').server.url}api/status")
    message = json.loads(read.text)["staff_message"]
    assert (message["by"], message["text"]) == ("root", "<img src=x onerror=alert(1)> [31m")
    assert [line["by"] for line in audit_lines(state_dir) if line["event"] == "message"] == ["root"]


@pytest.mark.parametrize("text", ["", "   ", "x" * 1001, 5, None])
async def test_a_message_that_is_none_is_refused(hub: hubs.Hub, text: Any) -> None:
    await start(hub, "alice")
    admin = await hub.with_token("root", admin=True)

    status, answer = await ask(hub, admin, "POST", "users/alice/desktops//message", {"text": text})

    assert status == 400
    assert answer["message"].startswith("'text'")


# Hosts


async def test_nothing_new_starts_on_a_drained_host_and_what_runs_goes_on(hub: hubs.Hub) -> None:
    await start(hub, "alice")
    admin, bob = await hub.with_token("root", admin=True), await hub.with_token("bob")
    drain = f"desktops/hosts/{platform.node()}/drain"

    assert (await ask(hub, admin, "POST", drain, {"reason": "A disk is <changed>."}))[0] == 204

    refused = await hub.start(bob, {"machine": "mini"})
    assert refused.status == 503
    assert json.loads(refused.text)["message"] == (
        f"No new desktops start on the host '{platform.node()}' at the moment: A disk is <changed>. "
        "Those that run go on. Try again later, or ask the administrators."
    )
    assert hub.spawner("alice").ready
    _, answer = await ask(hub, admin, "GET", "desktops/hosts")
    (host,) = answer["hosts"]
    assert (host["name"], host["desktops"], host["cpus"], host["memory_mib"]) == (platform.node(), 1, 1, 128)
    assert (host["drain"]["by"], host["drain"]["reason"]) == ("root", "A disk is <changed>.")

    assert (await ask(hub, admin, "DELETE", drain))[0] == 204
    assert (await hub.start(bob, {"machine": "mini"})).status in (201, 202)
    assert (await ask(hub, admin, "DELETE", drain))[0] == 404


@pytest.mark.parametrize("body", [{}, {"reason": ""}, {"reason": "x" * 201}, {"reason": 5}, []])
async def test_a_drain_needs_a_reason(hub: hubs.Hub, body: Any) -> None:
    admin = await hub.with_token("root", admin=True)

    status, answer = await ask(hub, admin, "POST", "desktops/hosts/here/drain", body)

    assert status == 400
    assert answer["message"] == "'reason' must be a text of 1 to 200 characters."


async def test_an_announcement_reaches_the_desktops_that_run(hub: hubs.Hub) -> None:
    """As a message; one of later does not."""
    alice = await start(hub, "alice")
    admin = await hub.with_token("root", admin=True)

    await ask(hub, admin, "POST", "announcements", {"text": "The host is serviced.", "begins_in": 3600})
    await ask(hub, admin, "POST", "announcements", {"text": "The host is serviced now."})

    url = f"{hub.spawner('alice').server.url}api/status"
    async with asyncio.timeout(30):
        while not (message := json.loads((await alice.request("GET", url)).text)["staff_message"]):
            await asyncio.sleep(0.05)
    assert (message["by"], message["text"], message["number"]) == ("root", "The host is serviced now.", 1)
