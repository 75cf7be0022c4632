"""`qemuspawner machines`: what can be started, what is wrong with it, and its images."""

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from qemuspawner.cli import images, own_machines, publishing
from qemuspawner.cli.finding import find_machine
from qemuspawner.cli.tables import print_table
from qemuspawner.errors import ImageError
from qemuspawner.machine import Machine, encode_unit
from qemuspawner.machines.build import build_machine, find_image_state
from qemuspawner.machines.catalogue import Catalogue, digest_fits, load_all_machines, missing_files
from qemuspawner.machines.recipe import find_recipe
from qemuspawner.paths import StatePaths
from qemuspawner.qemu.digests import check_digest, image_files
from qemuspawner.units import render_mib, render_seconds

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_commands(commands: "_SubParsersAction[ArgumentParser]") -> None:
    group = commands.add_parser("machines", help="the machines that can be started")
    actions = group.add_subparsers(metavar="ACTION", required=True)

    parser = actions.add_parser("list", help="list the machines and the state of their images")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(command=list_machines)

    parser = actions.add_parser("show", help="show everything about one machine")
    parser.add_argument("id")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(command=show_machine)

    parser = actions.add_parser("check", help="check every machine.toml and image; exit 1 with all problems")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument(
        "--digests", action="store_true", help="read the images, too: note what they hold, or compare"
    )
    parser.set_defaults(command=check_machines)

    parser = actions.add_parser("build", help="make a machine's image from Debian packages; needs root")
    parser.add_argument("id")
    parser.add_argument("--force", action="store_true", help="also if the image is up to date")
    parser.add_argument("--mirror", default="", metavar="URL", help="take the packages from this repository")
    parser.set_defaults(command=build)

    own_machines.add_actions(actions)
    images.add_actions(actions)
    publishing.add_actions(actions)


