"""The options form: rendered for a user, with what they chose last or have just typed."""

import functools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from qemuspawner.given_texts import MAX_NAME, MAX_NOTES
from qemuspawner.hub.admission.admission import Admission
from qemuspawner.hub.admission.quotas import ShownRow
from qemuspawner.hub.desktops.kept import NOTHING, Kept
from qemuspawner.hub.desktops.shown import Shown, ShownDesktop
from qemuspawner.hub.form.choices import Choice, find_choices
from qemuspawner.hub.form.fields import any_of
from qemuspawner.hub.form.gpu_option import offered_gpus
from qemuspawner.hub.form.options import (
    FIELDS,
    PRESET_FIELDS,
    Options,
    RefusedOptionsError,
    check_options,
    find_guest_obstacles,
    find_obstacle,
    max_lifetime_s,
)
from qemuspawner.hub.form.partition_option import PLACE_FIELDS
from qemuspawner.hub.form.partition_view import (
    forget_places,
    show_fits,
    show_partitions,
    show_reservations,
)
from qemuspawner.hub.languages import teach_languages
from qemuspawner.hub.limits import Limits
from qemuspawner.hub.proposals.shown import ShownProposals
from qemuspawner.hub.runs.advice import Advice, say_cpus
from qemuspawner.keyboards import KEYBOARDS
from qemuspawner.languages import Language
from qemuspawner.machine import Machine
from qemuspawner.machines.catalogue import icon_uri
from qemuspawner.machines.software import load_software
from qemuspawner.paths import TEMPLATES
from qemuspawner.resolutions import RESOLUTIONS
from qemuspawner.spec import SessionSpec
from qemuspawner.texts import Text
from qemuspawner.units import render_mib, render_seconds

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
teach_languages(_TEMPLATES)


# The lifetime of what is woken, beside that of a new desktop.
KEPT_LIFETIME = "kept_lifetime"

# Where no quota and no host is known of.
ROOM = Admission()
_LOOK_EVERY_S = 10
# What is under "Advanced".
_ADVANCED = frozenset((*PRESET_FIELDS, "where", "name", "notes", "keyboard", "resolution", "script"))
_PRESET_CHOICE = re.compile(r"([a-z][a-z0-9-]*)/(.+)", re.DOTALL)
# Of a text that was refused for its length; it is shown to be shortened.
_MAX_TEXT = 80_000

# How a desktop comes to its end where nobody shuts it down, by what `suspend_on` calls it.
_ENDS = {
    "lifetime": Text("its lifetime is over"),
    "idle": Text("nobody uses it"),
    "stop": Text("it is stopped on the hub"),
}

# Where a desktop can run, on a hub that has both.
_PLACES = {"host": Text("This host"), "cluster": Text("The cluster")}

