"""What this host offers: QEMU, acceleration that really runs a guest, memory, disk, firmware."""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qemuspawner.errors import HostError
from qemuspawner.qemu.jail import tie_to_parent
from qemuspawner.qemu.vm import Accelerator
from qemuspawner.spec import SESSION_OVERHEAD_MIB
from qemuspawner.texts import Text
from qemuspawner.units import render_mib

QEMU = "qemu-system-x86_64"
OLDEST_QEMU = (7, 2)

# Where distributions put the UEFI firmware and its empty variables (Debian, Fedora, Arch).
_UEFI = (
    (Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd")),
    (Path("/usr/share/edk2/ovmf/OVMF_CODE.fd"), Path("/usr/share/edk2/ovmf/OVMF_VARS.fd")),
    (Path("/usr/share/edk2/x64/OVMF_CODE.4m.fd"), Path("/usr/share/edk2/x64/OVMF_VARS.4m.fd")),
)

# A guest of one disk sector: it writes 0x31 to QEMU's debug port, and QEMU exits with 2 * 0x31 + 1.
_PROBE_GUEST = bytes([0xB0, 0x31, 0xE6, 0xF4, 0xF4]).ljust(510, b"\0") + b"\x55\xaa"
_PROBE_EXIT_CODE = 99
_PROBE_TIMEOUT_S = 3
_BELIEVE_NO_S = 3600

# Left free for the host itself.
MEMORY_RESERVE_MIB = 512
DISK_RESERVE_MIB = 1024


@dataclass(frozen=True, kw_only=True)
class Qemu:
    """The QEMU program of this host."""

    program: Path
    version: tuple[int, int, int]
    build: str  # the version in its own words, with the distribution's part


def find_qemu() -> Qemu:
    """The QEMU on PATH.

    Raises:
        HostError: There is none, it does not run, or it is older than 7.2.
    """
    found = shutil.which(QEMU)
    if found is None:
        raise HostError(
            Text("{qemu} was not found on this host.", qemu=QEMU),
            hint=Text("Install QEMU (Debian: qemu-system-x86, qemu-utils)."),
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
    return Qemu(program=Path(program), version=(major, minor, micro), build=build)


def find_uefi() -> tuple[Path, Path]:
    """UEFI's code and its empty variables."""
    for code, variables in _UEFI:
        if code.is_file() and variables.is_file():
            return code, variables
    raise HostError(
        Text("No UEFI firmware was found on this host."), hint=Text("Install OVMF (Debian: ovmf).")
    )


def choose_accelerator(
    wanted: Literal["auto", "kvm", "tcg"], *, allow_tcg: bool, qemu: Qemu, probes: Path
) -> Accelerator:
    """KVM where it runs a guest, else emulation if the administrator allows it.

    Raises:
        HostError: KVM is wanted or required and does not work here.
    """
    if wanted != "tcg" and kvm_works(qemu, probes):
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
    with tempfile.NamedTemporaryFile(prefix="qemuspawner-probe-") as guest:
        guest.write(_PROBE_GUEST)
        guest.truncate(1 << 20)
        guest.flush()
        command = [
            *(str(qemu.program), "-nodefaults", "-no-user-config", "-display", "none"),
            *("-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "32"),
            *("-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
            *("-blockdev", '{"driver":"raw","node-name":"probe","read-only":true,'
              f'"file":{{"driver":"file","filename":"{guest.name}"}}}}'),
            *("-device", "virtio-blk-pci,drive=probe,bootindex=0"),
        ]  # fmt: skip
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
    return done.returncode == _PROBE_EXIT_CODE


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
