"""`qemuspawner doctor`: whether this host can run desktops, tried out for the account that asks."""

import json
import os
import shutil
import stat
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from qemuspawner.cli.diagnosis import Finding
from qemuspawner.cli.site import find_in_site
from qemuspawner.cli.walls import WHAT_TO_DO
from qemuspawner.errors import HostError
from qemuspawner.gpus import find_gpus
from qemuspawner.machine import Machine
from qemuspawner.machines.catalogue import Problem, load_all_machines, missing_files
from qemuspawner.machines.warm import list_templates
from qemuspawner.paths import StatePaths
from qemuspawner.qemu.folders import check_binding
from qemuspawner.qemu.host import (
    Qemu,
    available_memory_mib,
    check_disk,
    check_memory,
    find_own_architecture,
    find_qemu,
    find_uefi,
    kvm_works,
)
from qemuspawner.qemu.jail import check_jail
from qemuspawner.qemu.lan import find_bridge_helper
from qemuspawner.qemu.network import check_network
from qemuspawner.qemu.virtiofs import find_virtiofsd
from qemuspawner.qemu.walls import ALWAYS, JAIL, MEANINGS, try_walls
from qemuspawner.units import render_mib
from qemuspawner.vfio import find_obstacles

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_KVM = Path("/dev/kvm")
_DISTRIBUTIONS_QEMU = (
    "Install your distribution's QEMU 7.2 or later, below /usr; of two the first one on the PATH counts."
)


