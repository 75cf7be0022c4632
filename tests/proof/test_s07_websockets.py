"""S7: only our own page, with its person's cookies and a fresh ticket, opens a websocket of a desktop."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import access
import aiohttp
import hubs
import live
import pytest
import pytest_asyncio
from aiohttp import web
from chromium import connected_browser, visitors
from free_ports import free_ports
from playwright.async_api import Page
from proofs import Proof
from yarl import URL

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.goal("S7")]

_PATHS = ("vnc", "sound", "events")
_TICKETS = ("fresh", "none", "used", "somebody else's", "made-up")
_TICKET_LIFE_S = 30
_OPEN = """([url, protocols]) => new Promise((done) => {
    const socket = new WebSocket(url, protocols);
    socket.onopen = () => { socket.close(); done(true); };
    socket.onerror = () => done(false);
})"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub() -> AsyncIterator[live.LiveHub]:
    async with live.live_hub() as hub:
        yield hub


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desktop(hub: live.LiveHub) -> URL:
    hubs.add_machine(hub.state / "machines", hub.state, "loud")
    toml = live.PAINTER.replace("[image]", "sound = true\n[image]")
    (hub.state / "machines/loud/machine.toml").write_text(toml)
    await hub.ask("POST", "users/carol")
    return await hub.start_server("alice", "desk", machine="loud")


class Tickets:
    """Tickets of each kind, for alice's desktop."""

    def __init__(self, desktop: URL, alice: hubs.Person, guest: hubs.Person) -> None:
        self._desktop = desktop
        self._alice = alice
        self._guest = guest

    async def get(self, kind: str) -> str:
        match kind:
            case "none":
                return ""
            case "made-up":
                return "A" * 43
            case "somebody else's":
                return await access.get_ticket(self._guest, self._desktop)
        ticket = await access.get_ticket(self._alice, self._desktop)
        if kind == "used":
            async with await access.open_websocket(self._alice, self._desktop, "events", ticket=ticket):
                pass
        return ticket


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def people(hub: live.LiveHub, desktop: URL) -> AsyncIterator[dict[str, hubs.Person]]:
    """By whose cookies they have: alice, whose desktop it is, a guest of hers, a stranger, and nobody."""
    async with (
        hub.person("alice") as alice,
        hub.person("carol") as guest,
        hub.person("bob") as stranger,
        hub.person() as nobody,
    ):
        await hub.open_session(alice, desktop)
        xsrf = {"X-XSRFToken": alice.xsrf(desktop)}
        body = {"user": "carol", "role": "view"}
        await alice.request("POST", desktop / "api/shares", json=body, headers=xsrf)
        for person in (guest, stranger):
            await hub.open_session(person, desktop)
        yield {"alice": alice, "guest": guest, "stranger": stranger, "nobody": nobody}


async def test_a_bare_client_gets_in_with_all_three_alone(
    people: dict[str, hubs.Person], desktop: URL, proof: Proof
) -> None:
    """Origin, ticket and cookies, each right and wrong in every way that we know of."""
    tickets = Tickets(desktop, people["alice"], people["guest"])
    aged = [await tickets.get("fresh") for _ in _PATHS]
    cases = itertools.product(_origins(desktop), _TICKETS, ("alice", "stranger", "nobody"), _PATHS)
    found = {}
    for origin, kind, cookies, path in cases:
        ticket = await tickets.get(kind)
        found[origin, kind, cookies, path] = await _opens(people[cookies], desktop, path, origin, ticket)
    if proof.full:
        await asyncio.sleep(_TICKET_LIFE_S)
        for ticket, path in zip(aged, _PATHS, strict=True):
            found["own", "too old", "alice", path] = await _opens(
                people["alice"], desktop, path, str(desktop.origin()), ticket
            )
    right = (str(desktop.origin()), "fresh", "alice")
    wrong = [case for case, opened in found.items() if opened != (case[:3] == right)]
    proof.note(
        done=f"{len(found)} websockets asked for by a bare client: {len(_origins(desktop))} origins, "
        f"{len(_TICKETS) + proof.full} kinds of tickets, cookies of the owner, of a stranger and none",
        found=f"{sum(found.values())} opened, {len(wrong)} otherwise than they should",
        limit="0; only our own origin with a fresh ticket and its owner's cookies opens",
    )
    assert not wrong
    assert any(found.values())


