"""Desktops that run, on the hub's pages and by its API: real sessions, asked by a real hub."""

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import hubs
import pytest
from audit_log import audit_lines
from jupyterhub import orm

from qemuspawner.hub.sessions import running
from qemuspawner.hub.sessions.running import describe_running

StartHub = Callable[..., Awaitable[hubs.Hub]]
HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m"


@pytest.fixture
async def hub(start_hub: StartHub) -> hubs.Hub:
    return await start_hub()


async def ask(
    hub: hubs.Hub, person: hubs.Person, method: str, path: str, body: Any = None
) -> tuple[int, Any]:
    answer = await person.request(method, hub.url / "api" / path, json=body)
    return answer.status, json.loads(answer.text)


async def start(hub: hubs.Hub, name: str = "alice") -> hubs.Person:
    person = await hub.with_token(name)
    await hub.start(person, {"machine": "mini"})
    await hub.wait_until_ready(name)
    return person


async def status_of(hub: hubs.Hub, owner: hubs.Person) -> dict[str, Any]:
    answer = await owner.request("GET", f"{hub.spawner(owner.name).server.url}api/status")
    return dict(json.loads(answer.text))


def audit(state_dir: Path) -> list[dict[str, Any]]:
    return [line for line in audit_lines(state_dir) if line["event"].startswith("ext")]


async def test_running_desktops_are_listed_with_the_time_that_is_left(hub: hubs.Hub) -> None:
    alice = await start(hub)

    status, answer = await ask(hub, alice, "GET", "users/alice/desktops")

    assert status == 200
    assert answer["silent"] == 0
    (desktop,) = answer["desktops"]
    assert (desktop["user"], desktop["server"], desktop["machine"]) == ("alice", "", "Mini")
    assert 3500 < desktop["left_s"] <= 3600
    assert desktop["gain_s"] == 3600
    assert desktop["extension"] is None


async def test_a_session_that_does_not_answer_holds_no_page_up(hub: hubs.Hub) -> None:
    alice = await start(hub)
    pid = hub.spawner("alice").pid
    assert pid > 0, "0 would be this process and its whole group"
    os.kill(pid, signal.SIGSTOP)
    try:
        status, answer = await ask(hub, alice, "GET", "users/alice/desktops")
    finally:
        os.kill(pid, signal.SIGCONT)

    assert (status, answer) == (200, {"desktops": [], "silent": 1})


