"""Sharing through the whole product: the hub's shares say what a person can do at the desktop."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import hubs
import live
import pytest
import pytest_asyncio
from guests import GREEN, RED
from rfb_client import RfbClient
from yarl import URL

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = 0x61


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desktop(hub: live.LiveHub) -> URL:
    for user in ("bob", "carol", "dave"):
        await hub.ask("POST", f"users/{user}")
    return await hub.start_server("alice", "desk", machine="painter")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alice(hub: live.LiveHub, desktop: URL) -> AsyncIterator[hubs.Person]:
    async with hub.person("alice", token=await hub.new_token("alice")) as person:
        # Its screen has another size before it paints.
        async with RfbClient(person, desktop) as first:
            await colour(first)
        yield person


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bob(hub: live.LiveHub, desktop: URL) -> AsyncIterator[hubs.Person]:
    async with hub.person("bob", token=await hub.new_token("bob")) as person:
        yield person


async def ask(person: hubs.Person, method: str, url: URL, body: object = None) -> Any:
    answer = await person.request(method, url, json=body)
    assert answer.status == 200, answer.text
    return json.loads(answer.text)


async def share(alice: hubs.Person, desktop: URL, role: str, **whom: str) -> None:
    await ask(alice, "POST", desktop / "api/shares", {"role": role, **whom})


async def unshare(alice: hubs.Person, desktop: URL, **whom: str) -> None:
    await ask(alice, "DELETE", desktop / "api/shares", whom)


async def colour(client: RfbClient) -> tuple[int, int, int]:
    """What the guest paints, once it does."""
    async with asyncio.timeout(20):
        while (seen := await client.pixel(10, 10)) not in (GREEN, RED):
            await asyncio.sleep(0.05)
    return seen


async def wait_for_colour(client: RfbClient, wanted: tuple[int, int, int]) -> None:
    async with asyncio.timeout(20):
        while await colour(client) != wanted:
            await asyncio.sleep(0.05)


def other(seen: tuple[int, int, int]) -> tuple[int, int, int]:
    return RED if seen == GREEN else GREEN


async def test_a_viewers_raw_messages_have_no_effect(
    alice: hubs.Person, bob: hubs.Person, desktop: URL
) -> None:
    """Key, pointer, clipboard, size: sent without any page, and dropped on the way."""
    await share(alice, desktop, "view", user="bob")
    async with RfbClient(alice, desktop) as owner, RfbClient(bob, desktop) as viewer:
        before, size = await colour(owner), owner.size
        await viewer.press(KEY)
        extended = struct.pack(">BBHII", 255, 0, 1, KEY, 0x1E) + struct.pack(">BBHII", 255, 0, 0, KEY, 0x1E)
        await viewer.websocket.send_bytes(extended)
        await viewer.websocket.send_bytes(struct.pack(">BBHH", 5, 1, 5, 5))
        await viewer.websocket.send_bytes(struct.pack(">BxxxI", 6, 4) + b"text")
        await viewer.websocket.send_bytes(
            struct.pack(">BxHHBx", 251, 640, 480, 1) + struct.pack(">IHHHHI", 0, 0, 0, 640, 480, 0)
        )
        # What it may send is answered, so all before has been read.
        assert await colour(viewer) == before

        await owner.press(KEY)
        await wait_for_colour(owner, other(before))
        assert (await colour(viewer), viewer.size) == (other(before), size)


async def test_control_comes_and_goes_at_the_open_window(
    alice: hubs.Person, bob: hubs.Person, desktop: URL
) -> None:
    """The same socket first only looks on, then drives, then only looks on again."""
    await share(alice, desktop, "view", user="bob")
    async with RfbClient(alice, desktop) as owner, RfbClient(bob, desktop) as guest:
        before = await colour(owner)

        await share(alice, desktop, "control", user="bob")
        async with asyncio.timeout(20):
            while await colour(guest) == before:
                await guest.press(KEY)
                await asyncio.sleep(0.2)
        await wait_until(lambda: role_of(bob, desktop), "control")

        await share(alice, desktop, "view", user="bob")
        await wait_until(lambda: drives(alice, desktop, "bob"), False)
        now = await colour(owner)
        await guest.press(KEY)
        assert await colour(guest) == now
        await owner.press(KEY)
        await wait_for_colour(owner, other(now))


async def role_of(person: hubs.Person, desktop: URL) -> str:
    return str((await ask(person, "GET", desktop / "api/status"))["you"]["role"])


async def drives(person: hubs.Person, desktop: URL, name: str) -> bool:
    people = (await ask(person, "GET", desktop / "api/people"))["people"]
    return bool(next(one["drives"] for one in people if one["name"] == name))


async def wait_until(look: Any, wanted: object) -> None:
    async with asyncio.timeout(20):
        while await look() != wanted:
            await asyncio.sleep(0.1)


def events(person: hubs.Person, desktop: URL) -> Any:
    headers = {"Authorization": f"token {person.token}"}
    return person.http.ws_connect(desktop / "events", protocols=("events",), headers=headers)


async def test_a_plain_share_of_the_hub_is_for_looking_on(
    hub: live.LiveHub, alice: hubs.Person, bob: hubs.Person, desktop: URL
) -> None:
    """Made by JupyterHub's own API, without a word of roles."""
    answer = await alice.request("POST", hub.url / "hub/api/shares/alice/desk", json={"user": "bob"})
    assert answer.status == 200, answer.text

    assert await role_of(bob, desktop) == "view"

    await unshare(alice, desktop, user="bob")


