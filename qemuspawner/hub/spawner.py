"""QemuSpawner: sessions as processes of the hub's own host."""

import asyncio
import contextlib
import os
import platform
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from subprocess import SubprocessError
from typing import Any

from jupyterhub.spawner import LocalProcessSpawner, set_user_setuid
from traitlets import Bool, Unicode, default

from qemuspawner.errors import QemuSpawnerError
from qemuspawner.forking import ForkRequest, Identity, WantedTemplates
from qemuspawner.hub.admission.capacity import LocalHost
from qemuspawner.hub.desktops.kept import find_owner
from qemuspawner.hub.mixin import QemuSpawnerMixin, failure, refusal
from qemuspawner.hub.sessions import account
from qemuspawner.hub.sessions.follow import desktop_answers
from qemuspawner.hub.sessions.forkserver import ForkServer, ForkServerError, fork_server
from qemuspawner.hub.sessions.process import KnownProcess
from qemuspawner.spec import LISTEN_VARIABLE, SessionSpec
from qemuspawner.texts import Text

# Beginnings of environment variables that are read before a session could be told of them by the fork server:
# by the loader, the interpreter, and JupyterHub's client while it is imported.
_READ_AT_ONCE = ("LD_", "MALLOC_", "GLIBC_", "PYTHON", "JUPYTERHUB_XSRF_")


