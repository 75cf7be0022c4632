"""Quotas: what a user, and the members of a group together, may have at once or use within a while.

Here is what the administrator has written down, and a limit beside what is used of it; who uses what is found
by `claims`.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from qemuspawner.hub.admission.promises import Need, Promise, find_free_at
from qemuspawner.hub.form.fields import all_of, any_of, show
from qemuspawner.texts import Text
from qemuspawner.units import parse_mib, parse_seconds, render_mib, render_seconds

_KEYS = ("user", "users", "each_in_group", "groups", "window")
_LEAST_WINDOW_S = 3600
_LONGEST_WINDOW_S = 10 * 366 * 86400
_MOST = 10**9
_MANY_HOURS = 1000

# By the names of KINDS; None is no limit.
Limits = Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What can be limited."""

    name: str
    label: str
    unit: str = ""  # of the numbers: "MiB", "h" or none
    field: str = "machine"  # the option that decides how much of it is asked for
    amount: Callable[[Need], float] | None = (
        None  # how much of it a desktop takes; None: not of one that runs
    )

    @property
    def is_hours(self) -> bool:
        return self.unit == "h"

    def render(self, value: float) -> str:
        if self.unit == "MiB":
            return render_mib(round(value))
        if self.is_hours:
            # As exact as a float is shown; of many, nobody counts minutes.
            return Text("{number} h", number=round(value, 1) if value < _MANY_HOURS else round(value))
        return f"{value:.0f}"


KINDS = (
    Kind(name="sessions", label=Text("Desktops"), amount=lambda _need: 1),
    Kind(name="cpus", label=Text("CPUs"), field="cpus", amount=lambda need: need.cpus),
    Kind(
        name="memory", label=Text("Memory"), unit="MiB", field="memory", amount=lambda need: need.memory_mib
    ),
    Kind(name="gpus", label=Text("GPUs"), field="gpu", amount=lambda need: need.gpu_count),
    Kind(name="disk", label=Text("Saved desktops"), unit="MiB"),
    Kind(name="cpu_hours", label=Text("CPU-hours"), unit="h"),
    Kind(name="gpu_hours", label=Text("GPU-hours"), unit="h", field="gpu"),
)
_BY_NAME = {kind.name: kind for kind in KINDS}


@dataclass(frozen=True, kw_only=True)
class Quotas:
    """The administrator's quotas; what a table does not name is not limited by it."""

    user: Limits = field(default_factory=dict)  # each user's own
    users: Mapping[str, Limits] = field(default_factory=dict)  # of some users, by name
    each_in_group: Mapping[str, Limits] = field(default_factory=dict)  # each member's own
    groups: Mapping[str, Limits] = field(default_factory=dict)  # what a group's members have together
    window_s: int = 30 * 86400  # for how long hours count

    def of_user(self, name: str, groups: Collection[str]) -> dict[str, float]:
        """A user's own limits: what is said of them by name, else the most generous of what is said of all.

        That is in `user`, and in `each_in_group` for the groups that they are in.
        """
        by_name = self.users.get(name, {})
        of_all = [self.user, *(limits for group, limits in self.each_in_group.items() if group in groups)]
        found: dict[str, float] = {}
        for kind in KINDS:
            said = [limits[kind.name] for limits in of_all if kind.name in limits]
            if kind.name in by_name:
                said = [by_name[kind.name]]
            bounded = [limit for limit in said if limit is not None]
            if bounded and len(bounded) == len(said):
                found[kind.name] = max(bounded)
        return found

    def of_groups(self, groups: Collection[str]) -> dict[str, dict[str, float]]:
        """The limits of those of these groups that have some; each of them counts."""
        return {
            group: {name: limit for name, limit in limits.items() if limit is not None}
            for group, limits in sorted(self.groups.items())
            if group in groups
        }


def parse_quotas(value: object) -> Quotas:
    """Quotas as an administrator writes them.

    Raises:
        ValueError: Something cannot be understood; the text is a sentence.
    """
    tables = _table(value, "quotas", _KEYS)
    window_s = Quotas.window_s
    if "window" in tables:
        try:
            window_s = parse_seconds(tables["window"])
        except ValueError as exc:
            raise ValueError(f"'window' in the quotas is {show(tables['window'])}: {exc}.") from None
        if not _LEAST_WINDOW_S <= window_s <= _LONGEST_WINDOW_S:
            raise ValueError(
                f"'window' in the quotas is {render_seconds(window_s)}; it is from "
                f"{render_seconds(_LEAST_WINDOW_S)} to {render_seconds(_LONGEST_WINDOW_S)}."
            )

    def named(key: str) -> dict[str, Limits]:
        return {
            name: _parse_limits(limits, f"quotas of {show(name)} in '{key}'")
            for name, limits in _table(tables.get(key, {}), f"quotas in '{key}'").items()
        }

    return Quotas(
        user=_parse_limits(tables.get("user", {}), "quotas in 'user'"),
        users=named("users"),
        each_in_group=named("each_in_group"),
        groups=named("groups"),
        window_s=window_s,
    )


