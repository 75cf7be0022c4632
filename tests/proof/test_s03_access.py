"""S3: every route of a session, and of ours in the hub, for everybody who may come by; HTTP and websocket."""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import access
import aiohttp
import hub_matrix
import hubs
import live
import pytest
import pytest_asyncio
import session_matrix
from proofs import Proof
from yarl import URL

from qemuspawner.session.web.routes import ROUTES, ports, proxied

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.goal("S3")]

People = dict[str, hubs.Person]

# The handler that is there for the route, and the one that it becomes when somebody asks.
_SESSION_ROUTES = [
    (path, proxied.PortHandler if handler is ports.PortHandler else handler) for path, handler in ROUTES
]
# 412: uploads look for their protocol's headers first.
_NO_ANSWERS = {302, 403, 404, 405, 412}
# In short, of those who are answered the same by the hub one each.
_FEW = ("anonymous", "bob", "admin", "viewer", "alice's token", "alice")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub() -> AsyncIterator[live.LiveHub]:
    """With the routes for desktops that run as jobs, too."""
    async with live.live_hub(more="import qemuspawner.hub.batch.port_api\n") as hub:
        yield hub


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desktop(hub: live.LiveHub) -> URL:
    """Alice's desktop, on a disk that keeps it from being suspended: it is there for all rows."""
    hubs.add_machine(hub.state / "machines", hub.state, "wakeful")
    toml = live.PAINTER.replace("[image]", 'sound = true\n[image]\nbus = "nvme"')
    (hub.state / "machines/wakeful/machine.toml").write_text(toml)
    return await hub.start_server("alice", "desk", machine="wakeful")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def people(hub: live.LiveHub, desktop: URL) -> AsyncIterator[People]:
    async with access.people_of(hub, desktop) as people:
        yield people


async def test_every_method_of_every_route_has_a_row() -> None:
    missing = access.find_missing(_SESSION_ROUTES, session_matrix.MATRIX)
    missing |= access.find_missing(hub_matrix.list_routes(), hub_matrix.MATRIX)

    assert not missing, f"tests/session_matrix.py or tests/hub_matrix.py and the routes differ by {missing}."


async def test_each_route_of_a_session_answers_each_person_as_its_row_says(
    people: People, desktop: URL, proof: Proof
) -> None:
    def locate(route: str) -> URL:
        return desktop.join(URL(session_matrix.PATHS.get(route, route)))

    # Where there is no route, nobody else learns that.
    matrix = {**session_matrix.MATRIX, ("GET", "api/nothing"): access.row(403, 404, 404, 404, 404)}
    await _compare(people, matrix, locate, session_matrix.BODIES, of="a session", proof=proof)


async def test_each_route_that_we_add_to_the_hub_answers_each_person_as_its_row_says(
    hub: live.LiveHub, people: People, proof: Proof
) -> None:
    def locate(route: str) -> URL:
        return hub.pages.join(URL(hub_matrix.example_of(route)))

    asked = people if proof.full else {who: people[who] for who in _FEW}
    await _compare(asked, hub_matrix.MATRIX, locate, {}, of="ours in the hub", proof=proof)


async def _compare(
    people: People,
    matrix: access.Matrix,
    locate: Callable[[str], URL],
    bodies: Mapping[str, Any],
    *,
    of: str,
    proof: Proof,
) -> None:
    found, expected = {}, {}
    for (method, route), row in matrix.items():
        url = locate(route)
        body = bodies.get(route, {}) if method in ("POST", "PUT", "PATCH") else None
        for is_forged, wanted in enumerate((row, access.forged(method, row))):
            for who, person in people.items() if wanted else ():
                case = (method, route, who, "forged" if is_forged else "")
                found[case] = await access.ask(person, method, url, body=body, is_forged=bool(is_forged))
                expected[case] = wanted[who]
    wrong = access.differences(found, expected)
    routes = len({route for _, route in matrix})
    proof.note(
        done=f"{len(found)} requests: {routes} routes {of}, each method, as {len(people)} kinds of people, "
        "those that change something without the XSRF token as well",
        found=f"{len(wrong)} answered otherwise than the table",
        limit="0",
    )
    assert not wrong, "\n".join(f"{case}: {what}" for case, what in wrong.items())


