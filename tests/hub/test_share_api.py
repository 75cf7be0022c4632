"""What the hub's REST API tells and takes of shares, and who may ask it; sessions are real ones."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import hubs
import pytest
from jupyterhub import orm
from jupyterhub.utils import utcnow
from yarl import URL

from qemuspawner import scopes

SERVICE_TOKEN = "0123456789abcdef"
SETTINGS = {
    "custom_scopes": scopes.CUSTOM_SCOPES,
    "extra_user_scopes": set(scopes.USER_SCOPES),
    "services": [{"name": "robot", "api_token": SERVICE_TOKEN}],
    "load_roles": [{"name": "robot", "services": ["robot"], "scopes": ["shares", "read:users"]}],
}


@pytest.fixture
async def hub(start_hub: Callable[..., Awaitable[hubs.Hub]]) -> hubs.Hub:
    """A hub that is configured as the example is, with a service that may see and change all shares."""
    return await start_hub(jupyterhub=SETTINGS)


def api(hub: hubs.Hub, path: str) -> URL:
    """The empty name of a default server ends in a slash."""
    return URL(f"{hub.url}api/{path}", encoded=True)


async def ask(hub: hubs.Hub, person: hubs.Person, method: str, path: str, body: object = None) -> Any:
    """Status and JSON of an answer of the REST API, asked as the hub's own pages do or with a token."""
    answer = await hub._ask(person, method, api(hub, path), json=body)
    return answer.status, json.loads(answer.text)


async def share(hub: hubs.Hub, owner: hubs.Person, user: str, server: str = "") -> None:
    hub.user(user)
    hub.spawner(owner.name, server)
    body = {"user": user, "scopes": [f"access:servers!server={owner.name}/{server}"]}
    status, answer = await ask(hub, owner, "POST", f"shares/{owner.name}/{server}", body)
    assert status == 200, answer


async def wait_for_request(hub: hubs.Hub, owner: hubs.Person, name: str) -> dict[str, Any]:
    async with asyncio.timeout(10):
        while True:
            status, told = await ask(hub, owner, "GET", f"users/{owner.name}/desktop-people/")
            assert status == 200, told
            for request in told["requests"]:
                if request["name"] == name:
                    return dict(request)
            await asyncio.sleep(0.05)


# Until when


async def test_a_share_ends_when_its_owner_says(hub: hubs.Hub) -> None:
    alice = await hub.log_in("alice")
    await share(hub, alice, "bob")

    path = "users/alice/desktop-shares/"
    status, model = await ask(hub, alice, "POST", path, {"user": "bob", "expires_in": 3600})
    _, told = await ask(hub, alice, "GET", path)
    _, forever = await ask(hub, alice, "POST", path, {"user": "bob", "expires_in": 0})

    assert status == 200
    assert 3590 < model["expires"] - time.time() <= 3600
    assert told["shares"] == [model]
    assert forever["expires"] == 0


async def test_what_has_expired_is_gone_for_everybody(hub: hubs.Hub) -> None:
    alice, bob = await hub.log_in("alice"), await hub.log_in("bob")
    await share(hub, alice, "bob")
    [row] = hub.app.db.query(orm.Share)
    row.expires_at = utcnow(with_tz=False) - timedelta(seconds=1)
    hub.app.db.commit()

    _, told = await ask(hub, alice, "GET", "users/alice/desktop-shares/")

    assert told == {"shares": []}
    assert hub.app.db.query(orm.Share).count() == 0
    assert (await ask(hub, bob, "GET", "users/bob/shared"))[1]["items"] == []


async def test_an_end_that_makes_no_sense_is_refused(hub: hubs.Hub) -> None:
    alice = await hub.log_in("alice")
    await share(hub, alice, "bob")
    bodies: list[Any] = [{"expires_in": 60}, {"user": ["bob"], "expires_in": 60}, []]
    bodies += [{"user": "bob", "expires_in": term} for term in (True, "3600", 59, -1, 10**12, 1.5, None)]

    for body in bodies:
        status, answer = await ask(hub, alice, "POST", "users/alice/desktop-shares/", body)
        assert (status, bool(answer["message"])) == (400, True), body


async def test_the_shares_of_a_server_go_with_it(hub: hubs.Hub) -> None:
    alice = await hub.log_in("alice")
    await hub.start(alice, {}, server_name="desk")
    await hub.wait_until_ready("alice", server_name="desk")
    await share(hub, alice, "bob", "desk")
    kept = [hub.app.db.query(orm.Share).count()]

    await hub.stop(alice, server_name="desk")
    await hub.wait_until_stopped("alice", server_name="desk")
    kept.append(hub.app.db.query(orm.Share).count())
    await hub._ask(alice, "DELETE", hub.url / "api/users/alice/servers/desk", json={"remove": True})
    kept.append(hub.app.db.query(orm.Share).count())

    assert kept == [1, 1, 0]


