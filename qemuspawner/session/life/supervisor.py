"""The life of one session: boot, watch, warn, stop at the deadline, clean up."""

import asyncio
import contextlib
from collections.abc import Iterator
from subprocess import SubprocessError

from qemuspawner.errors import QemuSpawnerError, SessionError, VmError
from qemuspawner.machines.templates import find_suspend_obstacle
from qemuspawner.paths import StatePaths
from qemuspawner.qemu.process import QemuProcess
from qemuspawner.resolutions import parse_resolution
from qemuspawner.session.host.directory import sweep
from qemuspawner.session.host.turns import take_turn
from qemuspawner.session.inside.first_start import FirstStart
from qemuspawner.session.inside.identity import sudo_of
from qemuspawner.session.life.giving_way import GivesWay
from qemuspawner.session.life.life import Ending
from qemuspawner.session.vm.first_boot import FirstBoot
from qemuspawner.session.vm.guest import Guest
from qemuspawner.session.vm.hooks import NoHookError, run_hook
from qemuspawner.session.vm.keep import Keeper, note_problem
from qemuspawner.session.vm.load import LoadMeter, find_busy, next_look_s
from qemuspawner.session.vm.paused_disk import PausedDisk
from qemuspawner.session.vm.personal import must_wait, personalise
from qemuspawner.session.vm.prepare import (
    Plan,
    Prepared,
    Started,
    boot_instead,
    cannot_wake,
    prepare,
    start_vm,
)
from qemuspawner.session.vm.pulse import Pulse
from qemuspawner.texts import Text

# A slow guest under emulation needs minutes; after that its screen is shown as it is.
_AGENT_TIMEOUT_S = 240
# A restored one answers within a second.
_RESTORED_AGENT_TIMEOUT_S = 30
# So long a desktop may wait for others to become their users' own.
_PATIENCE_S = 20
_LAST_EVENT_S = 0.2

# Sleeping does not count the time that the host was suspended; the deadlines do.
_LONGEST_SLEEP_S = 1


class Supervisor(GivesWay):
    """One session from its spec to its end; what it knows is in `status()`."""

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
            self.remote_folders.forget()
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
        if prepared.host.holding is not None:
            self._heed(prepared.host.holding)
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
        if prepared.host.holding is not None:
            await self._settle(prepared.host.holding)
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
        pulse = Pulse(guest, self._troubles, is_saved=self.keeper.lock.locked)
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
                watchers.create_task(self._watch_first_boot(guest)),
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
        if not self._is_lost:
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
        await self._note_left()
        self._progress = 100
        self._set_state("running")
        self.report(Text("The desktop is ready"), 100)
        if guest.agent is not None:
            if not waits:
                await self._personalise(guest)
            await self._attach_folders(guest)
        await self._do_as_asked(guest)

    async def _do_as_asked(self, guest: Guest) -> None:
        """What its user chose before the start; a part that fails is told, and the desktop goes on."""
        async with asyncio.TaskGroup() as works:
            works.create_task(self._set_size(guest))
            works.create_task(self._set_up(guest))

    async def _set_size(self, guest: Guest) -> None:
        if self.spec.resolution:
            width, height = parse_resolution(self.spec.resolution)
            with self._told("The screen has another size than was chosen"):
                await guest.set_size(width=width, height=height)

    async def _set_up(self, guest: Guest) -> None:
        spec = self.spec
        if spec.keyboard and guest.plan.is_new and not guest.machine.has_seed:
            with self._told("The keyboard layout that was chosen is not set"):
                await self.set_keyboard(spec.keyboard, by=spec.user)
        if guest.agent is not None:
            first_start = FirstStart(spec, guest, self.report, has_booted=not guest.plan.restores)
            await first_start.do(guest.agent)

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

    async def _watch_resets(self, guest: Guest) -> None:
        """A guest that boots anew has nothing mounted."""
        if guest.agent is None:
            return
        with guest.qemu.events("RESET") as events:
            async for _ in events:
                # A PC's firmware resets it a few times more, and so may whoever finds that it takes long.
                while is_up := await guest.agent.wait_until_ready(timeout_s=_AGENT_TIMEOUT_S):
                    if events.empty():
                        break
                    events.clear()
                if is_up and self._was_up:
                    await self._attach_folders(guest, is_anew=True)

    async def _watch_first_boot(self, guest: Guest) -> None:
        if guest.machine.has_seed:
            await FirstBoot(guest, self.report).follow()

    def _sweep(self) -> None:
        # Housekeeping must not end a session.
        with contextlib.suppress(OSError):
            sweep(StatePaths.of(self.spec.state_dir), own_id=self.spec.session_id)

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

    async def _watch_clocks(self, guest: Guest) -> None:
        while True:
            # Deadlines only ever move later: looking again when the nearest one is due is enough.
            while not (over := self.clocks.why_over()):  # noqa: ASYNC110
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
            notice = self.language.say(self._notices.due())
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
