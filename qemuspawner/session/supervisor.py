"""The life of one session: boot, watch, warn, stop at the deadline, clean up."""

import asyncio
import contextlib
import logging
import os
import stat
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import SubprocessError
from typing import Any, Literal

from qemuspawner.errors import QemuSpawnerError, SessionError, VmError
from qemuspawner.paths import StatePaths
from qemuspawner.qemu.agent import GuestAgent
from qemuspawner.qemu.process import Log, QemuProcess
from qemuspawner.qemu.vnc import wait_for_display
from qemuspawner.session.clocks import Clocks
from qemuspawner.session.directory import sweep
from qemuspawner.session.prepare import Prepared, prepare
from qemuspawner.spec import SessionSpec, SessionStatus, State, Step

_QMP_TIMEOUT_S = 20
_DISPLAY_TIMEOUT_S = 20
# A slow guest under emulation needs minutes; after that its screen is shown as it is.
_AGENT_TIMEOUT_S = 240
# After its end a session answers for so long, that pages and the hub can read why.
_LINGER_S = 3
_LINGER_FAILED_S = 60
_AGENT_SEND_S = 2
# A paused disk is tried again so often.
_RETRY_DISK_S = 30

_LONGEST_SLEEP_S = 30
_MAX_PICTURE_BYTES = 64 << 20

PowerAction = Literal["shutdown", "reset", "poweroff"]


@dataclass(frozen=True, kw_only=True)
class Ending:
    """Why a session ends."""

    reason: str
    hint: str = ""
    failed: bool = False
    graceful: bool = True  # ask the guest to shut down first
    linger_s: float = _LINGER_S


