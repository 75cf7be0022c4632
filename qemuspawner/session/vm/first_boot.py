"""How the first boot of a machine without a guest agent goes, as share/guest/first-boot.sh tells it.

It writes lines into a ring of QEMU's memory, "STEP CODE OUTPUT" with the output as base64. They are the
guest's: bounded in size and number, and what is not understood is left out.
"""

import asyncio
import base64
import contextlib

from msgspec import structs

from qemuspawner.errors import VmError
from qemuspawner.qemu.agent import Ended
from qemuspawner.session.inside.first_start import Report, report_script, say_end
from qemuspawner.session.vm.guest import Guest
from qemuspawner.spec import ScriptRun
from qemuspawner.texts import Text

_PAUSE_S = 0.5
_MAX_LINE_BYTES = 256 << 10
_MAX_LINES = 1000
_FAILED = {
    b"personal": Text("The desktop could not be told whose it is"),
    b"files": Text("The files of your site are not there"),
    b"packages": Text("The packages of your site are not installed"),
    b"program": Text("The program of your site failed"),
}


class FirstBoot:
    """Of one VM, from its start or its wake on."""

    def __init__(self, guest: Guest, report: Report) -> None:
        self._guest = guest
        self._report = report
        self._rest = b""  # of a line whose end is still to come
        self._lines = 0
        guest.look_once_more = self.look

    async def follow(self) -> None:
        """Until it is over."""
        if self._is_over:
            return
        if not (self._guest.plan.is_new or self._guest.plan.restores):
            self._note_boot()
            return
        with self._guest.qemu.events("RESET") as resets, contextlib.suppress(VmError):
            while not self._is_over:
                await self.look()
                while not resets.empty():
                    await resets.get()
                    # Before it has copied its seed the next boot is still the first one.
                    if not self._guest.has_seed:
                        self._note_boot()
                await asyncio.sleep(_PAUSE_S)

    async def look(self) -> None:
        """Take in what was told since the last look. Raises VmError where QEMU is silent."""
        *lines, self._rest = (self._rest + await self._guest.qemu.read_report()).split(b"\n")
        self._rest = self._rest[:_MAX_LINE_BYTES]
        for line in lines:
            self._lines += 1
            if self._lines <= _MAX_LINES:
                await self._take(line)

    @property
    def _is_over(self) -> bool:
        steps = self._guest.first_steps
        return steps is None or steps.done > 0

    async def _take(self, line: bytes) -> None:
        try:
            step, code, output = line.split(b" ")
            ended = Ended(code=int(code), stdout=base64.b64decode(output, validate=True), stderr=b"")
        except ValueError:
            return
        if step in _FAILED and ended.code:
            self._warn(_FAILED[step], say_end(ended))
        elif step == b"copied":
            with contextlib.suppress(VmError):
                await self._guest.take_seed()
        elif step == b"begin":
            self._note_script(ScriptRun(state="running"))
            self._report(Text("Running the start script"))
        elif step == b"script":
            self._note_script(report_script(ended, self._report))
        elif step == b"over":
            self._end()

    def _note_boot(self) -> None:
        """What was under way when the machine booted anew does not go on."""
        steps = self._guest.first_steps
        if steps is not None and steps.script is not None and steps.script.state == "running":
            self._note_script(ScriptRun(state="interrupted"))
            self._warn(
                Text("The start script was interrupted"), Text("the machine has booted anew meanwhile")
            )
        self._end()

    def _note_script(self, run: ScriptRun) -> None:
        if self._guest.first_steps is not None:
            self._guest.first_steps = structs.replace(self._guest.first_steps, script=run)

    def _end(self) -> None:
        if self._guest.first_steps is not None:
            self._guest.first_steps = structs.replace(self._guest.first_steps, done=1)

    def _warn(self, what: Text, message: Text) -> None:
        self._report(Text("{what}: {message}", what=what, message=message), level="warning")
