"""`qemuspawner start`: a desktop for this terminal's user, without a hub."""

import asyncio
import contextlib
import json
import logging
import os
import pwd
import secrets
import signal
import socket
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from qemuspawner.cli.finding import find_machine
from qemuspawner.errors import HostError, MachineError, QemuSpawnerError, SessionError
from qemuspawner.locks import find_holder
from qemuspawner.machine import Machine
from qemuspawner.machines.catalogue import missing_files
from qemuspawner.machines.writing import make_folder
from qemuspawner.network import Network
from qemuspawner.paths import StatePaths, session_id
from qemuspawner.spec import LISTEN_VARIABLE, SPEC_VARIABLE, SessionSpec
from qemuspawner.units import parse_mib, parse_seconds, render_mib, render_seconds

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_HOST = "127.0.0.1"
# As machine.toml has them.
_MAX_CPUS, _MIN_MEMORY_MIB, _MIN_LIFETIME_S = 512, 16, 60
_ASK_EVERY_S = 0.3
_ASK_TIMEOUT_S = 5
_PROGRAM = "from qemuspawner.session import main; main()"
# What a session is given of this terminal's environment.
_KEPT = ("PATH", "LANG", "HOME", "PYTHONPATH", "QEMUSPAWNER_LOG_LEVEL")
# What the session gets to put its guest away: as long as a guest may take to shut down, and then some.
_STOP_S = 90


def add_command(commands: "_SubParsersAction[ArgumentParser]") -> None:
    parser = commands.add_parser(
        "start", help="start a desktop for you alone, without a hub, until Ctrl-C; prints where to open it"
    )
    parser.add_argument("machine")
    parser.add_argument("--cpus", type=int, metavar="N", help="virtual CPUs (default: the machine's)")
    parser.add_argument(
        "--memory", default="", metavar="SIZE", help="such as '4 GiB' (default: the machine's)"
    )
    parser.add_argument(
        "--lifetime", default="", metavar="TIME", help="such as '8 h' (default: the machine's)"
    )
    parser.add_argument("--port", type=int, default=0, help="of the desktop's page (default: a free one)")
    parser.add_argument(
        "--run-as", default="", metavar="ACCOUNT", help="as root: whose session it is (default: qemuspawner)"
    )
    parser.set_defaults(command=start)