def _origins(desktop: URL) -> list[str | None]:
    own = desktop.origin()
    return [
        str(own),
        None,
        "null",
        "http://evil.example",
        f"{own}.evil.example",
        f"http://evil{own.authority}",
        f"http://evil.example@{own.authority}",
        f"http://{own.authority}@evil.example",
        f"http://{own.host}",
        str(own.with_port((own.port or 0) + 1)),
    ]


async def _opens(person: hubs.Person, desktop: URL, path: str, origin: str | None, ticket: str) -> bool:
    try:
        async with await access.open_websocket(person, desktop, path, origin=origin, ticket=ticket):
            return True
    except aiohttp.WSServerHandshakeError as exc:
        assert exc.status == 403
        return False


async def test_a_real_browser_opens_it_from_our_own_pages_alone(
    hub: live.LiveHub, people: dict[str, hubs.Person], desktop: URL, chromium_url: str, proof: Proof
) -> None:
    """A page of another port of this host comes with all cookies, of which browsers tell no ports apart."""
    tickets = Tickets(desktop, people["alice"], people["guest"])
    found = {}
    async with _chromium_pages(hub, desktop, chromium_url) as pages:
        for (cookies, site), page in pages.items():
            for kind, path in itertools.product(_TICKETS, _PATHS if proof.full else ("vnc",)):
                ticket = await tickets.get(kind)
                protocols = [
                    "events" if path == "events" else "binary",
                    *([f"qs.ticket.{ticket}"] if ticket else []),
                ]
                url = str(desktop.join(URL(path)).with_scheme("ws"))
                found[cookies, site, kind, path] = await page.evaluate(_OPEN, [url, protocols])
    wrong = [
        (cookies, site, kind, path)
        for (cookies, site, kind, path), opened in found.items()
        if opened != (cookies == "alice" and site in ("desktop", "hub") and kind == "fresh")
    ]
    proof.note(
        done=f"{len(found)} websockets asked for by pages in Chromium: the desktop's, the hub's, another "
        "port's, another host's and one of no origin, with the owner's cookies and without",
        found=f"{sum(found.values())} opened, {len(wrong)} otherwise than they should",
        limit="0; only pages of our own origin with a fresh ticket and its owner's cookies open one",
    )
    assert not wrong
    assert any(found.values())


@asynccontextmanager
async def _chromium_pages(
    hub: live.LiveHub, desktop: URL, chromium_url: str
) -> AsyncIterator[Mapping[tuple[str, str], Page]]:
    """Pages of each site, by whose cookies their browser has and by the site."""
    async with AsyncExitStack() as stack:
        foreign = await _serve_nothing(stack)
        browser = await stack.enter_async_context(connected_browser(chromium_url))
        log_in = await stack.enter_async_context(visitors(browser))
        own = await log_in(hub, "alice", to=desktop)
        strange = await (await browser.new_context()).new_page()
        pages = {("alice", "desktop"): own}
        sites = {
            "hub": hub.pages / "login",
            "another port": foreign,
            "another host": foreign.with_host("localhost"),
            "no origin": URL("data:text/html,nothing"),
        }
        for site, url in sites.items():
            for cookies, context in (("alice", own.context), ("nobody", strange.context)):
                page = await context.new_page()
                await page.goto(str(url))
                pages[cookies, site] = page
        yield pages


async def _serve_nothing(stack: AsyncExitStack) -> URL:
    """A site of somebody else's on this host."""

    async def say_nothing(_request: web.Request) -> web.Response:
        return web.Response(text="<!doctype html>", content_type="text/html")

    app = web.Application()
    app.router.add_get("/", say_nothing)
    runner = web.AppRunner(app)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    (port,) = free_ports(1)
    await web.TCPSite(runner, "127.0.0.1", port).start()
    return URL(f"http://127.0.0.1:{port}/")
