"""The options of a start request, checked in one place for form, REST, links and stored options alike."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from qemuspawner.account import find_sudo
from qemuspawner.errors import OptionsError
from qemuspawner.given_texts import MAX_NAME, MAX_NOTES, script_of, text_of
from qemuspawner.hub.admission.promises import Need
from qemuspawner.hub.desktops.kept import NAME, NOTHING, Kept
from qemuspawner.hub.form.fields import Field, all_of, any_of, in_range, one_of, parse_count, quote, show
from qemuspawner.hub.form.gpu_option import gpu_field
from qemuspawner.hub.form.partition_option import PLACE_FIELDS, Place, find_place
from qemuspawner.hub.limits import MIN_LIFETIME_S, Limits
from qemuspawner.hub.proposals.choice import check_proposal
from qemuspawner.hub.proposals.mine import NO_PROPOSALS, MyProposals
from qemuspawner.keyboards import KEYBOARDS
from qemuspawner.machine import Machine, Preset
from qemuspawner.machines.catalogue import missing_files
from qemuspawner.resolutions import RESOLUTIONS
from qemuspawner.spec import ChosenProposal, Gpus, SessionSpec
from qemuspawner.texts import Text, join_sentences, reason_of
from qemuspawner.units import parse_mib, parse_seconds, render_mib, render_seconds

# What a new desktop is made of, and is remembered for the next one.
FIELDS = (
    *("machine", "preset", "cpus", "memory", "gpu", "lifetime", "where"),
    *PLACE_FIELDS,
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
    where: str = ""  # of the hub's places; "" where it has one, or any will do
    partition: str = ""  # of a cluster; "" on one host
    is_partition_chosen: bool = False  # by the user
    reservation: str = ""
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
            "where": self.where,
            "name": self.name,
            "notes": self.notes,
            "keyboard": self.keyboard,
            "resolution": self.resolution,
            "script": self.script,
            "partition": self.partition if self.is_partition_chosen else "",
            "reservation": self.reservation,
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
        super().__init__(join_sentences(*problems.values()))
        self.problems = dict(problems)


def allowed_machines(
    machines: Mapping[str, Machine], *, user: str, groups: Collection[str], is_admin: bool = False
) -> dict[str, Machine]:
    """What this user may start; anything else does not exist for them.

    What is hidden is for administrators to try, once it has an image.
    """

    def is_allowed(machine: Machine) -> bool:
        if machine.hidden:
            return is_admin and not missing_files(machine)
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
    name = quote(machine.name)
    if machine.gpu.need == "required" and not limits.gpus:
        return Text("{machine} needs a GPU, and this hub has none for desktops.", machine=name)
    missing = missing_files(machine)
    if not missing:
        return ""
    file = quote(missing[0].name)
    if machine.build:
        command = f"qemuspawner machines build {machine.id}"
        return Text(
            "{machine} cannot start: {file} is missing; the administrator builds it with `{command}`.",
            machine=name,
            file=file,
            command=command,
        )
    return Text(
        "{machine} cannot start: {file} is missing; the administrator puts it into the machine's image "
        "folder.",
        machine=name,
        file=file,
    )


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
    problems: dict[str, str] = {}
    for name in user_options:
        if name not in (*FIELDS, *ONCE, _IGNORED):
            shown = show(name)
            problems[shown] = Text(
                "There is no option {name}; the options are {names}.",
                name=shown,
                names=all_of(_ALL, most=len(_ALL)),
            )
            if len(problems) == _MAX_LISTED:
                break
    source, sleeping, branch = _find_source(user_options, problems, kept, find_kept)
    try:
        machine = source.machine if source is not None else _check_machine(user_options, machines)
    except ValueError as exc:
        problems["machine"] = reason_of(exc)
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
    is_here = bool(limits.places) and user_options.get("where") == "host"
    place = None if is_here else find_place(user_options, limits, problems)
    if place is not None and "lifetime" not in user_options:
        limits = place.narrow(limits)
    values: dict[str, Any] = {}
    for option in find_fields(machine, limits, source=source, preset=preset or NO_PRESET):
        try:
            values[option.name] = option.read(user_options)
        except ValueError as exc:
            problems[option.name] = reason_of(exc)
    proposal, invite = check_proposal(user_options, proposals, source, problems)
    if problems:
        raise RefusedOptionsError(problems)
    options = Options(
        machine=machine,
        cpus=source.cpus if source is not None else values["cpus"],
        memory_mib=source.memory_mib if source is not None else values["memory"],
        lifetime_s=values["lifetime"],
        max_lifetime_s=max_lifetime_s(machine, limits),
        gpus=source.gpus if source is not None else values["gpu"],
        where=values["where"],
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
    return options if place is None else _put(options, place)


def _put(options: Options, place: Place) -> Options:
    """The same in a partition in which it can run.

    Raises:
        RefusedOptionsError: There is none.
    """
    need = Need(cpus=options.cpus, memory_mib=options.memory_mib, gpus=options.gpus)
    try:
        partition = place.choose(need, lifetime_s=options.lifetime_s)
    except ValueError as exc:
        raise RefusedOptionsError({"partition": reason_of(exc)}) from None
    longest_s = place.longest_s(partition)
    return replace(
        options,
        partition=partition.name,
        is_partition_chosen=place.is_chosen,
        reservation=place.reservation.name if place.reservation else "",
        max_lifetime_s=options.max_lifetime_s
        if longest_s is None
        else min(options.max_lifetime_s, longest_s),
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
            bound=_say_offered(machine, machine.cpus.offered),
        )
        yield Field(
            name="memory",
            default=int(preset.memory or machine.memory.default),
            parse=one_of(parse_mib, machine.memory.offered),
            bound=_say_offered(machine, map(render_mib, machine.memory.offered)),
        )
        yield gpu_field(machine, limits.gpus)
    longest_s = max_lifetime_s(machine, limits)
    usual_s = int(preset.lifetime or machine.lifetime.default) if source is None else source.lifetime_s
    yield Field(
        name="lifetime",
        default=min(usual_s, longest_s),
        parse=in_range(parse_seconds, MIN_LIFETIME_S, longest_s),
        bound=Text(
            "{machine} lasts from {least} to {most}",
            machine=quote(machine.name),
            least=render_seconds(MIN_LIFETIME_S),
            most=render_seconds(longest_s),
        ),
    )
    yield Field(
        name="where",
        default="",
        parse=one_of(text_of(MAX_NAME), ("", *limits.places)),
        bound=Text("a place is {names}", names=any_of(limits.places))
        if limits.places
        else Text("desktops of this hub have one place"),
    )
    yield Field(
        name="name",
        default="" if source is None else source.name,
        parse=text_of(MAX_NAME),
        bound=Text("a desktop's name has one line of at most {most} characters", most=MAX_NAME),
    )
    yield Field(
        name="notes",
        default="" if source is None else source.notes,
        parse=text_of(MAX_NOTES, lines=True),
        bound=Text("notes have at most {most} characters", most=MAX_NOTES),
    )
    if source is None:
        yield from _find_guest_fields(machine, limits)


def _say_offered(machine: Machine, values: Iterable[object]) -> Text:
    return Text("{machine} offers {values}", machine=quote(machine.name), values=any_of(values))


def find_guest_obstacles(machine: Machine, limits: Limits) -> dict[str, str]:
    """Which choices a machine does not have that its guest would have to carry out, and why."""
    obstacles: dict[str, str] = {}
    name = quote(machine.name)
    if not (machine.agent or machine.has_seed):
        obstacles["keyboard"] = obstacles["script"] = Text(
            "{machine} has no guest agent for it", machine=name
        )
    if not limits.scripts:
        obstacles["script"] = Text("this site runs no scripts")
    elif machine.agent and not machine.home and not _is_root(machine, limits):
        obstacles["script"] = Text("'{name}' does not say in whose home it would run", name=machine.name)
    if machine.display != "virtio":
        obstacles["resolution"] = Text("the screen of {machine} has a size of its own", machine=name)
    return obstacles


def _is_root(machine: Machine, limits: Limits) -> bool:
    return find_sudo(limits.sudo, by_machine=machine.sudo) == "yes"


def _find_cloud_obstacle(machine: Machine, limits: Limits) -> str:
    """Why nothing can be given to cloud-init; "" where it can."""
    if not machine.cloud_init:
        return Text("'{name}' has no cloud-init", name=machine.name)
    if not _is_root(machine, limits):
        return Text("cloud-init is root, which you cannot be in '{name}'", name=machine.name)
    return ""


def _find_guest_fields(machine: Machine, limits: Limits) -> Iterator[Field]:
    obstacles = find_guest_obstacles(machine, limits)
    kinds = {
        "keyboard": (
            one_of(text_of(MAX_NAME), ("", *KEYBOARDS)),
            Text("a keyboard is {names}", names=any_of(KEYBOARDS)),
        ),
        "resolution": (
            one_of(text_of(MAX_NAME), ("", *RESOLUTIONS)),
            Text("a resolution is {sizes}", sizes=any_of(RESOLUTIONS)),
        ),
        "script": (
            script_of(limits.script_kib, no_cloud_config=_find_cloud_obstacle(machine, limits)),
            Text(
                "a script begins with #! or #cloud-config and has at most {count} KiB",
                count=limits.script_kib,
            ),
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
    name = quote(machine.name)
    offered = (
        _say_offered(machine, [show(one.name) for one in machine.presets])
        if machine.presets
        else Text("{machine} has none", machine=name)
    )
    return Text("The option '{name}' is {value}; {bound}.", name="preset", value=show(given), bound=offered)


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
            raise ValueError(
                Text("Nothing sleeps here any more that could be woken; start a new desktop instead.")
            )
    except ValueError as exc:
        problems["sleeping"] = reason_of(exc)
    if "branch" in user_options:
        try:
            source, branch = _find_branch(user_options["branch"], sleeping, kept, find_kept)
        except ValueError as exc:
            problems["branch"] = reason_of(exc)
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
                Text(
                    "The option 'sleeping' is 'boot', and nothing is kept of this desktop that could be "
                    "booted."
                )
            )
        return kept.suspended.spec
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError(
            Text(
                "The option 'sleeping' is {value}; it is 'wake', 'boot', 'discard' or the name of one of "
                "this desktop's checkpoints.",
                value=show(value),
            )
        )
    found = kept.find_checkpoint(value)
    if found is None:
        if not kept.checkpoints:
            raise ValueError(
                Text(
                    "The option 'sleeping' is {value}, which is no checkpoint of this desktop; it has none.",
                    value=show(value),
                )
            )
        raise ValueError(
            Text(
                "The option 'sleeping' is {value}, which is no checkpoint of this desktop; it has {names}.",
                value=show(value),
                names=any_of(quote(saved.name) for saved in kept.checkpoints),
            )
        )
    return found.spec


def _find_branch(
    value: object, sleeping: object, kept: Kept, find_kept: Callable[[str], Kept]
) -> tuple[SessionSpec | None, str]:
    """Raises ValueError with the whole sentence."""
    match = _BRANCH.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(
            Text(
                "The option 'branch' is {value}; it is 'SERVER/CHECKPOINT', with nothing before the slash "
                "for the default server.",
                value=show(value),
            )
        )
    if sleeping != "wake":
        raise ValueError(
            Text(
                "The option 'branch' is {value}; it cannot be given together with 'sleeping', which is "
                "{sleeping}.",
                value=show(value),
                sleeping=show(sleeping),
            )
        )
    if kept.suspended is not None:
        # Once it is suspended, the branch would take the place of what sleeps here.
        raise ValueError(
            Text(
                "The option 'branch' is {value}, and this desktop is asleep; branch off to another server.",
                value=show(value),
            )
        )
    of = find_kept(match[1])
    found = of.find_checkpoint(match[2])
    if found is None:
        raise ValueError(
            Text("The option 'branch' is {value}, and you have no such checkpoint.", value=show(value))
        )
    return found.spec, f"{of.session_id}/{found.name}"


def _check_machine(user_options: Mapping[str, object], machines: Mapping[str, Machine]) -> Machine:
    """Raises ValueError with the whole sentence."""
    if not machines:
        raise ValueError(Text("There is no machine that you may start; ask the administrator for one."))
    offered = any_of(map(quote, machines))
    if "machine" not in user_options:
        if len(machines) > 1:
            raise ValueError(Text("The option 'machine' is missing; it is one of {names}.", names=offered))
        return next(iter(machines.values()))
    name = user_options["machine"]
    if not isinstance(name, str) or name not in machines:
        raise ValueError(
            Text(
                "The option 'machine' is {value}, which is not one of {names}.",
                value=show(name),
                names=offered,
            )
        )
    return machines[name]
