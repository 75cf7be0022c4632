"""Templates made while the hub runs: what had to boot cold is warmed up for the next start, one at a time."""

import asyncio
import atexit
import contextlib
import functools
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from qemuspawner.hub.catalogue.commands import start_command

log = logging.getLogger(__name__)

_AFTER_FAILURE_S = 3600
# As QEMU of an interrupted command gets.
_TERMINATE_S = 20


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A template that is not there."""

    machine_id: str
    cpus: int
    memory_mib: int

    @property
    def arguments(self) -> list[str]:
        return [self.machine_id, "--cpus", str(self.cpus), "--memory", str(self.memory_mib)]


class Warmer:
    """Runs `qemuspawner warm` for what is missing, in the background."""

    def __init__(self) -> None:
        self._waiting: dict[Missing, Sequence[str]] = {}
        self._not_before: dict[Missing, float] = {}
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        atexit.register(self._end)

    def request(self, missing: Missing, command: Sequence[str]) -> None:
        """Have `command` make this template, unless that is about to happen or has just failed."""
        if missing in self._waiting or time.monotonic() < self._not_before.get(missing, 0):
            return
        self._waiting[missing] = command
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())

    async def wait(self) -> None:
        """Until nothing is left to do."""
        if self._task is not None:
            await self._task

    async def _work(self) -> None:
        while self._waiting:
            missing, command = next(iter(self._waiting.items()))
            try:
                worked = await self._run(command)
            except OSError as exc:
                log.warning("The template of '%s' cannot be made: %s.", missing.machine_id, exc.strerror)
                worked = False
            finally:
                # Only now: asked for again meanwhile, it is on its way.
                del self._waiting[missing]
            if not worked:
                self._not_before[missing] = time.monotonic() + _AFTER_FAILURE_S

    async def _run(self, command: Sequence[str]) -> bool:
        log.info("Making a template: %s", " ".join(command))
        # All that it says goes to the hub's log.
        self._process = process = await start_command(command, stdout=2)
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            self._end()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TERMINATE_S):
                    await process.wait()
            raise
        if code:
            log.warning("The template was not made: exit code %s.", code)
        return code == 0

    def _end(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()


@functools.cache
def warmer() -> Warmer:
    """The one of this hub's process."""
    return Warmer()