async def test_a_groups_members_come_in_with_the_browser(
    hub: live.LiveHub, alice: hubs.Person, desktop: URL
) -> None:
    """JupyterHub itself would refuse them: it reads shares with people only."""
    assert (await hub.ask("POST", "groups/team"))[0] == 201
    assert (await hub.ask("POST", "groups/team/users", json={"users": ["carol"]}))[0] == 200
    await share(alice, desktop, "control", group="team")

    async with hub.person("carol") as carol:
        assert (await hub.open_session(carol, desktop)).status == 200
        assert await role_of(carol, desktop) == "control"

        await unshare(alice, desktop, group="team")
        assert (await carol.request("GET", desktop / "api/status")).status == 403


async def test_a_link_is_accepted_by_who_opens_it(
    hub: live.LiveHub, alice: hubs.Person, desktop: URL
) -> None:
    """With the role that it was made for; it can be revoked."""
    made = await ask(alice, "POST", desktop / "api/share-codes", {"role": "control", "expires_in": 3600})
    link = hub.url.join(URL(made["path"], encoded=True))

    async with hub.person("dave") as dave:
        page = await dave.request("GET", link)
        assert page.status == 200, page.text
        accepted = await dave.request(
            "POST",
            hub.url / "hub/accept-share",
            data={"code": link.query["code"], "_xsrf": dave.xsrf(hub.url / "hub/")},
        )
        assert accepted.status == 200, accepted.text
        await hub.open_session(dave, desktop)
        assert await role_of(dave, desktop) == "control"
    shares = await ask(alice, "GET", desktop / "api/shares")
    assert [(one["name"], one["role"]) for one in shares["shares"]] == [("dave", "control")]
    assert [(code["role"], code["used"]) for code in shares["codes"]] == [("control", 1)]

    await ask(alice, "DELETE", desktop / "api/share-codes", {})
    async with hub.person("carol") as carol:
        assert (await carol.request("GET", link)).status == 404
    await unshare(alice, desktop, user="dave")


async def test_nobody_can_be_invited_who_is_not_there(alice: hubs.Person, desktop: URL) -> None:
    """With the hub's sentence."""
    answer = await alice.request("POST", desktop / "api/shares", json={"user": "eve", "role": "view"})

    assert answer.status == 409
    assert "No such user: eve" in answer.text


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"user": "bob"},
        {"user": "bob", "role": "owner"},
        {"user": "bob", "group": "team", "role": "view"},
        {"user": ["bob"], "role": "view"},
        {"user": "", "role": "view"},
        {"user": "x" * 300, "role": "view"},
        {"user": "alice", "role": "view"},
        {"user": "bob", "role": "view", "expires_in": 5},
        {"user": "bob", "role": "view", "expires_in": True},
        {"user": "bob", "role": "view", "expires_in": 10**12},
    ],
)
async def test_what_is_no_share_is_refused(alice: hubs.Person, desktop: URL, body: dict[str, Any]) -> None:
    answer = await alice.request("POST", desktop / "api/shares", json=body)

    assert (answer.status, '"message"' in answer.text) == (400, True)


