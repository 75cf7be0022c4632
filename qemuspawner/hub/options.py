"""The options of a start request, checked in one place for form, REST, links and stored options alike."""

import re
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from qemuspawner.errors import OptionsError
from qemuspawner.hub.kept import NAME, NOTHING, Kept
from qemuspawner.machine import Machine
from qemuspawner.machines.catalogue import missing_files
from qemuspawner.spec import SessionSpec
from qemuspawner.units import parse_mib, parse_seconds, render_mib, render_seconds

# What a new desktop is made of, and is remembered for the next one.
FIELDS = ("machine", "cpus", "memory", "lifetime")
# What is done with that which was kept; for one start only.
ONCE = ("sleeping", "branch")
# Written by us for the hub's admin page, so it comes back with stored options; what it says is not read.
_IGNORED = "profile"

MIN_LIFETIME_S = 60
_MAX_SHOWN = 60
_MAX_LISTED = 8
_BRANCH = re.compile(rf"([^/]*)/({NAME.pattern})", re.ASCII)
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
    sleeping: str = "wake"
    branch: str = ""  # SESSION-ID/NAME
    goes_on: bool = False  # from something kept, whose machine and size these are

    def stored(self) -> dict[str, object]:
        """As JupyterHub keeps them, and as they can be given again; what was kept is used once."""
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
    kept: Kept = NOTHING,
    find_kept: Callable[[str], Kept] = lambda _server_name: NOTHING,
) -> Options:
    """The options of a start of one of `machines`, which are those that the user may start.

    A missing option takes the machine's default, a missing machine the only one there is. With `startable`
    the machine's files have to be there. `kept` is what is kept of this server, `find_kept` of another one of
    the user's. What goes on from something kept has the machine and the size of that, whatever else is asked
    for: it is the user's own work, also where the machine is not in the catalogue any more.

    Raises:
        RefusedOptionsError: With a sentence for each option that cannot be accepted.
    """
    problems = {}
    for name in user_options:
        if name not in (*FIELDS, *ONCE, _IGNORED):
            shown = show(name)
            problems[shown] = (
                f"There is no option {shown}; the options are {join_words((*FIELDS, *ONCE), 'and')}."
            )
            if len(problems) == _MAX_LISTED:
                break
    source, sleeping, branch = _find_source(user_options, problems, kept, find_kept)
    try:
        machine = source.machine if source is not None else _check_machine(user_options, machines)
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

    if source is not None:
        cpus, memory_mib = source.cpus, source.memory_mib
    else:
        cpus = check(
            "cpus",
            machine.cpus.default,
            _one_of(_parse_cpus, machine.cpus.offered),
            f"offers {join_words(machine.cpus.offered)}",
        )
        memory_mib = check(
            "memory",
            int(machine.memory.default),
            _one_of(parse_mib, machine.memory.offered),
            f"offers {join_words(map(render_mib, machine.memory.offered))}",
        )
    usual_s = source.lifetime_s if source is not None else int(machine.lifetime.default)
    lifetime_s = check(
        "lifetime",
        min(usual_s, longest_s),
        _in_range(parse_seconds, MIN_LIFETIME_S, longest_s),
        f"lasts from {render_seconds(MIN_LIFETIME_S)} to {render_seconds(longest_s)}",
    )
    if problems:
        raise RefusedOptionsError(problems)
    return Options(
        machine=machine,
        cpus=cpus,
        memory_mib=memory_mib,
        lifetime_s=lifetime_s,
        max_lifetime_s=longest_s,
        sleeping=sleeping,
        branch=branch,
        goes_on=source is not None,
    )


def show(value: object) -> str:
    """A value as it may stand in a sentence: quoted, cut short, its control characters visible."""
    text = value if isinstance(value, str) else _SHORT.repr(value)
    cut = "…" if len(text) > _MAX_SHOWN else ""
    visible = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text[:_MAX_SHOWN]
    )
    return f"'{visible}{cut}'"


