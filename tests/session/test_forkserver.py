"""Sessions forked by the real fork server, asked by the hub's real client."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import guests
import pytest
import vms
from forked import (
    COMMAND,
    TOKEN,
    ForkedSession,
    environment_of,
    fork_session,
    identity,
    request_of,
    wait_for,
)
from processes import find_processes
from sessions import account

from qemuspawner.forking import ForkRequest, Identity
from qemuspawner.hub.sessions.forkserver import ForkServer, ForkServerError
from qemuspawner.hub.sessions.process import KnownProcess
from qemuspawner.machine import Machine
from qemuspawner.paths import SavedPaths, StatePaths
from qemuspawner.qemu.memory import make_memory, save_memory
from qemuspawner.saved import FileDigest, Fingerprint, Saved, write_manifest

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give an account up")


@pytest.fixture
def machine(state: StatePaths) -> Machine:
    disk = guests.make_disk(state.root / "painter")
    return vms.make_machine(id="painter", image={"file": str(disk), "format": "raw"}, shutdown=1)


StartSession = Callable[..., Awaitable[ForkedSession]]


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ForkServer]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("CONFIGPROXY_AUTH_TOKEN", "the-hubs-secret")
    server = ForkServer(COMMAND)
    yield server
    await server.close()


@pytest.fixture
async def start(state: StatePaths, machine: Machine, server: ForkServer) -> AsyncIterator[StartSession]:
    """Have the server start a session of the painter; whatever is left of it is ended with the test."""
    sessions: list[ForkedSession] = []

    async def start(server_name: str = "", **keys: Any) -> ForkedSession:
        spec = vms.make_spec(state.root, machine, server_name=server_name, **keys)
        sessions.append(await fork_session(server, state, spec))
        return sessions[-1]

    yield start
    for session in sessions:
        session.process.signal(signal.SIGKILL)
    for session in sessions:
        await wait_for(lambda session=session: not find_processes(session.paths))


def add_template(state: StatePaths, name: str, *, memory_mib: int) -> None:
    """A template that the server takes for the painter's."""
    folder = SavedPaths(root=state.templates / name)
    folder.root.mkdir(parents=True)
    memory = make_memory(memory_mib)
    digest = FileDigest(size_bytes=memory_mib << 20, digest=save_memory(memory, folder.memory))
    os.close(memory)
    fingerprint = Fingerprint(
        qemu="", accelerator="", cpu="", machine="", image="", cpus=1, memory_mib=memory_mib
    )
    saved = Saved(
        kind="template", name=name, saved_at=0, memory="mapped", layers=1, size_bytes=0,
        machine_id="painter", fingerprint=fingerprint, files={folder.memory.name: digest},
    )  # fmt: skip
    write_manifest(folder.root, saved)


async def test_a_forked_session_runs_and_leaves_nothing(start: StartSession) -> None:
    session = await start()
    await session.wait_until_ready()

    session.process.signal(signal.SIGINT)
    await session.wait_for_end()

    assert not find_processes(session.paths)
    assert not session.paths.root.exists()


async def test_two_sessions_run_side_by_side(start: StartSession) -> None:
    first, second = await asyncio.gather(start("first"), start("second"))
    await first.wait_until_ready()
    await second.wait_until_ready()

    first.process.signal(signal.SIGINT)
    await first.wait_for_end()

    assert second.process.alive
    assert second.paths.root.exists()


@AS_ROOT
async def test_a_session_has_its_accounts_rights_only(start: StartSession) -> None:
    session = await start()
    await session.wait_until_ready()

    status = session.status()

    uid, gid = account()
    assert status["Uid"].split() == [str(uid)] * 4
    assert status["Gid"].split() == [str(gid)] * 4
    assert status["Groups"].split() == [str(gid)]
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {0}
    assert session.process.belongs_to(uid)


@AS_ROOT
@pytest.mark.parametrize("uid", [-1, 2**32])
async def test_a_session_that_cannot_take_on_its_account_does_not_run(
    server: ForkServer, state: StatePaths, machine: Machine, uid: int
) -> None:
    """The kernel takes -1 for "leave it as it is", which is root."""
    spec = vms.make_spec(state.root, machine)
    request = ForkRequest(identity=Identity(uid=uid, gid=account()[1], groups=()))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/user/alice/"
        pid = await server.start(request, environment_of(spec, url), listener)

    await wait_for(lambda: KnownProcess.find(pid) is None, timeout_s=5)
    assert not state.session(spec.session_id).root.exists()


