"""Make templates: boot a machine that nobody has used to its desktop, and save it there.

QEMU works in a folder of the account that it runs as; what it left there is copied by us when it has ended.
A template counts once its folder has its name, which is the last step: killed at any moment, the command
leaves a draft that the next one deletes, and no QEMU.
"""

import asyncio
import contextlib
import logging
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qemuspawner.errors import HostError, ImageError, MachineError, VmError, printable
from qemuspawner.locks import find_holder, try_lock
from qemuspawner.machine import Machine
from qemuspawner.machines.templates import (
    delete_misfits,
    drop_templates,
    find_template,
    find_template_obstacle,
    find_templates,
    template_name,
)
from qemuspawner.paths import (
    MAX_SOCKET_PATH,
    PERSONALISE_SCRIPT,
    QMP_SOCKET,
    VNC_SOCKET,
    SavedPaths,
    SessionPaths,
    StatePaths,
)
from qemuspawner.qemu.agent import GuestAgent
from qemuspawner.qemu.command import qemu_args
from qemuspawner.qemu.host import (
    Qemu,
    check_disk,
    check_memory,
    choose_accelerator,
    find_qemu,
    find_uefi,
    kvm_works,
)
from qemuspawner.qemu.image import check_image, create_overlay
from qemuspawner.qemu.jail import Limits, check_jail, in_jail, tie_to_parent
from qemuspawner.qemu.memory import make_memory, save_memory
from qemuspawner.qemu.process import QemuProcess, end_qemu, kill_orphan, start_qemu
from qemuspawner.qemu.saving import check_files, copy_from_qemu, digest_file, fingerprint, sync_file
from qemuspawner.qemu.vm import Accelerator, Memory, make_vm
from qemuspawner.qemu.walls import check_walls
from qemuspawner.saved import FileDigest, Fingerprint, Saved, disk_usage, write_manifest
from qemuspawner.units import render_mib

Progress = Callable[[str], None]
Account = pwd.struct_passwd

log = logging.getLogger(__name__)

# A script in the image, run by the guest agent before the save; see docs/machines.md.
BEFORE_SAVE = "/etc/qemuspawner/before-save"
USUAL_ACCOUNT = "qemuspawner"

_DRAFT_PREFIX = ".draft-"
_LOCK = ".lock"
_QUIET_S = 8  # no step stays silent for longer
_CONNECT_TIMEOUT_S = 20
_BOOT_TIMEOUT_S = 240
_HOOK_TIMEOUT_S = 180
_SETTLE_TIMEOUT_S = 60
_SETTLE_STEP_S = 3.0
_IDLE_SHARE = 0.9  # of the guest's CPU time
_SYNC_TIMEOUT_S = 60

# Without a word where the image has no such script.
_RUN_HOOK = f"if test -x {BEFORE_SAVE}; then exec {BEFORE_SAVE} < /dev/null; fi"


def warm_machine(
    machine: Machine,
    *,
    cpus: int,
    memory_mib: int,
    state: StatePaths,
    progress: Progress,
    accelerator: Literal["auto", "kvm", "tcg"] = "auto",
    allow_tcg: bool = True,
    jail: bool = True,
    run_as: str = "",
    force: bool = False,
    max_disk_mib: int = 0,
) -> bool:
    """Make the template of `machine` in this size; False where it is there already.

    As root QEMU runs as the account `run_as`, or as 'qemuspawner'. With `max_disk_mib` the least recently
    used templates are deleted until all take less. Must be called from the main thread.

    Raises:
        QemuSpawnerError: What is missing or wrong; nothing is left behind.
    """
    if obstacle := find_template_obstacle(machine):
        raise MachineError(f"No template can be made of '{machine.id}'. {obstacle}")
    account = find_account(run_as)
    qemu = find_qemu()
    if jail:
        check_jail(account)
    check_image(machine.image)
    _make_folder(state)
    with _Interrupts() as interrupts, _lock(state):
        chosen = _choose_accelerator(
            accelerator, allow_tcg=allow_tcg, qemu=qemu, state=state, account=account
        )
        host = _Host(qemu=qemu, accelerator=chosen, jail=jail, account=account)
        order = _Order(machine=machine, cpus=cpus, memory_mib=memory_mib, state=state, host=host)
        if not force and order.is_done():
            progress(f"The template of {order.title} is up to date.")
            return False
        check_memory(memory_mib)
        check_disk(state.root)
        with _draft(state, account) as paths:
            _make(order, paths, progress, interrupts)
        delete_misfits(state, machine, order.fingerprint)
        for dropped in drop_templates(state, max_disk_mib=max_disk_mib, keep=order.name):
            progress(f"The template {dropped} was deleted: all may take {render_mib(max_disk_mib)}.")
    return True


