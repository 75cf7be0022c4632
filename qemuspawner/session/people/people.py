"""The people at a desktop: who may come in as what, who is there, who drives, who asks for more."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qemuspawner import scopes
from qemuspawner.errors import SessionError
from qemuspawner.policy import Least, Role
from qemuspawner.session.people.access import Person
from qemuspawner.session.people.audit import Audit
from qemuspawner.session.people.driving import Driving
from qemuspawner.session.people.logins import Login, Logins, Model
from qemuspawner.session.people.pointers import Pointers
from qemuspawner.session.people.shares import SharedRole, Shares
from qemuspawner.session.screen import rfb
from qemuspawner.session.screen.relay import Viewer
from qemuspawner.session.screen.visitors import CloseCode
from qemuspawner.spec import SessionSpec
from qemuspawner.texts import Text

log = logging.getLogger(__name__)

# Beside the time for which an answer of the hub is believed: nobody stays for 3 s after losing a share.
REVIEW_EVERY_S = 1.0
# Owners, and a hub's tokens, change seldom.
_OWNER_EVERY_S = 20.0
# Who loads the page anew has not left.
_AWAY_AFTER_S = 10.0
# What somebody does all the time is a line of the audit log again after so long without it.
_PAUSE_S = 60.0
_MAX_REQUESTS = 20
_MAX_SEATS = 100
# Of one who is not the owner: a few windows take a dozen, and as many web tools have as many again.
_MAX_SEATS_OF_GUEST = 40


@dataclass(frozen=True, kw_only=True)
class Request:
    """Somebody asks to look on ("view"), for control ("control") or, having that, for the mouse ("drive")."""

    name: str
    wants: str
    reason: str
    asked_at: float  # by time.monotonic


@dataclass(eq=False, kw_only=True)
class Seat:
    """One open websocket of a person."""

    person: Person
    login: Login
    is_browser: bool  # came by our own OAuth login, not with a token of their own
    least: Least | Role
    dismiss: Callable[[int, str], None]
    viewer: Viewer | None = None  # where it shows the screen
    since: float
    reviewed_at: float

    @property
    def is_inside(self) -> bool:
        """Whether it sees or hears the desktop, and does not only wait for what is told to everybody."""
        return self.least != "waiting"


class People:
    """Of one session."""

    def __init__(self, spec: SessionSpec, shares: Shares, logins: Logins, *, audit: Audit) -> None:
        self.shares = shares
        self.changed = asyncio.Event()  # set, and replaced, with every change that somebody sees
        self.driving = Driving(one=spec.policy.one_driver)
        self.pointers = Pointers()
        self._spec = spec
        self._policy = spec.policy
        self._logins = logins
        self._audit = audit
        self._seats: list[Seat] = []  # the longest first
        self._consents: dict[str, SharedRole] = {}  # of the owner, to site staff
        self._requests: dict[str, Request] = {}
        self._owner_seen = time.monotonic()
        self._was_away = False
        self._done_at: dict[tuple[str, str, str], float] = {}  # event, who, and in which way

    # Who may come in

    async def find(self, model: Model, *, has_access: bool, is_browser: bool) -> Person | None:
        """The person of a hub user model, and what they may do now; None for who must stay out.

        `has_access` is JupyterHub's own word, which knows nothing of group shares: their members come by our
        own login only, as no token of theirs says what it may.
        """
        name, kind = str(model["name"]), model.get("kind", "user")
        if kind == "user" and name == self._spec.user:
            # A token that was made for a program acts at the desktop, and neither ends nor shares it.
            role: Role = "owner" if is_browser or not _is_for_program(model) else "control"
            return Person(name=name, role=role) if has_access else None
        groups = model.get("groups") or ()
        if kind == "user" and (has_access or is_browser):
            shared = await self.shares.role_of(name, groups, by_group=is_browser)
            if shared is None and has_access:
                # The hub lets them in: by a role of its own, or by a share that is newer than our list.
                self.shares.forget()
                shared = await self.shares.role_of(name, groups, by_group=is_browser)
            if shared is not None:
                return Person(name=name, role=self._without_owner(shared))
            if self.shares.had_lately(name, groups):
                return None
        # A service may have a user's name.
        return self._find_staff(name if kind == "user" else f"{kind} {name}") if has_access else None

    def _find_staff(self, name: str) -> Person | None:
        """Somebody whom a role of the hub lets in, such as an administrator, or a service."""
        match self._policy.staff:
            case "nobody":
                return None
            case "ask":
                role: Role = self._consents.get(name, "waiting")
            case "view" | "control" as role:
                role = self._consents.get(name, role)
        return Person(name=name, role=self._without_owner(role), is_staff=True)

    def _without_owner(self, role: Role) -> Role:
        """What is left of a role where the owner has left."""
        if self._policy.owner_away == "view" and role == "control" and self.owner_is_away:
            return "view"
        return role

    @property
    def owner_is_away(self) -> bool:
        """Whether the owner's last window was closed some seconds ago."""
        return not self._owner_is_here and time.monotonic() - self._owner_seen > _AWAY_AFTER_S

    @property
    def _owner_is_here(self) -> bool:
        return any(person.role == "owner" for person in self.present)

    def may_drive(self, name: str) -> bool:
        """Whether a person who may control has mouse and keyboard now."""
        return self.driving.drives(name)

    # Who is there

    @property
    def present(self) -> Sequence[Person]:
        """Those who see the screen now, each once, the longest first."""
        seen = {seat.person.name: seat.person for seat in reversed(self._seats) if seat.viewer is not None}
        return list(reversed(seen.values()))

    def windows_of(self, name: str) -> int:
        return sum(seat.viewer is not None and seat.person.name == name for seat in self._seats)

    @contextlib.contextmanager
    def seated(
        self,
        person: Person,
        login: Login,
        *,
        is_browser: bool,
        least: Least | Role,
        dismiss: Callable[[int, str], None],
        viewer: Viewer | None = None,
    ) -> Iterator[Seat]:
        """Somebody opens a websocket; what they may is looked at again for as long as it is open."""
        now = time.monotonic()
        seat = Seat(
            person=person,
            login=login,
            is_browser=is_browser,
            least=least,
            dismiss=dismiss,
            viewer=viewer,
            since=now,
            reviewed_at=now,
        )
        self._check_room(person)
        self._seats.append(seat)
        if viewer is not None:
            self._audit.note("joined", by=person.name, role=person.role, staff=person.is_staff)
        self._settle()
        try:
            yield seat
        finally:
            self._seats.remove(seat)
            if viewer is not None:
                stayed_s = round(time.monotonic() - seat.since)
                self._audit.note("left", by=person.name, role=seat.person.role, after_s=stayed_s)
                if person.role == "owner":
                    self._owner_seen = time.monotonic()
            self._settle()

    def _check_room(self, person: Person) -> None:
        """Raises SessionError where somebody may open no more; guests do not keep the owner out."""
        is_owner = person.role == "owner"
        count = sum(seat.person.name == person.name for seat in self._seats)
        is_full = count >= (_MAX_SEATS if is_owner else _MAX_SEATS_OF_GUEST)
        if not is_full and not is_owner:
            count = len(self._seats)
            is_full = count >= _MAX_SEATS
        if is_full:
            raise SessionError(
                Text("{max_seats} connections to this desktop are open.", max_seats=count),
                hint=Text("Close some."),
            )

    async def watch(self) -> None:
        """Look again at everybody who is there, for as long as the session lasts."""
        while True:
            await asyncio.sleep(REVIEW_EVERY_S)
            try:
                await self._review()
            except Exception:
                log.exception("%s: who may be here cannot be looked at", self._spec.session_id)

    async def _review(self) -> None:
        now = time.monotonic()
        for seat in list(self._seats):
            every_s = _OWNER_EVERY_S if seat.person.role == "owner" else 0
            if now - seat.reviewed_at >= every_s:
                seat.reviewed_at = now
                await self._review_seat(seat)
        if self.owner_is_away != self._was_away:
            self._was_away = self.owner_is_away
            self._settle()
        if self._was_away and self._policy.owner_away == "leave":
            self._dismiss_guests()

    async def _review_seat(self, seat: Seat) -> None:
        try:
            model = await self._logins.find(seat.login)
        except Exception as exc:  # the hub is away for longer than an answer of it is good
            log.debug("%s: the hub does not say who is there: %s", self._spec.session_id, exc)
            return
        person = None
        if model is not None:
            has_access = self._logins.lets_in(model)
            person = await self.find(model, has_access=has_access, is_browser=seat.is_browser)
        if person is None or not person.may(seat.least):
            seat.dismiss(CloseCode.WITHDRAWN, Text("Your access to this desktop was withdrawn."))
        elif person != seat.person:
            self._audit.note("role-changed", by=person.name, role=person.role, was=seat.person.role)
            seat.person = person
            self._settle()

    def _dismiss_guests(self) -> None:
        for seat in self._seats:
            if seat.is_inside and self._is_guest(seat.person):
                seat.dismiss(CloseCode.AWAY, Text("The owner has left; it opens again when they are back."))

    def _is_guest(self, person: Person) -> bool:
        """Whether somebody is neither the owner nor a program of theirs."""
        return person.name != self._spec.user or person.is_staff

    def refuse_screen(self, person: Person) -> tuple[int, Text] | None:
        """Why somebody may not be at the desktop right now, as a close code and a reason."""
        if self._is_guest(person) and self._policy.owner_away == "leave" and self.owner_is_away:
            return CloseCode.AWAY, Text("The owner is not here; it opens when they are back.")
        return None

    def _settle(self) -> None:
        """Everything that follows from who is there."""
        present = self.present
        self.driving.settle(present)
        if self._is_settled(self._requests.get(self.driving.driver)):
            del self._requests[self.driving.driver]
        sizing = self._find_sizing(present)
        for seat in self._seats:
            if seat.viewer is not None:
                seat.viewer.allow(self.kinds(seat.person, sizes=seat is sizing))
        self.note_change()

    def _is_settled(self, request: Request | None) -> bool:
        """Whether the driver asked for what they have by now."""
        return request is not None and request.wants == "drive"

    def _find_sizing(self, present: Sequence[Person]) -> Seat | None:
        """The one window that the desktop's size follows: several would pull it to and fro."""
        if self._spec.resolution:
            return None
        able = [person for person in present if person.may("control") and self.driving.drives(person.name)]
        able.sort(key=lambda person: person.role != "owner")
        for seat in reversed(self._seats):
            if able and seat.viewer is not None and seat.person.name == able[0].name:
                return seat
        return None

    def kinds(self, person: Person, *, sizes: bool = False) -> frozenset[rfb.Kind]:
        """What of a person's RFB reaches the desktop."""
        kinds = {rfb.Kind.DISPLAY} if person.may("view") else set()
        if person.may("control") and self.driving.drives(person.name):
            kinds.add(rfb.Kind.INPUT)
            if person.may(self._policy.clipboard_in):
                kinds.add(rfb.Kind.COPY_IN)
            if sizes:
                kinds.add(rfb.Kind.RESIZE)
        if person.may(self._policy.clipboard_out):
            kinds.add(rfb.Kind.COPY_OUT)
        return frozenset(kinds)

    def sizes(self, person: Person) -> bool:
        sizing = self._find_sizing(self.present)
        return sizing is not None and sizing.person.name == person.name

    def note_change(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def note_forward(self, viewer: Viewer, forward: rfb.Forward) -> None:
        """Somebody did something at the screen."""
        if forward.copied_in:
            self._audit.note("copied-in", by=viewer.name, bytes=forward.copied_in)
        if forward.copied_out:
            self._audit.note("copied-out", by=viewer.name)
        if forward.by_person:
            self.note_drive(viewer.name)

    def note_drive(self, name: str) -> None:
        if self._begins("drove", name):
            self._audit.note("drove", by=name)

    def note_look(self, person: Person, picture: Literal["screenshot", "thumbnail"]) -> None:
        """Somebody was given a picture of the screen, and is not among those who are seen at the desktop."""
        # The hub's home page has thumbnails of its reader's own desktops as long as it is open.
        is_own = picture == "thumbnail" and not self._is_guest(person)
        if not is_own and self._begins("looked", person.name, picture):
            self._audit.note(
                "looked", by=person.name, role=person.role, staff=person.is_staff, picture=picture
            )

    def _begins(self, event: str, name: str, way: str = "") -> bool:
        """Note that somebody does something now; whether they have not for a while."""
        now, key = time.monotonic(), (event, name, way)
        before = self._done_at.get(key, float("-inf"))
        self._done_at[key] = now
        return now - before > _PAUSE_S

    def point(self, who: str, x: int, y: int) -> None:
        """Show everybody else where somebody's pointer is, in pixels of the screen."""
        self.pointers.point(who, x, y)

    # What they do about each other

    def drop(self, name: str, *, by: Person) -> None:
        """Close somebody's windows, and end what staff was consented to; a share stays."""
        if name == self._spec.user:
            raise SessionError(Text("The owner cannot be sent away."))
        self._consents.pop(name, None)
        self._requests.pop(name, None)
        self._audit.note("dropped", by=by.name, who=name)
        for seat in self._seats:
            if seat.person.name == name and seat.is_inside:
                seat.dismiss(
                    CloseCode.WITHDRAWN, Text("{name} has closed your window of this desktop.", name=by.name)
                )
        self.note_change()

    def ask(self, request: Request) -> None:
        """Note a request; a later one of the same person takes its place."""
        self._requests.pop(request.name, None)
        if len(self._requests) >= _MAX_REQUESTS:
            raise SessionError(
                Text("{max_requests} requests wait for an answer.", max_requests=_MAX_REQUESTS),
                hint=Text("Ask again later."),
            )
        self._requests[request.name] = request
        self._audit.note("asked", by=request.name, wants=request.wants)
        self.note_change()

    def requests_for(self, person: Person) -> Sequence[Request]:
        """What somebody can answer, and what they asked for themselves."""
        return [
            request
            for request in self._requests.values()
            if person.role == "owner"
            or request.name == person.name
            or (request.wants == "drive" and person.name == self.driving.driver)
        ]

    async def answer(self, name: str, granted: SharedRole | None, *, by: Person) -> None:
        """Grant what somebody asked for, or less, or refuse it.

        Raises:
            SessionError: Nobody of this name asks, `by` may not say, or the hub refuses.
        """
        request = self._requests.get(name)
        if request is None or request not in self.requests_for(by):
            raise SessionError(
                Text("'{name}' does not ask for anything.", name=name),
                hint=Text("Somebody else may have answered."),
            )
        if request.wants == "drive":
            if granted is not None:
                self.driving.hand_over(name, by=by, present=self.present)
        elif by.role != "owner":
            raise SessionError(Text("Only the owner lets others in."))
        elif granted is not None:
            await self._let_in(name, granted)
        self._requests.pop(name, None)
        self._audit.note("answered", by=by.name, who=name, wants=request.wants, granted=granted or "no")
        await self._review_person(name)
        self._settle()

    async def _let_in(self, name: str, granted: SharedRole) -> None:
        is_staff = any(seat.person.name == name and seat.person.is_staff for seat in self._seats)
        if is_staff:
            # Consent is for this run of the desktop; a share would outlast it.
            self._consents[name] = granted
        else:
            await self.shares.grant("user", name, granted)

    async def _review_person(self, name: str) -> None:
        for seat in list(self._seats):
            if seat.person.name == name:
                await self._review_seat(seat)

    def hand_over(self, to: str, *, by: Person) -> None:
        """Give mouse and keyboard to somebody. Raises SessionError where that cannot be."""
        self.driving.hand_over(to, by=by, present=self.present)
        self._audit.note("handed-over", by=by.name, to=to)
        self._settle()

    def set_one_driver(self, *, one: bool, by: Person) -> None:
        """Whether only one person at a time drives; who says so keeps or gets the mouse."""
        self.driving.one = one
        if one:
            self.driving.driver = by.name
        self._audit.note("one-driver", by=by.name, on=one)
        self._settle()

    def describe(self, person: Person) -> dict[str, Any]:
        """Who is there and who asks, as `person` may know it: nothing of others while not let in."""
        now = time.monotonic()
        knows = person.may("view")
        return {
            "people": [
                {
                    "name": other.name,
                    "role": other.role,
                    "staff": other.is_staff,
                    "windows": self.windows_of(other.name),
                    "drives": other.may("control") and self.driving.drives(other.name),
                }
                for other in (self.present if knows else ())
            ],
            "requests": [
                {
                    "name": request.name,
                    "wants": request.wants,
                    "reason": request.reason,
                    "age_s": round(now - request.asked_at),
                }
                for request in self.requests_for(person)
            ],
            "one_driver": self.driving.one,
            "driver": self.driving.driver if knows and self.driving.one else "",
            "you": {
                "name": person.name,
                "role": person.role,
                "staff": person.is_staff,
                "drives": person.may("control") and self.driving.drives(person.name),
                "sizes": self.sizes(person),
                "copies_in": rfb.Kind.COPY_IN in self.kinds(person),
                "copies_out": rfb.Kind.COPY_OUT in self.kinds(person),
            },
        }


def _is_for_program(model: Model) -> bool:
    """Whether a token was made for the agent's hand, and not for all that its owner may."""
    granted = {scope.partition("!")[0] for scope in model.get("scopes", ())}
    return scopes.AGENT in granted and scopes.CONTROL not in granted
