"""The site's terms of use: shown before a start, accepted with it, and remembered by version."""

import time
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Mapped, mapped_column
from traitlets import Unicode
from traitlets.config import LoggingConfigurable

from qemuspawner.hub.form.fields import quote, show
from qemuspawner.hub.records import Base, Records
from qemuspawner.texts import Text


class Acceptance(Base):
    """A user has accepted a version of the terms."""

    __tablename__ = "acceptances"

    user: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[str] = mapped_column(primary_key=True)
    accepted: Mapped[float]  # Unix seconds, when it was for the first time


def has_accepted(records: Records, *, user: str, version: str) -> bool:
    with records.session() as session:
        return session.get(Acceptance, (user, version)) is not None


def accept(records: Records, *, user: str, version: str) -> None:
    """Remember it; the first time counts."""
    with records.session() as session:
        if session.get(Acceptance, (user, version)) is None:
            session.add(Acceptance(user=user, version=version, accepted=time.time()))


def list_acceptances(records: Records, *, user: str) -> dict[str, float]:
    """When the user accepted which version."""
    with records.session() as session:
        found = session.scalars(select(Acceptance).where(Acceptance.user == user))
        return {one.version: one.accepted for one in found}


class TermsTraits(LoggingConfigurable):
    """Part of `QemuSpawnerMixin`."""

    terms = Unicode(
        "",
        help="""The terms of use as plain text, which users accept before their desktops start; "": none.""",
    ).tag(config=True)
    terms_version = Unicode("1", help="Their version. With a new one, everybody is asked again.").tag(
        config=True
    )

    records: Any
    user: Any

    @property
    def has_open_terms(self) -> bool:
        """Whether the user has terms to accept."""
        if not self.terms:
            return False
        return not has_accepted(self.records, user=self.user.name, version=self.terms_version)

    def find_terms_problem(self, given: object) -> str:
        """What is wrong with the option `terms` of the user's own start, in a sentence; "" where nothing is.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: What was accepted cannot be read.
        """
        if given is None and not self.has_open_terms:
            return ""
        if given is not None and not self.terms:
            return Text("The option 'terms' is {given}; there are no terms of use here.", given=show(given))
        if given == self.terms_version:
            return ""
        version = quote(self.terms_version)
        address = f"/hub/api/users/{self.user.escaped_name}/terms"
        how = Text(
            "read them by GET at {address}, and accept them with the option 'terms', which is {version} "
            "then.",
            address=address,
            version=version,
        )
        if given is None:
            return Text(
                "The terms of use, version {version}, are not accepted yet; {how}", version=version, how=how
            )
        return Text(
            "The option 'terms' is {given}; the terms of use have the version {version}: {how}",
            given=show(given),
            version=version,
            how=how,
        )

    def accept_terms(self) -> None:
        accept(self.records, user=self.user.name, version=self.terms_version)
        self.log.info("%s has accepted the terms of use, version %s", self.user.name, self.terms_version)
