"""Everybody who may come by a desktop, and what a matrix of routes says of each."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import aiohttp
import hubs
import live
from jupyterhub.apihandlers.base import APIHandler
from tornado import web
from yarl import URL

# Who has no business at alice's desktop, by what they come with: nothing, cookies, or a token.
UNKNOWN = (
    "anonymous",
    "made-up token",
    "expired token",  # it was alice's
)
OUTSIDE = (
    *UNKNOWN,
    "bob",
    "bob's token",
    "revoked guest",  # has seen the desktop, with the cookies and the token of then
    "revoked guest's token",
)
INSIDE = (
    "admin",  # may come in by a role of the hub, and waits for the owner's consent
    "viewer",
    "controller",
    "alice's token",
    "alice",
)
WHO = OUTSIDE + INSIDE

Row = Mapping[str, int]  # what each of WHO is answered
Matrix = Mapping[tuple[str, str], Row]  # by method and route

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SAFE = ("GET", "HEAD", "OPTIONS")  # these change nothing, so that a forged one does no harm


def row(*inside: int, outside: int = 403, **others: int) -> Row:
    """`inside` is for each of INSIDE, in that order; of OUTSIDE `others` are answered otherwise."""
    return {who: others.get(who, outside) for who in OUTSIDE} | dict(zip(INSIDE, inside, strict=True))


def everybody(status: int) -> Row:
    return dict.fromkeys(WHO, status)


def find_methods(handler: type[web.RequestHandler]) -> set[str]:
    """The methods that a handler answers itself: not with 405, nor as JupyterHub's API does OPTIONS."""
    others = (web.RequestHandler._unimplemented_method, APIHandler.options)
    return {method for method in METHODS if getattr(handler, method.lower()) not in others}


def find_missing(
    routes: Iterable[tuple[str, type[web.RequestHandler]]], matrix: Matrix
) -> set[tuple[str, str]]:
    """Methods of routes that have no row, and rows that have no route."""
    there = {(method, path) for path, handler in routes for method in find_methods(handler)}
    return there ^ matrix.keys()


def forged(method: str, row: Row) -> Row | None:
    """The row for a request that does not show that it comes from our own page; None where that is no matter.

    A cookie counts for nothing then, and a token for as much as ever.
    """
    if method in _SAFE:
        return None
    return {who: status if "token" in who else 403 for who, status in row.items()}


async def ask(
    person: hubs.Person, method: str, url: URL, *, body: object = None, is_forged: bool = False
) -> int:
    headers = {"Sec-Fetch-Mode": "navigate" if method == "GET" else "same-origin"}
    if method != "GET" and not person.token and not is_forged:
        cookie = person.http.cookie_jar.filter_cookies(url).get("_xsrf")
        headers["X-XSRFToken"] = cookie.value if cookie else "none"
    answer = await person.request(method, url, json=body, headers=headers, allow_redirects=False)
    return answer.status


async def get_ticket(person: hubs.Person, desktop: URL) -> str:
    """A fresh ticket for one websocket; "" for who gets none."""
    headers = {} if person.token else {"X-XSRFToken": person.xsrf(desktop)}
    answer = await person.request("POST", desktop / "api/ticket", headers=headers)
    return str(json.loads(answer.text).get("ticket", ""))


async def open_websocket(
    person: hubs.Person, desktop: URL, path: str, *, origin: str | None = "own", ticket: str | None = None
) -> aiohttp.ClientWebSocketResponse:
    """As the page opens one, except for what is given; a fresh ticket is fetched by who can have one.

    Raises:
        aiohttp.WSServerHandshakeError: It stays shut.
    """
    headers = {}
    if person.token:
        headers["Authorization"] = f"token {person.token}"
    if origin is not None:
        headers["Origin"] = str(desktop.origin()) if origin == "own" else origin
    if ticket is None:
        has_cookies = not person.token and person.http.cookie_jar.filter_cookies(desktop).get("_xsrf")
        ticket = (await get_ticket(person, desktop) if has_cookies else "") or "made-up"
    url, protocols = desktop.join(URL(path)), protocols_of(path, ticket)
    return await person.http.ws_connect(url, protocols=protocols, headers=headers)


def protocols_of(path: str, ticket: str) -> list[str]:
    """What is offered as a websocket's subprotocols; "" is no ticket."""
    return ["events" if path == "events" else "binary", *([f"qs.ticket.{ticket}"] if ticket else [])]


@contextlib.asynccontextmanager
async def people_of(hub: live.LiveHub, desktop: URL) -> AsyncIterator[dict[str, hubs.Person]]:
    """Everybody of WHO, by that name; `desktop` is alice's."""
    for user in ("carol", "dave", "demo"):
        await hub.ask("POST", f"users/{user}")
    _, expiring = await hub.ask("POST", "users/alice/tokens", json={"expires_in": 1})
    async with (
        hub.person() as anonymous,
        hub.person(token="0" * 32) as made_up,
        hub.person(token=str(expiring["token"])) as expired,
        hub.person("bob") as bob,
        hub.person("bob", token=await hub.new_token("bob")) as bobs_token,
        hub.person("demo") as revoked,
        hub.person("demo", token=await hub.new_token("demo")) as revoked_token,
        hub.person("admin") as admin,
        hub.person("carol") as viewer,
        hub.person("dave") as controller,
        hub.person("alice", token=await hub.new_token("alice")) as alices_token,
        hub.person("alice") as alice,
    ):
        shares = desktop / "api/shares"
        for name, role in (("carol", "view"), ("dave", "control"), ("demo", "control")):
            answer = await alices_token.request("POST", shares, json={"user": name, "role": role})
            assert answer.status == 200, answer.text
        for person in (bob, revoked, admin, viewer, controller, alice):
            await hub.open_session(person, desktop)
        for was_there in (revoked, revoked_token):
            assert await ask(was_there, "GET", desktop / "api/people") == 200
        await alices_token.request("DELETE", shares, json={"user": "demo"})
        async with asyncio.timeout(30):
            while await ask(expired, "GET", hub.url / "hub/api/user") == 200:
                await asyncio.sleep(0.1)
        outside = (anonymous, made_up, expired, bob, bobs_token, revoked, revoked_token)
        yield dict(zip(WHO, (*outside, admin, viewer, controller, alices_token, alice), strict=True))


def differences(found: Mapping[Any, int], expected: Mapping[Any, int]) -> dict[Any, str]:
    """What was answered otherwise than expected."""
    return {
        case: f"{status} instead of {expected[case]}"
        for case, status in found.items()
        if status != expected[case]
    }
