"""Whether the guest still answers: looked at every few seconds, and said within 15 s where it does not."""

import asyncio
import time
from collections.abc import Callable

from qemuspawner.errors import VmError
from qemuspawner.session.vm.guest import Guest
from qemuspawner.session.vm.troubles import Troubles
from qemuspawner.texts import Text

# An answer takes milliseconds. Where QEMU hangs, that is said 3 + 5 + 1 + 1 s later at most: it is given 5 s
# for an answer, and then 1 s for another. Where its guest does, 3 + 8 s later.
_LOOK_EVERY_S = 3
_LOOK_AGAIN_S = 1
_QEMU_MISSES = 2
_PING_S = 8


class Pulse:
    """One VM's: QEMU itself is asked, and the guest's agent where it has answered before.

    Nobody is asked while the VM `is_saved`: QEMU answers when it has written all of it.
    """

    def __init__(self, guest: Guest, troubles: Troubles, *, is_saved: Callable[[], bool]) -> None:
        self._guest = guest
        self._troubles = troubles
        self._is_saved = is_saved
        self._has_answered = False
        self._misses = 0

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_AGAIN_S if self._misses else _LOOK_EVERY_S)
            if not self._is_saved():
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
            self._misses += 1
            if self._misses >= _QEMU_MISSES:
                self._troubles.note(
                    "silent",
                    Text("The virtual machine does not answer its host."),
                    Text("Wait a moment, or stop the desktop."),
                )
            return
        self._misses = 0
        if state != "running" or guest.agent is None:
            # What is paused cannot answer, and somebody knows why it is.
            self._troubles.clear("silent")
            return
        began = time.monotonic()
        try:
            # Also for its turn: others who ask a guest that hangs wait longer.
            async with asyncio.timeout(_PING_S):
                await guest.agent.execute("guest-ping")
        except (VmError, TimeoutError):
            if self._has_answered and guest.agent.answered_at < began and not self._is_saved():
                self._troubles.note(
                    "silent",
                    Text("The machine does not answer; its system may hang."),
                    Text("Where the picture does not move either, restart it: what is not saved is lost."),
                    acts=("reset",),
                )
        else:
            self._has_answered = True
            self._troubles.clear("silent")
