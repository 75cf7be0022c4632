"""Real sessions of a real hub, forked or each started by itself."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import hubs
import pytest
from sqlalchemy import inspect

from qemuspawner.hub.sessions.forkserver import fork_server
from qemuspawner.hub.sessions.process import KnownProcess

StartHub = Callable[..., Awaitable[hubs.Hub]]


@pytest.fixture
async def start_sessions(start_hub: StartHub) -> AsyncIterator[StartHub]:
    """Start a hub; the fork server that it may start ends with the test."""
    yield start_hub
    await fork_server(tuple(hubs.SESSION_COMMAND)).close()
    fork_server.cache_clear()


def server_pid() -> int:
    return fork_server(tuple(hubs.SESSION_COMMAND)).pid


def parent_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("\nPPid:")[2].split()[0])


async def start(hub: hubs.Hub, name: str = "alice") -> hubs.Person:
    person = await hub.with_token(name)
    answer = await hub.start(person)
    assert answer.status in (201, 202), answer.text
    await hub.wait_until_ready(name)
    return person


def known(hub: hubs.Hub, name: str = "alice") -> KnownProcess:
    process = hub.spawner(name)._process
    assert process is not None
    assert process.alive
    return process


def forget(hub: hubs.Hub, name: str, state: dict[str, Any] | None = None) -> Any:
    """The spawner as a new hub makes it from the database."""
    user = hub.user(name)
    orm_spawner = user.spawners[""].orm_spawner
    if state is not None:
        orm_spawner.state = state
        inspect(orm_spawner).session.commit()
    del user.spawners[""]
    inspect(user.orm_user).session.expire_all()
    return user.spawners[""]


@pytest.mark.parametrize("forked", [True, False])
async def test_a_session_starts_and_stops(start_sessions: StartHub, forked: bool) -> None:
    hub = await start_sessions(fork_server=forked)
    alice = await start(hub)
    process = known(hub)
    parent = parent_of(process.pid)

    await hub.stop(alice)
    await hub.wait_until_stopped("alice")

    assert parent == (server_pid() if forked else os.getpid())
    assert not process.alive
    assert hub.session_folders() == []


async def test_sessions_of_one_hub_have_one_server(start_sessions: StartHub) -> None:
    hub = await start_sessions()
    await asyncio.gather(start(hub, "alice"), start(hub, "bob"))

    parents = {parent_of(known(hub, name).pid) for name in ("alice", "bob")}

    assert parents == {server_pid()}


async def test_a_forked_session_that_died_is_noticed(start_sessions: StartHub) -> None:
    hub = await start_sessions(poll_interval=1)
    await start(hub)

    known(hub).signal(signal.SIGKILL)
    await hub.wait_until_stopped("alice", timeout_s=20)

    assert hub.spawner("alice").pid == 0


async def test_a_restarted_hub_knows_a_forked_session_by_its_pid(start_sessions: StartHub) -> None:
    hub = await start_sessions()
    await start(hub)
    process = known(hub)

    spawner = forget(hub, "alice")

    assert await spawner.poll() is None
    await spawner.stop()
    assert not process.alive


async def test_a_restarted_hub_knows_a_forked_session_by_its_lock(start_sessions: StartHub) -> None:
    hub = await start_sessions()
    await start(hub)
    process = known(hub)

    state = {"session_id": hub.spawner("alice").session_id, "starting": True}
    spawner = forget(hub, "alice", state)

    assert await spawner.poll() is None
    assert spawner._process == process


async def test_a_session_may_be_forked_after_one_that_was_not(start_sessions: StartHub) -> None:
    hub = await start_sessions()
    hub.spawner("alice").fork_server = False
    alice = await start(hub)
    await hub.stop(alice)
    await hub.wait_until_stopped("alice")

    hub.spawner("alice").fork_server = True
    await start(hub)

    assert await hub.spawner("alice").poll() is None


async def test_without_a_server_a_session_is_started_by_itself(
    start_sessions: StartHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(*_args: object, **_keys: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("qemuspawner.hub.sessions.forkserver.send", send)
    hub = await start_sessions()

    await start(hub)

    assert parent_of(known(hub).pid) == os.getpid()


async def test_the_form_has_the_server_ready(start_sessions: StartHub) -> None:
    hub = await start_sessions()
    alice = await hub.log_in("alice")

    await hub.get_form(alice)

    async with asyncio.timeout(10):
        while not server_pid():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "changed",
    [
        {"args": ["--debug"]},
        {"cmd": ["nice", *hubs.SESSION_COMMAND]},
        {"shell_cmd": ["bash", "-c"]},
        {"popen_kwargs": {"cwd": "/tmp"}},
        {"environment": {"PYTHONPATH": "/site"}},
    ],
)
async def test_what_only_a_process_of_its_own_heeds_is_not_forked(
    start_sessions: StartHub, changed: dict[str, object]
) -> None:
    hub = await start_sessions(**changed)

    assert not hub.spawner("alice")._is_forkable


async def test_a_spawner_with_other_ideas_of_the_account_is_not_forked(
    start_sessions: StartHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a site's own class may have them."""
    hub = await start_sessions()
    spawner = hub.spawner("alice")
    site = type("SiteSpawner", (type(spawner),), {"make_preexec_fn": lambda _self, _name: None})
    assert spawner._is_forkable

    monkeypatch.setattr(spawner, "__class__", site)

    assert not spawner._is_forkable
