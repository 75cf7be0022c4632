"""What users have marked with a star: machines, and whatever else is offered to them by name."""

import time

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Mapped, mapped_column

from qemuspawner.errors import QemuSpawnerError
from qemuspawner.hub.records import Base, Records
from qemuspawner.texts import Text

# Of one kind, each user; a page shows them all.
MAX_FAVOURITES = 200
MAX_KEY = 200


class Favourite(Base):
    """A star: `user` has marked what is named `key` among things of a kind, such as "machine"."""

    __tablename__ = "favourites"

    user: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    marked: Mapped[float]  # Unix seconds


def list_favourites(records: Records, *, user: str, kind: str) -> list[str]:
    """The keys, the one that was marked first in front."""
    wanted = select(Favourite.key).where(Favourite.user == user, Favourite.kind == kind)
    with records.session() as session:
        return list(session.scalars(wanted.order_by(Favourite.marked)))


def add_favourite(records: Records, *, user: str, kind: str, key: str) -> None:
    """Mark it; harmless where it is marked already.

    Raises:
        QemuSpawnerError: There are too many already, or the key is too long.
    """
    if len(key) > MAX_KEY:
        raise QemuSpawnerError(
            Text(
                "The name of the favourite has {count} characters; at most {most} are allowed.",
                count=len(key),
                most=MAX_KEY,
            )
        )
    mine = select(func.count()).where(Favourite.user == user, Favourite.kind == kind)
    with records.session() as session:
        if session.get(Favourite, (user, kind, key)) is not None:
            return
        if session.scalar(mine) >= MAX_FAVOURITES:  # type: ignore[operator]
            raise QemuSpawnerError(
                Text("You have {most} favourites already; more are not allowed.", most=MAX_FAVOURITES),
                hint=Text("Take the star from one of them."),
            )
        session.add(Favourite(user=user, kind=kind, key=key, marked=time.time()))


def delete_favourite(records: Records, *, user: str, kind: str, key: str) -> None:
    """Take the star away; harmless where there is none."""
    marked = (Favourite.user == user, Favourite.kind == kind, Favourite.key == key)
    with records.session() as session:
        session.execute(delete(Favourite).where(*marked))
