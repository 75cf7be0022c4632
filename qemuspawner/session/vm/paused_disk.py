"""A disk that takes no more: QEMU has paused the VM before anything was lost, until it can be written."""

import asyncio
import contextlib
import errno
import os
from collections.abc import Mapping

from qemuspawner.errors import SessionError, VmError
from qemuspawner.qemu.process import Log
from qemuspawner.session.host.disk_limits import next_limit_mib
from qemuspawner.session.vm.guest import Guest
from qemuspawner.session.vm.troubles import DISK, Troubles
from qemuspawner.spec import SessionSpec, TroubleKind
from qemuspawner.texts import Text
from qemuspawner.units import render_mib

# A disk that may have room again by itself is tried so often.
_RETRY_S = 30
# QEMU tries what has failed again as soon as it goes on, and says at once where it fails.
_SETTLE_S = 0.5


class PausedDisk:
    """What becomes of one VM's failed writes."""

    def __init__(
        self, guest: Guest, spec: SessionSpec, troubles: Troubles, *, lock: asyncio.Lock, log: Log
    ) -> None:
        """`lock` is held by whoever saves the VM, and has paused it for that."""
        self._guest = guest
        self._spec = spec
        self._troubles = troubles
        self._lock = lock
        self._log = log
        self._failures = 0
        self._kind: TroubleKind = "disk-error"
        self._again = asyncio.Event()
        self._riding: asyncio.Task[None] | None = None

    def note_failure(self, data: Mapping[str, object]) -> None:
        """QEMU's BLOCK_IO_ERROR, one for each request that failed: one answer is enough for all."""
        self._failures += 1
        # EFBIG has no field of its own, as "nospace" is for ENOSPC; the reason is strerror()'s text.
        if data.get("reason") == os.strerror(errno.EFBIG):
            self._kind = "disk-limit"
        else:
            self._kind = "disk-full" if data.get("nospace") else "disk-error"
        if self._riding is None or self._riding.done():
            self._riding = asyncio.create_task(self._ride_out())

    def retry(self) -> None:
        """Try the disk again now."""
        self._again.set()

    def extend(self) -> None:
        """Allow the disk more room, and go on. Raises SessionError where no more is allowed."""
        limit_mib = next_limit_mib(self._spec, self._guest.file_limit_mib)
        if limit_mib <= self._guest.file_limit_mib:
            raise SessionError(Text("This desktop's disk has all the room that it may have."))
        self._guest.limit_files(limit_mib)
        self._log.info("The disk may take %s now", render_mib(limit_mib))
        self._again.set()

    def close(self) -> None:
        if self._riding is not None:
            self._riding.cancel()

    async def _ride_out(self) -> None:
        failures = -1
        while failures != self._failures:
            self._say()
            failures = self._failures
            await self._wait()
            with contextlib.suppress(VmError):
                await self._go_on()
        self._troubles.clear(*DISK)

    async def _wait(self) -> None:
        # A limit does not move by itself.
        longest_s = None if self._kind == "disk-limit" else _RETRY_S
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(longest_s):
                await self._again.wait()
        # Only here: somebody may ask while the last try is not over yet.
        self._again.clear()

    async def _go_on(self) -> None:
        # Not in the middle of a save.
        async with self._lock:
            if await self._guest.qemu.run_state() == "io-error":
                await self._guest.qemu.execute("cont")
        await asyncio.sleep(_SETTLE_S)

    def _say(self) -> None:
        kind, limit_mib = self._kind, self._guest.file_limit_mib
        self._troubles.clear(*(other for other in DISK if other != kind))
        if kind == "disk-limit":
            can_extend = next_limit_mib(self._spec, limit_mib) > limit_mib
            self._troubles.note(
                kind,
                Text(
                    "The desktop has written all that it may, {limit}: the machine is paused, and nothing "
                    "is lost.",
                    limit=render_mib(limit_mib),
                ),
                Text("With more room it goes on where it was.")
                if can_extend
                else Text("Ask the administrator for more room, or stop the desktop."),
                acts=("extend",) if can_extend else (),
            )
        else:
            self._troubles.note(
                kind,
                Text("The host's disk is full: the machine is paused, and nothing is lost.")
                if kind == "disk-full"
                else Text("The host's disk fails: the machine is paused, and nothing is lost."),
                Text(
                    "It goes on when the disk can be written again, tried every {retry_disk_s} s.",
                    retry_disk_s=_RETRY_S,
                ),
                acts=("retry",),
            )
        self._log.error("The VM is paused (%s)", kind)
