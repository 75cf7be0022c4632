"""Who wants no mails of their desktops."""

from sqlalchemy import delete
from sqlalchemy.orm import Mapped, mapped_column

from qemuspawner.hub.records import Base, Records


class NoMail(Base):
    """A user who has said no; all others want them."""

    __tablename__ = "no_mail"

    user: Mapped[str] = mapped_column(primary_key=True)


def wants_mail(records: Records, user: str) -> bool:
    with records.session() as session:
        return session.get(NoMail, user) is None


def set_wants_mail(records: Records, user: str, *, wanted: bool) -> None:
    with records.session() as session:
        session.execute(delete(NoMail).where(NoMail.user == user))
        if not wanted:
            session.add(NoMail(user=user))
