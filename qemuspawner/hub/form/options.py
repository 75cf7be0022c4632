"""The options of a start request, checked in one place for form, REST, links and stored options alike."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qemuspawner.errors import OptionsError
from qemuspawner.given_texts import MAX_NAME, MAX_NOTES, script_of, text_of
from qemuspawner.hub.desktops.kept import NAME, NOTHING, Kept
from qemuspawner.hub.form.fields import Field, in_range, join_words, one_of, parse_count, show
from qemuspawner.hub.form.gpu_option import gpu_field
from qemuspawner.hub.limits import MIN_LIFETIME_S, Limits
from qemuspawner.hub.proposals.choice import check_proposal
from qemuspawner.hub.proposals.mine import NO_PROPOSALS, MyProposals
from qemuspawner.keyboards import KEYBOARDS
from qemuspawner.machine import Machine, Preset
from qemuspawner.machines.catalogue import missing_files
from qemuspawner.resolutions import RESOLUTIONS
from qemuspawner.spec import ChosenProposal, Gpus, SessionSpec
from qemuspawner.units import parse_mib, parse_seconds, render_mib, render_seconds

# What a new desktop is made of, and is remembered for the next one.
FIELDS = (
    *("machine", "preset", "cpus", "memory", "gpu", "lifetime"),
    *("name", "notes", "keyboard", "resolution", "script", "proposal"),
)
# What of these a preset says.
PRESET_FIELDS = ("cpus", "memory", "gpu", "lifetime")
# What is done with that which was kept, what is accepted and who else is to come; for one start only.
ONCE = ("sleeping", "branch", "invite", "terms")
_ABOUT_KEPT = ("sleeping", "branch")
# In the order of the manual; a `setting` stands for what is saved under its name.
_ALL = (*FIELDS, *ONCE, "setting")
# Written by us for the hub's admin page, so it comes back with stored options; what it says is not read.
_IGNORED = "profile"

_MAX_LISTED = 8
# What is chosen without one.
NO_PRESET = Preset(name="-")
_BRANCH = re.compile(rf"([^/]*)/({NAME.pattern})", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Options:
    """A start request that was checked."""

    machine: Machine
    cpus: int
    memory_mib: int
    lifetime_s: int
    max_lifetime_s: int
    gpus: Gpus | None = None
    name: str = ""
    notes: str = ""
    keyboard: str = ""
    resolution: str = ""
    script: str = ""
    sleeping: str = "wake"
    branch: str = ""  # SESSION-ID/NAME
    proposal: ChosenProposal | None = None
    invite: str = ""  # as what members of the proposal are invited: "view" or "control"; "": they are not
    goes_on: bool = False  # from something kept, whose machine and size these are

    def stored(self) -> dict[str, object]:
        """As JupyterHub keeps them, and as they can be given again; what was kept is used once."""
        texts = {
            "name": self.name,
            "notes": self.notes,
            "keyboard": self.keyboard,
            "resolution": self.resolution,
            "script": self.script,
        }
        return {
            "machine": self.machine.id,
            "cpus": self.cpus,
            "memory": self.memory_mib,
            **({"gpu": str(self.gpus)} if self.gpus else {}),
            "lifetime": self.lifetime_s,
            **({"proposal": self.proposal.id} if self.proposal else {}),
            **{name: text for name, text in texts.items() if text},
            _IGNORED: self.machine.name,
        }


class RefusedOptionsError(OptionsError):
    """Every problem of a start request; `problems` has a sentence for each field."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__(" ".join(problems.values()))
        self.problems = dict(problems)


def allowed_machines(
    machines: Mapping[str, Machine], *, user: str, groups: Collection[str], is_admin: bool = False
) -> dict[str, Machine]:
    """What this user may start; anything else does not exist for them.

    What is hidden is for administrators to try.
    """

    def is_allowed(machine: Machine) -> bool:
        if machine.hidden:
            return is_admin
        users, in_groups = machine.allow.users, machine.allow.groups
        everybody = not users and not in_groups
        return everybody or user in users or not set(in_groups).isdisjoint(groups)

    return {machine.id: machine for machine in machines.values() if is_allowed(machine)}


def max_lifetime_s(machine: Machine, limits: Limits) -> int:
    """The longest lifetime, counted from the start."""
    if limits.lifetime_s is None:
        return int(machine.lifetime.max)
    return min(int(machine.lifetime.max), limits.lifetime_s)