class _Interrupts:
    """Ctrl-C and SIGTERM, taken up where we can stop: raised in the middle of anything, they may get lost."""

    def __init__(self) -> None:
        self._asked = False
        self._cancel: Callable[[], object] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "_Interrupts":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Raises KeyboardInterrupt, also in place of an error that may come of it: Ctrl-C ends tools too."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self.check()

    def _ask(self, _number: int, _frame: object) -> None:
        self._asked = True
        if self._cancel is not None:
            self._cancel()

    def check(self) -> None:
        if self._asked:
            raise KeyboardInterrupt from None

    @contextlib.contextmanager
    def cancelling(self) -> Iterator[None]:
        """Cancel the current task from here on."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
        try:
            if self._asked:
                raise asyncio.CancelledError
            yield
        finally:
            self._cancel = None


@dataclass(frozen=True, kw_only=True)
class _Host:
    """What the VM runs with."""

    qemu: Qemu
    accelerator: Accelerator
    jail: bool
    account: Account | None  # None: our own


class _Order:
    """Which template is to be made."""

    def __init__(
        self, *, machine: Machine, cpus: int, memory_mib: int, state: StatePaths, host: _Host
    ) -> None:
        self.machine = machine
        self.cpus = cpus
        self.memory_mib = memory_mib
        self.state = state
        self.host = host
        self.fingerprint = self.find_fingerprint()
        self.name = template_name(machine, self.fingerprint)

    @property
    def title(self) -> str:
        cpus = "1 CPU" if self.cpus == 1 else f"{self.cpus} CPUs"
        return f"'{self.machine.id}' with {cpus} and {render_mib(self.memory_mib)}"

    def find_fingerprint(self) -> Fingerprint:
        """What the template depends on as it is now. Raises ImageError where a file is missing."""
        try:
            return fingerprint(
                self.machine,
                cpus=self.cpus,
                memory_mib=self.memory_mib,
                accelerator=self.host.accelerator,
                qemu=self.host.qemu,
            )
        except OSError as exc:
            raise ImageError(f"An image file of '{self.machine.id}' cannot be read: {exc}.") from exc

    def is_done(self) -> bool:
        saved, _ = find_template(self.state, self.machine, self.fingerprint)
        if saved is None:
            return False
        try:
            check_files(SavedPaths(root=self.state.templates / self.name), saved)
        except VmError as exc:
            log.warning("The template %s is made again: %s.", self.name, exc.message)
            return False
        return True


# Before


def find_account(run_as: str) -> Account | None:
    """Whom QEMU runs as: None is our own account, which never is root.

    Raises:
        HostError: There is no such account, or we cannot or must not use it.
    """
    own = os.geteuid()
    try:
        account = pwd.getpwnam(run_as or USUAL_ACCOUNT) if run_as or own == 0 else None
    except (KeyError, ValueError):
        raise HostError(
            f"This host has no account '{run_as or USUAL_ACCOUNT}' to run QEMU, which never runs as root.",
            hint="Name the account of the sessions with --run-as.",
        ) from None
    if account is None or account.pw_uid == own != 0:
        return None
    if account.pw_uid == 0:
        raise HostError("QEMU never runs as root.", hint="Name the account of the sessions with --run-as.")
    if own != 0:
        raise HostError(
            f"Without being root QEMU cannot be run as '{account.pw_name}'.",
            hint="Leave --run-as out, or call the command with sudo.",
        )
    return account


def _choose_accelerator(
    wanted: Literal["auto", "kvm", "tcg"],
    *,
    allow_tcg: bool,
    qemu: Qemu,
    state: StatePaths,
    account: Account | None,
) -> Accelerator:
    """As sessions of the account choose; a template of another kind fits none of them."""
    if account is not None and wanted != "tcg" and not _may_use_kvm(account):
        if wanted == "kvm":
            raise HostError(
                f"The account '{account.pw_name}' may not open /dev/kvm.", hint="Add it to the group kvm."
            )
        wanted = "tcg"
    return choose_accelerator(wanted, allow_tcg=allow_tcg, qemu=qemu, probes=probes_folder(state))


def probes_folder(state: StatePaths) -> Path:
    """Where we note whether KVM works: root does not make the sessions' own folder, which would be root's."""
    if os.access(state.templates, os.W_OK):
        return state.templates / f".probes-{os.geteuid()}"
    return state.probes


def _may_use_kvm(account: Account) -> bool:
    command = ["sh", "-c", "test -r /dev/kvm && test -w /dev/kvm"]
    tied = tie_to_parent(command, parent_pid=os.getpid(), account=account)
    return subprocess.run(tied, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def _make_folder(state: StatePaths) -> None:
    """`templates/`, which everybody reads, whatever our umask; it belongs to whom the state folder does."""
    folder = state.templates
    try:
        if not folder.is_dir():
            folder.mkdir()
            folder.chmod(0o755)
            owner = state.root.stat()
            os.chown(folder, owner.st_uid, owner.st_gid)
        _check_owner(state)
    except OSError as exc:
        raise HostError(
            f"The folder {folder} cannot be made: {exc.strerror}.",
            hint="Another state folder is given with --state; the usual one belongs to root.",
        ) from exc


def _check_owner(state: StatePaths) -> None:
    """Refuse, as root, to work where others could put links under our hands.

    Whom the state folder belongs to could replace all of `templates/` anyway, and is trusted.

    Raises:
        HostError: The folder belongs to another account, or others may write to it.
    """
    if os.geteuid() != 0:
        return
    status = state.templates.stat()
    if status.st_uid not in (0, state.root.stat().st_uid):
        raise HostError(
            f"The folder {state.templates} belongs neither to root nor to whom the state folder does.",
            hint="Give it to root with chown, or call the command as the account that it belongs to.",
        )
    if status.st_mode & 0o022:
        raise HostError(
            f"Others than its owner may write to the folder {state.templates}.",
            hint="Close it with 'chmod go-w'.",
        )


@contextlib.contextmanager
def _lock(state: StatePaths) -> Iterator[None]:
    """One at a time: each takes a CPU or two, and the memory of a desktop."""
    path = state.templates / _LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise HostError(
            f"Templates cannot be written to {state.templates}: {exc.strerror}.",
            hint="Call the command as the account that the folder belongs to.",
        ) from exc
    try:
        if not try_lock(descriptor):
            raise HostError(
                f"A template is being made here already, by process {find_holder(path)}.",
                hint="Wait until that has ended, and try again.",
            )
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _draft(state: StatePaths, account: Account | None) -> Iterator[SessionPaths]:
    """A folder beside the result, so that a rename puts it in place; remains of killed ones go first."""
    for remains in state.templates.glob(f"{_DRAFT_PREFIX}*"):
        _kill_orphans(SessionPaths(root=remains), account)
        shutil.rmtree(remains, ignore_errors=True)
    root = Path(tempfile.mkdtemp(prefix=_DRAFT_PREFIX, dir=state.templates))
    try:
        # QEMU's account passes through to its own folder.
        root.chmod(0o711)
        paths = SessionPaths(root=root)
        if len(os.fsencode(paths.vm / VNC_SOCKET)) > MAX_SOCKET_PATH:
            raise HostError(
                f"The state folder's path is too long for a unix socket of {MAX_SOCKET_PATH} bytes.",
                hint="Give a shorter one with --state.",
            )
        yield paths
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _kill_orphans(paths: SessionPaths, account: Account | None) -> None:
    """End a QEMU of a killed one; as root with the account's rights, which says what listens there."""
    sockets = [folder / QMP_SOCKET for folder in (paths.root, paths.vm)]
    if account is None:
        for socket in sockets:
            kill_orphan(socket)
        return
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    try:
        os.setgroups([])
        os.setresgid(*(account.pw_gid,) * 3)
        os.setresuid(*(account.pw_uid,) * 3)
        for socket in sockets:
            kill_orphan(socket)
    finally:
        os._exit(0)