def add_command(commands: "_SubParsersAction[ArgumentParser]") -> None:
    parser = commands.add_parser(
        "doctor", help="try out what desktops need of this host; exit 1 where it lacks"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(command=examine)


def examine(arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    """Print every finding; 1 where there is an error."""
    findings = []
    for finding in _find_all(state, folders):
        findings.append(finding)
        if not arguments.json:
            # One by one: some take a moment.
            print(f"{finding.level:8} {finding.text}", flush=True)
            if finding.hint:
                print(f"{'':8} {finding.hint}", flush=True)
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    return 1 if any(finding.level == "error" for finding in findings) else 0


def _find_all(state: StatePaths, folders: list[Path]) -> Iterator[Finding]:
    yield from _find_in_qemu(state)
    yield from _find_on_host(state)
    yield from find_in_site()
    yield from _find_in_catalogue(state, folders)


def _find_in_qemu(state: StatePaths) -> Iterator[Finding]:
    try:
        qemu = find_qemu(find_own_architecture())
    except HostError as exc:
        yield _error(exc, hint=_DISTRIBUTIONS_QEMU)
        return
    yield Finding(level="ok", text=f"QEMU {'.'.join(map(str, qemu.version))} is {qemu.program}.")
    if shutil.which("qemu-img") is None:
        yield Finding(level="error", text="qemu-img was not found.", hint="Install it (Debian: qemu-utils).")
    yield _find_kvm(qemu, state)
    yield from _find_walls(qemu)
    yield from _find_in_networks()
    yield _find_folders()
    try:
        yield Finding(level="ok", text=f"UEFI firmware is {find_uefi(qemu.architecture)[0]}.")
    except HostError as exc:
        yield Finding(level="warning", text=exc.message, hint=exc.hint)


def _find_in_networks() -> Iterator[Finding]:
    """Which networks guests can have; what cannot be built is refused, and needs no more than `none`."""
    try:
        check_network()
        yield Finding(level="ok", text="Guests can have the networks 'none', 'allow' and 'internet'.")
    except HostError as exc:
        yield Finding(
            level="warning",
            text=f"Guests can have the network 'none' only: {exc.message}",
            hint=exc.hint,
        )
    helper = find_bridge_helper()
    if helper is None:
        yield Finding(
            level="ok", text="Guests can be put onto a tap; for bridges qemu-bridge-helper is missing."
        )
    elif helper.stat().st_mode & stat.S_ISUID or os.geteuid() == 0:
        yield Finding(
            level="ok", text="Guests can be put onto a tap, or a bridge that /etc/qemu/bridge.conf allows."
        )
    else:
        yield Finding(
            level="ok", text=f"Guests can be put onto a tap; for bridges {helper} has to be setuid root."
        )


def _find_walls(qemu: Qemu) -> Iterator[Finding]:
    """Which walls stand around a QEMU that is started to see it, as they will around each desktop."""
    try:
        check_jail()
        yield Finding(level="ok", text="The jail around QEMU can be built.")
        standing = try_walls(qemu)
    except HostError as exc:
        yield _error(exc, hint=_DISTRIBUTIONS_QEMU)
        return
    for wall in (*ALWAYS, *JAIL):
        if wall in standing:
            yield Finding(level="ok", text=f"The wall '{wall}' stands: no {MEANINGS[wall]}.")
        else:
            yield Finding(
                level="error",
                text=f"The wall '{wall}' does not stand, and no desktop starts: "
                f"{MEANINGS[wall]} would be open to QEMU.",
                hint=WHAT_TO_DO[wall],
            )


def _find_folders() -> Finding:
    """How folders of the host come into desktops."""
    try:
        check_binding()
    except HostError as exc:
        return Finding(level="warning", text=exc.message, hint=exc.hint)
    try:
        program = find_virtiofsd().program
    except HostError as exc:
        return Finding(
            level="warning",
            text=f"Folders of the host come into desktops by 9p alone: {exc.message}.",
            hint="Install virtiofsd (Debian 12: qemu-system-common), which is quicker.",
        )
    return Finding(level="ok", text=f"Folders of the host come into desktops by virtiofs ({program}).")


def _find_kvm(qemu: Qemu, state: StatePaths) -> Finding:
    try:
        if kvm_works(qemu, state.probes):
            return Finding(level="ok", text="KVM runs a guest.")
    except HostError as exc:
        return _error(exc, hint=f"Give {state.probes} to the sessions' account, or delete it.")
    return Finding(
        level="warning", text="KVM does not run a guest; desktops are emulated, slowly.", hint=_why_no_kvm()
    )


def _why_no_kvm() -> str:
    if not _KVM.exists():
        return (
            "There is no /dev/kvm: switch virtualization on in the firmware, or in the VM that this host is."
        )
    if not os.access(_KVM, os.R_OK | os.W_OK):
        return "This account may not open /dev/kvm: add it to the group kvm."
    return (
        "/dev/kvm opens, but a guest under it does not get to its first instruction: 'dmesg' may say why. "
        "Where this host is a VM, nested virtualization has to work in the one below."
    )


def _find_on_host(state: StatePaths) -> Iterator[Finding]:
    try:
        check_memory(1024)
        yield Finding(level="ok", text=f"{render_mib(available_memory_mib())} of memory are free.")
    except HostError:
        yield Finding(
            level="warning",
            text=f"{render_mib(available_memory_mib())} of memory are free: too few for a small desktop.",
            hint="End what else runs here ('qemuspawner sessions list' names desktops), or add memory.",
        )
    folder = next(path for path in (state.root, *state.root.parents) if path.is_dir())
    try:
        check_disk(folder)
        free_mib = shutil.disk_usage(folder).free >> 20
        yield Finding(level="ok", text=f"{render_mib(free_mib)} are free in {folder}.")
    except HostError as exc:
        hint = f"Make room in {folder}, or choose another folder with --state and the hub's trait state_dir."
        yield Finding(level="error", text=exc.message, hint=hint)
    yield from _find_in_gpus()


def _find_in_gpus() -> Iterator[Finding]:
    """Which GPUs desktops can have; a host without any needs no word of it."""
    gpus = find_gpus()
    passed = sum(not find_obstacles(gpu) for gpu in gpus)
    if passed:
        yield Finding(level="ok", text=f"{passed} of {len(gpus)} GPUs can be passed on to desktops.")
    elif gpus:
        hint = "'qemuspawner gpu check' says what is missing, where desktops shall have them."
        yield Finding(level="ok", text="No GPU is passed on to desktops.", hint=hint)


def _find_in_catalogue(state: StatePaths, folders: list[Path]) -> Iterator[Finding]:
    catalogue = load_all_machines(state, folders)
    for problem in catalogue.problems:
        yield Finding(level="error", text=str(problem), hint=_what_to_do_about(problem))
    for machine in catalogue.machines.values():
        if missing_files(machine):
            if machine.hidden:
                continue  # nobody is offered it, as the examples that wait for somebody who wants them
            hint = f"Run 'qemuspawner machines {_image_action(machine)}'."
            yield Finding(level="warning", text=f"The image of '{machine.id}' is missing.", hint=hint)
        else:
            yield Finding(level="ok", text=f"'{machine.id}' can be started.")
    yield from _find_other_qemus(catalogue.machines)
    yield from _find_in_templates(state, catalogue.machines)


def _what_to_do_about(problem: Problem) -> str:
    if not problem.machine_id:
        return "Make the folder readable for this account, or name another one with --machines."
    return f"Change {problem.path}, or remove its folder; docs/machines.md describes every key."


def _image_action(machine: Machine) -> str:
    if machine.build:
        return f"build {machine.id}"
    return f"fetch {machine.id}" if machine.image.url else f"import {machine.id} FILE"


def _find_other_qemus(machines: Mapping[str, Machine]) -> Iterator[Finding]:
    """Of machines that could be started, those of other processors need a QEMU of their own."""
    needed = {
        machine.architecture
        for machine in machines.values()
        if not machine.hidden and not missing_files(machine)
    }
    for architecture in sorted(needed - {find_own_architecture()}):
        try:
            find_qemu(architecture)
            yield Finding(level="ok", text=f"Machines of {architecture} are emulated.")
        except HostError as exc:
            yield _error(exc, hint=_DISTRIBUTIONS_QEMU)


def _find_in_templates(state: StatePaths, machines: Mapping[str, Machine]) -> Iterator[Finding]:
    try:
        templates = list_templates(state, machines)
    except HostError:
        return  # no QEMU, which was said
    if not templates:
        return
    fitting = sum(not template.misfits for template in templates)
    text = f"{fitting} of {len(templates)} templates fit."
    if fitting == len(templates):
        yield Finding(level="ok", text=text)
    else:
        yield Finding(
            level="warning", text=text, hint="'qemuspawner templates list' says why the others do not."
        )


def _error(exc: HostError, *, hint: str) -> Finding:
    """`hint` is for an error that has none itself."""
    return Finding(level="error", text=exc.message, hint=exc.hint or hint)
