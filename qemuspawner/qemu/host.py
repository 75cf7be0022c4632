"""What this host offers: QEMU, acceleration that really runs a guest, memory, disk, firmware."""

import contextlib
import os
import platform
import re
import shutil
import struct
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qemuspawner.errors import HostError
from qemuspawner.machine import Architecture
from qemuspawner.qemu.jail import tie_to_parent
from qemuspawner.qemu.vm import Accelerator
from qemuspawner.spec import SESSION_OVERHEAD_MIB
from qemuspawner.texts import Text
from qemuspawner.units import render_mib

QEMUS: dict[Architecture, str] = {"x86_64": "qemu-system-x86_64", "aarch64": "qemu-system-aarch64"}
_PACKAGES: dict[Architecture, str] = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}
OLDEST_QEMU = (7, 2)

# Where distributions put the UEFI firmware and its empty variables (Debian, Fedora, Arch).
_OVMF, _EDK2 = Path("/usr/share/OVMF"), Path("/usr/share/edk2")
_AAVMF = Path("/usr/share/AAVMF")
_UEFI: dict[Architecture, tuple[tuple[Path, Path], ...]] = {
    "x86_64": (
        (_OVMF / "OVMF_CODE_4M.fd", _OVMF / "OVMF_VARS_4M.fd"),
        (_EDK2 / "ovmf/OVMF_CODE.fd", _EDK2 / "ovmf/OVMF_VARS.fd"),
        (_EDK2 / "x64/OVMF_CODE.4m.fd", _EDK2 / "x64/OVMF_VARS.4m.fd"),
    ),
    "aarch64": (
        (_AAVMF / "AAVMF_CODE.fd", _AAVMF / "AAVMF_VARS.fd"),
        (_EDK2 / "aarch64/QEMU_EFI-pflash.raw", _EDK2 / "aarch64/vars-template-pflash.raw"),
        (_EDK2 / "aarch64/QEMU_CODE.fd", _EDK2 / "aarch64/QEMU_VARS.fd"),
    ),
}
_SECURE_UEFI = (
    (_OVMF / "OVMF_CODE_4M.ms.fd", _OVMF / "OVMF_VARS_4M.ms.fd"),
    (_EDK2 / "ovmf/OVMF_CODE.secboot.fd", _EDK2 / "ovmf/OVMF_VARS.secboot.fd"),
)
_UEFI_PACKAGES: dict[Architecture, str] = {"x86_64": "ovmf", "aarch64": "qemu-efi-aarch64"}

# A PC's guest of one disk sector: it writes 0x31 to QEMU's debug port, and QEMU exits with 2 * 0x31 + 1.
_PC_GUEST = bytes([0xB0, 0x31, 0xE6, 0xF4, 0xF4]).ljust(510, b"\0") + b"\x55\xaa"
_PC_EXIT_CODE = 99
# ARM's: mov w0, #8; movk w0, #0x8400, lsl #16; hvc #0, which is PSCI's SYSTEM_OFF (Arm DEN 0022).
_ARM_GUEST = struct.pack("<3I", 0x52800100, 0x72B08000, 0xD4000002)
_PROBE_TIMEOUT_S = 3
_BELIEVE_NO_S = 3600

# Left free for the host itself.
MEMORY_RESERVE_MIB = 512
DISK_RESERVE_MIB = 1024


@dataclass(frozen=True, kw_only=True)
class Qemu:
    """The QEMU program of this host."""

    program: Path
    architecture: Architecture  # of its guests
    version: tuple[int, int, int]
    build: str  # the version in its own words, with the distribution's part


def find_qemu(architecture: Architecture = "x86_64") -> Qemu:
    """The QEMU on PATH for guests of this architecture.

    Raises:
        HostError: There is none, it does not run, or it is older than 7.2.
    """
    name = QEMUS[architecture]
    found = shutil.which(name)
    if found is None:
        raise HostError(
            Text("{qemu} was not found on this host.", qemu=name),
            hint=Text("Install QEMU (Debian: {package}, qemu-utils).", package=_PACKAGES[architecture]),
        )
    # QEMU looks for its firmware beside itself, and in the jail there are no links to it, such as /bin.
    program = str(Path(found).resolve())
    try:
        output = subprocess.run(
            [program, "--version"], capture_output=True, text=True, check=True, timeout=10
        ).stdout
    except (subprocess.SubprocessError, OSError) as exc:
        raise HostError(Text("'{program} --version' failed: {exc}.", program=program, exc=exc)) from exc
    match = re.search(r"version ((\d+)\.(\d+)\.(\d+).*)", output)
    if match is None:
        raise HostError(Text("'{program}' does not say which version it is.", program=program))
    build, *parts = match.groups()
    major, minor, micro = (int(part) for part in parts)
    if (major, minor) < OLDEST_QEMU:
        oldest = ".".join(map(str, OLDEST_QEMU))
        raise HostError(
            Text(
                "QEMU {major}.{minor}.{micro} is too old; {oldest} is needed.",
                major=major,
                minor=minor,
                micro=micro,
                oldest=oldest,
            )
        )
    return Qemu(program=Path(program), architecture=architecture, version=(major, minor, micro), build=build)


def find_uefi(architecture: Architecture = "x86_64", *, secure: bool = False) -> tuple[Path, Path]:
    """UEFI's code and its empty variables, for guests of this architecture.

    With `secure` those hold Microsoft's keys, and only what these have signed is started.
    """
    for code, variables in _SECURE_UEFI if secure else _UEFI[architecture]:
        if code.is_file() and variables.is_file():
            return code, variables
    raise HostError(
        Text("No UEFI firmware for {architecture} was found on this host.", architecture=architecture),
        hint=Text("Install it (Debian: {package}).", package=_UEFI_PACKAGES[architecture]),
    )