# Making it


@dataclass(frozen=True, kw_only=True)
class _Made:
    """What is known when QEMU has ended."""

    boot_s: float
    memory_digest: str


def _make(order: _Order, paths: SessionPaths, progress: Progress, interrupts: _Interrupts) -> None:
    try:
        with contextlib.ExitStack() as stack:
            memory = make_memory(order.memory_mib)
            stack.callback(os.close, memory)
            progress(f"Booting {order.title}, by {_ACCELERATORS[order.host.accelerator]}")
            started = time.monotonic()
            process = _start(order, paths, memory)
            # Whatever happens, nothing outlives us.
            stack.callback(end_qemu, process)
            # The descriptor stays ours: when QEMU has ended, the memory is still there to be written down.
            vm = _RunningVm(order=order, paths=paths, memory=memory, process=process, progress=progress)
            made = asyncio.run(vm.boot_and_save(started=started, interrupts=interrupts))
        if order.find_fingerprint() != order.fingerprint:
            raise MachineError(
                f"The image of '{order.machine.id}' was changed meanwhile.", hint="Call the command again."
            )
        size_bytes = _put_in_place(order, paths, made, interrupts)
    except OSError as exc:
        raise HostError(
            f"The template cannot be written: {exc.strerror}.", hint="Is the host's disk full?"
        ) from exc
    progress(f"{order.title} is warm: {render_mib(size_bytes >> 20)}; booting it took {made.boot_s:.0f} s.")