async def test_other_people_neither_see_nor_change_shares(hub: hubs.Hub) -> None:
    """Not even those with whom it is shared."""
    alice, bob = await hub.log_in("alice"), await hub.log_in("bob")
    await share(hub, alice, "bob")

    path = "users/alice/desktop-shares/"
    seen, _ = await ask(hub, bob, "GET", path)
    changed, _ = await ask(hub, bob, "POST", path, {"user": "bob", "expires_in": 0})

    assert {seen, changed} <= {403, 404}


# Asking for access


async def test_asking_tells_nobody_whether_there_is_such_a_desktop(hub: hubs.Hub) -> None:
    alice, dave = await hub.log_in("alice"), await hub.log_in("dave")
    await hub.start(alice, {})
    await hub.wait_until_ready("alice")

    answers = [
        await ask(hub, dave, "POST", f"users/{path}", {"reason": "Please"})
        for path in (
            "alice/access-requests/",
            "alice/access-requests/missing",
            "nobody/access-requests/",
            "..%2Falice/access-requests/%3Cb%3E",
        )
    ]

    assert [status for status, _ in answers] == [202] * 4
    assert len({json.dumps(answer) for _, answer in answers}) == 1
    assert (await wait_for_request(hub, alice, "dave"))["reason"] == "Please"


async def test_only_people_at_the_hubs_own_pages_can_ask(hub: hubs.Hub) -> None:
    """Another site's page has no XSRF token, and a program's token is for that program."""
    dave, token = await hub.log_in("dave"), await hub.with_token("dave")
    url = api(hub, "users/alice/access-requests/")

    forged = await dave.request("POST", url, json={}, headers={"Sec-Fetch-Mode": "cors"})
    by_token = await ask(hub, token, "POST", "users/alice/access-requests/", {})
    anonymous = await (await hub.person("erin")).request("POST", url, json={})

    assert (forged.status, by_token[0], anonymous.status) == (403, 403, 403)


async def test_a_reason_that_is_none_is_refused(hub: hubs.Hub) -> None:
    dave = await hub.log_in("dave")
    bodies: list[Any] = [{"reason": "x" * 201}, {"reason": 7}, {"reason": None}, ["reason"]]

    for body in bodies:
        assert (await ask(hub, dave, "POST", "users/alice/access-requests/", body))[0] == 400, body


# Who asks, for the owner


async def test_the_owner_lets_in_who_asks_from_the_hub(hub: hubs.Hub) -> None:
    """Carol, as nobody else here: the same person may not ask again at once."""
    alice, carol = await hub.log_in("alice"), await hub.log_in("carol")
    await hub.start(alice, {})
    await hub.wait_until_ready("alice")
    await ask(hub, carol, "POST", "users/alice/access-requests/", {})
    await wait_for_request(hub, alice, "carol")

    status, told = await ask(
        hub, alice, "POST", "users/alice/desktop-people/", {"name": "carol", "grant": "control"}
    )

    assert (status, told) == (200, {"running": True, "people": [], "requests": []})
    [mine] = (await ask(hub, carol, "GET", "users/carol/shared"))[1]["items"]
    assert f"{scopes.CONTROL}!server=alice/" in mine["scopes"]


async def test_what_the_session_refuses_is_said_in_its_words(hub: hubs.Hub) -> None:
    alice = await hub.log_in("alice")
    await hub.start(alice, {})
    await hub.wait_until_ready("alice")
    path = "users/alice/desktop-people/"

    nobody = await ask(hub, alice, "POST", path, {"name": "nobody", "grant": None})
    wrong = await ask(hub, alice, "POST", path, {"name": "nobody", "grant": "owner"})
    owner = await ask(hub, alice, "POST", path, {"drop": "alice"})

    assert (nobody[0], nobody[1]["message"]) == (409, "'nobody' does not ask for anything.")
    assert (wrong[0], wrong[1]["message"]) == (400, "'grant' must be 'view' or 'control'.")
    assert (owner[0], owner[1]["message"]) == (409, "The owner cannot be sent away.")


async def test_nobody_but_the_owner_answers(hub: hubs.Hub) -> None:
    """Administrators and services could let themselves in, where the site has them ask."""
    alice, bob = await hub.log_in("alice"), await hub.log_in("bob")
    admin = await hub.log_in("admin", admin=True)
    robot = await hub.person("robot", token=SERVICE_TOKEN)
    await hub.start(alice, {})
    await hub.wait_until_ready("alice")

    for person in (bob, admin, robot):
        for method, body in (("GET", None), ("POST", {"name": "admin", "grant": "control"})):
            status, _ = await ask(hub, person, method, "users/alice/desktop-people/", body)
            assert status in (403, 404), person.name


async def test_at_a_desktop_that_does_not_run_there_is_nobody(hub: hubs.Hub) -> None:
    alice = await hub.log_in("alice")
    path = "users/alice/desktop-people/"

    assert await ask(hub, alice, "GET", path) == (200, {"running": False, "people": [], "requests": []})
    assert (await ask(hub, alice, "POST", path, {"drop": "bob"}))[0] == 409
    assert (await ask(hub, alice, "GET", path + "missing"))[0] == 404
