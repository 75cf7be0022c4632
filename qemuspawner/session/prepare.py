"""From a SessionSpec to a running QEMU: everything before the web stack is loaded.

Synchronous on purpose: QEMU must be started from the main thread (its death signal is tied to that), and
before anything slow is imported.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qemuspawner.errors import SessionError
from qemuspawner.machine import Machine
from qemuspawner.paths import SessionPaths, StatePaths
from qemuspawner.qemu.command import qemu_args
from qemuspawner.qemu.host import (
    Qemu,
    check_disk,
    check_memory,
    choose_accelerator,
    find_qemu,
    find_uefi,
)
from qemuspawner.qemu.image import check_image, create_overlay
from qemuspawner.qemu.jail import check_jail, in_jail, tie_to_parent
from qemuspawner.qemu.process import start_qemu
from qemuspawner.qemu.vm import Accelerator, make_vm
from qemuspawner.session.directory import claim
from qemuspawner.spec import SessionSpec


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A QEMU that was started; whether it lives is for the supervisor to see."""

    paths: SessionPaths
    accelerator: Accelerator
    process: "subprocess.Popen[bytes]"


def prepare(spec: SessionSpec, stack: contextlib.ExitStack, report: Callable[[str, int], None]) -> Prepared:
    """Start the VM that `spec` asks for; `stack` undoes everything.

    `report` is told each step and how far it is to the desktop, in percent.

    Raises:
        QemuSpawnerError: What is missing or wrong, in a sentence for the user.
    """
    report("Checking the host and the machine's image", 5)
    machine = spec.machine
    _check_supported(machine)
    qemu = find_qemu()
    if spec.jail:
        check_jail()
    state = StatePaths.of(spec.state_dir)
    accelerator = choose_accelerator(
        spec.accelerator, allow_tcg=spec.allow_tcg, qemu=qemu, probes=state.probes
    )
    check_image(machine.image)
    # A predecessor that the hub has lost gives way here, and gives its memory back.
    paths = stack.enter_context(claim(state, spec.session_id))
    check_memory(spec.memory_mib)
    check_disk(state.root)

    report("Making your own copy of the machine's disk", 15)
    paths.spec.write_text(spec.to_json())
    if machine.image.format != "iso" or machine.image.disk:
        create_overlay(paths.overlay, machine.image)
    uefi_code = None
    if machine.firmware == "uefi":
        uefi_code, empty_variables = find_uefi()
        shutil.copyfile(empty_variables, paths.firmware_vars)

    report("Starting the virtual machine", 25)
    process = _start(spec, paths, qemu, accelerator, uefi_code)
    stack.callback(_end, process)
    return Prepared(paths=paths, accelerator=accelerator, process=process)


def _check_supported(machine: Machine) -> None:
    if machine.gpu.need == "required":
        raise SessionError(f"'{machine.name}' needs a GPU, and this host offers none.")
    if machine.network != "none":
        raise SessionError(
            f"'{machine.name}' asks for the network '{machine.network}', and this host offers 'none' only.",
            hint='The administrator sets network = "none" in its machine.toml.',
        )


def _start(
    spec: SessionSpec, paths: SessionPaths, qemu: Qemu, accelerator: Accelerator, uefi_code: Path | None
) -> "subprocess.Popen[bytes]":
    vm = make_vm(
        spec.machine,
        paths,
        accelerator=accelerator,
        cpus=spec.cpus,
        memory_mib=spec.memory_mib,
        uefi_code=uefi_code,
    )
    command = [str(qemu.program), *qemu_args(vm)]
    if spec.jail:
        command = in_jail(command, work_dir=paths.vm, files=vm.files, kvm=accelerator == "kvm")
    return start_qemu(tie_to_parent(command, parent_pid=os.getpid()), work_dir=paths.vm)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Whatever happens, nothing outlives its session."""
    process.kill()
    process.wait()
    if process.stderr:
        process.stderr.close()
