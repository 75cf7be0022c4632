"""`qemuspawner import-darts`: the machines and the settings of DARTS (qemu-web-desktop).

Source: its manual pages, and how versions 23.02 to 26.10 behave; none of its code is used.
"""

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from qemuspawner.cli.darts.machines import Imported
from qemuspawner.cli.darts.machines import translate as translate_machine
from qemuspawner.cli.darts.read import Left, Setting, read_config, read_machines
from qemuspawner.cli.darts.settings import Host, Suggestions, render
from qemuspawner.cli.darts.settings import translate as translate_settings
from qemuspawner.errors import CatalogueError
from qemuspawner.machines.own import OwnMachines
from qemuspawner.paths import StatePaths

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_IMAGES = Path("/var/lib/qemu-web-desktop/machines")


def add_command(commands: "_SubParsersAction[ArgumentParser]") -> None:
    parser = commands.add_parser(
        "import-darts",
        help="take over machines and settings of DARTS (qemu-web-desktop)",
        description="Add the machines of DARTS's machines.conf, hidden at first, and print settings for "
        "jupyterhub_config.py. What is not taken over is said on the standard error.",
    )
    parser.add_argument("machines_conf", type=Path, metavar="MACHINES_CONF", help="DARTS's list of machines")
    parser.add_argument(
        "config", type=Path, nargs="*", metavar="CONFIG", help="config.pl, and what else in Perl or .ini"
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help=f"where its images lie (default: dir_machines of CONFIG, else {_IMAGES})",
    )
    parser.add_argument("--dry-run", action="store_true", help="print each machine.toml and add none")
    parser.set_defaults(command=run)


def run(arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    settings: dict[str, Setting] = {}
    left: list[Left] = []
    entries, left_lines = read_machines(arguments.machines_conf)
    left += left_lines
    for path in arguments.config:
        found, left_lines = read_config(path)
        settings |= {one.name: one for one in found}
        left += left_lines
    suggested = translate_settings(settings.values(), _this_host())
    left += suggested.left
    images = arguments.images or _find_images(settings)
    own = OwnMachines(state=state, folders=folders, by="import-darts (host)", is_host_admin=True)
    # Of those that are there already each keeps its place: a second import adds what is new only.
    taken: set[str] = set()
    code = 0
    for entry in entries:
        machine, left_lines = translate_machine(entry, suggested.defaults, images=images, taken=taken)
        left += left_lines
        if machine is None:
            continue
        if arguments.dry_run:
            print(f"# {machine.id}/machine.toml\n{machine.text}")
        elif not _add(own, machine):
            code = 1
    _print_settings(suggested)
    for one in sorted(left, key=lambda one: (one.place.path.name, one.place.line)):
        print(f"not taken over: {one}", file=sys.stderr)
    return code


def _add(own: OwnMachines, machine: Imported) -> bool:
    try:
        own.add(machine.id, machine.text)
    except CatalogueError as exc:
        print(f"'{machine.id}' was not added: {exc.text}", file=sys.stderr)
        return exc.trouble == "exists"
    todo = f"; {machine.image}" if machine.image else ""
    print(f"'{machine.id}' was added, hidden until 'qemuspawner machines unhide'{todo}", file=sys.stderr)
    return True


def _print_settings(suggested: Suggestions) -> None:
    if suggested.config:
        print("# For jupyterhub_config.py, from DARTS's configuration. Read each line before you use it.")
        print(render(suggested.config), end="")


def _find_images(settings: dict[str, Setting]) -> Path:
    value = settings["dir_machines"].value if "dir_machines" in settings else None
    return Path(value) if isinstance(value, str) and value else _IMAGES


def _this_host() -> Host:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Host(cpus=os.cpu_count() or 1, memory_mib=memory >> 20)
