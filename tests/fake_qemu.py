"""A QEMU that misbehaves on command, so that most faults of one can be had in seconds.

`FakeQemu` puts a program named qemu-system-x86_64 into a folder; at the head of PATH (the fixture `fake_qemu`
sees to that) the product finds it, puts its walls around it and takes it for a real one. It starts in a tenth
of a second and paints its screen of 320 x 200 green; each key turns that red and back, as the painter of
guests.py does. It speaks QMP (also what a suspend and a restore ask) and RFB without security and with plain
pictures, has a guest agent that answers and does nothing, locks its images as QEMU does, sets a seccomp
filter of its own, and dies as QEMU dies.

What people do to it is noted, and `FakeQemu.notes` reads it: ["key", number, down],
["pointer", x, y, buttons], ["cut", length], ["size", width, height], ["unknown", kind], a viewer's
["bytes", count] when it has gone, ["qmp", command] and ["agent", command].

`FakeQemu.order` says what it is to do at which step, for all sessions or for one, before the start or while
it runs. Steps, in their order:

    start     before it has made anything, its images open
    sockets   QMP's socket is there, and the display's is not
    sandbox   it puts up its seccomp filter
    greeting  of QMP
    rfb       a viewer's connection
    agent     the guest's agent is asked for something
    quit      this QMP command, and so any other's name
    3         the third QMP command, whichever it is
    SIGTERM   from anybody
    now       at once, while it runs

And faults:

    die       it ends with code 1 and a word on its standard error
    stop      it sends itself SIGSTOP, and goes on from there after a SIGCONT
    silent    from now on it says nothing more over QMP; of "rfb": it does not greet;
              of "agent": it alone is silent
    half      half of this answer, and nothing more; of "rfb": half of its greeting
    ignore    this command is neither done nor answered; of "sandbox": it has none
    refuse    this command is answered with an error
    flood     events without end, beside everything else
    panic     the guest's system says that it has crashed
    garbage   of "rfb": something else than RFB
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import fake_qemu_program
from processes import find_qemus

from qemuspawner.paths import SessionPaths


class FakeQemu:
    """The program in `folder`, which the sessions' account must be able to go through."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # The walls let QEMU read its own prefix's lib, and no other program is in there.
        self._python = folder / "lib" / "qemu-system-python"
        self._orders = folder / "lib" / "orders"
        self.program = folder / "bin" / "qemu-system-x86_64"
        for made in (self.program.parent, self._orders):
            made.mkdir(parents=True)
        shutil.copyfile(os.path.realpath(sys.executable), self._python)
        code = Path(fake_qemu_program.__file__).read_text()
        self.program.write_text(f"#!{self._python} -IS\n{code}")
        for program in (self._python, self.program):
            program.chmod(0o755)

    @property
    def path(self) -> str:
        """A PATH with it at its head."""
        return f"{self.program.parent}{os.pathsep}{os.environ['PATH']}"

    def order(self, paths: SessionPaths | None = None, /, **orders: str) -> None:
        """From now on this, and nothing else, is to happen: a fault for each step.

        For the session at `paths`, else for all. `order(_3="half")` is for the third command.
        """
        name = "all" if paths is None else paths.root.name
        draft = self._orders / f".{name}"
        draft.write_text(json.dumps({step.removeprefix("_"): fault for step, fault in orders.items()}))
        draft.chmod(0o644)
        draft.replace(self._orders / name)
        for pid in self.find_processes() if paths is None else find_qemus(paths):
            if _is_listening(pid):
                os.kill(pid, signal.SIGUSR1)

    def notes(self, paths: SessionPaths) -> list[list[Any]]:
        """What the session's has noted so far."""
        text = (paths.vm / fake_qemu_program.NOTES).read_text()
        return [json.loads(line) for line in text.splitlines()]

    def find_processes(self) -> list[int]:
        """All of it that run, whosever session's."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it has just ended
            if words[0] == os.fsencode(self._python):
                found.append(int(entry.name))
        return found


def _is_listening(pid: int) -> bool:
    """Whether it waits for SIGUSR1; before that it has read no orders, and the signal would end it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    mask = int(status.partition("\nSigCgt:")[2].split()[0], 16)
    return bool(mask >> (signal.SIGUSR1 - 1) & 1)