# What a guest reaches, in a word.
_NETWORKS = {
    "none": Text("No network"),
    "allow": Text("Servers of this site"),
    "internet": Text("Internet"),
    "bridge": Text("Network of this site"),
    "tap": Text("Network of this site"),
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What stands in a form before it is shown: the last choice, what was typed, or what a link asks for."""

    options: Mapping[str, object] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)
    from_link: bool = False
    server_name: str | None = None  # which server it was meant for, where it was typed


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Terms of use that are to be accepted."""

    version: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A checkpoint of another desktop of the user's, to go on from."""

    option: str
    server_name: str
    spec: SessionSpec
    shown: Shown


def unpack_form(form: Mapping[str, list[Any]]) -> dict[str, object]:
    """JupyterHub's form data, a list for each field, as options; a field left empty is an omitted one."""
    options: dict[str, object] = {}
    for name, values in form.items():
        value = values[0] if len(values) == 1 else values
        if value != "" and name != "_xsrf":
            options[name] = value
    # A card's choice is a machine, or a preset of one; what a preset says is not taken from other fields.
    choice = options.get("machine")
    match = _PRESET_CHOICE.fullmatch(choice) if isinstance(choice, str) else None
    if match is not None:
        options = {name: value for name, value in options.items() if name not in PRESET_FIELDS}
        options |= {"machine": match[1], "preset": match[2]}
    # A form has two parts, of which `sleeping` or `branch` says the one that is meant.
    lifetime = options.pop(KEPT_LIFETIME, None)
    goes_on = options.get("sleeping", "discard") != "discard" or "branch" in options
    if lifetime is not None and goes_on:
        given = (*FIELDS, "invite")
        options = {
            name: value for name, value in options.items() if name not in given or name in PLACE_FIELDS
        }
        options["lifetime"] = lifetime
    return options


def unpack_link(query: Mapping[str, list[Any]]) -> tuple[dict[str, object], dict[str, str]]:
    """A link's parameters as options, without what a link may not ask for, and a sentence for each of those.

    Whoever presses Start too quickly would lose what is kept, accept what they have not read or run somebody
    else's program, by somebody else's link.
    """
    options = unpack_form(query)
    problems: dict[str, str] = {}
    if options.get("sleeping") == "discard":
        del options["sleeping"]
        problems["sleeping"] = Text(
            "A link cannot ask for 'discard'; what is to be deleted only you can choose."
        )
    if options.pop("script", None) is not None:
        problems["script"] = Text("A link cannot bring a script along; only you can type one in.")
    if options.pop("terms", None) is not None:
        problems["terms"] = Text("A link cannot accept the terms of use; only you can.")
    return options, problems


def render_form(
    entry: Entry,
    *,
    user: str,
    language: Language,
    machines: Mapping[str, Machine],
    limits: Limits,
    favourites: Collection[str] = (),
    settings: Iterable[str] = (),
    terms: Terms | None = None,
    now: Admission = ROOM,
    kept: Kept = NOTHING,
    desktop: ShownDesktop | None = None,
    branch: Branch | None = None,
    suspend_on: Collection[str] = (),
    keep_s: int = 0,
    quotas: Iterable[ShownRow] = (),
    proposals: ShownProposals | None = None,
    advice: Advice | None = None,
    catalogue_problems: Iterable[str] = (),
) -> str:
    """The form's HTML, without the <form> element.

    `user` is who the desktop is for, `language` is of who reads it. `favourites` are ids of machines, shown
    first; `settings` are names of saved options; `terms` are to be accepted; `now` is what there is room for.
    `kept` is what is kept of the server, and `desktop` the same for the page; `branch` is the checkpoint of
    another one that the new desktop goes on from; `suspend_on` says what puts a desktop to sleep, which is
    kept for `keep_s` seconds then (0: for ever). `quotas` are the user's, `proposals` is the picker of
    theirs; `advice` is of the last run; `catalogue_problems` are for administrators.
    """
    machines = dict(sorted(machines.items(), key=lambda item: item[0] not in favourites))
    # Sizes and times that there are somewhere; the partitions say where.
    anywhere = forget_places(limits)
    fits = show_fits(machines.values(), limits, asked=entry.options)
    obstacles = {name: find_obstacle(machine, limits) for name, machine in machines.items()}
    choices = {name: find_choices(machine, limits, now) for name, machine in machines.items()}
    # A machine that cannot start now, but sometimes, is chosen where nothing else is left.
    usable = [name for name in machines if any(not choice.obstacle for choice in choices[name])]
    chosen = entry.options.get("machine")
    if not isinstance(chosen, str) or obstacles.get(chosen, "unknown"):
        chosen = next(iter(usable or [name for name, obstacle in obstacles.items() if not obstacle]), "")
    cards = [
        _card(
            machine,
            choices=choices[name],
            obstacle=obstacles[name],
            entry=entry if name == chosen else Entry(),
            limits=anywhere,
            fits=fits,
        )
        | {"is_favourite": name in favourites}
        for name, machine in machines.items()
    ]
    shown = dict(
        user=user,
        cards=cards,
        chosen=next((card for card in cards if card["id"] == chosen), None),
        asleep=_asleep(entry, kept, desktop, anywhere) if desktop is not None and kept else None,
        branch=None if branch is None else {"of": branch, "lifetimes": _lifetimes(branch.spec, anywhere)},
        kept_lifetime=KEPT_LIFETIME,
        suspend_on=suspend_on,
        sleeps_when=_join(text for end, text in _ENDS.items() if end in suspend_on),
        is_deleted_when=_join(
            [*(text for end, text in _ENDS.items() if end not in suspend_on), Text("it is shut down")]
        ),
        proposals=proposals,
        kept_for=render_seconds(keep_s) if keep_s else "",
        quotas=list(quotas),
        server_name=kept.server_name,
        partitions=show_partitions(limits, _preferred(machines[chosen], entry, anywhere), asked=entry.options)
        if chosen
        else [],
        reservations=show_reservations(limits, asked=entry.options.get("reservation")),
        texts=_texts(entry),
        keyboards=_named_choices({name: one.title for name, one in KEYBOARDS.items()}, entry, "keyboard"),
        resolutions=_named_choices({name: name for name in RESOLUTIONS}, entry, "resolution"),
        places=_named_choices({name: _PLACES[name] for name in limits.places}, entry, "where"),
        script_kib=limits.script_kib,
        lacks=_all_lack(machines.values(), limits),
        is_advanced=not _ADVANCED.isdisjoint(entry.problems)
        or (entry.from_link and not _ADVANCED.isdisjoint(entry.options)),
        look_every_ms=_LOOK_EVERY_S * 1000,
        max_name=MAX_NAME,
        max_notes=MAX_NOTES,
        settings=list(settings),
        terms=terms,
        has_accepted=terms is not None and entry.options.get("terms") == terms.version,
        advice=advice,
        problems=entry.problems,
        fields=FIELDS,
        from_link=entry.from_link,
        catalogue_problems=list(catalogue_problems),
    )
    return _TEMPLATES.get_template("options_form.html").render(language.say(shown), language=language)


def _join(words: Iterable[str]) -> str:
    found = list(words)
    return any_of(found) if found else ""


def _asleep(entry: Entry, kept: Kept, desktop: ShownDesktop, limits: Limits) -> dict[str, object]:
    """What is kept as the template shows it."""
    spec = kept.saved[0].spec
    assert spec is not None
    chosen = entry.options.get("sleeping")
    ways = ["wake", "boot"] if desktop.suspended is not None and not desktop.suspended.is_lost else ["wake"]
    usual = ""
    if desktop.suspended is not None:
        usual = ways[-1] if desktop.suspended.problem else "wake"
    known = {*ways, "discard", *(saved.name for saved in desktop.checkpoints)}
    return {
        "desktop": desktop,
        "chosen": chosen if isinstance(chosen, str) and chosen in known else usual,
        "lifetimes": _lifetimes(spec, limits),
    }


def _lifetimes(spec: SessionSpec, limits: Limits) -> list[dict[str, object]]:
    """For what goes on from a session of this spec."""
    longest_s = max_lifetime_s(spec.machine, limits)
    preferred_s = min(spec.lifetime_s, longest_s)
    lifetimes = _offered_lifetimes(spec.machine, limits)
    return _choices(lifetimes | {preferred_s}, preferred_s, render_seconds)


def _offered_lifetimes(machine: Machine, limits: Limits) -> set[int]:
    offered = (*map(int, machine.lifetime.offered), *limits.more_lifetimes_s)
    return {lifetime for lifetime in offered if lifetime <= max_lifetime_s(machine, limits)}


def _all_lack(machines: Iterable[Machine], limits: Limits) -> set[str]:
    """The choices that none of the machines has."""
    lacks = [set(find_guest_obstacles(machine, limits)) for machine in machines]
    return set.intersection(*lacks) if lacks else set()


def _texts(entry: Entry) -> dict[str, str]:
    """What stands in the fields for text, also where it was refused."""
    values = {name: entry.options.get(name, "") for name in ("name", "notes", "script")}
    return {name: value[:_MAX_TEXT] if isinstance(value, str) else "" for name, value in values.items()}


def _named_choices(titles: Mapping[str, str], entry: Entry, field: str) -> list[dict[str, object]]:
    chosen = entry.options.get(field)
    return [{"value": name, "label": title, "selected": name == chosen} for name, title in titles.items()]


def _card(
    machine: Machine,
    *,
    choices: Sequence[Choice],
    obstacle: str,
    entry: Entry,
    limits: Limits,
    fits: Mapping[str, str],
) -> dict[str, object]:
    """A machine as the template shows it."""
    preferred = _preferred(machine, entry, limits)
    longest_s = max_lifetime_s(machine, limits)
    lifetimes = _offered_lifetimes(machine, limits)
    return {
        "id": machine.id,
        "name": machine.name,
        "version": machine.version,
        "description": machine.description,
        "hidden": machine.hidden,
        "icon": icon_uri(machine),
        "obstacle": obstacle,
        "programs": _programs(machine),
        "choices": _card_choices(choices, preferred, fits),
        "lacks": list(find_guest_obstacles(machine, limits)),
        "network": _NETWORKS[limits.networks.of(machine).mode],
        "idle": render_seconds(machine.lifetime.idle) if machine.lifetime.idle else "",
        "longest": render_seconds(longest_s),
        "selects": {
            "cpus": _choices(machine.cpus.offered, preferred.cpus, str),
            "memory": _choices(machine.memory.offered, preferred.memory_mib, render_mib),
            **({"gpu": _gpu_choices(machine, preferred, limits)} if limits.gpus else {}),
            "lifetime": _choices(lifetimes | {preferred.lifetime_s}, preferred.lifetime_s, render_seconds),
        },
    }


def _programs(machine: Machine) -> list[dict[str, object]]:
    """What machine.toml names, and then what the package database of a built image has."""
    shown = {
        program.name.casefold(): {"name": program.name, "gpu": program.gpu, "about": ""}
        for program in machine.programs
    }
    if machine.build is not None:
        for program in load_software(Path(machine.image.file).parent):
            about = f"{program.version}: {program.summary}" if program.summary else program.version
            shown.setdefault(program.name.casefold(), {"name": program.name, "gpu": False, "about": about})
    return list(shown.values())


def _card_choices(
    choices: Iterable[Choice], preferred: Options, fits: Mapping[str, str]
) -> list[dict[str, object]]:
    """The radio buttons of a card."""
    shown: list[dict[str, object]] = [
        {
            "value": choice.value,
            "title": choice.preset.name if choice.preset else Text("Other size"),
            "about": choice.preset.description if choice.preset else "",
            "facts": _facts(choice.options) if choice.preset and choice.options else "",
            "sizes": _sizes(choice.options) if choice.preset and choice.options else None,
            "obstacle": choice.obstacle,
            "fit": fits.get(choice.value, ""),
        }
        for choice in choices
    ]
    fitting = next((choice for choice in shown if choice["sizes"] == _sizes(preferred)), shown[-1])
    return [choice | {"is_preferred": choice is fitting} for choice in shown]


def _sizes(options: Options) -> dict[str, object]:
    stored = {"gpu": "none", **options.stored()}
    return {name: stored[name] for name in PRESET_FIELDS}


def _facts(options: Options) -> str:
    facts = [say_cpus(options.cpus), render_mib(options.memory_mib)]
    if options.gpus:
        count = options.gpus.count
        facts.append(Text("1 GPU") if count == 1 else Text("{count} GPUs", count=count))
    facts.append(render_seconds(options.lifetime_s))
    return functools.reduce(lambda some, one: Text("{some} · {one}", some=some, one=one), facts)


def _preferred(machine: Machine, entry: Entry, limits: Limits) -> Options:
    """The machine's defaults, with those of the entry's options that this machine accepts."""
    options: dict[str, object] = {"machine": machine.id}
    if machine.presets and entry.options.keys().isdisjoint(("preset", *PRESET_FIELDS)):
        options["preset"] = machine.presets[0].name

    def checked() -> Options:
        return check_options(options, machines={machine.id: machine}, limits=limits, startable=False)

    for name in ("preset", *PRESET_FIELDS):
        if name in entry.options:
            options[name] = entry.options[name]
            try:
                checked()
            except RefusedOptionsError:
                del options[name]
    return checked()


def _gpu_choices(machine: Machine, preferred: Options, limits: Limits) -> list[dict[str, object]]:
    """What the hub's hosts could give; where none is chosen for a machine that needs one, any single one."""
    titles: dict[str, str] = {} if machine.gpu.need == "required" else {"none": Text("None")}
    for gpus in offered_gpus(machine, limits.gpus):
        titles[str(gpus)] = (
            gpus.model if gpus.count == 1 else Text("{count} of {model}", count=gpus.count, model=gpus.model)
        )
    chosen = str(preferred.gpus) if preferred.gpus else "none"
    return [{"value": value, "label": title, "selected": value == chosen} for value, title in titles.items()]


def _choices(values: Iterable[int], preferred: int, render: Any) -> list[dict[str, object]]:
    return [
        {"value": int(value), "label": render(int(value)), "selected": int(value) == preferred}
        for value in sorted(set(values))
    ]