_ACCELERATORS: Mapping[Accelerator, str] = {"kvm": "KVM", "tcg": "emulation, which is slow"}


def _start(order: _Order, paths: SessionPaths, memory: int) -> "subprocess.Popen[bytes]":
    machine, host = order.machine, order.host
    paths.vm.mkdir(mode=0o700)
    uefi_code = None
    if machine.firmware == "uefi":
        uefi_code, empty_variables = find_uefi(machine.architecture, secure=machine.secure_boot)
        shutil.copyfile(empty_variables, paths.firmware_vars)
    if machine.image.format != "iso" or machine.image.disk:
        create_overlay(paths.overlay(0), machine.image)
    for path in (*paths.vm.iterdir(), paths.vm):
        if host.account is not None:
            os.chown(path, host.account.pw_uid, host.account.pw_gid)
    vm = make_vm(
        machine,
        paths,
        accelerator=host.accelerator,
        cpus=order.cpus,
        memory=Memory(size_mib=order.memory_mib, descriptor=memory, private=False),
        uefi_code=uefi_code,
    )
    command = [str(host.qemu.program), *qemu_args(vm)]
    if host.jail:
        command = in_jail(command, work_dir=paths.vm, files=vm.files, kvm=host.accelerator == "kvm")
    limits = Limits(memory_mib=order.memory_mib, cpus=order.cpus)
    tied = tie_to_parent(command, parent_pid=os.getpid(), account=host.account, limits=limits)
    return start_qemu(tied, work_dir=paths.vm, inherited=[memory])


