"""The session's routes, served over a guest agent alone: without a hub, a relay or a QEMU of their own."""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import vms
from audit_log import audit_lines
from local_agent import names_in
from tornado import httpserver, web
from tornado.testing import bind_unused_port
from yarl import URL

from qemuspawner.paths import StatePaths
from qemuspawner.policy import Policy
from qemuspawner.qemu.agent import GuestAgent
from qemuspawner.session.app import _MAX_BODY_BYTES
from qemuspawner.session.people.access import Person
from qemuspawner.session.people.audit import Audit
from qemuspawner.session.web.files import Files
from qemuspawner.session.web.routes import ROUTES, base

PREFIX = "/user/alice/"
FILE_ROUTES: list[Any] = [
    (PREFIX + path, handler) for path, handler in ROUTES if path.startswith("api/files")
]
TUS = {"Tus-Resumable": "1.0.0"}


class Served:
    """The application over a guest's agent; whoever asks is alice."""

    local: Any  # the agent's other side, where a test has it

    def __init__(self, root: Path, agent: GuestAgent, home: Path) -> None:
        self.home = home
        self.inputs = 0
        machine = vms.make_machine(image={"file": "disk", "format": "raw"}, agent=True, home=str(self.home))
        (root / "sessions").mkdir()
        spec = vms.make_spec(root, machine, policy=Policy(max_file_mib=16))
        self.supervisor = SimpleNamespace(
            spec=spec,
            state="running",
            running_guest=lambda: self.guest,
            clocks=SimpleNamespace(note_input=self._note_input),
        )
        self.guest = SimpleNamespace(agent=agent)
        self.root = root
        self.dismiss: list[Callable[[int, str], None]] = []  # of the transfers that go on
        self.files = Files(self.supervisor)  # type: ignore[arg-type]
        self.app = web.Application(
            FILE_ROUTES,
            prefix=PREFIX,
            supervisor=self.supervisor,
            files=self.files,
            people=SimpleNamespace(seated=self._seat),
            audit=Audit(StatePaths(root=root).audit, spec),
            log_function=lambda _: None,
        )
        listening, self.port = bind_unused_port()
        self.server = httpserver.HTTPServer(self.app, max_body_size=_MAX_BODY_BYTES)
        self.server.add_sockets([listening])

    @contextlib.contextmanager
    def _seat(self, *_: Any, dismiss: Callable[[int, str], None], **__: Any) -> Iterator[None]:
        self.dismiss.append(dismiss)
        yield
        self.dismiss.remove(dismiss)

    def _note_input(self) -> None:
        self.inputs += 1

    @property
    def url(self) -> URL:
        return URL(f"http://127.0.0.1:{self.port}{PREFIX}api/files")

    def audited(self) -> list[dict[str, Any]]:
        return [
            {key: line[key] for key in line if key in ("event", "by", "path", "size_bytes", "of_bytes")}
            for line in audit_lines(self.root)
        ]

    def left_over(self) -> list[str]:
        return [name for name in names_in(self.home) if name.startswith(".upload-")]


async def _let_in(handler: base.Handler) -> None:
    """What JupyterHub says; the access matrix has the real one."""
    role = handler.request.headers.get("X-Role", "owner")
    handler.person = Person(name="alice", role=role)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def serve_files(root: Path, agent: GuestAgent, home: Path) -> AsyncIterator[Served]:
    with mock.patch.multiple(base.Handler, prepare=_let_in, login=None):
        served = Served(root, agent, home)
        yield served
        served.server.stop()
        await served.server.close_all_connections()