def start(arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    """Run it to its end; 1 where it failed."""
    from qemuspawner.machines.warm import find_account

    machine = find_machine(arguments.machine, folders, state)
    if missing := missing_files(machine):
        action = "build" if machine.build else "fetch"
        raise MachineError(
            f"'{machine.id}' cannot start: {missing[0]} is missing.",
            hint=f"Run 'qemuspawner machines {action} {machine.id}'.",
        )
    account = find_account(arguments.run_as)
    user = pwd.getpwuid(os.geteuid() if account is None else account.pw_uid).pw_name
    spec = _make_spec(arguments, machine, state, user=user)
    if not state.sessions.is_dir():
        make_folder(state.sessions)
        if account is not None:
            os.chown(state.sessions, account.pw_uid, account.pw_gid)
    holder = find_holder(state.session(spec.session_id).lock)
    if holder is not None:
        raise SessionError(
            f"Your desktop of '{machine.id}' runs already, as process {holder}.",
            hint=f"End it by Ctrl-C there, or by 'qemuspawner sessions stop {spec.session_id}'.",
        )
    with contextlib.closing(_listen(arguments.port)) as page:
        try:
            return asyncio.run(_run(spec, page, account))
        except KeyboardInterrupt:
            # That is how it ends.
            return 0


def _make_spec(arguments: Namespace, machine: Machine, state: StatePaths, *, user: str) -> SessionSpec:
    """What a hub would ask for; raises HostError where the options say nothing sensible."""
    try:
        memory_mib = parse_mib(arguments.memory) if arguments.memory else int(machine.memory.default)
        lifetime_s = (
            parse_seconds(arguments.lifetime) if arguments.lifetime else int(machine.lifetime.default)
        )
    except ValueError as exc:
        raise HostError(f"An option cannot be read: {exc}.") from exc
    cpus = machine.cpus.default if arguments.cpus is None else arguments.cpus
    if not 1 <= cpus <= _MAX_CPUS or memory_mib < _MIN_MEMORY_MIB or lifetime_s < _MIN_LIFETIME_S:
        raise HostError(
            f"A desktop of {cpus} CPUs and {render_mib(memory_mib)} for {render_seconds(lifetime_s)} "
            "cannot be.",
            hint=f"Choose 1 to {_MAX_CPUS} CPUs, at least {render_mib(_MIN_MEMORY_MIB)}, "
            f"and at least {render_seconds(_MIN_LIFETIME_S)}.",
        )
    return SessionSpec(
        # No name of a hub's server has a NUL in it: it is nobody else's, and the same at the next start.
        session_id=session_id(user, f"\0terminal\0{machine.id}"),
        user=user,
        server_name="",
        started_by=user,
        state_dir=str(state.root),
        machine=machine,
        cpus=cpus,
        memory_mib=memory_mib,
        lifetime_s=lifetime_s,
        max_lifetime_s=max(lifetime_s, int(machine.lifetime.max)),
        idle_s=int(machine.lifetime.idle),
        # Their own guest on their own account: nobody else would be harmed.
        allow_tcg=True,
        network=machine.wants_network or Network(),
    )


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((_HOST, port))
    except (OSError, OverflowError) as exc:
        listener.close()
        raise HostError(
            f"Port {port} cannot be opened: {getattr(exc, 'strerror', None) or exc}.",
            hint="Choose another one with --port, or leave it out.",
        ) from exc
    listener.listen(128)
    return listener


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where the session is."""

    port: int
    prefix: str

    @property
    def url(self) -> str:
        return f"http://{_HOST}:{self.port}{self.prefix}"


async def _run(spec: SessionSpec, page: socket.socket, account: pwd.struct_passwd | None) -> int:
    # A web server takes a while to import.
    from tornado import httpserver
    from tornado.netutil import bind_sockets

    from qemuspawner.cli.lone_hub import LoneHub

    logging.getLogger("tornado.general").setLevel(logging.ERROR)
    place = _Place(port=page.getsockname()[1], prefix=f"/user/{quote(spec.user, safe='@~')}/")
    sockets = bind_sockets(0, _HOST)
    hub_host = f"{_HOST}:{sockets[0].getsockname()[1]}"
    hub = LoneHub(
        user=spec.user,
        session_url=place.url,
        session_token=secrets.token_urlsafe(32),
        client_id=f"jupyterhub-user-{quote(spec.user, safe='')}",
    )
    server = httpserver.HTTPServer(hub.make_app(host=hub_host), max_body_size=1 << 20)
    server.add_sockets(sockets)
    environ = _make_environ(spec, place, hub_url=f"http://{hub_host}", token=hub.session_token)
    environ["JUPYTERHUB_CLIENT_ID"] = hub.client_id
    environ["JUPYTERHUB_OAUTH_ACCESS_SCOPES"] = json.dumps([hub.scope])
    async with _session(environ, page, account) as process:
        print(f"Open  http://{hub_host}/login?code={hub.login_code}", flush=True)
        print("in a browser on this host: it is good once. Ctrl-C ends the desktop.", flush=True)
        telling = asyncio.create_task(_tell_when_ready(place))
        code = await process.wait()
        telling.cancel()
    server.stop()
    print("The desktop has ended." if code == 0 else "The desktop has failed.", flush=True)
    return 1 if code else 0


def _make_environ(spec: SessionSpec, place: _Place, *, hub_url: str, token: str) -> dict[str, str]:
    """As JupyterHub starts a server."""
    return {
        **{name: os.environ[name] for name in _KEPT if name in os.environ},
        SPEC_VARIABLE: spec.to_json(),
        "JUPYTERHUB_API_URL": f"{hub_url}/hub/api",
        "JUPYTERHUB_API_TOKEN": token,
        "JUPYTERHUB_HOST": hub_url,
        "JUPYTERHUB_BASE_URL": "/",
        "JUPYTERHUB_SERVICE_URL": place.url,
        "JUPYTERHUB_SERVICE_PREFIX": place.prefix,
        "JUPYTERHUB_OAUTH_CALLBACK_URL": f"{place.prefix}oauth_callback",
        "JUPYTERHUB_USER": spec.user,
    }


@contextlib.asynccontextmanager
async def _session(
    environ: dict[str, str], page: socket.socket, account: pwd.struct_passwd | None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The session's process, which is asked to end and waited for; a second Ctrl-C does not wait."""
    environ[LISTEN_VARIABLE] = str(page.fileno())
    become: dict[str, object] = {}
    if account is not None:
        groups = os.getgrouplist(account.pw_name, account.pw_gid)
        become = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": groups}
        environ["HOME"] = account.pw_dir
    process = await asyncio.create_subprocess_exec(
        # Also where this command is killed, nothing of it stays.
        *("setpriv", "--pdeathsig", "TERM", "--", sys.executable, "-c", _PROGRAM),
        env=environ,
        cwd="/",
        pass_fds=[page.fileno()],
        stdin=asyncio.subprocess.DEVNULL,
        # Ctrl-C is for us, who tell it.
        start_new_session=True,
        **become,  # type: ignore[arg-type]
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            print("Ending the desktop.", file=sys.stderr, flush=True)
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(_STOP_S):
                    await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()


async def _tell_when_ready(place: _Place) -> None:
    from tornado.httpclient import AsyncHTTPClient, HTTPError

    client = AsyncHTTPClient()
    while True:
        # As a hub asks: 503 until it is there.
        with contextlib.suppress(HTTPError, OSError, QemuSpawnerError):
            answer = await client.fetch(
                f"{place.url}api", raise_error=False, request_timeout=_ASK_TIMEOUT_S, follow_redirects=False
            )
            if answer.code == 200:
                print("The desktop is ready.", flush=True)
                return
        await asyncio.sleep(_ASK_EVERY_S)