def find_obstacle(machine: Machine, limits: Limits) -> str:
    """Why the machine cannot be started at all, in a sentence; "" where it can."""
    if machine.gpu.need == "required" and not limits.gpus:
        return f"'{machine.name}' needs a GPU, and this hub has none for desktops."
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
    proposals: MyProposals = NO_PROPOSALS,
) -> Options:
    """The options of a start of one of `machines`, which are those that the user may start.

    A missing option takes the machine's default, a missing machine the only one there is. With `startable`
    the machine's files have to be there. `kept` is what is kept of this server, `find_kept` of another one of
    the user's. What goes on from something kept has the machine and the size of that, whatever else is asked
    for: it is the user's own work, also where the machine is not in the catalogue any more. `proposals` are
    the user's.

    Raises:
        RefusedOptionsError: With a sentence for each option that cannot be accepted.
    """
    problems = {}
    for name in user_options:
        if name not in (*FIELDS, *ONCE, _IGNORED):
            shown = show(name)
            problems[shown] = (
                f"There is no option {shown}; the options are {join_words(_ALL, 'and', most=len(_ALL))}."
            )
            if len(problems) == _MAX_LISTED:
                break
    source, sleeping, branch = _find_source(user_options, problems, kept, find_kept)
    try:
        machine = source.machine if source is not None else _check_machine(user_options, machines)
    except ValueError as exc:
        problems["machine"] = str(exc)
        raise RefusedOptionsError(problems) from None

    if startable and (obstacle := find_obstacle(machine, limits)):
        problems["machine"] = obstacle
    preset = None
    if source is None and "preset" in user_options:
        preset = machine.find_preset(user_options["preset"])
        if preset is None:
            problems["preset"] = _say_presets(machine, user_options["preset"])
        elif preset.gpu:
            # Whether there is such a one, the hub's hosts say.
            user_options = {"gpu": preset.gpu, **user_options}
    values: dict[str, Any] = {}
    for option in find_fields(machine, limits, source=source, preset=preset or NO_PRESET):
        try:
            values[option.name] = option.read(user_options)
        except ValueError as exc:
            problems[option.name] = str(exc)
    proposal, invite = check_proposal(user_options, proposals, source, problems)
    if problems:
        raise RefusedOptionsError(problems)
    return Options(
        machine=machine,
        cpus=source.cpus if source is not None else values["cpus"],
        memory_mib=source.memory_mib if source is not None else values["memory"],
        lifetime_s=values["lifetime"],
        max_lifetime_s=max_lifetime_s(machine, limits),
        gpus=source.gpus if source is not None else values["gpu"],
        name=values["name"],
        notes=values["notes"],
        keyboard=values.get("keyboard", ""),
        resolution=values["resolution"] if source is None else source.resolution,
        script=values.get("script", ""),
        sleeping=sleeping,
        branch=branch,
        proposal=proposal,
        invite=invite,
        goes_on=source is not None,
    )


def find_fields(
    machine: Machine, limits: Limits, *, source: SessionSpec | None = None, preset: Preset = NO_PRESET
) -> Iterator[Field]:
    """The options of a start of this machine, with what `preset` says as their defaults.

    Of what goes on from `source` the size is given, and what is done once was done.
    """
    if source is None:
        yield Field(
            name="cpus",
            default=preset.cpus or machine.cpus.default,
            parse=one_of(parse_count, machine.cpus.offered),
            bound=f"'{machine.name}' offers {join_words(machine.cpus.offered)}",
        )
        yield Field(
            name="memory",
            default=int(preset.memory or machine.memory.default),
            parse=one_of(parse_mib, machine.memory.offered),
            bound=f"'{machine.name}' offers {join_words(map(render_mib, machine.memory.offered))}",
        )
        yield gpu_field(machine, limits.gpus)
    longest_s = max_lifetime_s(machine, limits)
    usual_s = int(preset.lifetime or machine.lifetime.default) if source is None else source.lifetime_s
    yield Field(
        name="lifetime",
        default=min(usual_s, longest_s),
        parse=in_range(parse_seconds, MIN_LIFETIME_S, longest_s),
        bound=f"'{machine.name}' lasts from {render_seconds(MIN_LIFETIME_S)} to {render_seconds(longest_s)}",
    )
    yield Field(
        name="name",
        default="" if source is None else source.name,
        parse=text_of(MAX_NAME),
        bound=f"a desktop's name has one line of at most {MAX_NAME} characters",
    )
    yield Field(
        name="notes",
        default="" if source is None else source.notes,
        parse=text_of(MAX_NOTES, lines=True),
        bound=f"notes have at most {MAX_NOTES} characters",
    )
    if source is None:
        yield from _find_guest_fields(machine, limits)


def find_guest_obstacles(machine: Machine, limits: Limits) -> dict[str, str]:
    """Which choices a machine does not have that its guest would have to carry out, and why."""
    obstacles = {}
    if not machine.agent:
        obstacles["keyboard"] = obstacles["script"] = f"'{machine.name}' has no guest agent for it"
    if not limits.scripts:
        obstacles["script"] = "this site runs no scripts"
    if machine.display != "virtio":
        obstacles["resolution"] = f"the screen of '{machine.name}' has a size of its own"
    return obstacles


def _find_guest_fields(machine: Machine, limits: Limits) -> Iterator[Field]:
    obstacles = find_guest_obstacles(machine, limits)
    kinds = {
        "keyboard": (
            one_of(text_of(MAX_NAME), ("", *KEYBOARDS)),
            f"a keyboard is {join_words(KEYBOARDS)}",
        ),
        "resolution": (
            one_of(text_of(MAX_NAME), ("", *RESOLUTIONS)),
            f"a resolution is {join_words(RESOLUTIONS)}",
        ),
        "script": (
            script_of(limits.script_kib),
            f"a script begins with #! and has at most {limits.script_kib} KiB",
        ),
    }
    for name, (parse, bound) in kinds.items():
        obstacle = obstacles.get(name, "")
        yield Field(
            name=name,
            default="",
            parse=one_of(text_of(0), ("",)) if obstacle else parse,
            bound=obstacle or bound,
        )


def _say_presets(machine: Machine, given: object) -> str:
    offered = (
        f"offers {join_words(show(one.name) for one in machine.presets)}" if machine.presets else "has none"
    )
    return f"The option 'preset' is {show(given)}; '{machine.name}' {offered}."


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
    if not problems.keys().isdisjoint(_ABOUT_KEPT):
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
