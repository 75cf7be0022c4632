"""The screen as somebody's program gets it."""

from collections.abc import AsyncIterator

import pytest
import web_tool
from web_tool import Session


@pytest.fixture
async def session(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Session]:
    async def screenshot(_: web_tool.Supervisor) -> bytes:
        return b"a picture"

    monkeypatch.setattr(web_tool.Supervisor, "screenshot", screenshot)
    async with web_tool.session(monkeypatch) as session:
        yield session


async def look(session: Session, token: str) -> web_tool.Answer:
    return await session.ask("api/screenshot", headers={"Authorization": f"token {token}"})


async def test_who_takes_too_many_is_told_when_there_are_more(session: Session) -> None:
    """With two tokens as with one; others are not held up by that."""
    tokens = ["bobs", "bobs program's"]
    taken = 0
    while (answer := await look(session, tokens[taken % 2])).status == 200:
        taken += 1
    other = await look(session, "vivs")

    assert 20 <= taken < 40
    assert (answer.status, answer.all("Retry-After"), other.status) == (429, ["1"], 200)
    assert answer.json["message"] == (
        "You have taken too many screenshots: at most 20 at once, and then 5 each second. Try again in 1 s."
    )
