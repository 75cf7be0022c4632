import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import guests
import pytest
import vms
from fake_desktop import FakeDesktop
from msgspec import structs
from processes import find_processes
from sessions import PROGRAM, Session, account, wait_for

from qemuspawner.machine import Image, Machine, Seconds
from qemuspawner.paths import StatePaths


@pytest.fixture
def state() -> Iterator[StatePaths]:
    """A state folder that the sessions' account may enter; root's tests run sessions as nobody."""
    folder = Path(tempfile.mkdtemp(prefix="qs-"))
    folder.chmod(0o711)
    paths = StatePaths(root=folder)
    paths.sessions.mkdir()
    if os.geteuid() == 0:
        os.chown(paths.sessions, *account())
    yield paths
    shutil.rmtree(folder)


@pytest.fixture
def start(state: StatePaths) -> Iterator[Callable[..., Session]]:
    """Start a session of the painter; whatever is left of it is ended with the test."""
    disk = guests.make_disk(state.root / "painter")
    # The painter does not know the power button.
    machine = Machine(name="Painter", image=Image(file=str(disk), format="raw"), shutdown=Seconds(1))
    sessions: list[Session] = []

    def start(server_name: str = "", program: str = PROGRAM, **keys: Any) -> Session:
        spec = vms.make_spec(state.root, machine, server_name=server_name, lifetime_s=600, max_lifetime_s=600)
        sessions.append(Session(state, structs.replace(spec, **keys), program=program))
        return sessions[-1]

    yield start
    for session in sessions:
        session.process.kill()
        session.process.wait()
    for session in sessions:
        wait_for(lambda session=session: not find_processes(session.paths))


@pytest.fixture
async def desktop(tmp_path: Path) -> AsyncIterator[FakeDesktop]:
    """A VNC server of ours at a unix socket, to which nobody is connected yet."""
    fake = FakeDesktop(tmp_path / "fake-vnc")
    server = await asyncio.start_unix_server(fake.greet, fake.path)
    yield fake
    server.close()
    while not fake.connections.empty():
        fake.connections.get_nowait()[1].close()
