"""Whether the guest still answers: looked at twice a minute, and said where it does not."""

import asyncio

from qemuspawner.errors import VmError
from qemuspawner.session.vm.guest import Guest
from qemuspawner.session.vm.troubles import Troubles
from qemuspawner.texts import Text

# With the time that each answer is given, a guest has two minutes before it is called silent.
_LOOK_EVERY_S = 30
_MISSES = 3


class Pulse:
    """One VM's: QEMU itself is asked, and the guest's agent where it has answered before."""

    def __init__(self, guest: Guest, troubles: Troubles) -> None:
        self._guest = guest
        self._troubles = troubles
        self._has_answered = False
        self._misses = 0

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            await self.look()

    def note_reset(self) -> None:
        """It boots anew: until its agent has answered again nothing is expected of it."""
        self._has_answered = False
        self._misses = 0
        self._troubles.clear("silent", "crashed")

    async def look(self) -> None:
        guest = self._guest
        try:
            state = await guest.qemu.run_state()
        except VmError:
            self._miss(can_reset=False)
            return
        if state != "running" or guest.agent is None:
            # What is paused cannot answer, and somebody knows why it is.
            self._misses = 0
            self._troubles.clear("silent")
            return
        try:
            await guest.agent.execute("guest-ping")
        except VmError:
            if self._has_answered:
                self._miss(can_reset=True)
        else:
            self._has_answered = True
            self._misses = 0
            self._troubles.clear("silent")

    def _miss(self, *, can_reset: bool) -> None:
        self._misses += 1
        if self._misses < _MISSES:
            return
        if can_reset:
            self._troubles.note(
                "silent",
                Text("The machine does not answer; its system may hang."),
                Text("Where the picture does not move either, restart it: what is not saved is lost."),
                acts=("reset",),
            )
        else:
            self._troubles.note(
                "silent",
                Text("The virtual machine does not answer its host."),
                Text("Wait a moment, or stop the desktop."),
            )