class Supervisor:
    """One session from its spec to its end; what it knows is in `status()`."""

    def __init__(self, spec: SessionSpec, *, clocks: Clocks | None = None) -> None:
        self.spec = spec
        self.clocks = clocks or Clocks(spec)
        self.log: Log = _SessionLog(logging.getLogger(__name__), {"session": spec.session_id})
        # The web side's part: how many look on, and how they are told that it is over.
        self.count_viewers: Callable[[], int] = lambda: 0
        self.dismiss_viewers: Callable[[str], Awaitable[None]] = _dismiss_nobody
        self._state: State = "preparing"
        self._message = self._hint = ""
        self._steps: list[Step] = []
        self._progress = 0
        self._stack = contextlib.ExitStack()
        self._prepared: Prepared | None = None
        self._qemu: QemuProcess | None = None
        self._agent: GuestAgent | None = None
        self._ending: Ending | None = None
        self._end_wanted = asyncio.Event()
        self._picture_lock = asyncio.Lock()
        self.released = asyncio.Event()  # the hub has read why it failed, and stops us
        self._shut_down_by_guest = False

    # What others see

    @property
    def state(self) -> State:
        return self._state

    def status(self) -> SessionStatus:
        spec, clocks = self.spec, self.clocks
        idle = clocks.idle_deadline if self._state == "running" else None
        return SessionStatus(
            session_id=spec.session_id,
            state=self._state,
            message=self._message,
            hint=self._hint,
            steps=tuple(self._steps),
            progress=self._progress,
            machine=spec.machine.name,
            cpus=spec.cpus,
            memory_mib=spec.memory_mib,
            accelerator=self._prepared.accelerator if self._prepared else "",
            now=clocks.unix(clocks.now()),
            started=clocks.unix(clocks.started),
            deadline=clocks.unix(clocks.deadline),
            max_deadline=clocks.unix(clocks.max_deadline),
            idle_deadline=0 if idle is None else clocks.unix(idle),
            viewers=self.count_viewers(),
            qemu_pid=self._qemu.pid if self._qemu else 0,
        )

    def report(
        self, text: str, progress: int | None = None, *, level: Literal["info", "warning", "error"] = "info"
    ) -> None:
        """Add a step to the status, and to the log."""
        at = self.clocks.now() - self.clocks.started
        self._steps.append(Step(at=round(at, 2), text=text, level=level))
        if progress is not None:
            self._progress = progress
        self.log.log(logging.getLevelNamesMapping()[level.upper()], "%s (after %.1f s)", text, at)

    # Start

    def prepare(self) -> None:
        """Start QEMU, or note why it cannot be; from the main thread, before the event loop runs."""
        try:
            self._prepared = prepare(self.spec, self._stack, self.report)
        except QemuSpawnerError as exc:
            self._stack.close()
            self._fail(exc)
        except (OSError, SubprocessError) as exc:
            self.log.exception("The session cannot be prepared")
            self._stack.close()
            why = getattr(exc, "strerror", None) or "a program of the host did not answer"
            self._fail(
                SessionError(
                    f"The desktop cannot be prepared on this host: {why}.",
                    hint="Tell the administrator; the hub's log has the details.",
                )
            )

    async def run(self) -> None:
        """Everything after `prepare`, until the session has ended and its directory is gone."""
        try:
            if self._prepared is not None:
                await self._live(self._prepared)
        except QemuSpawnerError as exc:
            self._fail(exc)
        except Exception:
            self.log.exception("The session failed")
            self._fail(SessionError("The session failed for a reason of its own.", hint="The log has more."))
        finally:
            if self._qemu is not None:
                await self._qemu.stop()
            if self._agent is not None:
                self._agent.close()
            self.close()
            if self._state != "failed":
                self._state = "ended"
            self.log.info("Session %s: %s", self._state, self._message)

    def close(self) -> None:
        """Undo what `prepare` did; harmless when done already."""
        self._stack.close()

    async def _live(self, prepared: Prepared) -> None:
        self._state = "booting"
        qemu = self._qemu = QemuProcess(prepared.process, prepared.paths, log=self.log)
        await qemu.connect(timeout_s=_QMP_TIMEOUT_S)
        how = "with KVM" if prepared.accelerator == "kvm" else "by emulation (TCG), slower than with KVM"
        self.report(
            f"The machine is running {how}", 35, level="info" if prepared.accelerator == "kvm" else "warning"
        )
        async with asyncio.TaskGroup() as watchers:
            tasks = [
                watchers.create_task(self._watch_events(qemu)),
                watchers.create_task(self._watch_exit(qemu)),
                watchers.create_task(self._watch_clocks()),
                watchers.create_task(self._wait_for_desktop(prepared)),
                watchers.create_task(asyncio.to_thread(self._sweep)),
            ]
            await self._end_wanted.wait()
            for task in tasks:
                task.cancel()
        ending = self._ending
        if ending is None:
            raise AssertionError("end() sets the ending first.")
        self._message, self._hint = ending.reason, ending.hint
        if ending.failed:
            self._fail(SessionError(ending.reason, hint=ending.hint))
        else:
            self._state = "stopping"
        # Before the display goes away, so that everybody reads why.
        await self.dismiss_viewers(ending.reason)
        if ending.graceful and qemu.running:
            await self._shut_down_guest(qemu)

    async def _wait_for_desktop(self, prepared: Prepared) -> None:
        try:
            await wait_for_display(prepared.paths.vnc_socket, timeout_s=_DISPLAY_TIMEOUT_S)
        except VmError as exc:
            self.end(Ending(reason=exc.message, hint=exc.hint, failed=True, graceful=False))
            return
        if self.spec.machine.agent:
            self.report("The machine is booting; waiting for its desktop", 50)
            self._agent = GuestAgent(prepared.paths.agent_socket)
            if not await self._agent.wait_until_ready(timeout_s=_AGENT_TIMEOUT_S):
                self.report("The guest agent does not answer; the screen is shown as it is", level="warning")
        # Nobody could have used it before.
        self.clocks.note_input()
        self._state = "running"
        self.report("The desktop is ready", 100)

    def _sweep(self) -> None:
        # Housekeeping must not end a session.
        with contextlib.suppress(OSError):
            sweep(StatePaths.of(self.spec.state_dir), own_id=self.spec.session_id)

    # Watch

    async def _watch_events(self, qemu: QemuProcess) -> None:
        async with asyncio.TaskGroup() as waiting:
            retry: asyncio.Task[None] | None = None
            with qemu.events("SHUTDOWN", "BLOCK_IO_ERROR") as events:
                async for event in events:
                    data = event["data"]
                    assert isinstance(data, dict)
                    if event["event"] == "SHUTDOWN":
                        self._shut_down_by_guest = bool(data.get("guest"))
                    elif retry is None or retry.done():
                        # One for each request that failed; one answer is enough for all.
                        retry = waiting.create_task(self._ride_out(qemu, is_full=bool(data.get("nospace"))))

    async def _ride_out(self, qemu: QemuProcess, *, is_full: bool) -> None:
        """QEMU has paused the VM before anything was lost; go on after a while."""
        what = "is full" if is_full else "fails"
        self._message = f"The host's disk {what}: the machine is paused, and nothing is lost."
        self._hint = f"It goes on when the disk can be written again, tried every {_RETRY_DISK_S} s."
        self.log.error("%s", self._message)
        await asyncio.sleep(_RETRY_DISK_S)
        self._message = self._hint = ""
        # Where the disk is still full, QEMU says so once more.
        with contextlib.suppress(VmError):
            await qemu.execute("cont")

    async def _watch_exit(self, qemu: QemuProcess) -> None:
        code = await qemu.wait()
        if code == 0 or self._shut_down_by_guest:
            self.end(Ending(reason="The desktop was shut down.", graceful=False))
            return
        self.log.error("QEMU ended with code %s: %s", code, qemu.last_words)
        self.end(
            Ending(
                reason="The virtual machine ended unexpectedly.",
                hint="Start it again; if it ends again, tell the administrator.",
                failed=True,
                graceful=False,
            )
        )

    async def _watch_clocks(self) -> None:
        # Deadlines only ever move later: looking again when the nearest one is due is enough.
        while not (reason := self.clocks.why_over()):  # noqa: ASYNC110
            # Sleeping does not count the time that the host was suspended; the deadlines do.
            await asyncio.sleep(min(self.clocks.next_check_s + 0.01, _LONGEST_SLEEP_S))
        self.end(Ending(reason=reason))

    # Steer

    def extend(self, seconds: int | None, *, by: str) -> None:
        """Move the end later. Raises SessionError where it cannot be."""
        self.clocks.extend(seconds)
        self.log.info("Extended by %s; %.0f s are left", by, self.clocks.deadline - self.clocks.now())

    async def power(self, action: PowerAction, *, by: str) -> None:
        """Press the machine's power switch. Raises VmError where it does not run."""
        qemu = self._running_qemu()
        self.log.info("Power: %s, asked for by %s", action, by)
        match action:
            case "shutdown":
                self.end(Ending(reason="The desktop was shut down."))
            case "poweroff":
                self.end(Ending(reason="The desktop was switched off.", graceful=False))
            case "reset":
                await qemu.execute("system_reset")

    async def screenshot(self) -> bytes:
        """The screen as a PNG. Raises VmError where there is none."""
        qemu = self._running_qemu()
        assert self._prepared is not None
        async with self._picture_lock:
            path = self._prepared.paths.vm / "screen.png"
            path.unlink(missing_ok=True)
            await qemu.execute("screendump", filename=str(path), format="png")
            try:
                return await asyncio.to_thread(_read_picture, path)
            except OSError as exc:
                raise VmError("The screen could not be saved.", hint="Is the host's disk full?") from exc
            finally:
                path.unlink(missing_ok=True)

    def _running_qemu(self) -> QemuProcess:
        if self._qemu is None or not self._qemu.running or self._state not in ("booting", "running"):
            raise VmError("The machine is not running.", hint="Start it again from the hub.")
        return self._qemu

    def end(self, ending: Ending) -> None:
        """End the session; the first reason counts. After the end: stop answering."""
        if self._ending is None:
            self._ending = ending
            self._end_wanted.set()
        if self._state in ("ended", "failed"):
            self.released.set()

    @property
    def linger_s(self) -> float:
        """Seconds to go on answering after the end."""
        if self._ending is not None:
            return self._ending.linger_s
        return _LINGER_FAILED_S

    def _fail(self, exc: QemuSpawnerError) -> None:
        self._state = "failed"
        self._message, self._hint = exc.message, exc.hint
        self.report(exc.message, level="error")

    async def _shut_down_guest(self, qemu: QemuProcess) -> None:
        """Ask the guest: press the power button, and tell its agent where it has one."""
        with contextlib.suppress(VmError, TimeoutError):
            async with asyncio.timeout(self.spec.machine.shutdown):
                await qemu.execute("system_powerdown")
                if self._agent is not None:
                    with contextlib.suppress(VmError, TimeoutError):
                        async with asyncio.timeout(_AGENT_SEND_S):
                            await self._agent.send("guest-shutdown", mode="powerdown")
                await qemu.wait()


def _read_picture(path: Path) -> bytes:
    """The file that QEMU wrote; nothing that a QEMU broken into may have put in its place."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_PICTURE_BYTES:
            raise OSError("not a picture")
        return file.read(_MAX_PICTURE_BYTES)


async def _dismiss_nobody(_reason: str) -> None:
    """Before the web side is there."""


class _SessionLog(logging.LoggerAdapter[logging.Logger]):
    """A log line starts with its session."""

    def process(self, msg: str, kwargs: MutableMapping[str, Any]) -> tuple[str, MutableMapping[str, Any]]:
        return f"{(self.extra or {}).get('session')}: {msg}", kwargs
