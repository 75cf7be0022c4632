"""The screen as somebody's program gets it."""

import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import web_tool
from audit_log import audit_lines
from PIL import Image
from web_tool import Session

from qemuspawner.policy import Policy


@pytest.fixture
async def session(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Session]:
    async def screenshot(_: web_tool.Supervisor) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (64, 48)).save(file, "PNG")
        return file.getvalue()

    monkeypatch.setattr(web_tool.Supervisor, "screenshot", screenshot)
    async with web_tool.session(monkeypatch, policy=Policy(staff="view")) as session:
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


@pytest.mark.parametrize("picture", ["screenshot", "thumbnail"])
async def test_who_looks_by_rest_is_in_the_audit_log(
    session: Session, monkeypatch: pytest.MonkeyPatch, picture: str
) -> None:
    """A guest, and site staff where the site lets them see desktops without asking."""
    monkeypatch.setattr(web_tool.Shares, "had_lately", lambda *_: False)
    for token in ("vivs", "vivs", "eves"):
        answer = await session.ask(f"api/{picture}", headers={"Authorization": f"token {token}"})
        assert answer.status == 200

    lines = audit_lines(Path(session.supervisor.spec.state_dir))

    assert [(line["event"], line["by"], line["staff"], line["picture"]) for line in lines] == [
        ("looked", "viv", False, picture),
        ("looked", "eve", True, picture),
    ]
