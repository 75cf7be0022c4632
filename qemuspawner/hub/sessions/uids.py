"""Numbers for users' accounts in guests, where nobody else has given them one."""

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from qemuspawner.hub.records import Base, Records

# Debian and systemd leave the numbers from here on to whoever asks for them (Debian policy, 9.2.2).
_FIRST = 70_000
_TRIES = 5


class Uid(Base):
    """A user's number. Never deleted: files on a share may be theirs when the hub has forgotten them."""

    __tablename__ = "guest_uids"

    user: Mapped[str] = mapped_column(primary_key=True)
    uid: Mapped[int] = mapped_column(unique=True)


def find_uid(records: Records, user: str) -> int:
    """The user's own number, the same for ever; the next free one where they have none yet.

    Raises:
        sqlalchemy.exc.OperationalError: The records cannot be read or written.
    """
    for attempt in range(_TRIES):
        try:
            with records.session() as session:
                found = session.get(Uid, user)
                if found is None:
                    last = session.scalar(select(func.max(Uid.uid)))
                    found = Uid(user=user, uid=_FIRST if last is None else last + 1)
                    session.add(found)
            return found.uid
        except IntegrityError:
            # Another hub on these records was faster.
            if attempt == _TRIES - 1:
                raise
    raise AssertionError
