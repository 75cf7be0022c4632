"""The life of one session: boot, watch, warn, stop at the deadline, clean up."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    MutableMapping,
)
from dataclasses import dataclass
from subprocess import SubprocessError
from typing import Any, Literal, assert_never

from msgspec import structs

from qemuspawner.errors import QemuSpawnerError, SessionError, VmError
from qemuspawner.keyboards import KEYBOARDS
from qemuspawner.machines.templates import find_suspend_obstacle
from qemuspawner.paths import StatePaths
from qemuspawner.policy import Busy
from qemuspawner.qemu.process import Log, QemuProcess
from qemuspawner.resolutions import parse_resolution
from qemuspawner.saved import Saved
from qemuspawner.session.clocks import Clocks
from qemuspawner.session.directory import sweep
from qemuspawner.session.extensions import Extensions
from qemuspawner.session.first_start import FirstStart, is_new
from qemuspawner.session.guest import Guest
from qemuspawner.session.hooks import NoHookError, run_hook
from qemuspawner.session.keep import Keeper, note_problem
from qemuspawner.session.load import LoadMeter, find_busy, next_look_s
from qemuspawner.session.notices import Notices
from qemuspawner.session.oom import KILLED, OomWatch
from qemuspawner.session.paused_disk import PausedDisk
from qemuspawner.session.personal import must_wait, personalise, sudo_of
from qemuspawner.session.prepare import (
    Plan,
    Prepared,
    Started,
    boot_instead,
    cannot_wake,
    choose,
    prepare,
    start_vm,
)
from qemuspawner.session.pulse import Pulse
from qemuspawner.session.troubles import Troubles
from qemuspawner.session.turns import take_turn
from qemuspawner.session.usage import UsageMeter
from qemuspawner.spec import (
    Act,
    Load,
    ScriptRun,
    SessionEnd,
    SessionSpec,
    SessionStatus,
    State,
    Step,
    SuspendOn,
)
from qemuspawner.texts import Text, join_sentences

# A slow guest under emulation needs minutes; after that its screen is shown as it is.
_AGENT_TIMEOUT_S = 240
# After its end a session answers for so long, that pages and the hub can read why.
_LINGER_S = 3
_LINGER_FAILED_S = 60
# A restored one answers within a second.
_RESTORED_AGENT_TIMEOUT_S = 30
# So long a desktop may wait for others to become their users' own.
_PATIENCE_S = 20
_LAST_EVENT_S = 0.2

_LONGEST_SLEEP_S = 30

PowerAction = Literal["shutdown", "reset", "poweroff"]


@dataclass(frozen=True, kw_only=True)
class Ending:
    """Why a session ends."""

    reason: str
    hint: str = ""
    failed: bool = False
    graceful: bool = True  # ask the guest to shut down first
    cause: SuspendOn | None = None  # what may suspend the session instead
    for_good: bool = True  # somebody wanted it: what it was woken from is of no use any more
    linger_s: float = _LINGER_S


class Supervisor:
    """One session from its spec to its end; what it knows is in `status()`."""

    def __init__(
        self,
        spec: SessionSpec,
        *,
        clocks: Clocks | None = None,
        memories: Mapping[str, int] | None = None,
    ) -> None:
        self.spec = spec
        self.clocks = clocks or Clocks(spec)
        self.log: Log = _SessionLog(logging.getLogger(__name__), {"session": spec.session_id})
        # The web side's part: how many look on, and how they are told that it is over.
        self.count_viewers: Callable[[], int] = lambda: 0
        self.dismiss_viewers: Callable[[str], Awaitable[None]] = _dismiss_nobody
        self.changed = asyncio.Event()  # set, and replaced, with every change of state or steps
        self.keeper: Keeper | None = None
        self._memories = memories or {}
        self._state: State = "preparing"
        self._version = 0
        self._message = self._hint = ""
        self._steps: list[Step] = []
        self._progress = 0
        self._stack = contextlib.ExitStack()
        self._prepared: Prepared | None = None
        self._guest: Guest | None = None
        self._first_start: FirstStart | None = None
        self._load: Load | None = None
        self._awake: tuple[Busy, ...] = ()
        self._usage = UsageMeter(cpus=spec.cpus, memory_mib=spec.memory_mib, clocks=self.clocks)
        self._extensions = Extensions(self.clocks)
        self._notices = Notices(self.clocks, spec)
        self._troubles = Troubles(self._note_change)
        self._disk: PausedDisk | None = None
        self._oom = OomWatch()
        self._ending: Ending | None = None
        self._next: Plan | None = None  # what to go on with when this VM is stopped
        self._interrupted = asyncio.Event()  # the VM is to end, or to give way to the next one
        self._way_back: Plan | None = None  # where a checkpoint that was gone back to does not work
        self._works: set[asyncio.Task[Any]] = set()  # what must not stop half-way
        self._was_up = False  # somebody could have used it
        self.released = asyncio.Event()  # the hub has read why it failed, and stops us
        self._shut_down_by_guest = False

    # What others see

    @property
    def state(self) -> State:
        return self._state

    def status(self) -> SessionStatus:
        spec, clocks = self.spec, self.clocks
        plan = self._guest.plan if self._guest else None
        trouble = self._troubles.worst if self._state in ("booting", "running") else None
        idle = clocks.idle_deadline if self._state == "running" else None
        return SessionStatus(
            session_id=spec.session_id,
            state=self._state,
            message=trouble.message if trouble else self._message,
            hint=trouble.hint if trouble else self._hint,
            steps=tuple(self._steps),
            progress=self._progress,
            machine=spec.machine.name,
            name=spec.name,
            notes=spec.notes,
            cpus=spec.cpus,
            memory_mib=spec.memory_mib,
            gpus=spec.gpus if self._guest and self._guest.has_gpu else None,
            accelerator=self._prepared.host.accelerator if self._prepared else "",
            now=clocks.unix(clocks.now()),
            started=clocks.unix(clocks.started),
            deadline=clocks.unix(clocks.deadline),
            max_deadline=clocks.unix(clocks.max_deadline),
            idle_deadline=0 if idle is None else clocks.unix(idle),
            last_activity=0 if clocks.last_activity is None else clocks.unix(clocks.last_activity),
            load=self._load,
            usage=self._usage.usage(),
            awake=self._awake,
            keyboard=self._guest.keyboard if self._guest else "",
            script=script.state if (script := self.script) else "",
            extension=self._extensions.newest,
            staff_message=self._notices.told,
            trouble=trouble.trouble if trouble else None,
            viewers=self.count_viewers(),
            qemu_pid=self._guest.qemu.pid if self._guest else 0,
            walls=self._guest.walls if self._guest else (),
            way=plan.way if plan else "",
            why=plan.why if plan else "",
            suspends=spec.suspend_on,
            suspend_obstacle=find_suspend_obstacle(spec),
            folders=self._guest.folders.statuses if self._guest else (),
            version=self._version,
        )

    @property
    def script(self) -> ScriptRun | None:
        """How the user's script does; None where it did not run in this session."""
        return self._first_start.script if self._first_start else None

    def end_report(self) -> SessionEnd:
        """What the hub is told of the end, once it has come."""
        return SessionEnd(
            state=self._state if self._state in ("suspended", "failed") else "ended",
            message=join_sentences(self._message, self._hint),
            cause=(self._ending.cause if self._ending else None) or "",
            usage=self._usage.usage(),
        )

    def report(
        self, text: str, progress: int | None = None, *, level: Literal["info", "warning", "error"] = "info"
    ) -> None:
        """Add a step to the status, and to the log."""
        at = self.clocks.now() - self.clocks.started
        self._steps.append(Step(at=round(at, 2), text=text, level=level))
        if progress is not None:
            self._progress = progress
        self._note_change()
        self.log.log(logging.getLevelNamesMapping()[level.upper()], "%s (after %.1f s)", text, at)

    def _set_state(self, state: State) -> None:
        self._state = state
        self._note_change()

    def _note_change(self) -> None:
        self._version += 1
        self.changed.set()
        self.changed = asyncio.Event()

    # Start

    def prepare(self) -> None:
        """Start QEMU, or note why it cannot be; from the main thread, before the event loop runs."""
        try:
            self._prepared = prepare(self.spec, self._stack, self.report, memories=self._memories)
            self.spec = self._prepared.spec
        except QemuSpawnerError as exc:
            self._stack.close()
            self._fail(exc)
        except (OSError, SubprocessError) as exc:
            self.log.exception("The session cannot be prepared")
            self._stack.close()
            why = getattr(exc, "strerror", None) or Text("a program of the host did not answer")
            self._fail(
                SessionError(
                    Text("The desktop cannot be prepared on this host: {why}.", why=why),
                    hint=Text("Tell the administrator; the hub's log has the details."),
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
            self._fail(
                SessionError(
                    Text("The session failed for a reason of its own."), hint=Text("The log has more.")
                )
            )
            await self._keep_what_is_left()
        finally:
            if self._guest is not None:
                await self._guest.stop()
            self.close()
            if self._state not in ("failed", "suspended"):
                self._set_state("ended")
            self.log.info("Session %s: %s", self._state, self._message)

    def close(self) -> None:
        """Undo what `prepare` did; harmless when done already."""
        self._stack.close()

    async def _live(self, prepared: Prepared) -> None:
        """One VM after the other, until the session is to end."""
        self.keeper = Keeper.of(prepared)
        started = prepared.started
        while True:
            self._set_state("booting")
            guest = Guest(started, prepared.paths, self.spec.machine, log=self.log)
            self._guest = guest
            try:
                await guest.connect()
            except VmError as exc:
                await guest.stop()
                started = self._start(prepared, self._instead(started.plan, exc))
                continue
            await self._note_restored(guest.plan)
            await self._watch(guest)
            # Whatever is being saved is saved first.
            while self._works:
                await asyncio.wait(self._works)
            if self._ending is not None:
                break
            plan, self._next = self._next, None
            assert plan is not None
            await guest.stop()
            if self._ending is not None:
                break
            started = self._start(prepared, plan)
        await self._end(guest, self._ending)

    def _start(self, prepared: Prepared, plan: Plan) -> Started:
        try:
            return start_vm(
                self.spec,
                prepared.paths,
                prepared.host,
                plan,
                self._stack,
                self.report,
                memories=self._memories,
            )
        except OSError as exc:
            raise SessionError(
                Text("The machine cannot be started: {strerror}.", strerror=exc.strerror),
                hint=Text("Try again."),
            ) from exc

    def _instead(self, plan: Plan, exc: VmError) -> Plan:
        """What to start where `plan` failed; raises where that is for the user to say."""
        if plan.way == "restored":
            return boot_instead(self.spec, exc)
        if plan.restores and plan.folder is not None:
            note_problem(plan.folder.root, exc.message)
            way_back, self._way_back = self._way_back, None
            if way_back is not None:
                self.report(
                    Text("The checkpoint cannot be restored: {message}", message=exc.message), level="warning"
                )
                return way_back
            raise cannot_wake(exc.message) from exc
        raise exc

    async def _note_restored(self, plan: Plan) -> None:
        assert self.keeper is not None
        self._way_back = None
        if plan.way == "woken" and plan.folder is not None:
            self._was_up = True
            await asyncio.to_thread(self.keeper.renew, plan.folder.root)
        self._report_running(plan)

    def _report_running(self, plan: Plan) -> None:
        words = {
            "cold": Text("The machine is booting"),
            "restored": Text("The machine is restored from its template"),
            "woken": Text("The machine is awake again"),
        }[plan.way]
        self.report(Text("{words} ({why})", words=words, why=plan.why) if plan.why else words, 35)
        if self._prepared is not None and self._prepared.host.accelerator == "tcg":
            self.report(Text("It runs by emulation (TCG), slower than with KVM"), level="warning")

    async def _watch(self, guest: Guest) -> None:
        """Until the VM is to end, or to give way to another one."""
        assert self.keeper is not None
        self._disk = PausedDisk(guest, self.spec, self._troubles, lock=self.keeper.lock, log=self.log)
        pulse = Pulse(guest, self._troubles)
        async with asyncio.TaskGroup() as watchers:
            tasks = [
                watchers.create_task(self._watch_events(guest.qemu, self._disk, pulse)),
                watchers.create_task(pulse.watch()),
                watchers.create_task(self._watch_exit(guest.qemu)),
                watchers.create_task(self._watch_resets(guest)),
                watchers.create_task(self._watch_clocks(guest)),
                watchers.create_task(self._watch_use(guest)),
                watchers.create_task(self._watch_checkpoints(guest)),
                watchers.create_task(self._wait_for_desktop(guest)),
                watchers.create_task(asyncio.to_thread(self._sweep)),
            ]
            await self._interrupted.wait()
            self._interrupted.clear()
            self._disk.close()
            for task in tasks:
                task.cancel()
        self._troubles.clear()

    async def _end(self, guest: Guest, ending: Ending) -> None:
        if self._state == "suspended":
            return
        await self._usage.look_again(guest)
        self._message, self._hint = ending.reason, ending.hint
        if ending.failed:
            self._fail(SessionError(ending.reason, hint=ending.hint))
            await self.dismiss_viewers(ending.reason)
            await self._keep_what_is_left()
        elif ending.cause in self.spec.suspend_on and self._was_up:
            await self._suspend_at_end(guest)
        else:
            self._set_state("stopping")
            # Before the display goes away, so that everybody reads why.
            await self.dismiss_viewers(ending.reason)
            if ending.graceful and guest.qemu.running:
                await guest.shut_down()
            if ending.for_good and self._was_up and self.keeper is not None:
                await asyncio.to_thread(self.keeper.forget_suspended)

    async def _suspend_at_end(self, guest: Guest) -> None:
        """The session must end now: keep what can be kept of it."""
        assert self.keeper is not None
        self._set_state("suspending")
        reason = Text(
            "{message} The desktop is asleep; start it again to go on where you were.", message=self._message
        )
        try:
            if why := find_suspend_obstacle(self.spec):
                raise VmError(why)
            # The alternative is the end of all programs.
            await self._detach(guest, ends_programs=True)
            saved = await self.keeper.suspend(guest)
            await self.dismiss_viewers(reason)
            await guest.stop()
        except (QemuSpawnerError, OSError) as exc:
            self.log.warning("The memory cannot be kept, only the disk: %s", exc)
            reason = Text(
                "{message} Its disk is kept, programs that were open are not.", message=self._message
            )
            await self.dismiss_viewers(reason)
            await guest.shut_down()
            await guest.stop()
            try:
                saved = await self.keeper.keep_disk(guest)
            except (VmError, OSError) as full:
                raise SessionError(
                    Text("{message} It could not be kept: {full}.", message=self._message, full=full),
                    hint=Text("Tell the administrator."),
                ) from full
        self._message = reason
        self._set_state("suspended")
        await asyncio.to_thread(self.keeper.tidy, saved)

    async def _keep_what_is_left(self) -> None:
        """After a failure: the disk is worth having where desktops are kept at all."""
        guest, keeper = self._guest, self.keeper
        if guest is None or keeper is None or not self.spec.suspend_on or not self._was_up:
            return
        await guest.stop()
        try:
            saved = await keeper.keep_disk(guest)
        except (QemuSpawnerError, OSError):
            self.log.exception("The disk could not be kept")
            return
        self._hint = Text("Start it again from its disk: files are kept, programs that were open are lost.")
        await asyncio.to_thread(keeper.tidy, saved)

    async def _work(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what must not stop half-way: who waits for it may be cancelled, and the session's end waits."""
        task = asyncio.create_task(work)
        self._works.add(task)
        task.add_done_callback(self._works.discard)
        # Asked for, so that nobody complains where the waiter is gone.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(task)

    async def _wait_for_desktop(self, guest: Guest) -> None:
        try:
            await guest.wait_for_display()
        except VmError as exc:
            self.end(Ending(reason=exc.message, hint=exc.hint, failed=True, graceful=False))
            return
        if guest.agent is not None and not guest.plan.restores:
            self.report(Text("Waiting for the machine's desktop"), 50)
            if not await guest.agent.wait_until_ready(timeout_s=_AGENT_TIMEOUT_S):
                self.report(
                    Text("The guest agent does not answer; the screen is shown as it is"), level="warning"
                )
        # Else a restored desktop is shown at once, and is made its user's while the browser loads the page.
        waits = guest.agent is not None and must_wait(self.spec)
        if waits:
            self.report(Text("Making the desktop your own"), 80)
            if not await self._personalise(guest) and sudo_of(self.spec) == "no":
                self.end(
                    Ending(
                        reason=Text("The desktop's user could not be kept from becoming root, so it ends."),
                        hint=Text("Tell the administrator."),
                        failed=True,
                        graceful=False,
                    )
                )
                return
        # Nobody could have used it before.
        self.clocks.note_input()
        self._was_up = True
        self._progress = 100
        self._set_state("running")
        self.report(Text("The desktop is ready"), 100)
        if guest.agent is not None and not waits:
            await self._personalise(guest)
            await self._attach_folders(guest)
        await self._do_as_asked(guest)

    async def _do_as_asked(self, guest: Guest) -> None:
        """What its user chose before the start; a part that fails is told, and the desktop goes on."""
        async with asyncio.TaskGroup() as works:
            works.create_task(self._set_size(guest))
            if is_new(guest.plan):
                works.create_task(self._set_up(guest))

    async def _set_size(self, guest: Guest) -> None:
        if self.spec.resolution:
            width, height = parse_resolution(self.spec.resolution)
            with self._told("The screen has another size than was chosen"):
                await guest.set_size(width=width, height=height)

    async def _set_up(self, guest: Guest) -> None:
        spec = self.spec
        if spec.keyboard:
            with self._told("The keyboard layout that was chosen is not set"):
                await self.set_keyboard(spec.keyboard, by=spec.user)
        if guest.agent is not None:
            self._first_start = FirstStart(spec, self.report)
            await self._first_start.do(guest.agent)

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """An error of the guest becomes a warning among the steps."""
        try:
            yield
        except QemuSpawnerError as exc:
            self.report(f"{what}: {exc.message}", level="warning")

    async def _personalise(self, guest: Guest) -> bool:
        """Whether that was done wholly; where not, a warning among the steps says why."""
        assert guest.agent is not None
        try:
            async with take_turn(StatePaths.of(self.spec.state_dir).probes, patience_s=_PATIENCE_S):
                if not await guest.agent.wait_until_ready(timeout_s=_RESTORED_AGENT_TIMEOUT_S):
                    raise VmError(Text("The guest agent does not answer."))
                await personalise(guest, self.spec)
        except VmError as exc:
            self.report(
                Text("The desktop could not be told whose it is: {message}", message=exc.message),
                level="warning",
            )
            return False
        return True

    # Folders of the host

    async def _attach_folders(self, guest: Guest, *, is_anew: bool = False) -> None:
        """Bring the host's folders into a guest that has come up, and say what became of each.

        `is_anew`: it has booted once more, and virtiofsd takes a file system to be mounted still.
        """
        if not guest.folders.statuses:
            return
        assert self.keeper is not None
        # Not while it is saved, which is without them.
        async with self.keeper.lock:
            if self._guest is guest and self._state == "running":
                if is_anew:
                    with contextlib.suppress(VmError):
                        await self._detach(guest)
                await self._attach(guest)
                for text, level in guest.folders.describe():
                    self.report(text, level=level)

    async def _attach(self, guest: Guest) -> None:
        if guest.agent is not None:
            await guest.folders.attach(guest.agent)
            self._note_change()

    async def _detach(self, guest: Guest, *, ends_programs: bool = False) -> None:
        """Raises VmError where a folder is in use, so that the VM cannot be saved."""
        if guest.agent is not None:
            await guest.folders.detach(guest.agent, ends_programs=ends_programs)

    async def _watch_resets(self, guest: Guest) -> None:
        """A guest that boots anew has nothing mounted."""
        if guest.agent is None:
            return
        with guest.qemu.events("RESET") as events:
            async for _ in events:
                if self._was_up and await guest.agent.wait_until_ready(timeout_s=_AGENT_TIMEOUT_S):
                    await self._attach_folders(guest, is_anew=True)

    def _sweep(self) -> None:
        # Housekeeping must not end a session.
        with contextlib.suppress(OSError):
            sweep(StatePaths.of(self.spec.state_dir), own_id=self.spec.session_id)

    # Watch

    async def _watch_events(self, qemu: QemuProcess, disk: PausedDisk, pulse: Pulse) -> None:
        with qemu.events("SHUTDOWN", "BLOCK_IO_ERROR", "GUEST_PANICKED", "RESET") as events:
            with contextlib.suppress(VmError):
                await self._note_missed(qemu)
            async for event in events:
                data = event.get("data")
                assert isinstance(data, dict)
                match event["event"]:
                    case "SHUTDOWN":
                        self._shut_down_by_guest = bool(data.get("guest"))
                    case "BLOCK_IO_ERROR":
                        disk.note_failure(data)
                    case "GUEST_PANICKED":
                        self._note_crash()
                    case "RESET":
                        pulse.note_reset()

    async def _note_missed(self, qemu: QemuProcess) -> None:
        """What became of the VM before we listened, which a woken one's first instant is enough for."""
        match await qemu.run_state():
            case "io-error":
                # It fails again at once, and says how.
                await qemu.execute("cont")
            case "guest-panicked":
                self._note_crash()

    def _note_crash(self) -> None:
        self.log.warning("The guest's system says that it has crashed")
        self._troubles.note(
            "crashed",
            Text("The machine's system has crashed."),
            Text("Restart it; what was not saved in it is lost."),
            acts=("reset",),
        )

    async def _watch_exit(self, qemu: QemuProcess) -> None:
        code = await qemu.wait()
        # Its last event may still be on its way.
        await asyncio.sleep(_LAST_EVENT_S)
        # That is how a suspend ends, too.
        if self._state not in ("suspending", "suspended"):
            self._note_exit(qemu, code)

    def _note_exit(self, qemu: QemuProcess, code: int) -> None:
        if self._shut_down_by_guest:
            self.end(Ending(reason=Text("The desktop was shut down."), graceful=False))
            return
        if code == 0:
            # By a signal, as when the host itself shuts down.
            self.end(
                Ending(
                    reason=Text("The desktop was shut down by its host."),
                    graceful=False,
                    cause="stop",
                    for_good=False,
                )
            )
            return
        self.log.error("QEMU ended with code %s: %s", code, qemu.last_words)
        if code in KILLED and self._oom.look():
            self.end(
                Ending(
                    reason=Text("The host ran out of memory, and ended the desktop for it."),
                    hint=Text("Choose less memory, or tell the administrator."),
                    failed=True,
                    graceful=False,
                )
            )
            return
        self.end(
            Ending(
                reason=Text("The virtual machine ended unexpectedly."),
                hint=Text("Start it again; if it ends again, tell the administrator."),
                failed=True,
                graceful=False,
            )
        )

    async def _watch_clocks(self, guest: Guest) -> None:
        while True:
            # Deadlines only ever move later: looking again when the nearest one is due is enough.
            while not (over := self.clocks.why_over()):  # noqa: ASYNC110
                # Sleeping does not count the time that the host was suspended; the deadlines do.
                await asyncio.sleep(min(self.clocks.next_check_s + 0.01, _LONGEST_SLEEP_S))
            cause, reason = over
            if cause == "idle" and await self._stays_awake(guest, reason):
                if self._state != "running":
                    return
                continue
            self.end(Ending(reason=reason, cause=cause))
            return

    async def _stays_awake(self, guest: Guest, reason: str) -> bool:
        """Suspend an idle desktop; whether that failed, which is no reason to end it."""
        if "idle" not in self.spec.suspend_on or find_suspend_obstacle(self.spec):
            return False
        try:
            await self._work(self._suspend(guest, reason, cause="idle"))
        except (QemuSpawnerError, OSError) as exc:
            self.log.warning("The idle desktop stays awake: %s", exc)
            self.clocks.postpone_idle()
        return True

    async def _watch_use(self, guest: Guest) -> None:
        """Look whether the guest is busy, which counts as use, and show in it what is about to happen."""
        meter = LoadMeter(guest, self.spec.policy)
        may_notify = guest.agent is not None
        self._load, self._awake = None, ()
        while not self._was_up:
            await self.changed.wait()
        await meter.look()
        self._usage.begin(meter.newest)
        while True:
            self._oom.look()
            idle = self.clocks.idle_deadline
            await asyncio.sleep(next_look_s(None if idle is None else idle - self.clocks.now()))
            load = await meter.look()
            await self._usage.look(
                guest, meter.newest, gpu_percent=None if load is None else load.gpu_percent
            )
            if load is not None:
                self._load, self._awake = load, find_busy(load, self.spec.policy)
                if self._awake:
                    self.clocks.note_busy()
            notice = self._notices.due()
            if notice is not None and may_notify:
                try:
                    await run_hook(guest, "notify", {"TITLE": notice.title, "TEXT": notice.text})
                except NoHookError:
                    may_notify = False
                except VmError as exc:
                    self.log.info("A notice could not be shown in the guest: %s", exc.message)

    async def _watch_checkpoints(self, guest: Guest) -> None:
        if not self.spec.checkpoint_every_s or find_suspend_obstacle(self.spec):
            return
        while True:
            await asyncio.sleep(self.spec.checkpoint_every_s)
            try:
                await self._work(self._save_checkpoint(guest, title="", automatic=True))
            except (QemuSpawnerError, OSError) as exc:
                self.log.warning("No checkpoint was made: %s", exc)

    # Steer

    def extend(self, seconds: int | None, *, by: str) -> None:
        """Move the end later. Raises SessionError where it cannot be."""
        self.clocks.extend(seconds)
        self.log.info("Extended by %s; %.0f s are left", by, self.clocks.deadline - self.clocks.now())

    def ask_extension(self, *, by: str, reason: str, seconds: int | None) -> None:
        """Ask the site's staff for more time than extending can gain."""
        self._extensions.ask(by=by, reason=reason, seconds=seconds or self.spec.lifetime_s)
        self.log.info("More time than the longest lifetime is asked for by %s", by)
        self._note_change()

    def answer_extension(self, *, by: str, granted_s: int, comment: str) -> None:
        """Grant so many seconds more, or refuse with 0. Raises SessionError where nobody waits for it."""
        self._extensions.answer(by=by, granted_s=granted_s, comment=comment)
        self.log.info("More time: %d s granted by %s", granted_s, by)
        self._note_change()

    def tell(self, text: str, *, by: str) -> None:
        """Show a message of the site's staff on every page, and in the guest at the next look."""
        self._notices.tell(text, by=by)
        self.log.info("A message of %s is shown", by)
        self._note_change()

    def describe(self, *, name: str, notes: str) -> None:
        """Give the desktop another name and other notes, also in what is saved of it from now on."""
        self.spec = structs.replace(self.spec, name=name, notes=notes)
        if self.keeper is not None:
            self.keeper.spec = structs.replace(self.keeper.spec, name=name, notes=notes)
        self._note_change()

    async def set_keyboard(self, name: str, *, by: str) -> None:
        """Have the guest take keys for those of this keyboard.

        Raises:
            SessionError: Its image does not know how.
            VmError: It does not run, or failed.
        """
        guest = self.running_guest()
        keyboard = KEYBOARDS[name]
        try:
            await run_hook(guest, "keyboard", {"LAYOUT": keyboard.layout, "VARIANT": keyboard.variant})
        except NoHookError as exc:
            raise SessionError(
                Text("The layout cannot be set from here: {message}", message=exc.message),
                hint=Text("Set it inside the desktop, in its own settings."),
            ) from exc
        guest.keyboard = name
        self.log.info("Keyboard layout %s, set by %s", name, by)
        self._note_change()

    async def power(self, action: PowerAction, *, by: str) -> None:
        """Press the machine's power switch. Raises VmError where it does not run."""
        qemu = self.running_guest().qemu
        self.log.info("Power: %s, asked for by %s", action, by)
        match action:
            case "shutdown":
                self.end(Ending(reason=Text("The desktop was shut down.")))
            case "poweroff":
                self.end(Ending(reason=Text("The desktop was switched off."), graceful=False))
            case "reset":
                await qemu.reset()

    async def act(self, act: Act, *, by: str) -> None:
        """Do something about what is wrong with the desktop.

        Raises:
            QemuSpawnerError: It is of no help now, or fails.
        """
        qemu = self.running_guest().qemu
        self._troubles.check_act(act)
        self.log.info("Against the trouble: %s, asked for by %s", act, by)
        assert self._disk is not None
        match act:
            case "retry":
                self._disk.retry()
            case "extend":
                self._disk.extend()
            case "reset":
                await qemu.reset()
            case _:
                assert_never(act)

    async def screenshot(self) -> bytes:
        """The screen as a PNG. Raises VmError where there is none."""
        return await self.running_guest().screenshot()

    async def connect_port(self, name: str) -> socket.socket:
        """A connection to the machine's port `name`; raises VmError where it cannot be reached."""
        return await self.running_guest().ports.connect(name)

    @contextlib.asynccontextmanager
    async def steady(self) -> AsyncIterator[None]:
        """The VM runs, and is not paused to be saved meanwhile: QEMU would drop what is typed.

        Raises:
            VmError: It does not run.
        """
        self.running_guest()
        assert self.keeper is not None
        async with self.keeper.lock:
            self.running_guest()
            yield

    def running_guest(self) -> Guest:
        guest = self._guest
        if guest is None or not guest.qemu.running or self._state not in ("booting", "running"):
            raise VmError(Text("The machine is not running."), hint=Text("Start it again from the hub."))
        return guest

    def _ready_guest(self) -> Guest:
        """One that is past its boot; raises VmError, also where it can never be saved."""
        guest = self.running_guest()
        if self._state != "running":
            raise VmError(Text("The desktop is not ready yet."), hint=Text("Try again in a moment."))
        if obstacle := find_suspend_obstacle(self.spec):
            raise VmError(obstacle)
        return guest

    async def suspend(self, *, by: str) -> None:
        """Put the desktop to sleep; where that fails it goes on.

        Raises:
            QemuSpawnerError: Why it cannot be.
        """
        guest = self._ready_guest()
        try:
            await self._work(self._suspend(guest, Text("{name} has put the desktop to sleep.", name=by)))
        except OSError as exc:
            raise _not_saved(exc) from exc

    async def _suspend(self, guest: Guest, reason: str, *, cause: SuspendOn | None = None) -> None:
        assert self.keeper is not None
        async with self.keeper.lock:
            self._check_still(guest)
            self._set_state("suspending")
            try:
                await self._usage.look_again(guest)
                await self._detach(guest)
                saved = await self.keeper.suspend(guest)
            except BaseException:
                self._set_state("running")
                if guest.qemu.running:
                    await self._attach(guest)
                else:
                    self._note_exit(guest.qemu, await guest.qemu.wait())
                raise
            self._message = Text("{reason} Start it again to go on where you were.", reason=reason)
            await self.dismiss_viewers(self._message)
            await guest.stop()
            self._set_state("suspended")
            self.end(Ending(reason=self._message, graceful=False, cause=cause))
            await asyncio.to_thread(self.keeper.tidy, saved)

    def _check_still(self, guest: Guest) -> None:
        """Raise VmError where, while we waited for our turn, something else has begun with this VM."""
        if self._guest is not guest or self._state != "running":
            raise VmError(Text("The desktop is being suspended, stopped or taken back already."))

    async def save_checkpoint(self, *, title: str, by: str) -> None:
        """Remember the desktop as it is now. Raises QemuSpawnerError where it cannot be saved."""
        guest = self._ready_guest()
        self.log.info("A checkpoint, asked for by %s", by)
        await self._work(self._save_checkpoint(guest, title=title, automatic=False))

    async def _save_checkpoint(self, guest: Guest, *, title: str, automatic: bool) -> None:
        assert self.keeper is not None
        async with self.keeper.lock:
            self._check_still(guest)
            await self._save(guest, title=title, automatic=automatic)

    async def _save(self, guest: Guest, *, title: str, automatic: bool, needed: str = "") -> Saved:
        assert self.keeper is not None
        try:
            await self._detach(guest)
            saved = await self.keeper.save_checkpoint(guest, title=title, automatic=automatic, needed=needed)
        except OSError as exc:
            raise _not_saved(exc) from exc
        finally:
            if guest.qemu.running:
                await self._attach(guest)
        self.log.info("Checkpoint %s was saved", saved.name)
        self._note_change()
        return saved

    async def go_back(self, name: str, *, by: str) -> None:
        """Go on from a checkpoint; the desktop as it is now becomes one itself, so that nothing is lost.

        Raises:
            QemuSpawnerError: The checkpoint cannot be restored; the desktop goes on.
        """
        guest = self._ready_guest()
        self.log.info("Back to checkpoint %s, asked for by %s", name, by)
        await self._work(self._go_back(guest, name))

    async def _go_back(self, guest: Guest, name: str) -> None:
        assert self.keeper is not None
        async with self.keeper.lock:
            self._check_still(guest)
            if self.keeper.find(name).fingerprint != self.keeper.fingerprint:
                raise SessionError(
                    Text("This checkpoint is of another size or another image than the desktop has now."),
                    hint=Text(
                        "Put the desktop to sleep, then start it from the checkpoint on the hub's page."
                    ),
                )
            plan = await self._plan_of(name)
            present = await self._save(guest, title="Before going back", automatic=True, needed=name)
            self._way_back = await self._plan_of(present.name)
            # From here on nothing else begins with this VM.
            self._set_state("booting")
            self._next = plan
            self._interrupted.set()

    async def _plan_of(self, name: str) -> Plan:
        assert self._prepared is not None
        spec = structs.replace(self.spec, sleeping=name, branch="")
        _, plan = await asyncio.to_thread(choose, spec, self._prepared.paths, self._prepared.host)
        return plan

    def end(self, ending: Ending) -> None:
        """End the session; the first reason counts. After the end: stop answering."""
        if self._ending is None:
            self._ending = ending
            self._interrupted.set()
        if self._state in ("ended", "suspended", "failed"):
            self.released.set()

    @property
    def linger_s(self) -> float:
        """Seconds to go on answering after the end."""
        if self._ending is not None:
            return self._ending.linger_s
        return _LINGER_FAILED_S

    def _fail(self, exc: QemuSpawnerError) -> None:
        self._set_state("failed")
        self._message, self._hint = exc.message, exc.hint
        self.report(exc.message, level="error")


def _not_saved(exc: OSError) -> VmError:
    return VmError(
        Text("The desktop could not be saved: {strerror}.", strerror=exc.strerror),
        hint=Text("It goes on; nothing else has happened."),
    )


async def _dismiss_nobody(_reason: str) -> None:
    """Before the web side is there."""


class _SessionLog(logging.LoggerAdapter[logging.Logger]):
    """A log line starts with its session."""

    def process(self, msg: str, kwargs: MutableMapping[str, Any]) -> tuple[str, MutableMapping[str, Any]]:
        return f"{(self.extra or {}).get('session')}: {msg}", kwargs
