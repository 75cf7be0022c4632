"""In which language users read the hub's pages: what is sent to them is in the same one."""

from sqlalchemy.orm import Mapped, mapped_column

from qemuspawner.hub.records import Base, Records


class Reading(Base):
    """A user and the tag of the language of the page that they opened last."""

    __tablename__ = "readings"

    user: Mapped[str] = mapped_column(primary_key=True)
    language: Mapped[str]


def find_reading(records: Records, user: str) -> str:
    """The tag; "" where the user has opened no page yet."""
    with records.session() as session:
        found = session.get(Reading, user)
        return found.language if found is not None else ""


def note_reading(records: Records, user: str, language: str) -> None:
    with records.session() as session:
        session.merge(Reading(user=user, language=language))
