"""The options of a start request, checked in one place for form, REST, links and stored options alike."""

import re
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from qemuspawner.errors import OptionsError
from qemuspawner.machine import Machine
from qemuspawner.machines.catalogue import missing_files
from qemuspawner.units import parse_mib, parse_seconds, render_mib, render_seconds

FIELDS = ("machine", "cpus", "memory", "lifetime")
# Written by us for the hub's admin page, so it comes back with stored options; what it says is not read.
_IGNORED = "profile"

MIN_LIFETIME_S = 60
_MAX_SHOWN = 60
_MAX_LISTED = 8
_CPUS = re.compile(r"\s*([0-9]{1,4})\s*", re.ASCII)
# Never writes out more of a value than is shown of it.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = _MAX_SHOWN


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most an administrator allows, whatever a machine says; None is no limit."""

    lifetime_s: int | None = None


@dataclass(frozen=True, kw_only=True)
class Options:
    """A start request that was checked."""

    machine: Machine
    cpus: int
    memory_mib: int
    lifetime_s: int
    max_lifetime_s: int

    def stored(self) -> dict[str, object]:
        """As JupyterHub keeps them, and as they can be given again."""
        return {
            "machine": self.machine.id,
            "cpus": self.cpus,
            "memory": self.memory_mib,
            "lifetime": self.lifetime_s,
            _IGNORED: self.machine.name,
        }


class RefusedOptionsError(OptionsError):
    """Every problem of a start request; `problems` has a sentence for each field."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__(" ".join(problems.values()))
        self.problems = dict(problems)


def allowed_machines(
    machines: Mapping[str, Machine], *, user: str, groups: Collection[str]
) -> dict[str, Machine]:
    """What this user may start; anything else does not exist for them."""

    def is_allowed(machine: Machine) -> bool:
        users, in_groups = machine.allow.users, machine.allow.groups
        everybody = not users and not in_groups
        return not machine.hidden and (everybody or user in users or not set(in_groups).isdisjoint(groups))

    return {machine.id: machine for machine in machines.values() if is_allowed(machine)}


def max_lifetime_s(machine: Machine, limits: Limits) -> int:
    """The longest lifetime, counted from the start."""
    if limits.lifetime_s is None:
        return int(machine.lifetime.max)
    return min(int(machine.lifetime.max), limits.lifetime_s)


def find_obstacle(machine: Machine) -> str:
    """Why the machine cannot be started at all, in a sentence; "" where it can."""
    missing = missing_files(machine)
    if not missing:
        return ""
    remedy = (
        f"builds it with `qemuspawner machines build {machine.id}`"
        if machine.build
        else "puts it into the machine's image folder"
    )
    return f"'{machine.name}' cannot start: '{missing[0].name}' is missing; the administrator {remedy}."


def check_options(
    user_options: Mapping[str, object],
    *,
    machines: Mapping[str, Machine],
    limits: Limits,
    startable: bool = True,
) -> Options:
    """The options of a start of one of `machines`, which are those that the user may start.

    A missing option takes the machine's default, a missing machine the only one there is. With `startable`
    the machine's files have to be there.

    Raises:
        RefusedOptionsError: With a sentence for each option that cannot be accepted.
    """
    problems = {}
    for name in user_options:
        if name not in FIELDS and name != _IGNORED:
            shown = show(name)
            problems[shown] = f"There is no option {shown}; the options are {_list(FIELDS, 'and')}."
            if len(problems) == _MAX_LISTED:
                break
    try:
        machine = _check_machine(user_options, machines)
    except ValueError as exc:
        problems["machine"] = str(exc)
        raise RefusedOptionsError(problems) from None

    if startable and (obstacle := find_obstacle(machine)):
        problems["machine"] = obstacle
    longest_s = max_lifetime_s(machine, limits)

    def check(field: str, default: int, parse: Callable[[object], int], bound: str) -> int:
        if field not in user_options:
            return default
        value = user_options[field]
        try:
            return parse(value)
        except ValueError as exc:
            why = f" ({exc})" if str(exc) else ""
            problems[field] = f"The option '{field}' is {show(value)}{why}; '{machine.name}' {bound}."
            return default

    options = Options(
        machine=machine,
        cpus=check(
            "cpus",
            machine.cpus.default,
            _one_of(_parse_cpus, machine.cpus.offered),
            f"offers {_list(machine.cpus.offered)}",
        ),
        memory_mib=check(
            "memory",
            int(machine.memory.default),
            _one_of(parse_mib, machine.memory.offered),
            f"offers {_list(map(render_mib, machine.memory.offered))}",
        ),
        lifetime_s=check(
            "lifetime",
            min(int(machine.lifetime.default), longest_s),
            _in_range(parse_seconds, MIN_LIFETIME_S, longest_s),
            f"lasts from {render_seconds(MIN_LIFETIME_S)} to {render_seconds(longest_s)}",
        ),
        max_lifetime_s=longest_s,
    )
    if problems:
        raise RefusedOptionsError(problems)
    return options


def show(value: object) -> str:
    """A value as it may stand in a sentence: quoted, cut short, its control characters visible."""
    text = value if isinstance(value, str) else _SHORT.repr(value)
    cut = "…" if len(text) > _MAX_SHOWN else ""
    visible = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text[:_MAX_SHOWN]
    )
    return f"'{visible}{cut}'"


def _check_machine(user_options: Mapping[str, object], machines: Mapping[str, Machine]) -> Machine:
    """Raises ValueError with the whole sentence."""
    if not machines:
        raise ValueError("There is no machine that you may start; ask the administrator for one.")
    offered = _list(f"'{name}'" for name in machines)
    if "machine" not in user_options:
        if len(machines) > 1:
            raise ValueError(f"The option 'machine' is missing; it is one of {offered}.")
        return next(iter(machines.values()))
    name = user_options["machine"]
    if not isinstance(name, str) or name not in machines:
        raise ValueError(f"The option 'machine' is {show(name)}, which is not one of {offered}.")
    return machines[name]


def _parse_cpus(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _CPUS.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("it is not a whole number")
    return int(match[1])


def _one_of(parse: Callable[[object], int], offered: Collection[int]) -> Callable[[object], int]:
    def parse_offered(value: object) -> int:
        number = parse(value)
        if number not in offered:
            raise ValueError
        return number

    return parse_offered


def _in_range(parse: Callable[[object], int], least: int, most: int) -> Callable[[object], int]:
    def parse_in_range(value: object) -> int:
        number = parse(value)
        if not least <= number <= most:
            raise ValueError
        return number

    return parse_in_range


def _list(values: Iterable[object], last: str = "or") -> str:
    """(1, 2, 4) -> "1, 2 or 4"."""
    words = [str(value) for value in values]
    if len(words) > _MAX_LISTED:
        words[_MAX_LISTED:] = ["others"]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