class _RunningVm:
    """The VM from its start to the moment when everything of it lies in the draft."""

    def __init__(
        self,
        *,
        order: _Order,
        paths: SessionPaths,
        memory: int,
        process: "subprocess.Popen[bytes]",
        progress: Progress,
    ) -> None:
        self._order = order
        self._draft = SavedPaths(root=paths.root)
        self._memory = memory
        self._progress = progress
        self._qemu = QemuProcess(process, paths, log=logging.LoggerAdapter(log))
        self._agent = GuestAgent(paths.agent_socket)

    async def boot_and_save(self, *, started: float, interrupts: _Interrupts) -> _Made:
        """Raises MachineError or OSError, or is cancelled; QEMU has ended then, too."""
        with interrupts.cancelling():
            try:
                boot_s = await self._boot_and_save(started)
            except VmError as exc:
                words = printable(self._qemu.last_words)
                raise MachineError(
                    f"No template could be made of {self._order.title}: {printable(exc.message)}",
                    hint=f"The last that QEMU said: {words}" if words else exc.hint,
                ) from exc
            finally:
                self._agent.close()
                await self._qemu.stop()
            # QEMU has ended: nobody writes to the memory any more.
            async with self._telling("Writing the memory"):
                digest = await asyncio.to_thread(save_memory, self._memory, self._draft.memory)
        return _Made(boot_s=boot_s, memory_digest=digest)

    async def _boot_and_save(self, started: float) -> float:
        """How long the cold boot took, in seconds."""
        await self._qemu.connect(timeout_s=_CONNECT_TIMEOUT_S)
        check_walls(self._qemu.pid, jail=self._order.host.jail)
        await self._qemu.execute("cont")
        await self._wait_for_agent()
        boot_s = time.monotonic() - started
        self._progress(f"The desktop is there after {boot_s:.0f} s")
        await self._run_hook()
        await self._settle()
        await self._save()
        return boot_s

    async def _wait_for_agent(self) -> None:
        ready = asyncio.create_task(self._agent.wait_until_ready(timeout_s=_BOOT_TIMEOUT_S))
        ended = asyncio.create_task(self._qemu.wait())
        try:
            async with self._telling("Waiting for the desktop"):
                await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                raise VmError("it switched itself off.")
            if not ready.result():
                raise VmError(
                    f"its guest agent did not answer within {_BOOT_TIMEOUT_S} s.",
                    hint="Does the image have qemu-guest-agent? Set agent = false in machine.toml if not.",
                )
        finally:
            for task in (ready, ended):
                task.cancel()
            await asyncio.gather(ready, ended, return_exceptions=True)

    async def _run_hook(self) -> None:
        """Let the image prepare itself; one that fails leaves something that nobody shall get a copy of."""
        async with self._telling(f"Waiting for {BEFORE_SAVE} in the guest"):
            try:
                code, output = await self._agent.run("/bin/sh", "-c", _RUN_HOOK, timeout_s=_HOOK_TIMEOUT_S)
            except VmError as exc:
                # A guest that has no shell, or allows no commands, has no such script either.
                log.info("No %s: %s", BEFORE_SAVE, exc.message)
                return
            # What makes a copy its user's own is then in the guest's memory, and need not be read by each.
            await self._agent.run("/bin/sh", "-s", "rehearse", stdin=PERSONALISE_SCRIPT.read_bytes())
        if code != 0:
            last = output.strip().splitlines()[-1:] or [""]
            raise VmError(f"its {BEFORE_SAVE} ended with code {code}: {last[0][:300]}")

    async def _settle(self) -> None:
        """Wait until nothing moves: what a guest has yet to do, every copy of it would have to do."""
        end = time.monotonic() + _SETTLE_TIMEOUT_S
        async with self._telling("Waiting until the guest has nothing to do"):
            picture, idle = await self._look()
            while time.monotonic() < end:
                await asyncio.sleep(_SETTLE_STEP_S)
                before, idle_before = picture, idle
                picture, idle = await self._look()
                if picture == before and _idle_share(idle_before, idle) >= _IDLE_SHARE:
                    return
        self._progress(f"The guest is busy after {_SETTLE_TIMEOUT_S} s still; it is saved as it is")

    async def _look(self) -> tuple[bytes, tuple[int, int] | None]:
        """The screen; the guest's CPU time without work and all of it, where it has such a thing."""
        picture = await self._qemu.screenshot()
        try:
            _, text = await self._agent.run("/bin/cat", "/proc/stat", timeout_s=_SETTLE_STEP_S * 4)
            # user nice system idle iowait irq softirq steal; what follows is part of the first two
            times = [int(word) for word in text.split("\n", 1)[0].split()[1:9]]
            return picture, (times[3] + times[4], sum(times))
        except (VmError, ValueError, IndexError):
            return picture, None

    async def _save(self) -> None:
        # Told apart from a failure: a guest that is no Unix has nothing of the kind.
        with contextlib.suppress(VmError):
            await self._agent.run("/bin/sync", timeout_s=_SYNC_TIMEOUT_S)
        picture = await self._qemu.screenshot()
        await asyncio.to_thread(self._draft.picture.write_bytes, picture)
        self._agent.close()
        self._progress("Saving")
        await self._qemu.execute("stop")
        await self._qemu.save(self._draft.state, mapped=True)

    @contextlib.asynccontextmanager
    async def _telling(self, text: str) -> AsyncIterator[None]:
        """Say what is waited for, as long as it takes."""

        async def tell() -> None:
            started = time.monotonic()
            while True:
                await asyncio.sleep(_QUIET_S)
                self._progress(f"{text}: {time.monotonic() - started:.0f} s")

        task = asyncio.create_task(tell())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _idle_share(before: tuple[int, int] | None, now: tuple[int, int] | None) -> float:
    """Which part of its CPU time a guest did nothing; 1 where that is not known."""
    if before is None or now is None or now[1] <= before[1]:
        return 1
    return (now[0] - before[0]) / (now[1] - before[1])


