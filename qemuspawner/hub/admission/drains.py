"""Hosts on which nothing new starts, so that they can be serviced once the last desktop there has ended."""

import platform
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Mapped, mapped_column
from traitlets.config import LoggingConfigurable

from qemuspawner.errors import OptionsError
from qemuspawner.hub.records import Base, Records
from qemuspawner.texts import Text


class Drain(Base):
    """A host that takes no new desktops. Moments are Unix seconds."""

    __tablename__ = "drains"

    node: Mapped[str] = mapped_column(primary_key=True)
    reason: Mapped[str]
    by: Mapped[str]
    since: Mapped[float]


class DrainedError(OptionsError):
    """A desktop was to start on a host that takes no new ones."""

    def __init__(self, drain: Drain) -> None:
        reason = drain.reason.rstrip(".")
        super().__init__(
            Text(
                "No new desktops start on the host '{node}' at the moment: {reason}.",
                node=drain.node,
                reason=reason,
            ),
            hint=Text("Those that run go on. Try again later, or ask the administrators."),
        )


def drain(records: Records, node: str, *, reason: str, by: str) -> None:
    """Let nothing new start on a host; a later reason takes the place of an earlier one."""
    with records.session() as session:
        session.merge(Drain(node=node, reason=reason, by=by, since=time.time()))


def undo_drain(records: Records, node: str) -> bool:
    """Let desktops start there again; whether they could not before."""
    with records.session() as session:
        return bool(session.execute(delete(Drain).where(Drain.node == node)).rowcount)  # type: ignore[attr-defined]


def list_drains(records: Records) -> Mapping[str, Drain]:
    """By host."""
    with records.session() as session:
        return {drain.node: drain for drain in session.scalars(select(Drain))}


class HeedsDrains(LoggingConfigurable):
    """Part of `QemuSpawnerMixin`: starts nothing on a host that is drained."""

    records: Any  # of KeepsRuns

    @property
    def next_node(self) -> str:
        """The host where a desktop would start now; "" where that is not for us to say."""
        return platform.node()

    def check_drained(self) -> None:
        """Raises DrainedError where the next host takes no new desktops."""
        try:
            drained = list_drains(self.records).get(self.next_node)
        except (SQLAlchemyError, OSError):
            # Desktops start also while the records cannot be read, as they do for runs.
            self.log.exception("The hub's records cannot be read")
            return
        if drained is not None:
            raise DrainedError(drained)
