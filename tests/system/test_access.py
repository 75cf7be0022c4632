"""The access matrix: every route of a session, for everybody who may come by.

A route without a row fails the test, so a new one is thought about.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import hubs
import live
import pytest
import pytest_asyncio
from yarl import URL

from qemuspawner.session.web.routes import ROUTES

pytestmark = pytest.mark.asyncio(loop_scope="module")

WHO = (
    "anonymous",
    "bob",
    "bob's token",
    "admin",  # who may come in by a role of the hub, and waits for the owner's consent
    "viewer",
    "controller",
    "alice's token",
    "alice",
)

# For each of WHO in that order. 302 is the way to the login. A request with "!" lacks the XSRF token.
OPEN = (200, 200, 200, 200, 200, 200, 200, 200)
KNOWN = (403, 403, 403, 200, 200, 200, 200, 200)
MEMBERS = (403, 403, 403, 403, 200, 200, 200, 200)
CONTROL = (403, 403, 403, 403, 403, 200, 200, 200)
OWNER = (403, 403, 403, 403, 403, 403, 200, 200)
NOT_SO = (405, 405, 405, 405, 405, 405, 405, 405)


def owner(status: int) -> tuple[int, ...]:
    """The owner is answered with this, everybody else is forbidden."""
    return (403, 403, 403, 403, 403, 403, status, status)


def controllers(status: int) -> tuple[int, ...]:
    """Who may control is answered with this."""
    return (403, 403, 403, 403, 403, status, status, status)


def forged(status: int) -> tuple[int, ...]:
    """A request without the XSRF token: only a token's counts."""
    return (403, 403, 403, 403, 403, 403, status, 403)