def without_once(options: Mapping[str, object]) -> dict[str, object]:
    """What counts for later starts too."""
    return {name: value for name, value in options.items() if name not in ONCE}


def _find_source(
    user_options: Mapping[str, object],
    problems: dict[str, str],
    kept: Kept,
    find_kept: Callable[[str], Kept],
) -> tuple[SessionSpec | None, str, str]:
    """The session that this start goes on from, None for a new one; `sleeping` and `branch` for its spec.

    Raises:
        RefusedOptionsError: One of the two cannot be accepted; `problems` has them too.
    """
    sleeping = user_options.get("sleeping", "wake")
    source, branch = None, ""
    try:
        source = _find_sleeping(sleeping, kept)
        if source is None and "sleeping" in user_options and sleeping == "wake":
            # Who asked for what was left is not given an empty desktop.
            raise ValueError("Nothing sleeps here any more that could be woken; start a new desktop instead.")
    except ValueError as exc:
        problems["sleeping"] = str(exc)
    if "branch" in user_options:
        try:
            source, branch = _find_branch(user_options["branch"], sleeping, kept, find_kept)
        except ValueError as exc:
            problems["branch"] = str(exc)
    if not problems.keys().isdisjoint(ONCE):
        raise RefusedOptionsError(problems)
    return source, str(sleeping), branch


def _find_sleeping(value: object, kept: Kept) -> SessionSpec | None:
    """Raises ValueError with the whole sentence."""
    if value == "discard":
        return None
    if value == "wake":
        return kept.suspended.spec if kept.suspended else None
    if value == "boot":
        if kept.suspended is None:
            raise ValueError(
                "The option 'sleeping' is 'boot', and nothing is kept of this desktop that could be booted."
            )
        return kept.suspended.spec
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError(
            f"The option 'sleeping' is {show(value)}; it is 'wake', 'boot', 'discard' or the name of one of "
            "this desktop's checkpoints."
        )
    found = kept.find_checkpoint(value)
    if found is None:
        names = join_words(f"'{saved.name}'" for saved in kept.checkpoints) if kept.checkpoints else "none"
        raise ValueError(
            f"The option 'sleeping' is {show(value)}, which is no checkpoint of this desktop; it has {names}."
        )
    return found.spec


def _find_branch(
    value: object, sleeping: object, kept: Kept, find_kept: Callable[[str], Kept]
) -> tuple[SessionSpec | None, str]:
    """Raises ValueError with the whole sentence."""
    match = _BRANCH.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(
            f"The option 'branch' is {show(value)}; it is 'SERVER/CHECKPOINT', with nothing before the slash "
            "for the default server."
        )
    if sleeping != "wake":
        raise ValueError(
            f"The option 'branch' is {show(value)}; it cannot be given together with 'sleeping', which is "
            f"{show(sleeping)}."
        )
    if kept.suspended is not None:
        # Once it is suspended, the branch would take the place of what sleeps here.
        raise ValueError(
            f"The option 'branch' is {show(value)}, and this desktop is asleep; branch off to another server."
        )
    of = find_kept(match[1])
    found = of.find_checkpoint(match[2])
    if found is None:
        raise ValueError(f"The option 'branch' is {show(value)}, and you have no such checkpoint.")
    return found.spec, f"{of.session_id}/{found.name}"


def _check_machine(user_options: Mapping[str, object], machines: Mapping[str, Machine]) -> Machine:
    """Raises ValueError with the whole sentence."""
    if not machines:
        raise ValueError("There is no machine that you may start; ask the administrator for one.")
    offered = join_words(f"'{name}'" for name in machines)
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


def join_words(values: Iterable[object], last: str = "or") -> str:
    """(1, 2, 4) -> "1, 2 or 4"."""
    words = [str(value) for value in values]
    if len(words) > _MAX_LISTED:
        words[_MAX_LISTED:] = ["others"]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
