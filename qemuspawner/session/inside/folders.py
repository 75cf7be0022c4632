"""Folders of the host in the guest: planned before the start, plugged and mounted while it runs.

By virtiofs where the host has virtiofsd, else by QEMU's own 9p. A desktop that is restored from a template
always takes 9p: its memory is its own copy of what others share, and virtiofsd could not see it.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from msgspec import structs

from qemuspawner.errors import HostError, QemuSpawnerError, SessionError, VmError, printable
from qemuspawner.paths import FOLDERS_SCRIPT, MOUNTING_SCRIPT, SessionPaths
from qemuspawner.qemu.agent import ENVIRONMENT, GuestAgent
from qemuspawner.qemu.folders import Ids, OpenFolder, check_binding, folder_place, open_folder
from qemuspawner.qemu.plugging import (
    device_id,
    disconnect_virtiofs,
    is_plugged,
    plug_9p,
    plug_virtiofs,
    unplug,
)
from qemuspawner.qemu.process import Log, QemuProcess
from qemuspawner.qemu.virtiofs import FolderServer, find_virtiofsd, start_server
from qemuspawner.qemu.vm import SPARE_PORTS, Export, Vm
from qemuspawner.spec import Folder, FolderStatus, FolderWay, SessionSpec
from qemuspawner.texts import Text

log = logging.getLogger(__name__)

# Eight of them for the first time in a slow guest.
_MOUNT_TIMEOUT_S = 120
# A file server that is away keeps one waiting.
_UNMOUNT_TIMEOUT_S = 45
# A session that ends does not wait longer for folders that are just being mounted.
_PATIENCE_S = 20
_MAX_WORDS = 200
# Nothing of the host's makes root of somebody in the guest. Larger messages are quicker, and "mmap" is what
# programs with databases need.
_OPTIONS: dict[FolderWay, str] = {
    "9p": "nosuid,nodev,trans=virtio,version=9p2000.L,msize=512000,cache=mmap",
    "virtiofs": "nosuid,nodev",
}


def find_ids(spec: SessionSpec) -> Ids:
    """Who the guest's user is: the only place that says whose the host's files are in the guest."""
    # Elsewhere everybody logs in as the image's own first user.
    if spec.machine.login == "user" and spec.account is not None:
        return Ids(uid=spec.account.uid, gid=spec.account.gid)
    return Ids(uid=1000, gid=1000)


@dataclass(frozen=True, kw_only=True)
class FolderPlan:
    """What becomes of the folders of one VM."""

    folders: tuple[Folder, ...] = ()  # those that can be had, by their number
    way: FolderWay = "9p"
    why: str = ""  # why not virtiofs
    missing: tuple[FolderStatus, ...] = ()
    ids: Ids
    state_root: Path

    @property
    def exports(self) -> tuple[Export, ...]:
        """What QEMU serves itself."""
        if self.way != "9p":
            return ()
        return tuple(
            Export(id=device_id(number), path=folder_place(number), read_only=folder.read_only)
            for number, folder in enumerate(self.folders)
        )


def plan_folders(
    spec: SessionSpec, opened: contextlib.ExitStack, *, state_root: Path, is_mapped: bool
) -> tuple[FolderPlan, list[OpenFolder]]:
    """What can be had of the folders, and those, open as long as `opened`.

    `is_mapped`: the VM's memory is a copy of a template's.
    """
    found: list[OpenFolder] = []
    missing: list[FolderStatus] = []
    for folder in spec.folders:
        try:
            _check_machine(spec, count=len(found))
            one = open_folder(folder, state_root=state_root)
        except HostError as exc:
            log.warning("%s: the folder %s (%s): %s", spec.session_id, folder.name, folder.path, exc.message)
            missing.append(_status(folder, problem=exc.message))
        else:
            opened.callback(os.close, one.descriptor)
            found.append(one)
    way, why = _choose_way(is_mapped=is_mapped) if found else ("9p", "")
    plan = FolderPlan(
        folders=tuple(one.folder for one in found),
        way=way,
        why=why,
        missing=tuple(missing),
        ids=find_ids(spec),
        state_root=state_root,
    )
    return plan, found


def check_required(spec: SessionSpec, plan: FolderPlan) -> None:
    """Raises SessionError where a folder is missing that the desktop must not start without."""
    required = {folder.name for folder in spec.folders if folder.required}
    for status in plan.missing:
        if status.name in required:
            raise SessionError(
                status.problem, hint=Text("The desktop is not to start without it; tell the administrator.")
            )


def _check_machine(spec: SessionSpec, *, count: int) -> None:
    """Raises HostError where there is no way or no room for a folder in this machine."""
    if not spec.machine.agent:
        raise HostError(
            Text("'{machine}' has no guest agent, which mounts folders.", machine=spec.machine.name)
        )
    if not spec.jail:
        raise HostError(Text("Folders of the host need the jail around QEMU, which is switched off."))
    if count >= SPARE_PORTS:
        raise HostError(Text("The desktop has room for {count} folders.", count=SPARE_PORTS))
    check_binding()


def _choose_way(*, is_mapped: bool) -> tuple[FolderWay, str]:
    if is_mapped:
        return "9p", Text("the desktop shares its template's memory")
    try:
        find_virtiofsd()
    except HostError as exc:
        return "9p", exc.message
    return "virtiofs", ""


def _status(folder: Folder, *, way: FolderWay | None = None, problem: str = "") -> FolderStatus:
    return FolderStatus(
        name=folder.name, mount=folder.mount, read_only=folder.read_only, way=way or "", problem=problem
    )


class GuestFolders:
    """The folders of one VM while it runs; one call at a time."""

    def __init__(self, plan: FolderPlan, vm: Vm, qemu: QemuProcess, paths: SessionPaths, *, log: Log) -> None:
        self._plan = plan
        self._vm = vm
        self._qemu = qemu
        self._paths = paths
        self._log = log
        self._plugged: set[int] = set()
        self._servers: dict[int, FolderServer] = {}
        self._statuses = {number: _status(folder) for number, folder in enumerate(plan.folders)}
        self._script: asyncio.Task[tuple[int, str]] | None = None  # the last that the guest was given

    @property
    def statuses(self) -> tuple[FolderStatus, ...]:
        return (*self._statuses.values(), *self._plan.missing)

    def describe(self) -> Iterator[tuple[str, Literal["info", "warning"]]]:
        """A sentence for each, and how much it matters."""
        for status in self.statuses:
            if not status.way:
                yield status.problem or Text("The folder '{name}' is not there.", name=status.name), "warning"
            elif self._plan.why:
                yield (
                    Text(
                        "The folder '{name}' is in {mount} ({way}: {why})",
                        name=status.name,
                        mount=status.mount,
                        way=status.way,
                        why=self._plan.why,
                    ),
                    "info",
                )
            else:
                yield (
                    Text(
                        "The folder '{name}' is in {mount} ({way})",
                        name=status.name,
                        mount=status.mount,
                        way=status.way,
                    ),
                    "info",
                )

    # In

    async def attach(self, agent: GuestAgent) -> None:
        """Plug and mount what is not there yet; the statuses say what became of each."""
        for number in range(len(self._plan.folders)):
            await self._forget_if_gone(number)
            if number not in self._plugged:
                # Whatever comes in between: it may be there from now on.
                self._plugged.add(number)
                try:
                    await self._plug(number)
                except QemuSpawnerError as exc:
                    self._plugged.discard(number)
                    self._note(number, problem=exc.message)
        try:
            failed = await self._run("mount", agent)
        except VmError as exc:
            failed = dict.fromkeys(self._plugged, exc.message)
        for number in self._plugged:
            if number in failed:
                folder = self._plan.folders[number]
                why = Text(
                    "The folder '{name}' cannot be mounted: {why}", name=folder.name, why=failed[number]
                )
                self._note(number, problem=why)
            else:
                self._note(number, way=self._plan.way)

    async def attach_anew(self, agent: GuestAgent) -> None:
        """The same in a guest that has booted once more, and has nothing mounted."""
        if self._plan.way == "virtiofs":
            # Its server takes a file system to be mounted still.
            with contextlib.suppress(VmError):
                await self.detach(agent, ends_programs=False)
        await self.attach(agent)

    async def _plug(self, number: int) -> None:
        if self._plan.way == "9p":
            await plug_9p(self._qemu, self._vm, number)
        else:
            opened = open_folder(self._plan.folders[number], state_root=self._plan.state_root)
            try:
                server = start_server(
                    find_virtiofsd(), opened, self._plan.ids, self._paths.root / f"folder{number}"
                )
            finally:
                os.close(opened.descriptor)
            try:
                await plug_virtiofs(self._qemu, self._vm, number, server)
            except BaseException:
                server.stop()
                raise
            # QEMU has its own copy.
            server.connection.close()
            self._servers[number] = server

    # Out

    async def detach(self, agent: GuestAgent, *, ends_programs: bool) -> None:
        """Unmount and unplug all, so that the VM can be saved; `ends_programs`: whatever uses them.

        Raises:
            VmError: One is in use, or not given back. What is still plugged is mounted again by `attach`.
        """
        if not self._plugged:
            return
        failed = await self._run("end" if ends_programs else "unmount", agent)
        for number, users in failed.items():
            raise VmError(
                Text(
                    "The folder '{name}' is in use in the desktop by: {programs}.",
                    name=self._plan.folders[number].name,
                    programs=users,
                ),
                hint=Text("Close what is open there, and leave it in terminals; then try again."),
            )
        for number in sorted(self._plugged):
            await self._forget_if_gone(number)
            if number not in self._plugged:
                continue
            try:
                await unplug(self._qemu, number, is_virtiofs=self._plan.way == "virtiofs")
            except VmError:
                # It may have gone just before it was asked for.
                await self._forget_if_gone(number)
                if number in self._plugged:
                    # QEMU waits for a server that hangs, and goes on when that is gone.
                    self._stop_server(number)
                    raise
            else:
                self._forget(number)

    async def _forget_if_gone(self, number: int) -> None:
        """A guest that boots meanwhile gives a device back when nobody waits for it any more."""
        with contextlib.suppress(VmError):
            if number in self._plugged and not await is_plugged(self._qemu, number):
                self._forget(number)
                if self._plan.way == "virtiofs":
                    await disconnect_virtiofs(self._qemu, number)

    def _forget(self, number: int) -> None:
        self._plugged.discard(number)
        self._stop_server(number)
        self._note(number)

    def _stop_server(self, number: int) -> None:
        server = self._servers.pop(number, None)
        if server is not None:
            server.stop()

    def close(self) -> None:
        """End what serves the folders, before QEMU: it would wait for one that hangs."""
        for number in list(self._servers):
            self._stop_server(number)

    # Both

    async def _run(self, verb: str, agent: GuestAgent) -> dict[int, str]:
        """Have the guest mount or unmount what is plugged; why it failed, by the folder's number.

        Raises:
            VmError: The agent is silent, or the guest is not done in time.
        """
        if not self._plugged:
            return {}
        arguments: list[str] = []
        for number in sorted(self._plugged):
            folder = self._plan.folders[number]
            options = _OPTIONS[self._plan.way] + (",ro" if folder.read_only else "")
            arguments += [device_id(number), self._plan.way, options, folder.mount]
        # Who waited for the last one may have gone. Beside it a folder would be mounted behind our back.
        if self._script is not None:
            await asyncio.wait([self._script], timeout=_PATIENCE_S)
        plugged = sorted(self._plugged)
        self._script = asyncio.create_task(
            agent.run(
                *("/bin/sh", "-s", "--", verb, *arguments),
                stdin=MOUNTING_SCRIPT.read_bytes() + FOLDERS_SCRIPT.read_bytes(),
                env=ENVIRONMENT,
                timeout_s=_MOUNT_TIMEOUT_S if verb == "mount" else _UNMOUNT_TIMEOUT_S,
            )
        )
        # Asked for, so that nobody complains where the waiter has gone.
        self._script.add_done_callback(lambda done: done.cancelled() or done.exception())
        code, output = await asyncio.shield(self._script)
        return _parse_failures(output, plugged) if code else {}

    def _note(self, number: int, *, way: FolderWay | None = None, problem: str = "") -> None:
        if problem:
            self._log.warning("%s", problem)
        self._statuses[number] = structs.replace(self._statuses[number], way=way or "", problem=problem)


def _parse_failures(output: str, numbers: Sequence[int]) -> dict[int, str]:
    """What the script says of each folder that failed; the guest may say anything."""
    failed: dict[int, str] = {}
    for line in output.splitlines():
        tag, _, words = line.partition(" ")
        for number in numbers:
            if tag == device_id(number):
                failed[number] = printable(words)[:_MAX_WORDS].strip() or "?"
    return failed or dict.fromkeys(numbers, printable(output)[-_MAX_WORDS:].strip() or "?")