def choose_accelerator(
    wanted: Literal["auto", "kvm", "tcg"], *, allow_tcg: bool, qemu: Qemu, probes: Path
) -> Accelerator:
    """KVM where it runs a guest, else emulation if the administrator allows it.

    Raises:
        HostError: KVM is wanted or required and does not work here.
    """
    if wanted != "tcg" and is_native(qemu.architecture) and kvm_works(qemu, probes):
        return "kvm"
    if wanted == "tcg" and not allow_tcg:
        raise HostError(
            Text("Emulation (TCG) is chosen here, and not allowed."),
            hint=Text("The administrator sets allow_tcg = True, or another accelerator."),
        )
    if wanted == "kvm":
        raise HostError(
            Text("This host cannot run guests under KVM."),
            hint=Text("The administrator finds the reason with 'qemuspawner doctor'."),
        )
    if not allow_tcg:
        raise HostError(
            Text("This host cannot run guests under KVM, and emulation (TCG) is not allowed here."),
            hint=Text(
                "The administrator may set allow_tcg = True; QEMU does not call TCG a security boundary."
            ),
        )
    return "tcg"


def is_native(architecture: Architecture) -> bool:
    """Whether the host has such processors itself; others it can only emulate."""
    return platform.machine() == architecture


def find_own_architecture() -> Architecture:
    """Of the guests that the host need not emulate; where there are none, what most machines have."""
    return next(filter(is_native, QEMUS), "x86_64")


def kvm_works(qemu: Qemu, probes: Path) -> bool:
    """Whether a guest under KVM really runs, as tried with this QEMU since the last boot.

    The answer is kept in our account's own folder `probes`: where a guest hangs the probe takes its full 3 s.
    A "no" is tried again after an hour, as the host may only have been busy.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    answer = probes / f"kvm-{boot_id}-{'.'.join(map(str, qemu.version))}"
    try:
        probes.mkdir(mode=0o700, parents=True, exist_ok=True)
        if probes.lstat().st_uid != os.geteuid():
            raise HostError(
                Text("The folder '{name}' in the state folder belongs to somebody else.", name=probes.name)
            )
        with contextlib.suppress(FileNotFoundError):
            works = answer.read_text() == "yes"
            if works or time.time() - answer.stat().st_mtime < _BELIEVE_NO_S:
                return works
    except OSError as exc:
        raise _cannot_note(exc) from exc
    works = _probe_kvm(qemu)
    try:
        for old in probes.glob("kvm-*"):
            old.unlink(missing_ok=True)
        # Whole or not at all: another session may be reading.
        draft = probes / f".{answer.name}-{os.getpid()}"
        draft.write_text("yes" if works else "no")
        draft.rename(answer)
    except OSError as exc:
        raise _cannot_note(exc) from exc
    return works


def _cannot_note(exc: OSError) -> HostError:
    return HostError(
        Text("What this host can do cannot be noted in the state folder: {strerror}.", strerror=exc.strerror),
        hint=Text("The administrator makes its folder 'sessions' writable for the sessions' account."),
    )


def _probe_kvm(qemu: Qemu) -> bool:
    return probe(qemu, "kvm", cpu="host")


def probe(qemu: Qemu, accelerator: Accelerator, *, cpu: str) -> bool:
    """Whether the smallest of guests runs to its end."""
    is_pc = qemu.architecture == "x86_64"
    with tempfile.NamedTemporaryFile(prefix="qemuspawner-probe-") as guest:
        guest.write(_PC_GUEST if is_pc else _ARM_GUEST)
        guest.truncate(1 << 20)
        guest.flush()
        command = [
            *(str(qemu.program), "-nodefaults", "-no-user-config", "-display", "none"),
            *("-accel", accelerator, "-cpu", cpu, "-m", "32"),
        ]
        if is_pc:
            command += [
                *("-machine", "q35", "-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
                *("-blockdev", '{"driver":"raw","node-name":"probe","read-only":true,'
                  f'"file":{{"driver":"file","filename":"{guest.name}"}}}}'),
                *("-device", "virtio-blk-pci,drive=probe,bootindex=0"),
            ]  # fmt: skip
        else:
            gic = "host" if accelerator == "kvm" else "max"
            command += ["-machine", f"virt,gic-version={gic}", "-kernel", guest.name]
        try:
            done = subprocess.run(
                tie_to_parent(command, parent_pid=os.getpid()),
                timeout=_PROBE_TIMEOUT_S,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == (_PC_EXIT_CODE if is_pc else 0)


def check_memory(memory_mib: int) -> None:
    """Raise HostError where a guest of `memory_mib` does not fit in the memory that is free now."""
    needed = memory_mib + SESSION_OVERHEAD_MIB
    free = available_memory_mib() - MEMORY_RESERVE_MIB
    if needed > free:
        raise HostError(
            Text(
                "The desktop needs {needed} of memory; {free} are free.",
                needed=render_mib(needed),
                free=render_mib(max(0, free)),
            ),
            hint=Text("Choose less memory, or try again when other desktops have ended."),
        )


def available_memory_mib() -> int:
    match = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    if match is None:
        raise HostError(Text("This host does not say how much memory is free."))
    return int(match[1]) // 1024


def check_disk(folder: Path) -> None:
    """Raise HostError where the file system of `folder` is all but full."""
    status = os.statvfs(folder)
    free_mib = status.f_bavail * status.f_frsize >> 20
    if free_mib < DISK_RESERVE_MIB:
        raise HostError(
            Text(
                "The host's disk is full: {free} are free, {needed} are needed.",
                free=render_mib(free_mib),
                needed=render_mib(DISK_RESERVE_MIB),
            ),
            hint=Text("Tell the administrator; nothing was started."),
        )
