"""`qemuspawner machines changes`, `publish`, `pack-desktop`, `pack`: what is made of a sleeping desktop."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from qemuspawner.cli.finding import find_machine
from qemuspawner.cli.images import make_progress
from qemuspawner.cli.own_machines import find_own
from qemuspawner.errors import printable
from qemuspawner.machine import Allow
from qemuspawner.machines.asleep import Asleep, find_asleep
from qemuspawner.machines.changes import Changes
from qemuspawner.machines.own import OwnMachines
from qemuspawner.machines.publish import find_changes, publish
from qemuspawner.machines.take_home import pack_desktop, pack_machine
from qemuspawner.paths import StatePaths

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_actions(actions: "_SubParsersAction[ArgumentParser]") -> None:
    parser = actions.add_parser("changes", help="packages and files that a sleeping desktop has changed")
    _add_common(parser)
    parser.set_defaults(command=show_changes)

    parser = actions.add_parser(
        "publish", help="make a machine, or its next version, of a sleeping desktop; hidden without --for-..."
    )
    _add_common(parser)
    parser.add_argument("id", help="1 to 40 of a-z, 0-9 and '-', a letter first")
    parser.add_argument("--name", default="", help="what users read")
    parser.add_argument(
        "--for-user", action="append", default=[], metavar="NAME", help="offer it to this one"
    )
    parser.add_argument("--for-group", action="append", default=[], metavar="NAME", help="and to this group")
    parser.add_argument("--for-all", action="store_true", help="offer it to everybody")
    parser.set_defaults(command=publish_desktop)

    parser = actions.add_parser(
        "pack-desktop", help="pack the disk of a sleeping desktop, for its user to take home within a day"
    )
    _add_common(parser)
    parser.set_defaults(command=pack)

    parser = actions.add_parser("pack", help="pack a machine's image, for its users to take home")
    parser.add_argument("id")
    parser.add_argument("--json", action="store_true", help="tell programs how far it is, in lines")
    parser.set_defaults(command=pack_image)


def _add_common(parser: ArgumentParser) -> None:
    parser.add_argument("desktop", metavar="USER[/SERVER]", help="whose desktop it is")
    parser.add_argument("--saved", default="", metavar="NAME", help="only if this is what sleeps")
    parser.add_argument("--by", default="", metavar="NAME", help="who does it, for the history")
    parser.add_argument("--json", action="store_true", help="for programs, in lines")


def show_changes(arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    own, asleep = _find(arguments, state, folders)
    found = find_changes(own, asleep, progress=make_progress(as_json=arguments.json))
    if arguments.json:
        print(json.dumps({"changes": msgspec.to_builtins(found, enc_hook=str)}))
    else:
        _print(found)
    return 0


def publish_desktop(arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    own, asleep = _find(arguments, state, folders)
    allow = None
    if arguments.for_all:
        allow = Allow()
    elif arguments.for_user or arguments.for_group:
        allow = Allow(users=tuple(arguments.for_user), groups=tuple(arguments.for_group))
    entry = publish(
        own,
        asleep,
        arguments.id,
        name=arguments.name,
        allow=allow,
        hidden=None if allow is None else False,
        progress=make_progress(as_json=arguments.json),
    )
    if not arguments.json and entry.machine is not None:
        hidden = " It is hidden until 'qemuspawner machines unhide'." if entry.machine.hidden else ""
        print(f"'{entry.id}' is version {entry.machine.version} in {entry.folder}.{hidden}")
    return 0


def pack(arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    own, asleep = _find(arguments, state, folders)
    _, _, server = arguments.desktop.partition("/")
    file = pack_desktop(own, asleep, server=server, progress=make_progress(as_json=arguments.json))
    if not arguments.json:
        print(file)
    return 0


def pack_image(arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    machine = find_machine(arguments.id, folders, state)
    file = pack_machine(machine, state=state, progress=make_progress(as_json=arguments.json))
    if not arguments.json:
        print(file)
    return 0


def _find(arguments: Namespace, state: StatePaths, folders: list[Path]) -> tuple[OwnMachines, Asleep]:
    user, _, server = arguments.desktop.partition("/")
    own = find_own(state, folders, by=arguments.by)
    return own, find_asleep(own, user=user, server=server, name=arguments.saved)


def _print(changes: Changes) -> None:
    if changes.unknown:
        print(f"What it has changed is not known: {changes.unknown}")
        return
    if not changes.packages and not changes.folders:
        print("It has changed nothing.")
    for one in changes.packages:
        print(printable(f"package {one.name}: {one.before or 'not there'} -> {one.after or 'removed'}"))
    for folder in changes.folders:
        print(printable(f"{folder.path}: +{folder.added} ~{folder.changed} -{folder.removed}"))
        for line in folder.files:
            print(printable(f"  {line}"))