def list_machines(arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    catalogue = load_all_machines(state, folders)
    if arguments.json:
        rows = [
            {
                "id": machine.id,
                "name": machine.name,
                "version": machine.version,
                "hidden": machine.hidden,
                "image": _image_state(machine, state, catalogue.machines),
                "cpus": list(machine.cpus.offered),
                "memory_mib": [int(size) for size in machine.memory.offered],
                "gpu": machine.gpu.need,
                "folder": machine.folder,
            }
            for machine in catalogue.machines.values()
        ]
        print(json.dumps(rows, indent=2))
    else:
        print_table(
            ("ID", "NAME", "IMAGE", "CPUS", "MEMORY"),
            [
                (
                    machine.id,
                    machine.name + (" (hidden)" if machine.hidden else ""),
                    _image_state(machine, state, catalogue.machines),
                    ", ".join(map(str, machine.cpus.offered)),
                    ", ".join(map(render_mib, machine.memory.offered)),
                )
                for machine in catalogue.machines.values()
            ],
        )
    print_problems(catalogue)
    return 0


def show_machine(arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    catalogue = load_all_machines(state, folders)
    machine = find_machine(arguments.id, folders, state)
    state_of_image = _image_state(machine, state, catalogue.machines)
    if arguments.json:
        values = msgspec.to_builtins(machine, enc_hook=encode_unit)
        print(json.dumps(values | {"image_state": state_of_image}, indent=2))
        return 0
    rows = [
        ("id", machine.id),
        ("name", machine.name),
        ("description", machine.description),
        ("version", machine.version),
        ("folder", machine.folder),
        ("image", f"{machine.image.file} ({machine.image.format}, {state_of_image})"),
        ("url", machine.image.url),
        ("firmware", machine.firmware),
        ("display", machine.display),
        ("cpus", _offer(machine.cpus.offered, machine.cpus.default, str)),
        ("memory", _offer(machine.memory.offered, machine.memory.default, render_mib)),
        ("gpu", machine.gpu.need),
        ("lifetime", _offer(machine.lifetime.offered, machine.lifetime.default, render_seconds)),
        ("longest", render_seconds(machine.lifetime.max)),
        ("idle", render_seconds(machine.lifetime.idle) if machine.lifetime.idle else "no limit"),
        ("agent", "yes" if machine.agent else "no"),
        ("clipboard", "yes" if machine.clipboard else "no"),
        ("network", _network(machine)),
        ("ports", ", ".join(f"{name}: {tool.port}" for name, tool in machine.web_tools.items())),
        ("users", ", ".join(machine.allow.users) or ("" if machine.allow.groups else "everybody")),
        ("groups", ", ".join(machine.allow.groups)),
    ]
    for name, value in rows:
        if value:
            print(f"{name:12} {value}")
    return 0


def check_machines(arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    catalogue = load_all_machines(state, folders)
    problems = [str(problem) for problem in catalogue.problems]
    for machine in catalogue.machines.values():
        how = f"; {make}" if (make := _how_to_get_image(machine)) else ""
        missing = missing_files(machine)
        # What nobody is offered, such as the examples, may wait for its image.
        if not machine.hidden:
            problems += [f"{machine.id}: the file {path} is missing{how}." for path in missing]
        if not missing and not digest_fits(machine):
            problems.append(f"{machine.id}: the digest of {machine.image.file} is not that of machine.toml.")
    problems += _find_same_names(catalogue)
    if arguments.digests:
        for machine in catalogue.machines.values():
            if not missing_files(machine):
                problems += _check_digests(machine, tell=not arguments.json)
    if arguments.json:
        print(json.dumps({"machines": len(catalogue.machines), "problems": problems}, indent=2))
        return 1 if problems else 0
    for problem in problems:
        print(problem)
    if problems:
        return 1
    print(f"{len(catalogue.machines)} machines, no problems.")
    return 0


def _find_same_names(catalogue: Catalogue) -> Iterator[str]:
    """Of what is offered, users could not tell two apart."""
    known: dict[tuple[str, str], str] = {}
    for machine in catalogue.machines.values():
        if machine.hidden:
            continue
        key = machine.name.casefold(), machine.version
        if key in known:
            yield f"{machine.id}: it has the name and version of '{known[key]}'."
        known.setdefault(key, machine.id)


def _check_digests(machine: Machine, *, tell: bool) -> Iterator[str]:
    """What is wrong with a machine's files; prints what they hold, which takes seconds a gigabyte."""
    for path in image_files(machine.image):
        if tell:
            size = render_mib(-(-path.stat().st_size >> 20))
            print(f"{machine.id}: reading {path.name}, {size}", flush=True)
        try:
            found = check_digest(path)
        except ImageError as exc:
            yield f"{machine.id}: {exc}"
        except OSError as exc:
            yield f"{machine.id}: the digest of {path} cannot be noted: {exc.strerror}."
        else:
            if tell:
                print(f"{machine.id}: {path.name} {found}", flush=True)


def build(arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    machine = find_machine(arguments.id, folders, state)
    build_machine(
        find_recipe(machine, load_all_machines(state, folders).machines),
        images=state.images,
        sessions=state.sessions,
        progress=lambda text: print(text, flush=True),
        force=arguments.force,
        mirror=arguments.mirror,
    )
    return 0


def _how_to_get_image(machine: Machine) -> str:
    if machine.build:
        return f"'qemuspawner machines build {machine.id}' makes it"
    return f"'qemuspawner machines fetch {machine.id}' brings it" if machine.image.url else ""


def _network(machine: Machine) -> str:
    network = machine.wants_network
    if network is None:
        return "as the hub says"
    words = [network.mode, network.interface, ", ".join(network.allow)]
    return " ".join(filter(None, words))


def _image_state(machine: Machine, state: StatePaths, machines: Mapping[str, Machine]) -> str:
    if machine.build is not None:
        return find_image_state(find_recipe(machine, machines), images=state.images)
    return "missing" if missing_files(machine) else "present"


def _offer(offered: tuple[int, ...], default: int, render: Callable[[int], str]) -> str:
    return ", ".join(f"{render(value)} (default)" if value == default else render(value) for value in offered)


def print_problems(catalogue: Catalogue) -> None:
    for problem in catalogue.problems:
        print(f"problem: {problem}", file=sys.stderr)
