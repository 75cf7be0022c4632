"""What a session is at: its state and steps, what is told of it, and why it ends."""

import asyncio
import contextlib
import logging
from collections.abc import (
    Awaitable,
    Callable,
    Coroutine,
    Mapping,
    MutableMapping,
)
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from qemuspawner.errors import QemuSpawnerError, VmError
from qemuspawner.languages import find_language
from qemuspawner.machines.templates import find_suspend_obstacle
from qemuspawner.policy import Busy
from qemuspawner.qemu.process import Log, QemuProcess
from qemuspawner.session.inside.folders import find_ids
from qemuspawner.session.inside.remote_folders import RemoteFolders
from qemuspawner.session.life.clocks import Clocks
from qemuspawner.session.life.extensions import Extensions
from qemuspawner.session.life.notices import Notices
from qemuspawner.session.life.usage import UsageMeter
from qemuspawner.session.vm.guest import Guest
from qemuspawner.session.vm.keep import Keeper
from qemuspawner.session.vm.oom import KILLED, OomWatch
from qemuspawner.session.vm.paused_disk import PausedDisk
from qemuspawner.session.vm.prepare import Plan, Prepared
from qemuspawner.session.vm.troubles import Troubles
from qemuspawner.spec import (
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

_T = TypeVar("_T")

# After its end a session answers for so long, that pages and the hub can read why.
_LINGER_S = 3
_LINGER_FAILED_S = 60


@dataclass(frozen=True, kw_only=True)
class Ending:
    """Why a session ends."""

    reason: str
    hint: str = ""
    by: str = ""  # who asked for it on the desktop's page or by its API; "": a clock, the hub, the guest
    failed: bool = False
    graceful: bool = True  # ask the guest to shut down first
    cause: SuspendOn | None = None  # what may suspend the session instead
    for_good: bool = True  # somebody wanted it: what it was woken from is of no use any more
    linger_s: float = _LINGER_S


class Life:
    """The state of a session; what the layers above it do is seen here."""

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
        self._load: Load | None = None
        self._awake: tuple[Busy, ...] = ()
        self._usage = UsageMeter(cpus=spec.cpus, memory_mib=spec.memory_mib, clocks=self.clocks)
        self._extensions = Extensions(self.clocks)
        self._notices = Notices(self.clocks, spec)
        # What is said in the guest is said as its user reads the page.
        self.language = find_language(spec.account.language if spec.account else "")
        self._troubles = Troubles(self._note_change)
        self.remote_folders = RemoteFolders(
            spec.remote_folders,
            ids=find_ids(spec),
            changed=self._note_change,
            tell=lambda text: self.report(text, level="warning"),
            log=self.log,
        )
        self._disk: PausedDisk | None = None
        self._oom = OomWatch()
        self._ending: Ending | None = None
        self._next: Plan | None = None  # what to go on with when this VM is stopped
        self._interrupted = asyncio.Event()  # the VM is to end, or to give way to the next one
        self._way_back: Plan | None = None  # where a checkpoint that was gone back to does not work
        self._works: set[asyncio.Task[Any]] = set()  # what must not stop half-way
        self._was_up = False  # somebody could have used it
        self._is_lost = False  # another host has taken the directory over: nothing in it is ours any more
        self.released = asyncio.Event()  # the hub has read why it failed, and stops us
        self._shut_down_by_guest = False

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
            remote_folders=self.remote_folders.statuses,
            version=self._version,
        )

    @property
    def script(self) -> ScriptRun | None:
        """How the user's script does; None where the desktop has none."""
        steps = self._guest.first_steps if self._guest else None
        return steps.script if steps else None

    @property
    def ended_by(self) -> str:
        """Who ended it; "" where that was nobody, or nobody who is known here."""
        return self._ending.by if self._ending else ""

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

    def running_guest(self) -> Guest:
        guest = self._guest
        if guest is None or not guest.qemu.running or self._state not in ("booting", "running"):
            raise VmError(Text("The machine is not running."), hint=Text("Start it again from the hub."))
        return guest

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

    async def _work(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do what must not stop half-way: who waits for it may be cancelled, and the session's end waits."""
        task = asyncio.create_task(work)
        self._works.add(task)
        task.add_done_callback(self._works.discard)
        # Asked for, so that nobody complains where the waiter is gone.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(task)


async def _dismiss_nobody(_reason: str) -> None:
    """Before the web side is there."""


class _SessionLog(logging.LoggerAdapter[logging.Logger]):
    """A log line starts with its session."""

    def process(self, msg: str, kwargs: MutableMapping[str, Any]) -> tuple[str, MutableMapping[str, Any]]:
        return f"{(self.extra or {}).get('session')}: {msg}", kwargs
