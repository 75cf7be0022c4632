"""What the site's staff tell everybody on the hub's pages, and who has acknowledged that they read it."""

import time
from collections.abc import Sequence
from typing import Any, Literal, get_args

from sqlalchemy import ForeignKey, delete, func, or_, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Mapped, mapped_column
from traitlets.config import LoggingConfigurable

from qemuspawner.errors import OptionsError
from qemuspawner.hub.records import Base, Records
from qemuspawner.texts import Text

Level = Literal["info", "warning"]
LEVELS: tuple[Level, ...] = get_args(Level)

# More on one page nobody reads.
_MOST = 20


class Announcement(Base):
    """A text for everybody. Moments are Unix seconds."""

    __tablename__ = "announcements"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
    level: Mapped[str]  # one of LEVELS
    begins: Mapped[float]
    ends: Mapped[float | None]  # None: when it is deleted
    must_acknowledge: Mapped[bool]
    by: Mapped[str]
    made: Mapped[float]


class Acknowledgement(Base):
    """Somebody said that they read it."""

    __tablename__ = "acknowledgements"

    announcement_id: Mapped[int] = mapped_column(
        ForeignKey("announcements.id", ondelete="CASCADE"), primary_key=True
    )
    user: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[float]


class UnreadError(OptionsError):
    """Somebody would start a desktop and has not acknowledged what they must."""

    def __init__(self, announcement: Announcement) -> None:
        super().__init__(
            Text("The administrators ask everybody to read this first: {text}", text=announcement.text),
            hint=Text("Acknowledge it on the hub's home page, then start again."),
        )


def add_announcement(
    records: Records,
    text: str,
    *,
    level: Level,
    begins: float,
    ends: float | None,
    must_acknowledge: bool,
    by: str,
) -> int:
    """Tell everybody something; its number.

    Raises:
        OptionsError: There are too many already.
    """
    with records.session() as session:
        if (session.scalar(select(func.count(Announcement.id))) or 0) >= _MOST:
            raise OptionsError(
                Text("There are {most} announcements already.", most=_MOST), hint=Text("Delete some of them.")
            )
        announcement = Announcement(
            text=text,
            level=level,
            begins=begins,
            ends=ends,
            must_acknowledge=must_acknowledge,
            by=by,
            made=time.time(),
        )
        session.add(announcement)
        session.flush()
        return announcement.id


def delete_announcement(records: Records, number: int) -> bool:
    """Whether there was one."""
    with records.session() as session:
        found = session.execute(delete(Announcement).where(Announcement.id == number))
        return bool(found.rowcount)  # type: ignore[attr-defined]


def list_announcements(records: Records) -> list[tuple[Announcement, int]]:
    """All, also those of later and before, the newest first; each with how many have acknowledged it."""
    count = func.count(Acknowledgement.user)
    query = select(Announcement, count).outerjoin(Acknowledgement).group_by(Announcement.id)
    with records.session() as session:
        return [(one, number) for one, number in session.execute(query.order_by(Announcement.id.desc()))]


def find_unread(records: Records, user: str) -> Sequence[Announcement]:
    """What a page shows this user now: all but what they have acknowledged."""
    now = time.time()
    read = select(Acknowledgement.announcement_id).where(Acknowledgement.user == user)
    query = select(Announcement).where(
        Announcement.begins <= now,
        or_(Announcement.ends.is_(None), Announcement.ends > now),
        Announcement.id.not_in(read),
    )
    with records.session() as session:
        return session.scalars(query.order_by(Announcement.id.desc())).all()


def acknowledge(records: Records, number: int, user: str) -> bool:
    """This user has read it; whether there is such an announcement."""
    with records.session() as session:
        if session.get(Announcement, number) is None:
            return False
        session.merge(Acknowledgement(announcement_id=number, user=user, at=time.time()))
        return True


class HeedsAnnouncements(LoggingConfigurable):
    """Part of `QemuSpawnerMixin`: what its user has to read, and nothing starts before that is done."""

    records: Any  # of KeepsRuns
    user: Any  # the spawner's
    handler: Any

    def announcements(self) -> Sequence[Announcement]:
        """For the hub's pages; none where the records cannot be read."""
        try:
            return find_unread(self.records, self.user.name)
        except (SQLAlchemyError, OSError):
            self.log.exception("The hub's records cannot be read")
            return []

    def check_acknowledged(self) -> None:
        """Raises UnreadError where the user who asks for this start has something to acknowledge first.

        An administrator's script has nothing to read, nor who starts somebody else's desktop for them.
        """
        asking = getattr(self.handler, "current_user", None)
        if asking is None or asking.kind != "user" or asking.name != self.user.name:
            return
        for announcement in self.announcements():
            if announcement.must_acknowledge:
                raise UnreadError(announcement)