MATRIX: dict[tuple[str, str], tuple[int, ...]] = {
    ("GET", ""): (302, 302, 403, 200, 200, 200, 200, 200),
    ("POST", ""): (302, 302, 403, 405, 405, 405, 405, 405),
    # No websockets; see the tests of the websockets below.
    ("GET", "vnc"): (403, 403, 403, 403, 403, 403, 426, 403),
    ("GET", "sound"): (403, 403, 403, 403, 403, 403, 426, 403),
    ("GET", "events"): (403, 403, 403, 403, 403, 403, 400, 403),
    ("GET", "api"): OPEN,
    ("POST", "api"): NOT_SO,
    ("GET", "api/status"): KNOWN,
    ("GET", "api/screenshot"): MEMBERS,
    ("GET", "api/thumbnail"): MEMBERS,
    ("GET", "api/script"): owner(404),  # this machine has no agent to run one
    ("POST", "api/ticket"): KNOWN,
    ("POST!", "api/ticket"): forged(200),
    ("POST", "api/extend"): CONTROL,
    ("POST!", "api/extend"): forged(200),
    # Staff may answer who asked for more time, also where they only wait to be let in; here nobody did.
    ("POST", "api/extension"): (403, 403, 403, 409, 403, 403, 403, 403),
    ("POST!", "api/extension"): forged(403),
    # Neither does staff have to be let in to say something; here without a text.
    ("POST", "api/message"): (403, 403, 403, 400, 403, 403, 403, 403),
    ("POST!", "api/message"): forged(403),
    ("POST", "api/about"): OWNER,
    ("POST!", "api/about"): forged(200),
    ("POST", "api/keyboard"): (403, 403, 403, 403, 403, 409, 409, 409),  # this machine has no agent to set it
    ("POST!", "api/keyboard"): forged(409),
    ("POST", "api/power"): OWNER,
    ("POST!", "api/power"): forged(200),
    ("POST", "api/trouble"): controllers(409),  # nothing is wrong
    ("POST!", "api/trouble"): forged(409),
    ("GET", "api/checkpoints"): OWNER,
    ("POST", "api/checkpoints"): owner(503),  # this machine cannot be saved
    ("POST!", "api/checkpoints"): forged(503),
    ("GET", "api/checkpoints/([0-9a-f]+)"): owner(409),
    ("POST", "api/checkpoints/([0-9a-f]+)"): owner(503),
    ("DELETE", "api/checkpoints/([0-9a-f]+)"): owner(409),
    ("DELETE!", "api/checkpoints/([0-9a-f]+)"): forged(409),
    ("POST", "api/suspend"): owner(503),
    ("POST!", "api/suspend"): forged(503),
    ("GET", "api/people"): MEMBERS,
    ("POST", "api/people"): owner(409),  # the one to be sent away is the owner
    ("POST!", "api/people"): forged(409),
    ("POST", "api/driver"): (403, 403, 403, 403, 403, 409, 409, 409),  # nobody is there to drive
    ("POST!", "api/driver"): forged(409),
    ("POST", "api/requests"): (403, 403, 403, 200, 200, 400, 400, 400),  # who may, need not ask
    ("POST!", "api/requests"): forged(400),
    ("POST", "api/answers"): (403, 403, 403, 403, 403, 409, 409, 409),  # nobody of this name asks
    ("POST!", "api/answers"): forged(409),
    ("GET", "api/shares"): OWNER,
    ("POST", "api/shares"): owner(400),
    ("POST!", "api/shares"): forged(400),
    ("DELETE", "api/shares"): owner(400),
    ("DELETE!", "api/shares"): forged(400),
    ("GET", "api/share-codes"): OWNER,
    ("POST", "api/share-codes"): OWNER,
    ("DELETE", "api/share-codes"): OWNER,
    ("POST!", "api/share-codes"): forged(200),
    ("DELETE!", "api/share-codes"): forged(200),
    ("GET", "api/files"): controllers(404),  # this machine has no home
    ("POST", "api/files/folders"): controllers(404),
    ("POST!", "api/files/folders"): forged(404),
    ("POST", "api/remote-folders"): owner(409),  # this machine has no agent
    ("POST!", "api/remote-folders"): forged(409),
    ("DELETE", "api/remote-folders"): owner(400),
    ("DELETE!", "api/remote-folders"): forged(400),
    ("GET", "api/files/content"): controllers(404),
    ("OPTIONS", "api/files/uploads"): controllers(204),
    ("POST", "api/files/uploads"): controllers(412),  # without the tus protocol's headers
    ("POST!", "api/files/uploads"): forged(412),
    ("OPTIONS", "api/files/uploads/([A-Za-z0-9_-]+)"): controllers(204),
    ("HEAD", "api/files/uploads/([A-Za-z0-9_-]+)"): controllers(412),
    ("PATCH", "api/files/uploads/([A-Za-z0-9_-]+)"): controllers(412),
    ("PATCH!", "api/files/uploads/([A-Za-z0-9_-]+)"): forged(412),
    ("DELETE", "api/files/uploads/([A-Za-z0-9_-]+)"): controllers(412),
    ("DELETE!", "api/files/uploads/([A-Za-z0-9_-]+)"): forged(412),
    # This machine has no web tools; a form of another site, or of none, is not let in with a cookie.
    ("GET", "proxy/([^/]+)(/.*)?"): (302, 302, 403, 403, 403, 404, 404, 404),
    ("POST", "proxy/([^/]+)(/.*)?"): forged(404),
    # For programs, with a scope that a token has where it has all of its owner's.
    ("POST", "api/type"): forged(200),
    ("POST", "api/click"): forged(409),  # the painter uses no tablet
    ("POST", "api/move"): forged(409),
    ("POST", "api/scroll"): forged(409),
    ("POST", "api/wait"): forged(200),
    ("GET", "oauth_callback"): (400, 400, 400, 400, 400, 400, 400, 400),
    ("GET", "static/(.*)"): OPEN,
    ("GET", "api/nothing"): (403, 403, 403, 403, 404, 404, 404, 404),
}
# What is asked for where the route alone is not enough.
PATHS = {
    "static/(.*)": "static/vendor/novnc.js",
    "api/checkpoints/([0-9a-f]+)": "api/checkpoints/abc",
    "api/files/uploads/([A-Za-z0-9_-]+)": "api/files/uploads/abc",
    "proxy/([^/]+)(/.*)?": "proxy/web/",
}
BODIES: dict[str, Any] = {
    "api/power": {"action": "reset"},
    "api/trouble": {"act": "retry"},
    "api/files/folders": {"folder": "", "name": "new"},
    "api/remote-folders": {"name": "data"},
    "api/extension": {"grant": False},
    "api/about": {"name": "Night run"},
    "api/keyboard": {"layout": "de"},
    "api/people": {"drop": "alice"},
    "api/driver": {"to": "nobody"},
    "api/requests": {"wants": "control"},
    "api/answers": {"name": "nobody"},
    "api/share-codes": {"role": "view", "expires_in": 60},
    "api/type": {"text": "a"},
    "api/click": {"x": 0, "y": 0},
    "api/move": {"x": 0, "y": 0},
    "api/scroll": {"x": 0, "y": 0, "down": 1},
    "api/wait": {"for": "change", "timeout_s": 0},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desktop(hub: live.LiveHub) -> URL:
    """Alice's desktop, on a disk that keeps it from being suspended: it is there for all rows."""
    hubs.add_machine(hub.state / "machines", hub.state, "wakeful")
    toml = live.PAINTER.replace("[image]", 'sound = true\n[image]\nbus = "nvme"')
    (hub.state / "machines/wakeful/machine.toml").write_text(toml)
    return await hub.start_server("alice", "desk", machine="wakeful")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def people(hub: live.LiveHub, desktop: URL) -> AsyncIterator[dict[str, hubs.Person]]:
    """Everybody of WHO, each with what he has: nothing, cookies, or a token."""
    for user in ("carol", "dave"):
        await hub.ask("POST", f"users/{user}")
    async with (
        hub.person() as anonymous,
        hub.person("bob") as bob,
        hub.person("bob", token=await hub.new_token("bob")) as bobs_token,
        hub.person("admin") as admin,
        hub.person("carol") as viewer,
        hub.person("dave") as controller,
        hub.person("alice", token=await hub.new_token("alice")) as alices_token,
        hub.person("alice") as alice,
    ):
        for name, role in (("carol", "view"), ("dave", "control")):
            answer = await alices_token.request(
                "POST", desktop / "api/shares", json={"user": name, "role": role}
            )
            assert answer.status == 200, answer.text
        for person in (bob, admin, viewer, controller, alice):
            await hub.open_session(person, desktop)
        everybody = (anonymous, bob, bobs_token, admin, viewer, controller, alices_token, alice)
        yield dict(zip(WHO, everybody, strict=True))


async def ask(person: hubs.Person, desktop: URL, method: str, path: str) -> int:
    headers = {}
    if not method.endswith("!") and not person.token:
        cookie = person.http.cookie_jar.filter_cookies(desktop).get("_xsrf")
        headers = {"X-XSRFToken": cookie.value if cookie else "none", "Sec-Fetch-Mode": "same-origin"}
    if method == "GET":
        headers["Sec-Fetch-Mode"] = "navigate"
    answer = await person.request(
        method.rstrip("!"),
        desktop.join(URL(PATHS.get(path, path))),
        json=BODIES.get(path) if method.startswith("POST") else None,
        headers=headers,
        allow_redirects=False,
    )
    return answer.status


async def test_every_route_has_a_row() -> None:
    missing = {route.path for route in ROUTES} - {path for _, path in MATRIX}

    assert not missing, f"Add rows to MATRIX for {missing}."


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize(("method", "path"), MATRIX)
async def test_a_route_answers_as_the_matrix_says(
    method: str, path: str, who: str, people: dict[str, hubs.Person], desktop: URL
) -> None:
    assert await ask(people[who], desktop, method, path) == MATRIX[method, path][WHO.index(who)]


# The websocket


async def connect(
    person: hubs.Person,
    desktop: URL,
    path: str = "vnc",
    *,
    origin: str | None = "own",
    ticket: str = "",
    **headers: str,
) -> int:
    """Try to open a websocket; 101 where the desktop greets through it, else what was answered."""
    if origin == "own":
        origin = str(desktop.origin())
    if person.token:
        headers["Authorization"] = f"token {person.token}"
    if origin:
        headers["Origin"] = origin
    try:
        async with person.http.ws_connect(
            desktop / path,
            protocols=("binary", *((f"qs.ticket.{ticket}",) if ticket else ())),
            headers=headers,
        ) as websocket:
            assert websocket.protocol == "binary"
            greeting = await websocket.receive_bytes(timeout=10)
            assert greeting.startswith({"vnc": b"RFB 003.008\n", "sound": b'{"format": "s16le"'}[path])
            return 101
    except aiohttp.WSServerHandshakeError as exc:
        return exc.status


async def get_ticket(person: hubs.Person, desktop: URL) -> str:
    headers = {} if person.token else {"X-XSRFToken": person.xsrf(desktop)}
    answer = await person.request("POST", desktop / "api/ticket", headers=headers)
    return str(json.loads(answer.text).get("ticket", ""))


@pytest.mark.parametrize("path", ["vnc", "sound"])
@pytest.mark.parametrize("who", WHO)
async def test_a_websocket_opens_for_those_who_may(
    who: str, path: str, people: dict[str, hubs.Person], desktop: URL
) -> None:
    ticket = await get_ticket(people[who], desktop) if who in ("viewer", "controller", "alice") else "made-up"

    status = await connect(people[who], desktop, path, ticket=ticket)

    assert status == (101 if who in ("viewer", "controller", "alice's token", "alice") else 403)


@pytest.mark.parametrize("path", ["vnc", "sound"])
@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://127.0.0.1.evil.example", "https://127.0.0.1"]
)
async def test_a_websocket_opens_from_its_own_page_only(
    origin: str | None, path: str, people: dict[str, hubs.Person], desktop: URL
) -> None:
    ticket = await get_ticket(people["alice"], desktop)

    assert await connect(people["alice"], desktop, path, origin=origin, ticket=ticket) == 403


