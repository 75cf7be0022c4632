"""A person at a desktop, and one-use tickets for websockets."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from qemuspawner.policy import Least, Role, may

_TICKET_LIFE_S = 30
_MAX_TICKETS = 100


@dataclass(frozen=True, kw_only=True)
class Person:
    """Who JupyterHub says is asking, and what he may do here."""

    name: str
    role: Role
    is_staff: bool = False  # let in by a role of the hub, as administrators are, and not by a share

    def may(self, least: Role | Least) -> bool:
        return may(self.role, least)


class Tickets:
    """Tickets that open one websocket each, within 30 s.

    A websocket is opened with cookies alone, also by a page of another server on the same origin. Only our
    own page can fetch a ticket (that request is checked for forgery), so only it opens the desktop.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._tickets: dict[str, tuple[str, float]] = {}

    def issue(self, person: Person) -> str:
        """A new ticket for `person`; 43 URL-safe characters."""
        ticket = secrets.token_urlsafe(32)
        self._tickets[ticket] = (person.name, self._now() + _TICKET_LIFE_S)
        while len(self._tickets) > _MAX_TICKETS:
            del self._tickets[next(iter(self._tickets))]
        return ticket

    def redeem(self, ticket: str, person: Person) -> bool:
        """Whether `ticket` was issued to `person` within 30 s; it is used up."""
        name, expires = self._tickets.pop(ticket, ("", 0.0))
        return name == person.name and self._now() < expires
