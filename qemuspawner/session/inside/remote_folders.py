"""Folders of servers that the guest mounts itself, each with its user's own account there.

The user gives account and password at the desktop. They are in this process's memory as long as the session
runs, so that the folder can be mounted again after a checkpoint or a restart, and nowhere else; the guest's
agent hands the password to the program that mounts. Nothing is mounted while the VM is saved: what is saved
holds no password, and a server that is silent keeps neither the start nor the sleep waiting.
"""

import asyncio
import functools
from collections.abc import Callable, Sequence
from typing import Literal

from msgspec import structs

from qemuspawner.errors import SessionError, VmError, printable
from qemuspawner.paths import MOUNTING_SCRIPT, REMOTE_SCRIPT
from qemuspawner.qemu.agent import ENVIRONMENT, Ended, GuestAgent
from qemuspawner.qemu.folders import Ids
from qemuspawner.qemu.process import Log
from qemuspawner.session.inside.remote_mounts import Login, environment, make_input, mount_command, real_place
from qemuspawner.spec import RemoteFolder, RemoteFolderStatus, RemoteState
from qemuspawner.texts import Text

# The script gives a server 25 s; a slow guest needs some for itself.
_MOUNT_TIMEOUT_S = 60
# It gives it 15 s.
_UNMOUNT_TIMEOUT_S = 40
_MAX_WORDS = 200
Verb = Literal["unmount", "end"]  # without programs that use it, or with their end

# What the programs say beside the reason.
_NOISE = ("Refer to ", "read: ", "@@@")


class _Remote:
    """One of them."""

    def __init__(self, folder: RemoteFolder, number: int) -> None:
        self.folder = folder
        self.number = number
        self.status = RemoteFolderStatus(
            name=folder.name,
            kind=folder.kind,
            server=folder.server,
            mount=folder.mount,
            read_only=folder.read_only,
            asks=folder.needs_login,
        )
        self.login: Login | None = None
        self.is_wanted = not folder.needs_login
        self.connecting: asyncio.Task[None] | None = None

    def give_up(self) -> None:
        """Wait for its server no longer; at once it can be begun anew."""
        if self.connecting is not None:
            self.connecting.cancel()
            self.connecting = None

    def note_end(self, task: "asyncio.Task[None]") -> None:
        if self.connecting is task:
            self.connecting = None


