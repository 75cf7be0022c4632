"""Sessions that the real fork server forks, asked by the hub's real client: they start in 0.2 s."""

import asyncio
import os
import re
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from sessions import PROGRAM, account

from qemuspawner.forking import ForkRequest, Identity, WantedTemplates
from qemuspawner.hub.sessions.forkserver import ForkServer
from qemuspawner.hub.sessions.process import KnownProcess
from qemuspawner.paths import SessionPaths, StatePaths
from qemuspawner.spec import SPEC_VARIABLE, SessionSpec

COMMAND = (sys.executable, "-c", PROGRAM)
TOKEN = "the-token-of-a-session"


class ForkedSession:
    """A forked session of the test."""

    def __init__(self, process: KnownProcess, paths: SessionPaths, url: str) -> None:
        self.process, self.paths, self._url = process, paths, url

    @property
    def proc(self) -> Path:
        return Path(f"/proc/{self.process.pid}")

    def files(self) -> dict[int, str]:
        """Its open descriptors, and what each is."""
        return {int(entry.name): str(entry.readlink()) for entry in (self.proc / "fd").iterdir()}

    def status(self) -> dict[str, str]:
        return dict(re.findall(r"^(\w+):\s*(.*?)\s*$", (self.proc / "status").read_text(), re.MULTILINE))

    async def wait_until_ready(self) -> None:
        await wait_for(lambda: self._probe() == 200)

    async def wait_for_end(self) -> None:
        await wait_for(lambda: not self.process.alive)

    def _probe(self) -> int:
        try:
            with urllib.request.urlopen(self._url, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as exc:
            return exc.code
        except OSError:
            return 0


async def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.02)


async def fork_session(
    server: ForkServer, state: StatePaths, spec: SessionSpec, *, path: str = ""
) -> ForkedSession:
    """Have the server start a session, with another PATH than ours where one is given."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/user/alice/"
        environment = environment_of(spec, url) | ({"PATH": path} if path else {})
        pid = await server.start(request_of(spec), environment, listener)
    process = KnownProcess.find(pid)
    assert process is not None
    return ForkedSession(process, state.session(spec.session_id), f"{url}api")


def request_of(spec: SessionSpec) -> ForkRequest:
    wanted = WantedTemplates(
        state_dir=spec.state_dir, machine_id=spec.machine.id, cpus=spec.cpus, memory_mib=spec.memory_mib
    )
    return ForkRequest(identity=identity(), templates=wanted)


def environment_of(spec: SessionSpec, url: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        SPEC_VARIABLE: spec.to_json(),
        "JUPYTERHUB_SERVICE_URL": url,
        "JUPYTERHUB_SERVICE_PREFIX": "/user/alice/",
        "JUPYTERHUB_API_TOKEN": TOKEN,
        "JUPYTERHUB_CLIENT_ID": "jupyterhub-user-alice",
        "JUPYTERHUB_API_URL": "http://127.0.0.1:1/hub/api",
    }


def identity() -> Identity | None:
    if os.geteuid() != 0:
        return None
    uid, gid = account()
    return Identity(uid=uid, gid=gid, groups=(gid,))