async def test_a_session_holds_nothing_of_the_servers(start: StartSession, server: ForkServer) -> None:
    """Not the hub's connection, nor another session's environment; its own listener alone."""
    session = await start()
    await session.wait_until_ready()
    servers = {str(entry.readlink()) for entry in Path(f"/proc/{server.pid}/fd").iterdir()}

    files = {number: what for number, what in session.files().items() if number > 2}

    assert servers.isdisjoint(what for what in files.values() if what.startswith(("socket:", "/memfd:")))
    assert not [what for what in files.values() if "environment" in what]
    assert os.getsid(session.process.pid) == session.process.pid


async def test_the_server_knows_no_secret(start: StartSession, server: ForkServer) -> None:
    """What it knew, each session of whatever account could read in its own memory."""
    await (await start()).wait_until_ready()

    environment = Path(f"/proc/{server.pid}/environ").read_bytes()
    memory = b"".join(read_memory(server.pid))

    assert b"the-hubs-secret" not in environment
    assert b"qemuspawner" in memory
    assert TOKEN.encode() not in memory
    assert b"the-hubs-secret" not in memory


def read_memory(pid: int) -> Iterator[bytes]:
    """What the process has written itself."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    with Path(f"/proc/{pid}/mem").open("rb") as memory:
        for begin, end in re.findall(r"^(\w+)-(\w+) rw", maps, re.MULTILINE):
            memory.seek(int(begin, 16))
            with contextlib.suppress(OSError):
                yield memory.read(int(end, 16) - int(begin, 16))


async def test_sessions_share_the_memory_of_their_template(state: StatePaths, start: StartSession) -> None:
    add_template(state, "painter-fits", memory_mib=64)
    add_template(state, "painter-bigger", memory_mib=96)
    sessions = [await start("first"), await start("second")]

    mapped = []
    for session in sessions:
        await session.wait_until_ready()
        memories = [number for number, what in session.files().items() if "qemuspawner-memory" in what]
        mapped.append([(session.proc / f"fd/{number}").stat() for number in memories])

    assert [[status.st_size for status in memories] for memories in mapped] == [[64 << 20], [64 << 20]]
    assert mapped[0][0].st_ino == mapped[1][0].st_ino


async def test_the_server_ends_with_its_hub_and_sessions_stay(
    start: StartSession, server: ForkServer
) -> None:
    session = await start()
    await session.wait_until_ready()
    process = KnownProcess.find(server.pid)
    assert process is not None
    assert server._control is not None

    server._control.close()
    await wait_for(lambda: not process.alive)

    await session.wait_until_ready()
    session.process.signal(signal.SIGINT)
    await session.wait_for_end()


async def test_a_killed_server_is_started_again(start: StartSession, server: ForkServer) -> None:
    first = await start("first")
    killed = server.pid
    os.kill(killed, signal.SIGKILL)
    await wait_for(lambda: KnownProcess.find(killed) is None)

    second = await start("second")

    await first.wait_until_ready()
    await second.wait_until_ready()
    assert server.pid != killed


async def test_a_session_without_a_specification_ends_without_a_zombie(server: ForkServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pid = await server.start(ForkRequest(identity=identity()), {"PATH": "/usr/bin"}, listener)

    await wait_for(lambda: not Path(f"/proc/{pid}").exists())


async def test_an_environment_that_is_none_is_refused_and_the_server_lives(
    start: StartSession, server: ForkServer
) -> None:
    await start("first")
    before = server.pid
    environment: dict[str, Any] = {"WHEN": 9}

    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(ForkServerError):
        await server.start(ForkRequest(), environment, listener)

    await start("second")
    assert server.pid == before


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (("/nowhere/qemuspawner-session",), "cannot be started: No such file or directory."),
        (("/bin/false",), "The fork server "),
    ],
)
async def test_a_server_that_does_not_run_is_told(command: tuple[str, ...], sentence: str) -> None:
    server = ForkServer(command)

    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(ForkServerError, match=sentence):
        await server.start(ForkRequest(), {}, listener)

    await server.close()


async def test_a_start_that_is_given_up_leaves_no_session(
    server: ForkServer, state: StatePaths, machine: Machine
) -> None:
    spec = vms.make_spec(state.root, machine)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        environment = environment_of(spec, "http://127.0.0.1:1/user/alice/")
        start = asyncio.create_task(server.start(request_of(spec), environment, listener))
        await wait_for(lambda: server.pid != 0)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        # Requests are answered one after the other.
        await server.start(ForkRequest(identity=identity()), {}, listener)

    await wait_for(lambda: not children(server.pid))
    assert not find_processes(state.session(spec.session_id))


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