class RemoteFolders:
    """Those of one session, through all of its VMs."""

    def __init__(
        self,
        folders: Sequence[RemoteFolder],
        *,
        ids: Ids,
        changed: Callable[[], None],
        tell: Callable[[str], None],
        log: Log,
    ) -> None:
        """`changed` is called when a status is another; `tell` with what nobody waits to hear."""
        self._remotes = {folder.name: _Remote(folder, number) for number, folder in enumerate(folders)}
        self._ids = ids
        self._changed = changed
        self._tell = tell
        self._log = log

    @property
    def statuses(self) -> tuple[RemoteFolderStatus, ...]:
        return tuple(remote.status for remote in self._remotes.values())

    # By the user

    async def connect(self, agent: GuestAgent, name: str, login: Login | None) -> None:
        """Mount one, as whom `login` says, or else as before.

        Raises:
            SessionError: There is none of this name, it is being mounted, or a login is missing.
            VmError: It cannot be mounted, and why.
        """
        remote = self._find(name)
        if remote.connecting is not None:
            raise SessionError(Text("The folder '{name}' is being connected already.", name=name))
        login = login or remote.login
        if remote.folder.needs_login and login is None:
            raise SessionError(
                Text("The server of the folder '{name}' asks for an account and a password.", name=name)
            )
        task = self._start(agent, remote, login)
        await asyncio.wait([task])
        if task.cancelled():
            raise VmError(
                Text("The desktop was saved or stopped meanwhile."), hint=Text("Try again in a moment.")
            )
        if remote.status.problem:
            # Whether it is at fault or not, another one can be tried.
            remote.login, remote.is_wanted = None, not remote.folder.needs_login
            self._note(remote, state="failed", problem=remote.status.problem)
            raise VmError(remote.status.problem)

    async def disconnect(self, agent: GuestAgent, name: str) -> None:
        """Take one out and forget the login.

        Raises:
            SessionError: There is none of this name.
            VmError: It is in use.
        """
        remote = self._find(name)
        await self._unmount(agent, remote, verb="unmount")
        remote.login, remote.is_wanted = None, not remote.folder.needs_login
        self._note(remote, state="off")

    def _find(self, name: str) -> _Remote:
        if name not in self._remotes:
            raise SessionError(Text("This desktop has no folder of a server called '{name}'.", name=name))
        return self._remotes[name]

    # With the VM

    def resume(self, agent: GuestAgent) -> None:
        """In the background, mount what is to be there and is not."""
        for remote in self._remotes.values():
            if remote.is_wanted and remote.connecting is None and remote.status.state != "connected":
                task = self._start(agent, remote, remote.login)
                task.add_done_callback(functools.partial(self._tell_failure, remote))

    def _tell_failure(self, remote: _Remote, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and remote.status.problem:
            self._tell(remote.status.problem)

    async def release(self, agent: GuestAgent, *, ends_programs: bool) -> None:
        """Take all out, so that the VM can be saved; `ends_programs`: whatever uses them.

        Raises:
            VmError: One is in use.
        """
        verb: Verb = "end" if ends_programs else "unmount"
        there = [one for one in self._remotes.values() if one.status.state in ("connecting", "connected")]
        for result in await asyncio.gather(
            *(self._unmount(agent, remote, verb=verb) for remote in there), return_exceptions=True
        ):
            if isinstance(result, BaseException):
                raise result

    def forget(self) -> None:
        """The guest has booted anew, or another VM has taken its place: nothing is mounted in it."""
        for remote in self._remotes.values():
            remote.give_up()
            self._note(remote, state="off")

    # Both

    def _start(self, agent: GuestAgent, remote: _Remote, login: Login | None) -> "asyncio.Task[None]":
        self._note(remote, state="connecting")
        task = asyncio.create_task(self._mount(agent, remote, login))
        remote.connecting = task
        task.add_done_callback(remote.note_end)
        return task

    async def _mount(self, agent: GuestAgent, remote: _Remote, login: Login | None) -> None:
        folder = remote.folder
        command = mount_command(folder, remote.number, login, self._ids)
        try:
            ended = await agent.run_program(
                *self._script("mount", remote),
                *command,
                stdin=make_input(folder, login),
                env=ENVIRONMENT | environment(folder),
                timeout_s=_MOUNT_TIMEOUT_S,
            )
            why = _explain(ended) if ended.code else ""
        except VmError as exc:
            self._log.warning("The folder %s: %s", folder.name, exc.message)
            why = Text("the machine does not answer")
        if why:
            problem = Text("The folder '{name}' is not connected: {why}.", name=folder.name, why=why)
            self._log.warning("%s", problem)
            self._note(remote, state="failed", problem=problem)
        else:
            remote.login, remote.is_wanted = login, True
            self._log.info("The folder %s of %s is connected", folder.name, folder.server)
            self._note(remote, state="connected")

    async def _unmount(self, agent: GuestAgent, remote: _Remote, *, verb: Verb) -> None:
        remote.give_up()
        try:
            ended = await agent.run_program(
                *self._script(verb, remote), env=ENVIRONMENT, timeout_s=_UNMOUNT_TIMEOUT_S
            )
        except VmError as exc:
            # Unlike the host's folders it is no device, without which the VM cannot be saved.
            self._log.warning("The folder %s is not taken out: %s", remote.folder.name, exc.message)
        else:
            if ended.code:
                raise VmError(
                    Text(
                        "The folder '{name}' is in use in the desktop by: {programs}.",
                        name=remote.folder.name,
                        programs=_last_words(ended),
                    ),
                    hint=Text("Close what is open there, and leave it in terminals; then try again."),
                )
        self._note(remote, state="off")

    def _script(self, verb: str, remote: _Remote) -> tuple[str, ...]:
        script = MOUNTING_SCRIPT.read_text() + REMOTE_SCRIPT.read_text()
        return ("/bin/sh", "-c", script, "qemuspawner", verb, real_place(remote.number), remote.folder.mount)

    def _note(self, remote: _Remote, *, state: RemoteState, problem: str = "") -> None:
        asks = remote.folder.needs_login and remote.login is None
        status = structs.replace(remote.status, state=state, problem=problem, asks=asks)
        if status != remote.status:
            remote.status = status
            self._changed()


def _explain(ended: Ended) -> str:
    words = _last_words(ended)
    match words:
        case "@silent":
            return Text("its server does not answer")
        case "@link":
            return Text("its place is behind a link")
    return words


def _last_words(ended: Ended) -> str:
    """What the guest says of it; it may say anything."""
    lines = (ended.stdout + ended.stderr)[-4096:].decode(errors="replace").splitlines()
    telling = [line for line in lines if line.strip() and not line.startswith(_NOISE)]
    return printable((telling or ["?"])[-1]).strip().rstrip(".")[:_MAX_WORDS]