def _parse_limits(value: object, where: str) -> Limits:
    return {
        name: _parse_limit(limit, _BY_NAME[name], where)
        for name, limit in _table(value, where, _BY_NAME).items()
    }


def _parse_limit(value: object, kind: Kind, where: str) -> float | None:
    if value is None:
        return None
    try:
        if kind.unit == "MiB":
            size_mib = parse_mib(value)
            if kind.name == "disk" and size_mib == 0:
                raise ValueError("it is at least 1 MiB, or None for no limit")
            return size_mib
        return _parse_number(value, whole=not kind.is_hours)
    except ValueError as exc:
        raise ValueError(f"'{kind.name}' in the {where} is {show(value)}: {exc}.") from None


def _parse_number(value: object, *, whole: bool) -> float:
    """Raises ValueError with a reason."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:  # NaN
        raise ValueError("it is not a number, or None for no limit")
    if value < 0:
        raise ValueError("it is negative")
    if value > _MOST:
        raise ValueError(f"it is more than {_MOST}; None is for no limit")
    if whole and value != int(value):
        raise ValueError("it is not a whole number")
    return value


def _table(value: object, where: str, known: Collection[str] | None = None) -> Mapping[str, object]:
    """Raises ValueError where it is none, or has a name that is not `known`."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"The {where} are {show(value)}, which is not a table.")
    for name in value:
        if known is not None and name not in known:
            raise ValueError(f"There is no {show(name)} in the {where}; there can be {any_of(known)}.")
    return value


@dataclass(frozen=True, kw_only=True)
class Row:
    """One quota, and what is used of it now."""

    kind: Kind
    user: str  # who looks at it
    group: str = ""  # whose it is; "": the user's own
    limit: float
    used: float
    window_s: int
    promises: tuple[Promise, ...] = ()  # of the desktops that count

    @property
    def available(self) -> float:
        return max(0, self.limit - self.used)

    @property
    def used_by(self) -> str:
        """The user's own desktops that use it; of other members' only how much they do. In one phrase."""
        amount = self.kind.amount
        if amount is None:
            return ""
        held = [promise for promise in self.promises if amount(promise) > 0]
        words = [
            _say_use(
                show(promise.server) if promise.server else Text("your default desktop"),
                self.kind.render(amount(promise)),
            )
            for promise in held
            if promise.user == self.user
        ]
        if others := sum(amount(promise) for promise in held if promise.user != self.user):
            words.append(_say_use(Text("other members"), self.kind.render(others)))
        return all_of(words) if words else ""

    def free_at(self, asked: float) -> float | None:
        """When as much as was asked for is there at the latest; None where that cannot be said."""
        amount = self.kind.amount
        if amount is None or asked > self.limit:
            return None
        return find_free_at(self.promises, missing=self.used + asked - self.limit, amount=amount)

    def describe(self) -> dict[str, object]:
        """For programs: numbers in `unit`, `window` in seconds, 0 for what counts at this moment."""
        return {
            "name": self.kind.name,
            "scope": f"group:{self.group}" if self.group else "user",
            "limit": self.limit,
            "used": round(self.used, 2),
            "available": round(self.available, 2),
            "unit": self.kind.unit,
            "window": self.window_s if self.kind.is_hours else 0,
        }


def _say_use(who: Text, amount: str) -> Text:
    return Text("{who} ({amount})", who=who, amount=amount)


@dataclass(frozen=True, kw_only=True)
class ShownRow:
    """The same as the pages show it."""

    label: str
    group: str
    limit: str
    used: str
    available: str
    percent: int
    window: str  # "" for what counts at this moment
    used_by: str


def show_row(row: Row) -> ShownRow:
    render = row.kind.render
    # What is limited to nothing is used up.
    percent = min(100, math.floor(100 * row.used / row.limit)) if row.limit else 100
    return ShownRow(
        label=row.kind.label,
        group=row.group,
        limit=render(row.limit),
        used=render(row.used),
        available=render(row.available),
        percent=percent,
        window=render_seconds(row.window_s) if row.kind.is_hours else "",
        used_by=row.used_by,
    )
