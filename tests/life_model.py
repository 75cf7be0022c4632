"""What a desktop may be at, and what each thing that is done to it makes of it: the life cycle's model.

It knows nothing of how any of that is done. The guest is the painter of `guests`, whose screen is its memory:
green after each boot, and the other colour after each key.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

Colour = Literal["green", "red"]
Role = Literal["view", "control"]

# As the hub of the proof is configured, and its machine.
MOST_CHECKPOINTS = 3
LIFETIME_H, LONGEST_H = 1, 48
EXTENDED_BY_H = 24
NOBODY = 0  # answers what is done without a request
_OK = frozenset({200, 201, 202, 204})
# How a request is refused where something else has begun with the desktop, or it has gone meanwhile.
BUSY = frozenset({400, 403, 404, 409, 424, 503})
# What JupyterHub answers in the place of a session that is not there: its pages take no POST of a program.
_NO_SESSION = 403


@dataclass(frozen=True, kw_only=True)
class Point:
    """A checkpoint."""

    title: str
    screen: Colour
    automatic: bool = False


@dataclass(frozen=True, kw_only=True)
class Desktop:
    """One server of the user's, with all that is kept of it."""

    is_known: bool = False  # the hub has a row for it
    screen: Colour | None = None  # None: it does not run
    kept: Colour | Literal["disk"] | None = None  # what it wakes up to; "disk": its memory is lost
    points: tuple[Point, ...] = ()  # the newest first
    guest: Role | None = None  # as what it is shared
    hours: int = 0  # its lifetime
    is_left: bool = False  # its folder is as a killed supervisor left it, until the next sweep

    @property
    def is_running(self) -> bool:
        return self.screen is not None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The same as it is seen from outside; all that is left of it, as well."""

    is_known: bool = False
    card: str = ""  # its state on the hub's home page; "" where it has no card
    is_ready: bool = False
    screen: Colour | None = None
    hours: int = 0
    kept: Literal["streamed", "lost"] | None = None
    points: tuple[tuple[str, bool], ...] = ()
    shared: Role | None = None
    let_in: Role | None = None  # the guest by the session
    qemus: int = 0
    supervisors: int = 0
    tokens: int = 0
    has_folder: bool = False
    has_more: bool = False  # in that folder than what is kept


def look_at(desktop: Desktop) -> Seen:
    """What is to be seen of it."""
    runs = desktop.is_running
    asleep = desktop.kept is not None and not runs
    off = "off" if desktop.is_known or desktop.points else ""
    return Seen(
        is_known=desktop.is_known,
        card="running" if runs else "asleep" if asleep else off,
        is_ready=runs,
        screen=desktop.screen,
        hours=desktop.hours if runs else 0,
        kept=None if desktop.kept is None else "lost" if desktop.kept == "disk" else "streamed",
        points=tuple((point.title, point.automatic) for point in desktop.points),
        shared=desktop.guest,
        let_in=desktop.guest if runs else None,
        qemus=int(runs),
        supervisors=int(runs),
        tokens=int(runs),
        has_folder=runs or desktop.kept is not None or bool(desktop.points),
        has_more=runs,
    )


def is_as(seen: Seen, desktop: Desktop) -> bool:
    wanted = look_at(desktop)
    if desktop.is_left:
        # Every session sweeps once, in the background.
        wanted = replace(wanted, has_folder=seen.has_folder, has_more=seen.has_more)
    return seen == wanted


@dataclass(frozen=True, kw_only=True)
class Result:
    """How something is answered, and what it makes of the desktop."""

    desktop: Desktop
    answers: frozenset[int] = _OK


def refused(desktop: Desktop, *answers: int) -> Result:
    return Result(desktop=desktop, answers=frozenset(answers))


class Action:
    """Something that is done to one desktop."""

    def result(self, desktop: Desktop) -> Result:
        raise NotImplementedError


@dataclass(frozen=True)
class Start(Action):
    """`sleeping` is what a start may say of what is kept; "" nothing, a number: that checkpoint."""

    sleeping: str | int = ""

    def result(self, desktop: Desktop) -> Result:
        if desktop.is_running:
            return refused(desktop, 400)
        # JupyterHub has made its row before anything is checked.
        desktop = replace(desktop, is_known=True)
        started = replace(desktop, hours=LIFETIME_H, is_left=False)
        match self.sleeping:
            case int(index):
                if index >= len(desktop.points):
                    return refused(desktop, 400)
                return Result(desktop=replace(started, screen=desktop.points[index].screen))
            case "discard":
                return Result(desktop=replace(started, screen="green", kept=None, points=()))
            case "wake" | "boot" if desktop.kept is None:
                return refused(desktop, 400)
            case "boot":
                return Result(desktop=replace(started, screen="green"))
            case _:
                lost = desktop.kept in (None, "disk")
                return Result(desktop=replace(started, screen="green" if lost else desktop.kept))


@dataclass(frozen=True)
class Stop(Action):
    def result(self, desktop: Desktop) -> Result:
        if not desktop.is_known:
            return refused(desktop, 404)
        return Result(desktop=_asleep(desktop))


@dataclass(frozen=True)
class Remove(Action):
    """Delete the server, with everything that is kept of it."""

    def result(self, desktop: Desktop) -> Result:
        if not desktop.is_known:
            return refused(desktop, 404)
        return Result(desktop=Desktop(is_left=desktop.is_left))


@dataclass(frozen=True)
class Suspend(Action):
    def result(self, desktop: Desktop) -> Result:
        return Result(desktop=_asleep(desktop)) if desktop.is_running else refused(desktop, 404)


@dataclass(frozen=True)
class Extend(Action):
    def result(self, desktop: Desktop) -> Result:
        if not desktop.is_running:
            return refused(desktop, 404)
        if desktop.hours >= LONGEST_H:
            return refused(desktop, 409)
        return Result(desktop=replace(desktop, hours=min(desktop.hours + EXTENDED_BY_H, LONGEST_H)))


@dataclass(frozen=True)
class SwitchOff(Action):
    """By the owner, in the desktop: for good."""

    def result(self, desktop: Desktop) -> Result:
        if not desktop.is_running:
            return refused(desktop, _NO_SESSION)
        return Result(desktop=replace(desktop, screen=None, kept=None))


@dataclass(frozen=True)
class Reset(Action):
    def result(self, desktop: Desktop) -> Result:
        return (
            Result(desktop=replace(desktop, screen="green"))
            if desktop.is_running
            else refused(desktop, _NO_SESSION)
        )


@dataclass(frozen=True)
class PressKey(Action):
    """What the owner does in the desktop."""

    def result(self, desktop: Desktop) -> Result:
        if not desktop.is_running:
            return refused(desktop, _NO_SESSION)
        return Result(desktop=replace(desktop, screen="red" if desktop.screen == "green" else "green"))


@dataclass(frozen=True)
class Share(Action):
    """With the guest; `role` None takes it back."""

    role: Role | None

    def result(self, desktop: Desktop) -> Result:
        if not desktop.is_known:
            return refused(desktop, 404)
        return Result(desktop=replace(desktop, guest=self.role))


@dataclass(frozen=True)
class SaveCheckpoint(Action):
    title: str

    def result(self, desktop: Desktop) -> Result:
        if desktop.screen is None:
            return refused(desktop, _NO_SESSION)
        if len(desktop.points) >= MOST_CHECKPOINTS:
            return refused(desktop, 409)
        point = Point(title=self.title, screen=desktop.screen)
        return Result(desktop=replace(desktop, points=(point, *desktop.points)))


@dataclass(frozen=True)
class GoBack(Action):
    """To one of the checkpoints of a desktop that runs; the present becomes one, for which others may go."""

    index: int

    def result(self, desktop: Desktop) -> Result:
        if desktop.screen is None:
            return refused(desktop, _NO_SESSION)
        points = desktop.points
        if self.index >= len(points):
            return refused(desktop, 409)
        wanted = points[self.index]
        spare = [point for point in points if point.automatic and point is not wanted]
        if len(points) - len(spare) >= MOST_CHECKPOINTS:
            return refused(desktop, 409)
        present = Point(title="Before going back", screen=desktop.screen, automatic=True)
        if len(points) == MOST_CHECKPOINTS:
            points = tuple(point for point in points if point is not spare[-1])
        return Result(desktop=replace(desktop, screen=wanted.screen, points=(present, *points)))


@dataclass(frozen=True)
class Forget(Action):
    """Delete one of the checkpoints by the hub, or all that is kept."""

    index: int | None = None

    def result(self, desktop: Desktop) -> Result:
        is_there = (
            desktop.kept is not None or desktop.points
            if self.index is None
            else self.index < len(desktop.points)
        )
        if not is_there:
            return refused(desktop, 404)
        if desktop.is_running:
            return refused(desktop, 409)
        if self.index is None:
            return Result(desktop=replace(desktop, kept=None, points=()))
        points = desktop.points
        return Result(desktop=replace(desktop, points=points[: self.index] + points[self.index + 1 :]))


@dataclass(frozen=True)
class KillQemu(Action):
    """Its disk is kept."""

    def result(self, desktop: Desktop) -> Result:
        return _unasked(replace(desktop, screen=None, kept="disk") if desktop.is_running else desktop)


@dataclass(frozen=True)
class KillSupervisor(Action):
    """What it was woken from is there still."""

    def result(self, desktop: Desktop) -> Result:
        return _unasked(replace(desktop, screen=None, is_left=True) if desktop.is_running else desktop)


def _unasked(desktop: Desktop) -> Result:
    return Result(desktop=desktop, answers=frozenset({NOBODY}))


def _asleep(desktop: Desktop) -> Desktop:
    return replace(desktop, screen=None, kept=desktop.screen) if desktop.screen else desktop


@dataclass(frozen=True, kw_only=True)
class Story:
    """One way in which things that were done at the same time may have come out."""

    desktop: Desktop
    answers: Mapping[Action, frozenset[int]]


def stories(desktop: Desktop, first: Action, second: Action) -> Iterator[Story]:
    """Every way that two actions at the same time may come out: one after the other, or one alone.

    Who comes second may be told that the first one is still at work, and then has done nothing. Who is killed
    may have done it and have had no time to say so.
    """
    for one, other in ((first, second), (second, first)):
        before = one.result(desktop)
        after = other.result(before.desktop)
        told = before.answers | BUSY if isinstance(other, KillQemu | KillSupervisor) else before.answers
        yield Story(desktop=after.desktop, answers={one: told, other: after.answers})
        yield Story(desktop=before.desktop, answers={one: before.answers, other: BUSY})