class QemuSpawner(LocalHost, QemuSpawnerMixin, LocalProcessSpawner):  # type: ignore[misc]
    """Sessions are processes of the hub's own host."""

    run_as = Unicode(
        "",
        help="""The account of the sessions: its name, "{username}" for each user's own, "" for the hub's.

        Users get no shell on the host, so they need no account there. Another account than the hub's own
        needs a hub that runs as root.
        """,
    ).tag(config=True)
    allow_root = Bool(False, help="Whether sessions may run as root; for experiments only.").tag(config=True)
    fork_server = Bool(
        True,
        help="""Whether sessions are forked from one process that has imported everything already.

        They then start quicker, and share most of their memory, also that of templates. A session is started
        by itself all the same where cmd, args, shell_cmd, popen_kwargs or make_preexec_fn are not this
        spawner's own, and where `environment` sets what a program reads at its start, such as PYTHONPATH.
        """,
    ).tag(config=True)

    api_token: str
    cmd: list[str]
    popen_kwargs: dict[str, Any]
    environment: dict[str, Any]
    shell_cmd: list[str]
    _process: KnownProcess | None = None
    # What the process that is just being started inherits.
    _listener: socket.socket | None = None
    # Set from a state that was saved in the middle of a start.
    _resumes_start = False

    @default("popen_kwargs")
    def _default_popen_kwargs(self) -> dict[str, object]:
        # The hub's own working directory may be closed to the sessions' account.
        return {"cwd": "/"}

    @default("interrupt_timeout")
    def _default_interrupt_timeout(self) -> int:
        # The session itself gives the guest its machine's time to shut down, a minute at most; a large memory
        # takes longer to be saved.
        return 300 if "stop" in self.suspend_on else 90

    @default("term_timeout")
    def _default_term_timeout(self) -> int:
        return 10

    # The account

    def _account(self) -> account.Account:
        return account.find_account(self.run_as, user=self.user.name, allow_root=self.allow_root)

    def make_preexec_fn(self, _name: str) -> Callable[[], None] | None:
        owner = self._account()
        if owner.pw_uid == os.geteuid():
            return None
        become: Callable[[], None] = set_user_setuid(owner.pw_name, chdir=False)
        return become

    def user_env(self, env: dict[str, str]) -> dict[str, str]:
        owner = self._account()
        return {**env, "USER": owner.pw_name, "HOME": owner.pw_dir, "SHELL": "/bin/sh"}

    async def move_certs(self, files: dict[str, str]) -> dict[str, str]:
        with self._told():
            return account.give_certificates(files, self._certificates, self._account())

    @property
    def _certificates(self) -> Path:
        return self._state_paths.certificates(self.session_id)

    def run_post_stop_hook(self) -> Any:
        account.remove_certificates(self._certificates)
        return super().run_post_stop_hook()

    # State

    def get_state(self) -> dict[str, object]:
        process = self._process.state() if self._process else {}
        return {**super().get_state(), **process}

    def load_state(self, state: Mapping[str, object]) -> None:
        super().load_state(state)
        self._process = KnownProcess.from_state(state)
        self._resumes_start = "starting" in state

    def clear_state(self) -> None:
        super().clear_state()
        self._process = None
        self._resumes_start = False

    # Start, poll and stop

    async def start(self) -> tuple[str, int]:
        self.delete_server_tokens(but=self.api_token)
        spec = self.make_spec()
        with self._told():
            account.prepare_folders(
                self._state_paths,
                self._account(),
                session_id=spec.session_id,
                shared="{username}" in self.run_as,
            )
            listener = _listen(self.ip)
        with listener:
            return await self._start_with(listener, spec)

    async def _start_with(self, listener: socket.socket, spec: SessionSpec) -> tuple[str, int]:
        """Start the session's process, which takes `listener` on; the hub's copy is closed."""
        self.port = listener.getsockname()[1]
        self.begin_session(spec, node=platform.node())
        # Before the process is there: a hub that is killed right after finds it by its lock.
        self.server.ip, self.server.port = self.ip, self.port
        self.server.proto = "https" if self.internal_ssl else "http"
        self.save_state()
        with self._told():
            if not await self._fork(listener, spec):
                with self._passing(listener):
                    await super().start()
        # With the session this ends: nobody waits at a port that nobody serves.
        listener.close()
        self._process = KnownProcess.find(self.pid)
        self.save_state()
        await self.follow_start()
        return self.ip, self.port

    def _warm_arguments(self) -> list[str]:
        arguments = super()._warm_arguments()
        if "{username}" in self.run_as:
            # No user's own account: whoever has it could change what everybody's desktops start from. The
            # command takes its own default.
            return arguments
        owner = self._account()
        return arguments if owner.pw_uid == os.geteuid() else [*arguments, "--run-as", owner.pw_name]

    # The fork server

    async def get_options_form(self) -> Any:
        if self.fork_server and self._is_forkable:
            self._fork_server.warm_up()
        return await super().get_options_form()

    @property
    def _is_forkable(self) -> bool:
        """Whether nothing was changed that only a process of its own heeds."""
        return (
            self.cmd == self._default_cmd()
            and not self.get_args()
            and not self.shell_cmd
            and self.popen_kwargs == self._default_popen_kwargs()
            and type(self).make_preexec_fn is QemuSpawner.make_preexec_fn
            and not any(name.startswith(_READ_AT_ONCE) for name in self.environment)
        )

    @property
    def _fork_server(self) -> ForkServer:
        return fork_server(tuple(self.cmd))

    async def _fork(self, listener: socket.socket, spec: SessionSpec) -> bool:
        """Have the fork server start the session; whether it did."""
        if not self.fork_server or not self._is_forkable:
            return False
        request = ForkRequest(identity=self._identity(), templates=_wanted_templates(spec))
        try:
            self.pid = await self._fork_server.start(request, self.get_env(), listener)
        except ForkServerError as exc:
            self.log.warning("%s is started by itself, which is slower. %s", self.session_id, exc.text)
            return False
        # A former session's; how this one ends only the fork server would be told.
        self.proc = None
        return True

    def _identity(self) -> Identity | None:
        owner = self._account()
        if owner.pw_uid == os.geteuid():
            return None
        groups = os.getgrouplist(owner.pw_name, owner.pw_gid)
        return Identity(uid=owner.pw_uid, gid=owner.pw_gid, groups=tuple(groups))

    @contextlib.contextmanager
    def _passing(self, listener: socket.socket) -> Iterator[None]:
        """Give the next process this socket."""
        kwargs = self.popen_kwargs
        passed = (*kwargs.get("pass_fds", ()), listener.fileno())
        self._listener, self.popen_kwargs = listener, {**kwargs, "pass_fds": passed}
        try:
            yield
        finally:
            self._listener, self.popen_kwargs = None, kwargs

    def get_env(self) -> dict[str, str]:
        env = super().get_env()
        if self._listener is not None:
            env[LISTEN_VARIABLE] = str(self._listener.fileno())
        return env

    async def poll(self) -> int | None:
        if self.proc is None and self._process is None:
            self._find_lost_process()
        # JupyterHub's own clears the token with the state, and then cannot revoke it.
        token: str = self.api_token
        try:
            status: int | None = await super().poll()
            if status is None and self._resumes_start:
                self._resumes_start = False
                status = await self._resume_start()
        finally:
            self.api_token = token
        return status

    def _find_lost_process(self) -> None:
        """The hub was killed after the process's start, before its pid was saved: its lock says who it is."""
        if "session_id" in self._session:
            self._process = self._find_holder()
        self.pid = self._process.pid if self._process else 0

    def _find_holder(self) -> KnownProcess | None:
        """Who holds the session's lock, where that is a process of its account: anybody's it cannot be."""
        holder = find_owner(self._state_paths.session(self.session_id)) or 0
        # -1: a kind of lock that no process holds; 0: a process that is not visible from here.
        process = KnownProcess.find(holder) if holder > 0 else None
        try:
            uid = self._account().pw_uid
        except QemuSpawnerError:
            return None
        return process if process is not None and process.belongs_to(uid) else None

    async def _resume_start(self) -> int | None:
        """Wait for a desktop that a killed hub was waiting for; JupyterHub itself waits a minute only."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.start_timeout):
                while not await desktop_answers(self.server.url, ssl_context=self.session_ssl_context):
                    if (status := await super().poll()) is not None:
                        return int(status)
                    await asyncio.sleep(0.5)
        self._session.pop("starting", None)
        self.save_state()
        return None

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What goes wrong on this host becomes text for the user, its details go to the log."""
        try:
            yield
        except QemuSpawnerError as exc:
            raise refusal(exc, reason="host", status_code=500) from exc
        except (OSError, SubprocessError) as exc:
            self.log.exception("%s: the session cannot be started", self.session_id)
            why = getattr(exc, "strerror", None) or Text("its account cannot be taken on")
            raise failure(
                Text("The desktop's process cannot be started: {why}.", why=why),
                Text("Tell the administrator; the hub's log has the details."),
            ) from exc

    async def _signal(self, number: int) -> bool:
        # A pid alone may be another process's by now.
        return self._process is not None and self._process.signal(number)


def _wanted_templates(spec: SessionSpec) -> WantedTemplates | None:
    # A branch goes on from a checkpoint, whatever templates there are.
    if not spec.templates or spec.branch:
        return None
    return WantedTemplates(
        state_dir=spec.state_dir, machine_id=spec.machine.id, cpus=spec.cpus, memory_mib=spec.memory_mib
    )


def _listen(host: str) -> socket.socket:
    """A socket that listens on a free port of `host`.

    The hub itself opens it, and sends the token to nobody else: a port that is only chosen can be taken by
    another account before the session listens there.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host or "127.0.0.1", 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.bind(address)
        listener.listen(128)
        # The session inherits this too; its event loop must not wait in accept().
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
