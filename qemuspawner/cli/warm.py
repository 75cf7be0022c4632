"""`qemuspawner warm` and `qemuspawner templates`: what desktops start from within a second."""

import json
import os
import shutil
import subprocess
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, BooleanOptionalAction, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from qemuspawner.cli.finding import find_machine
from qemuspawner.cli.tables import print_table
from qemuspawner.errors import MachineError, QemuSpawnerError
from qemuspawner.machine import Machine
from qemuspawner.machines.catalogue import load_all_machines, missing_files
from qemuspawner.machines.templates import find_template_obstacle, find_templates
from qemuspawner.machines.warm import TemplateState, list_templates, warm_machine
from qemuspawner.paths import StatePaths
from qemuspawner.saved import delete_saved
from qemuspawner.units import parse_mib, render_mib, render_seconds

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_commands(commands: "_SubParsersAction[ArgumentParser]") -> None:
    parser = commands.add_parser(
        "warm",
        help="boot a machine and save it at its desktop, so that desktops start within a second",
        description="Make the template of a machine; without a machine, of the default size of each.",
    )
    parser.add_argument("machine", nargs="?", help="its id; without it, all that have an image")
    parser.add_argument("--cpus", type=int, metavar="N", help="instead of the default number")
    parser.add_argument(
        "--memory", type=_size, metavar="SIZE", help='such as "2 GiB", instead of the default'
    )
    parser.add_argument("--all-sizes", action="store_true", help="every size that is offered")
    parser.add_argument("--force", action="store_true", help="also if the template is up to date")
    parser.add_argument(
        "--accelerator", choices=("auto", "kvm", "tcg"), default="auto", help="as the hub has it"
    )
    parser.add_argument(
        "--allow-tcg", action=BooleanOptionalAction, default=True, help="whether to emulate without KVM"
    )
    parser.add_argument(
        "--run-as", default="", metavar="ACCOUNT", help="as root: who runs QEMU (default: qemuspawner)"
    )
    parser.add_argument("--no-jail", action="store_true", help="run QEMU without namespaces of its own")
    parser.add_argument(
        "--max-disk", type=_size, default=0, metavar="SIZE",
        help="what all templates may take: the least recently used are deleted",
    )  # fmt: skip
    parser.add_argument("--nice", action="store_true", help="only use what nobody else needs of CPU and disk")
    parser.set_defaults(command=warm, usage_error=parser.error)

    group = commands.add_parser("templates", help="the templates that were made")
    actions = group.add_subparsers(metavar="ACTION", required=True)

    parser = actions.add_parser("list", help="list them, and whether desktops can start from them")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(command=list_all)

    parser = actions.add_parser("remove", help="delete templates; desktops that run are not harmed")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("name", nargs="?", help="as `list` shows it")
    which.add_argument("--stale", action="store_true", help="those that no desktop can start from")
    which.add_argument("--all", action="store_true", help="all of them")
    parser.set_defaults(command=remove)