@pytest.mark.parametrize("path", ["vnc", "sound"])
async def test_a_websocket_asks_a_cookie_for_a_fresh_ticket(
    path: str, people: dict[str, hubs.Person], desktop: URL
) -> None:
    """No ticket, a used one, somebody else's: a page of another server on this origin has none of its own."""
    alice = people["alice"]
    used = await get_ticket(alice, desktop)
    assert await connect(alice, desktop, path, ticket=used) == 101

    assert await connect(alice, desktop, path) == 403
    assert await connect(alice, desktop, path, ticket=used) == 403
    assert await connect(alice, desktop, path, ticket=await get_ticket(people["viewer"], desktop)) == 403


async def test_a_token_in_the_url_is_refused_everywhere(
    hub: live.LiveHub, people: dict[str, hubs.Person], desktop: URL
) -> None:
    """It would be in the proxy's log and in the browser's history."""
    token = people["alice's token"].token
    anonymous = people["anonymous"]

    for path in ("", "api/status", "vnc", "sound"):
        url = desktop.join(URL(path)).with_query(token=token)
        assert (await anonymous.request("GET", url, allow_redirects=False)).status == 403


async def test_a_revoked_share_opens_no_new_page_elsewhere(
    hub: live.LiveHub, people: dict[str, hubs.Person], desktop: URL
) -> None:
    """Last: takes the share away again. A browser that was never here gets no further than the hub."""
    alice = people["alice"]
    answer = await alice.request(
        "DELETE",
        hub.url / "hub/api/shares/alice/desk",
        headers={"X-XSRFToken": alice.xsrf(hub.url / "hub/")},
    )
    assert answer.status == 204

    async with hub.person("dave") as again:
        assert (await hub.open_session(again, desktop)).status == 403


async def test_hostile_bodies_are_refused_with_a_sentence(
    people: dict[str, hubs.Person], desktop: URL
) -> None:
    token = people["alice's token"]
    bodies: list[Any] = [b"{", b"[]", b'{"action": 7}', b'{"action": "rm -rf /"}', b"\xff" * 100]
    for body in bodies:
        answer = await token.request("POST", desktop / "api/power", data=body)
        assert answer.status == 400
        assert '"message"' in answer.text
    for seconds in (True, "60", -1, 59, 10**30, 1.5):
        answer = await token.request("POST", desktop / "api/extend", json={"seconds": seconds})
        assert answer.status == 400
        assert "seconds" in answer.text
    await asyncio.sleep(0)
    assert (await token.request("GET", desktop / "api/status")).status == 200
