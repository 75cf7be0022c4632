"""Wishes of users that a sleeping desktop of theirs becomes a machine, until staff answer and after."""

import json
import time
from typing import Any, Literal

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from qemuspawner.errors import CatalogueError
from qemuspawner.hub.records import Base, Records
from qemuspawner.texts import Text

# Of each user; answered ones do not count.
MAX_OPEN = 5
# Of each user; the oldest answered ones go.
_MAX_ANSWERED = 50

Audience = Literal["me", "group", "all"]
State = Literal["asked", "published", "refused"]


class Wish(Base):
    """One wish. Moments are Unix seconds."""

    __tablename__ = "publication_wishes"

    id: Mapped[int] = mapped_column(primary_key=True)
    user: Mapped[str] = mapped_column(index=True)
    server: Mapped[str]
    saved: Mapped[str]  # the name of what slept then: a yes is for that and nothing later
    machine: Mapped[str]  # the id that it is to have
    name: Mapped[str]
    audience: Mapped[str]  # an Audience
    group: Mapped[str] = mapped_column(default="")
    reason: Mapped[str] = mapped_column(default="")
    asked: Mapped[float] = mapped_column(index=True)
    state: Mapped[str] = mapped_column(default="asked")  # a State
    answered: Mapped[float | None]
    by: Mapped[str] = mapped_column(default="")  # who answered
    word: Mapped[str] = mapped_column(default="")  # and said this
    changes: Mapped[str | None]  # JSON of machines.changes.Changes; None: not known yet

    def describe(self) -> dict[str, Any]:
        """For its user."""
        return {
            "id": self.id,
            "user": self.user,
            "server": self.server,
            "machine": self.machine,
            "name": self.name,
            "audience": self.audience,
            "group": self.group,
            "reason": self.reason,
            "asked": self.asked,
            "state": self.state,
            "answered": self.answered,
            "by": self.by,
            "word": self.word,
        }


def add_wish(records: Records, wish: Wish) -> Wish:
    """Note it; raises CatalogueError where its desktop has one already, or its user too many."""
    with records.session() as session:
        mine = select(func.count()).where(Wish.user == wish.user, Wish.state == "asked")
        if session.scalar(mine.where(Wish.server == wish.server)):
            raise CatalogueError(
                "used",
                Text("You have asked for this desktop already."),
                hint=Text("Wait for the answer, or take that back."),
            )
        if (session.scalar(mine) or 0) >= MAX_OPEN:
            raise CatalogueError(
                "used",
                Text("You have asked for {most} desktops already; nobody has answered yet.", most=MAX_OPEN),
            )
        wish.asked = time.time()
        session.add(wish)
        session.flush()
        _drop_oldest(session, wish.user)
    return wish


def list_wishes(records: Records, *, user: str | None = None) -> list[Wish]:
    """Those of a user, or everybody's: what waits for an answer first, and the newest in front."""
    query = select(Wish).order_by(Wish.state != "asked", Wish.asked.desc()).limit(500)
    if user is not None:
        query = query.where(Wish.user == user)
    with records.session() as session:
        return list(session.scalars(query))


def find_wish(records: Records, number: int) -> Wish:
    """Raises CatalogueError where there is none."""
    with records.session() as session:
        return _find(session, number)


def take_back(records: Records, number: int, *, user: str) -> None:
    """Raises CatalogueError where the user has none of this number that nobody has answered."""
    with records.session() as session:
        found = session.get(Wish, number)
        if found is None or found.user != user or found.state != "asked":
            raise _missing()
        session.delete(found)


def answer_wish(records: Records, number: int, *, state: State, by: str, word: str) -> Wish:
    """Note the answer; raises CatalogueError where there is one already."""
    with records.session() as session:
        found = _find(session, number)
        if found.state != "asked":
            raise CatalogueError("changed", Text("{name} has answered this already.", name=found.by))
        found.state, found.answered, found.by, found.word = state, time.time(), by, word
        return found


def note_changes(records: Records, number: int, changes: dict[str, Any]) -> None:
    """What the desktop has changed is known; harmless where the wish was taken back."""
    with records.session() as session:
        found = session.get(Wish, number)
        if found is not None:
            found.changes = json.dumps(changes)


def _find(session: Session, number: int) -> Wish:
    found = session.get(Wish, number)
    if found is None:
        raise _missing()
    return found


def _drop_oldest(session: Session, user: str) -> None:
    old = select(Wish.id).where(Wish.user == user, Wish.state != "asked").order_by(Wish.asked.desc())
    session.execute(delete(Wish).where(Wish.id.in_(old.offset(_MAX_ANSWERED).subquery().select())))


def _missing() -> CatalogueError:
    return CatalogueError("missing", Text("There is no such wish."))