def warm(arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    """1 where one of them could not be made; the others are."""
    sized = arguments.cpus is not None or arguments.memory is not None
    if sized and (arguments.all_sizes or not arguments.machine):
        arguments.usage_error("--cpus and --memory belong to one machine, and not to --all-sizes.")
    if arguments.nice:
        _be_nice()
    failed = 0
    for machine, cpus, memory_mib in _find_orders(arguments, state, folders):
        try:
            warm_machine(
                machine,
                cpus=cpus,
                memory_mib=memory_mib,
                state=state,
                progress=_tell,
                accelerator=arguments.accelerator,
                allow_tcg=arguments.allow_tcg,
                jail=not arguments.no_jail,
                run_as=arguments.run_as,
                force=arguments.force,
                max_disk_mib=arguments.max_disk,
            )
        except QemuSpawnerError as exc:
            if arguments.machine and not arguments.all_sizes:
                raise
            print(f"error: {exc.text}", file=sys.stderr)
            failed += 1
    return 1 if failed else 0


def _find_orders(
    arguments: Namespace, state: StatePaths, folders: list[Path]
) -> Iterator[tuple[Machine, int, int]]:
    """Machine, CPUs and MiB of each template that is asked for."""
    if arguments.machine:
        machine = find_machine(arguments.machine, folders, state)
        if missing := missing_files(machine):
            hint = f"Run 'qemuspawner machines build {machine.id}'." if machine.build else ""
            raise MachineError(f"The image of '{machine.id}' is missing: {missing[0]}.", hint=hint)
        machines = [machine]
    else:
        machines = [machine for machine in _load(state, folders).values() if _can_be_warmed(machine)]
    for machine in machines:
        if arguments.all_sizes:
            yield from (
                (machine, cpus, int(memory))
                for cpus in machine.cpus.offered
                for memory in machine.memory.offered
            )
        else:
            yield (machine, *_check_size(machine, arguments.cpus, arguments.memory))


def _can_be_warmed(machine: Machine) -> bool:
    if missing_files(machine):
        _tell(f"'{machine.id}' is left out: its image is missing.")
        return False
    if obstacle := find_template_obstacle(machine):
        _tell(f"'{machine.id}' is left out. {obstacle}")
        return False
    return True


def _check_size(machine: Machine, cpus: int | None, memory_mib: int | None) -> tuple[int, int]:
    """The size that is meant; one that nobody can choose would be of no use."""
    if cpus is None:
        cpus = machine.cpus.default
    elif cpus not in machine.cpus.offered:
        offered = ", ".join(map(str, machine.cpus.offered))
        raise MachineError(f"'{machine.id}' is not offered with {cpus} CPUs, but with {offered}.")
    if memory_mib is None:
        memory_mib = int(machine.memory.default)
    elif memory_mib not in machine.memory.offered:
        offered = ", ".join(map(render_mib, machine.memory.offered))
        raise MachineError(
            f"'{machine.id}' is not offered with {render_mib(memory_mib)} of memory, but with {offered}."
        )
    return cpus, memory_mib


def _be_nice() -> None:
    """Stand back behind everybody; QEMU inherits it."""
    os.nice(19)
    if tool := shutil.which("ionice"):
        subprocess.run([tool, "-c", "idle", "-p", str(os.getpid())], stdin=subprocess.DEVNULL, check=False)


def list_all(arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    templates = list_templates(state, _load(state, folders))
    now = time.time()
    if arguments.json:
        print(json.dumps([_as_json(template) for template in templates], indent=2))
        return 0
    rows = [
        (
            template.saved.name,
            template.saved.machine_id,
            str(template.saved.fingerprint.cpus),
            render_mib(template.saved.fingerprint.memory_mib),
            template.saved.fingerprint.accelerator,
            render_mib(template.size_bytes >> 20),
            render_seconds(max(0, now - template.saved.saved_at)),
            render_seconds(max(0, now - template.used_at)),
            ", ".join(template.misfits) or "yes",
        )
        for template in templates
    ]
    print_table(("NAME", "MACHINE", "CPUS", "MEMORY", "BY", "SIZE", "AGE", "LAST USED", "FITS"), rows)
    return 0


def _as_json(template: TemplateState) -> dict[str, object]:
    saved = template.saved
    return {
        "name": saved.name,
        "machine": saved.machine_id,
        "cpus": saved.fingerprint.cpus,
        "memory_mib": saved.fingerprint.memory_mib,
        "accelerator": saved.fingerprint.accelerator,
        "size_bytes": template.size_bytes,
        "saved_at": saved.saved_at,
        "used_at": template.used_at,
        "boot_s": saved.boot_s,
        "fits": not template.misfits,
        "misfits": list(template.misfits),
    }


def remove(arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    if arguments.stale:
        templates = list_templates(state, _load(state, folders))
        names = [template.saved.name for template in templates if template.misfits]
    else:
        known = [saved.name for saved in find_templates(state)]
        names = known if arguments.all else [arguments.name]
        if not arguments.all and arguments.name not in known:
            raise MachineError(
                f"There is no template '{arguments.name}'.", hint="'qemuspawner templates list' names all."
            )
    for name in names:
        try:
            delete_saved(state.templates / name)
        except OSError as exc:
            raise MachineError(f"The template '{name}' cannot be deleted: {exc.strerror}.") from exc
        print(f"Deleted {name}.")
    return 0


def _load(state: StatePaths, folders: list[Path]) -> dict[str, Machine]:
    return load_all_machines(state, folders).machines


def _size(text: str) -> int:
    try:
        return parse_mib(text)
    except ValueError as exc:
        raise ArgumentTypeError(str(exc)) from exc


def _tell(text: str) -> None:
    print(text, flush=True)
