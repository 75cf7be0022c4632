"""The process qemuspawner-session, started by a test as a hub would."""

import contextlib
import os
import pwd
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import hubs
from processes import find_qemu

from qemuspawner.paths import SessionPaths, StatePaths
from qemuspawner.spec import SPEC_VARIABLE, SessionSpec


def account() -> tuple[int, int]:
    entry = pwd.getpwnam("nobody")
    return entry.pw_uid, entry.pw_gid


@contextlib.contextmanager
def sessions_state() -> Iterator[StatePaths]:
    """A state folder that the sessions' account may enter; root's tests run sessions as nobody."""
    with hubs.state_folder() as folder:
        paths = StatePaths(root=folder)
        paths.sessions.mkdir()
        if os.geteuid() == 0:
            os.chown(paths.sessions, *account())
        yield paths


PROGRAM = "from qemuspawner.session import main; main()"


class Session:
    """A qemuspawner-session process of the test; `program` is what its Python runs.

    `command` is started instead, and knows nothing of the test's packages.
    """

    def __init__(
        self,
        state: StatePaths,
        spec: SessionSpec,
        *,
        program: str = PROGRAM,
        command: Sequence[str | Path] = (),
    ) -> None:
        self.spec = spec
        self.paths: SessionPaths = state.session(spec.session_id)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        environ = {
            "PATH": os.environ["PATH"],
            **({} if command else {"PYTHONPATH": os.pathsep.join(sys.path)}),
            SPEC_VARIABLE: spec.to_json(),
            "JUPYTERHUB_SERVICE_URL": f"http://127.0.0.1:{self.port}/user/alice/",
            "JUPYTERHUB_SERVICE_PREFIX": "/user/alice/",
            "JUPYTERHUB_API_TOKEN": "unused",
            "JUPYTERHUB_CLIENT_ID": "jupyterhub-user-alice",
            "JUPYTERHUB_API_URL": "http://127.0.0.1:1/hub/api",
        }
        uid, gid = account() if os.geteuid() == 0 else (None, None)
        self.process = subprocess.Popen(
            command or [sys.executable, "-c", program],
            env=environ, user=uid, group=gid, extra_groups=[] if uid else None,
        )  # fmt: skip

    def wait_until_ready(self) -> None:
        """Ask as the hub does."""
        wait_for(lambda: self.probe() == 200)

    def probe(self) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/user/alice/api", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as exc:
            return exc.code
        except OSError:
            return 0

    @property
    def qemu_pid(self) -> int:
        pid = find_qemu(self.paths)
        assert pid is not None
        return pid


def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