async def test_an_administrator_sees_nothing_before_the_owner_consents(
    hub: live.LiveHub, alice: hubs.Person, desktop: URL
) -> None:
    """Then what was consented to, until they are sent away."""
    async with hub.person("admin", token=await hub.new_token("admin")) as admin:
        assert set(await ask(admin, "GET", desktop / "api/status")) == {"state", "you"}
        assert (await admin.request("GET", desktop / "api/screenshot")).status == 403
        async with events(admin, desktop) as told:
            request = {"wants": "view", "reason": "You wrote of a problem."}
            await ask(admin, "POST", desktop / "api/requests", request)
            (seen,) = (await ask(alice, "GET", desktop / "api/people"))["requests"]
            assert (seen["name"], seen["wants"], seen["reason"]) == ("admin", "view", request["reason"])

            await ask(alice, "POST", desktop / "api/answers", {"name": "admin", "grant": "view"})

            await wait_until(lambda: role_of(admin, desktop), "view")
            async with asyncio.timeout(20):
                while (await told.receive_json()).get("people", {}).get("you", {}).get("role") != "view":
                    pass
        async with RfbClient(admin, desktop) as looking:
            await ask(alice, "POST", desktop / "api/people", {"drop": "admin"})
            code, reason = await looking.wait_for_close()
            assert (code, reason) == (4403, "alice has closed your window of this desktop.")
        assert (await admin.request("GET", desktop / "api/screenshot")).status == 403


async def test_a_viewer_who_asks_is_given_control(alice: hubs.Person, bob: hubs.Person, desktop: URL) -> None:
    """As a share of the hub's, which lasts."""
    await share(alice, desktop, "view", user="bob")
    async with RfbClient(bob, desktop):
        await ask(bob, "POST", desktop / "api/requests", {"wants": "control"})

        await ask(alice, "POST", desktop / "api/answers", {"name": "bob", "grant": "control"})

        assert await role_of(bob, desktop) == "control"
    shares = (await ask(alice, "GET", desktop / "api/shares"))["shares"]
    assert [(one["name"], one["role"]) for one in shares] == [("bob", "control")]


async def test_only_who_drives_has_the_keyboard(alice: hubs.Person, bob: hubs.Person, desktop: URL) -> None:
    """Handed over, it is the other's."""
    await share(alice, desktop, "control", user="bob")
    async with RfbClient(alice, desktop) as owner, RfbClient(bob, desktop) as guest:
        await ask(alice, "POST", desktop / "api/driver", {"one": True})
        before = await colour(owner)
        await guest.press(KEY)
        assert await colour(guest) == before

        await ask(alice, "POST", desktop / "api/driver", {"to": "bob"})
        await owner.press(KEY)
        assert await colour(owner) == before
        await guest.press(KEY)

        await wait_for_colour(guest, other(before))
        await ask(alice, "POST", desktop / "api/driver", {"one": False})


async def test_pointers_are_told_to_the_others(alice: hubs.Person, bob: hubs.Person, desktop: URL) -> None:
    """By name, also a viewer's; nobody is told of their own."""
    await share(alice, desktop, "view", user="bob")
    async with events(alice, desktop) as hers, events(bob, desktop) as his:
        await asyncio.gather(hers.receive_json(), his.receive_json())
        await his.send_json({"pointer": [30, 40]})
        await hers.send_json({"pointer": [10, 20]})

        assert await next_of(hers, "pointers") == {"bob": [30, 40]}
        assert await next_of(his, "pointers") == {"alice": [10, 20]}


async def next_of(socket: aiohttp.ClientWebSocketResponse, key: str) -> Any:
    async with asyncio.timeout(20):
        while key not in (message := await socket.receive_json()):
            pass
    return message[key]


@pytest.mark.parametrize(
    "text",
    [
        '{"pointer": [1]}',
        '{"pointer": [-1, 5]}',
        '{"pointer": [1, 99999]}',
        "[",
        "{}",
        '{"status": 1}',
        "x" * 5000,
    ],
)
async def test_what_no_page_says_closes_the_events(alice: hubs.Person, desktop: URL, text: str) -> None:
    """And those alone."""
    async with events(alice, desktop) as socket:
        await socket.send_str(text)
        async with asyncio.timeout(20):
            while not socket.closed:
                await socket.receive()

        assert socket.close_code in (4400, 1009)
    assert (await alice.request("GET", desktop / "api/status")).status == 200


async def test_the_audit_log_has_what_happened(hub: live.LiveHub, alice: hubs.Person, desktop: URL) -> None:
    """For administrators, in a folder that only the sessions' account can read."""
    (folder,) = (hub.state / "sessions").glob(".audit-*")
    lines = [json.loads(line) for path in folder.iterdir() for line in path.read_text().splitlines()]

    assert {
        "started",
        "joined",
        "left",
        "drove",
        "shared",
        "unshared",
        "asked",
        "answered",
        "handed-over",
    } <= {line["event"] for line in lines}
    assert {line["owner"] for line in lines} == {"alice"}
    assert folder.stat().st_mode & 0o777 == 0o700
