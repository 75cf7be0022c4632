"""A TPM 2.0 for a VM: swtpm, a process beside QEMU with walls of its own, at a socket that has no name."""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from qemuspawner.errors import HostError, VmError
from qemuspawner.qemu.jail import Limits, in_jail, tie_to_parent
from qemuspawner.texts import Text

PROGRAM = "swtpm"
# In the TPM's folder.
STATE_FILE = "state"
# What a TPM keeps is some kilobytes.
MAX_STATE_BYTES = 1 << 20


def find_swtpm() -> Path:
    """Raises HostError where this host has none."""
    found = shutil.which(PROGRAM)
    if found is None:
        raise HostError(
            Text("The machine has a TPM, and swtpm was not found on this host."),
            hint=Text("The administrator installs it (Debian: swtpm)."),
        )
    return Path(found).resolve()


def put_state(folder: Path, kept: Path | None) -> Path:
    """A new folder with the TPM's state in it: a copy of what was kept, or none yet."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    state = folder / STATE_FILE
    if kept is not None and kept.exists():
        shutil.copyfile(kept, state)
    return state


@contextlib.contextmanager
def opened_tpm(state: Path, *, jail: bool, stack: contextlib.ExitStack) -> Iterator[int]:
    """A TPM that runs, and QEMU's end of the connection, which QEMU inherits; `stack` ends the TPM.

    It ends with QEMU, or with us. Must be called from the main thread.

    Raises:
        HostError: There is no swtpm.
        VmError: It could not be started.
    """
    program = find_swtpm()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [
            *(str(program), "socket", "--tpm2", "--terminate"),
            *("--ctrl", f"type=unixio,clientfd={theirs.fileno()}"),
            *("--tpmstate", f"backend-uri=file://{state}"),
        ]
        if jail:
            command = in_jail(command, work_dir=state.parent, files=(), kvm=False)
        limits = Limits(file_mib=MAX_STATE_BYTES >> 20)
        try:
            process = subprocess.Popen(
                tie_to_parent(command, parent_pid=os.getpid(), limits=limits),
                cwd=state.parent,
                env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except OSError as exc:
            raise VmError(Text("The TPM could not be started: {strerror}.", strerror=exc.strerror)) from exc
        stack.callback(_end, process)
        yield ours.fileno()


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
