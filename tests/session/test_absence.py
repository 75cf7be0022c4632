"""What is open while the owner is away from a desktop that nobody may be at without them."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import session_matrix
import web_tool
from web_tool import Session

from qemuspawner.policy import Policy
from qemuspawner.session.people import people as people_module
from qemuspawner.session.screen.hand import Hand

ABSENT = "The owner is not here; it opens when they are back."
# Everybody's, of those who wait to be let in, or the site's staff's also where they may not see the desktop.
OPEN = {
    "",
    "events",
    "api",
    "api/status",
    "api/ticket",
    "api/requests",
    "api/extension",
    "api/message",
    "oauth_callback",
    "static/(.*)",
}
# Websockets, which say it with a close code.
CLOSED = {"vnc", "sound"}


def let_owner_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is not there now has left long ago."""
    monkeypatch.setattr(people_module, "_AWAY_AFTER_S", -1.0)


@pytest.fixture
async def session(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Session]:
    async with web_tool.session(monkeypatch, policy=Policy(owner_away="leave")) as session:
        yield session


async def ask(session: Session, method: str, path: str, token: str, **kwargs: Any) -> web_tool.Answer:
    return await session.ask(path, method=method, headers={"Authorization": f"token {token}"}, **kwargs)


@pytest.mark.parametrize(
    ("method", "route"), [one for one in session_matrix.MATRIX if one[1] not in OPEN | CLOSED]
)
async def test_every_route_is_closed_to_a_guest(
    session: Session, monkeypatch: pytest.MonkeyPatch, method: str, route: str
) -> None:
    """Who may control the desktop while its owner is there."""
    let_owner_leave(monkeypatch)
    path = session_matrix.PATHS.get(route, route)

    answer = await ask(session, method, path, "bobs", json=session_matrix.BODIES.get(route))

    assert answer.status == 403
    if method != "HEAD":
        assert answer.json["message"] in (ABSENT, "This needs the role 'owner'; yours is 'control'.")


@pytest.mark.parametrize("who", ["alices", "alices program's"])
async def test_the_owner_and_their_programs_are_no_guests(
    session: Session, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    let_owner_leave(monkeypatch)

    assert (await ask(session, "GET", "api/people", who)).status == 200


async def test_a_guests_program_types_no_more_once_the_owner_has_left(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the midst of a text."""
    pressed = []

    async def press(_: Hand, chord: object) -> None:
        pressed.append(chord)
        if len(pressed) == 3:
            let_owner_leave(monkeypatch)

    monkeypatch.setattr(Hand, "turn", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(Hand, "press", press)

    answer = await ask(session, "POST", "api/type", "bobs program's", json={"text": "x" * 10})

    assert (answer.status, len(pressed)) == (403, 3)
    assert answer.json["message"] == f"{ABSENT} 3 of 10 keys were pressed before."