async def test_no_other_method_does_anything(people: People, desktop: URL, proof: Proof) -> None:
    """Not even for the owner, who may do most; in full, for everybody."""
    found = {}
    for path, handler in _SESSION_ROUTES:
        url = desktop.join(URL(session_matrix.PATHS.get(path, path)))
        for method in access.METHODS - access.find_methods(handler):
            for who in access.WHO if proof.full else ("anonymous", "alice's token"):
                found[method, path, who] = await access.ask(people[who], method, url)
    wrong = {case: status for case, status in found.items() if status not in _NO_ANSWERS}
    proof.note(
        done=f"{len(found)} requests with methods that no route of a session has",
        found=f"{len(wrong)} did anything",
        limit="0",
    )
    assert not wrong, "\n".join(f"{case}: {what}" for case, what in wrong.items())


async def test_websockets_open_at_their_routes_for_those_who_may(
    people: People, desktop: URL, proof: Proof
) -> None:
    """Every route with a GET is asked for one, with our Origin and the fresh ticket of who can have one."""
    found, expected = {}, {}
    closed = dict.fromkeys(access.WHO, 0)
    asked = [path for method, path in session_matrix.MATRIX if method == "GET"]
    for path in asked:
        for who, person in people.items():
            found[path, who] = await _open_websocket(person, desktop, path)
            expected[path, who] = session_matrix.WEBSOCKETS.get(path, closed)[who]
    wrong = {case for case in found if (found[case] == 101) != (expected[case] == 101)}
    proof.note(
        done=f"{len(found)} requests for a websocket: {len(asked)} routes of a session, as {len(people)} "
        "kinds of people",
        found=f"{len(wrong)} opened, or stayed shut, otherwise than the table",
        limit="0",
    )
    assert not wrong, "\n".join(f"{case}: {what}" for case, what in wrong.items())


async def _open_websocket(person: hubs.Person, desktop: URL, path: str) -> int:
    try:
        async with await access.open_websocket(person, desktop, session_matrix.PATHS.get(path, path)):
            return 101
    except aiohttp.WSServerHandshakeError as exc:
        return exc.status


async def test_a_token_in_the_url_is_refused_everywhere(people: People, desktop: URL, proof: Proof) -> None:
    """It would be in the proxy's log and in the browser's history."""
    token, anonymous = people["alice's token"].token, people["anonymous"]
    open_to_all = {path for (_, path), row in session_matrix.MATRIX.items() if row["anonymous"] == 200}
    wrong = []
    asked = [path for path, _ in ROUTES if path not in open_to_all and path != "oauth_callback"]
    for path in asked:
        url = desktop.join(URL(session_matrix.PATHS.get(path, path))).with_query(token=token)
        if await access.ask(anonymous, "GET", url) != 403:
            wrong.append(path)
    proof.note(
        done=f"{len(asked)} routes of a session, with the owner's token in the URL",
        found=f"{len(wrong)} let it in",
        limit="0",
    )
    assert not wrong, "\n".join(f"{case}: {what}" for case, what in wrong.items())


async def test_a_revoked_share_opens_no_new_page_elsewhere(
    hub: live.LiveHub, people: People, desktop: URL
) -> None:
    """A browser that was never here gets no further than the hub."""
    async with hub.person("demo") as again:
        assert (await hub.open_session(again, desktop)).status == 403


async def test_hostile_bodies_are_refused_with_a_sentence(people: People, desktop: URL) -> None:
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
    assert (await token.request("GET", desktop / "api/status")).status == 200