async def test_a_desktop_that_is_removed_while_others_are_asked_harms_no_page(
    hub: hubs.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_AT_A_TIME", 1)
    alice = await start(hub)
    await hub.start(alice, {"machine": "mini"}, server_name="second")
    await hub.wait_until_ready("alice", server_name="second")
    first, second = hub.spawner("alice"), hub.user("alice").spawners["second"]
    os.kill(first.pid, signal.SIGSTOP)
    try:
        asking = asyncio.create_task(describe_running([first, second]))
        await asyncio.sleep(0)
        answer = await hub.ask(alice, "DELETE", "users/alice/servers/second", json={"remove": True})
        told = await asking
    finally:
        os.kill(first.pid, signal.SIGCONT)

    assert answer.status in (202, 204)
    assert told == {"desktops": [], "silent": 2}


async def test_the_hubs_page_extends_a_desktop(hub: hubs.Hub, state_dir: Path) -> None:
    alice = await start(hub)

    status, answer = await ask(hub, alice, "POST", "users/alice/desktops//extend", {})

    assert status == 200
    assert answer["deadline"] == pytest.approx(answer["started"] + 7200, abs=1)
    (line,) = audit(state_dir)
    assert (line["event"], line["by"], line["owner"]) == ("extended", "alice", "alice")


async def test_others_neither_see_nor_extend_it(hub: hubs.Hub) -> None:
    await start(hub)
    bob = await hub.with_token("bob")

    for method, path in (("GET", "desktops"), ("POST", "desktops//extend"), ("POST", "desktops//extension")):
        assert (await ask(hub, bob, method, f"users/alice/{path}", {}))[0] in (403, 404)
    assert (await ask(hub, bob, "GET", "desktops/asking"))[0] == 403


async def test_more_than_the_longest_lifetime_is_asked_for_and_granted_by_an_administrator(
    hub: hubs.Hub, state_dir: Path
) -> None:
    alice, admin = await start(hub), await hub.with_token("root", admin=True)
    await ask(hub, alice, "POST", "users/alice/desktops//extend", {})
    assert (await ask(hub, admin, "GET", "desktops/asking"))[1]["desktops"] == []

    status, answer = await ask(hub, alice, "POST", "users/alice/desktops//extend", {})
    assert (status, answer["message"]) == (409, "The session has reached its longest lifetime of 2 h.")
    asked = {"reason": HOSTILE, "seconds": 1800}
    status, answer = await ask(hub, alice, "POST", "users/alice/desktops//extend", asked)
    assert status == 202
    deadline = answer["deadline"]

    _, asking = await ask(hub, admin, "GET", "desktops/asking")
    (desktop,) = asking["desktops"]
    assert desktop["extension"]["by"] == "alice"
    assert desktop["extension"]["reason"] == "<img src=x onerror=alert(1)> [31m"
    assert desktop["extension"]["seconds"] == 1800

    grant = {"grant": 1800, "comment": "Once."}
    # The administrator learns no more of a desktop that its owner has not let them into.
    _, answer = await ask(hub, admin, "POST", "users/alice/desktops//extension", grant)
    assert answer.keys() == {"state", "you"}
    after = await status_of(hub, alice)
    assert after["deadline"] == pytest.approx(deadline + 1800, abs=1)
    assert after["extension"]["answered_by"] == "root"
    assert (await ask(hub, admin, "GET", "desktops/asking"))[1]["desktops"] == []
    assert [(line["event"], line["by"]) for line in audit(state_dir)] == [
        ("extended", "alice"),
        ("extension-asked", "alice"),
        ("extension-granted", "root"),
    ]

    # Only once, and no token of all that is left.
    assert (await ask(hub, admin, "POST", "users/alice/desktops//extension", grant))[0] == 409
    assert not hub.app.db.query(orm.APIToken).filter(orm.APIToken.note.startswith("The hub itself")).count()


async def test_a_hub_that_was_restarted_still_reaches_its_desktops(hub: hubs.Hub) -> None:
    """It has forgotten the servers' tokens."""
    alice = await start(hub)
    hub.spawner("alice").api_token = ""

    _, listed = await ask(hub, alice, "GET", "users/alice/desktops")
    status, _ = await ask(hub, alice, "POST", "users/alice/desktops//extend", {})

    assert len(listed["desktops"]) == 1
    assert status == 200


async def test_a_request_can_be_refused(hub: hubs.Hub, state_dir: Path) -> None:
    alice, admin = await start(hub), await hub.with_token("root", admin=True)
    await ask(hub, alice, "POST", "users/alice/desktops//extend", {})
    _, before = await ask(hub, alice, "POST", "users/alice/desktops//extend", {"reason": "more"})

    refusal = {"grant": False, "comment": "No."}
    await ask(hub, admin, "POST", "users/alice/desktops//extension", refusal)

    after = await status_of(hub, alice)
    assert after["deadline"] == pytest.approx(before["deadline"], abs=1)
    assert after["extension"]["answer"] == "refused"
    assert audit(state_dir)[-1]["event"] == "extension-refused"


async def test_owners_cannot_answer_themselves(hub: hubs.Hub) -> None:
    """Neither by the hub nor at the session."""
    alice = await start(hub)
    await ask(hub, alice, "POST", "users/alice/desktops//extend", {})
    await ask(hub, alice, "POST", "users/alice/desktops//extend", {"reason": "more"})
    grant = {"grant": 1800}

    status, _ = await ask(hub, alice, "POST", "users/alice/desktops//extension", grant)
    assert status == 403
    answer = await alice.request("POST", f"{hub.spawner('alice').server.url}api/extension", json=grant)
    assert answer.status == 403


@pytest.mark.parametrize(
    "body", [{"grant": True}, {"grant": 59}, {"grant": 10**9}, {}, {"grant": 60, "comment": "x" * 301}]
)
async def test_an_answer_that_is_not_understood_is_refused(hub: hubs.Hub, body: dict[str, Any]) -> None:
    await start(hub)
    admin = await hub.with_token("root", admin=True)

    status, answer = await ask(hub, admin, "POST", "users/alice/desktops//extension", body)

    assert status == 400
    assert answer["message"].startswith("'")


async def test_the_home_page_asks_for_the_desktops_itself(hub: hubs.Hub) -> None:
    """No page waits for a session; administrators also see who asks for more time."""
    alice, admin = await hub.log_in("alice"), await hub.log_in("root", admin=True)

    mine = (await alice.request("GET", hub.url / "home")).text
    theirs = (await admin.request("GET", hub.url / "home")).text

    assert 'id="qs-cards"' in mine
    assert 'id="qs-asking"' not in mine
    assert 'id="qs-asking"' in theirs


# When it was used last


async def test_the_proxys_word_on_activity_does_not_count(hub: hubs.Hub) -> None:
    """It takes an open tab for a person; a service's route keeps what the proxy saw."""
    await start(hub)
    before = hub.spawner("alice").orm_spawner.last_activity
    user_before = hub.user("alice").orm_user.last_activity
    routes = hub.app.proxy.routes
    (mine,) = (route for route in routes.values() if "server_name" in route["data"])
    mine["data"]["last_activity"] = "2099-01-01T00:00:00.000Z"
    routes["/services/x/"] = {
        "routespec": "/services/x/",
        "target": "http://127.0.0.1:1",
        "data": {"service": "x", "last_activity": "2099-01-01T00:00:00.000Z"},
    }

    shown = await hub.app.proxy.get_all_routes()
    await hub.app.update_last_activity()

    assert shown["/services/x/"]["data"]["last_activity"].startswith("2099")
    assert hub.spawner("alice").orm_spawner.last_activity == before
    assert hub.user("alice").orm_user.last_activity == user_before