# After


def _put_in_place(order: _Order, paths: SessionPaths, made: _Made, interrupts: _Interrupts) -> int:
    """Make a template of the draft; the bytes it takes on the disk."""
    draft = SavedPaths(root=paths.root)
    files = {draft.memory.name: FileDigest(size_bytes=draft.memory.stat().st_size, digest=made.memory_digest)}
    layers = 0
    for source, target in ((paths.overlay(0), draft.layer(0)), (paths.firmware_vars, draft.firmware_vars)):
        if os.path.lexists(source):
            copy_from_qemu(source, target)
            layers += target == draft.layer(0)
            files[target.name] = digest_file(target)
    sync_file(draft.state)
    files[draft.state.name] = digest_file(draft.state)
    kept = {draft.picture.name, *files}
    for entry in draft.root.iterdir():
        if entry.name in kept:
            entry.chmod(0o444)
        elif entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    saved = Saved(
        kind="template",
        name=order.name,
        saved_at=time.time(),
        fingerprint=order.fingerprint,
        memory="mapped",
        layers=layers,
        files=files,
        size_bytes=disk_usage(draft.root),
        boot_s=round(made.boot_s, 1),
        machine_id=order.machine.id,
    )
    write_manifest(draft.root, saved)
    draft.manifest.chmod(0o444)
    draft.root.chmod(0o755)
    interrupts.check()
    target_root = order.state.templates / order.name
    if target_root.exists():
        # Damaged, or made again by force. Clones of it have what they need.
        target_root.rename(draft.root.with_name(f"{draft.root.name}-old"))
    draft.root.rename(target_root)
    shutil.rmtree(draft.root.with_name(f"{draft.root.name}-old"), ignore_errors=True)
    return saved.size_bytes


# Looking at what is there


@dataclass(frozen=True, kw_only=True)
class TemplateState:
    """A template, and whether sessions can start from it."""

    saved: Saved
    size_bytes: int
    used_at: float  # Unix seconds
    misfits: tuple[str, ...]  # why not, each as half a sentence


def list_templates(state: StatePaths, machines: Mapping[str, Machine]) -> list[TemplateState]:
    """All of them, by name; `machines` are those of the catalogue.

    Raises:
        HostError: QEMU is missing.
    """
    qemu = find_qemu()
    found = []
    for saved in find_templates(state):
        root = state.templates / saved.name
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            found.append(
                TemplateState(
                    saved=saved,
                    size_bytes=disk_usage(root),
                    used_at=root.stat().st_mtime,
                    misfits=tuple(_find_misfits(state, saved, machines.get(saved.machine_id), qemu)),
                )
            )
    return found


def _find_misfits(state: StatePaths, saved: Saved, machine: Machine | None, qemu: Qemu) -> list[str]:
    """Compared with what this host is now, the accelerator it was made for taken as the hub's choice."""
    was = saved.fingerprint
    if machine is None:
        return ["its machine is gone"]
    if obstacle := find_template_obstacle(machine):
        return [obstacle]
    accelerator: Accelerator = "kvm" if was.accelerator == "kvm" else "tcg"
    try:
        if accelerator == "kvm" and not kvm_works(qemu, probes_folder(state)):
            return ["KVM does not run guests any more"]
        now = fingerprint(
            machine, cpus=was.cpus, memory_mib=was.memory_mib, accelerator=accelerator, qemu=qemu
        )
        if differences := was.differences(now):
            return differences
        check_files(SavedPaths(root=state.templates / saved.name), saved)
    except OSError:
        return ["its machine's image is missing"]
    except (VmError, HostError) as exc:
        return [exc.message]
    return []
