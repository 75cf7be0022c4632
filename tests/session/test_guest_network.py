"""A guest with a network as its session starts it: what stands around QEMU and ends with it; refusals."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import guests
import hubs
import network_world
import pytest
import vms
from msgspec import structs
from network_world import HOST, World
from processes import find_qemu
from sessions import Session, account, wait_for

from qemuspawner.errors import HostError, VmError
from qemuspawner.hub.sessions.forkserver import fork_server
from qemuspawner.machine import Machine
from qemuspawner.network import NAMES, Network
from qemuspawner.paths import StatePaths
from qemuspawner.qemu import network
from qemuspawner.spec import SessionSpec

# Without names: which servers this host has is nothing to these tests.
ALLOWED = Network(mode="allow", allow=("198.51.100.1",))


@pytest.fixture
def spec(tmp_path: Path) -> SessionSpec:
    disk = guests.make_disk(tmp_path / "painter")
    machine: Machine = vms.make_machine(image={"file": str(disk), "format": "raw"}, ports={"tool": 80})
    return vms.make_spec(tmp_path, machine, network=ALLOWED)


@pytest.fixture
def around(tmp_path: Path) -> Iterator[World]:
    with network_world.world(tmp_path) as around:
        yield around


@pytest.fixture
def on_host(around: World) -> Iterator[None]:
    """For a hub and its people: the whole test is on the host of `around`."""
    with around.on_host():
        yield


@pytest.fixture
async def fork_server_on_host(on_host: None) -> AsyncIterator[None]:
    """One of the test's own: another one may be there, and is elsewhere."""
    await end_fork_server()
    yield
    await end_fork_server()


async def end_fork_server() -> None:
    await fork_server(tuple(hubs.SESSION_COMMAND)).close()
    fork_server.cache_clear()


def descendants(pid: int) -> dict[int, str]:
    """Processes that came of `pid`, and their programs' names."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (entry / "stat").read_text().partition(" (")[2].rpartition(") ")
        except OSError:  # it ended meanwhile
            continue
        parents[int(entry.name)] = int(rest.split()[1]), name
    found: dict[int, str] = {}
    while more := {
        child: name
        for child, (parent, name) in parents.items()
        if child not in found and (parent == pid or parent in found)
    }:
        found |= more
    return found


def field(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(f"{name}:"))


def namespace(pid: int | str, kind: str) -> str:
    return str(Path(f"/proc/{pid}/ns/{kind}").readlink())


def test_all_of_it_runs_without_rights_and_ends_with_the_session(
    around: World, state: StatePaths, start: Callable[..., Session]
) -> None:
    with around.on_host():
        session = start(network=ALLOWED)
    wait_for(lambda: find_qemu(session.paths) is not None)
    qemu = session.qemu_pid
    started = descendants(session.process.pid)

    # Debian's pasta is another name of passt.
    assert any(name.startswith(("passt", "pasta")) for name in started.values())
    assert {field(pid, "Uid").split()[0] for pid in started} == {str(account()[0])}
    assert int(field(qemu, "CapEff"), 16) == int(field(qemu, "CapBnd"), 16) == 0
    holder = next(pid for pid, name in started.items() if name == "sleep")
    assert namespace(qemu, "net") == namespace(holder, "net") != namespace(session.process.pid, "net")
    # No rights in the one that the network belongs to.
    assert namespace(qemu, "user") != namespace(holder, "user")

    session.process.send_signal(signal.SIGKILL)
    session.process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))


async def test_its_ports_are_reached_by_its_session_alone(around: World, spec: SessionSpec) -> None:
    """Not from the host, nor from the network around it, nor by another account that tries to enter."""
    with around.on_host():
        running = vms.running_guest(spec)
        guest, _ = await running.__aenter__()
    try:
        (await guest.ports.connect("tool")).close()
        inner = guest.ports.inner["tool"]

        for place in (around.host, around.peers):
            for address in HOST.values():
                assert not around.connects(place, address, inner)
        uid, gid = account()
        entering = subprocess.run(
            ["nsenter", f"--net=/proc/{guest.qemu.pid}/ns/net", "true"],
            user=uid, group=gid, extra_groups=[], capture_output=True, text=True,
        )  # fmt: skip
        assert entering.returncode != 0
        assert "Permission denied" in entering.stderr
    finally:
        await running.__aexit__(None, None, None)


async def test_without_a_wall_it_is_not_started(
    around: World, spec: SessionSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the page says more than that QEMU did not start."""
    broken = tmp_path / "nft"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    with around.on_host(), pytest.raises(VmError, match="network could not be built on this host"):
        async with vms.running_guest(spec):
            pass


@pytest.mark.parametrize("mode", ["allow", "internet"])
async def test_without_the_jail_there_is_no_network(mode: str, spec: SessionSpec) -> None:
    asked = structs.replace(spec, jail=False, network=Network(mode=mode))  # type: ignore[arg-type]

    with pytest.raises(HostError, match="guests have none without the jail") as refused:
        async with vms.running_guest(asked):
            pass
    assert "jail = True" in refused.value.hint


async def test_the_hub_is_closed_by_its_address(
    around: World, spec: SessionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the session is told it, also where a list allows it."""
    monkeypatch.setenv("JUPYTERHUB_API_URL", "http://198.51.100.7:8081/hub/api")
    rules: list[str] = []
    render = network.render_rules

    def note(*args: object, **more: object) -> str:
        rules.append(render(*args, **more))  # type: ignore[arg-type]
        return rules[-1]

    monkeypatch.setattr(network, "render_rules", note)
    with around.on_host():
        async with vms.running_guest(spec):
            pass

    closed, opened = (rules[0].index(address) for address in ("198.51.100.7/", "198.51.100.1/"))
    assert closed < opened


async def test_names_that_cannot_be_asked_for_are_no_start(
    spec: SessionSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    monkeypatch.setattr(network, "_RESOLVERS", (tmp_path / "resolv.conf",))

    with pytest.raises(HostError, match="No name server of this host"):
        async with vms.running_guest(structs.replace(spec, network=Network(mode="allow", allow=(NAMES,)))):
            pass


async def test_many_connections_at_once_find_their_way(around: World, spec: SessionSpec) -> None:
    with around.on_host():
        running = vms.running_guest(spec)
        guest, _ = await running.__aenter__()
    try:
        connections = await asyncio.gather(*(guest.ports.connect("tool") for _ in range(40)))
        for connection in connections:
            connection.close()
    finally:
        await running.__aexit__(None, None, None)


async def test_a_hub_starts_it_by_its_fork_server(
    fork_server_on_host: None, start_hub: Callable[..., Awaitable[hubs.Hub]]
) -> None:
    """From the administrator's setting to an interface in the namespace of QEMU."""
    hub = await start_hub(network="allow", allow_servers=["198.51.100.1"])
    alice = await hub.log_in("alice")

    assert (await hub.start(alice, {"machine": "mini"})).status in (201, 202)
    await hub.wait_until_ready("alice")

    spawner = hub.spawner("alice")
    qemu = find_qemu(StatePaths.of(spawner.state_dir).session(spawner.session_id))
    assert qemu is not None
    server = fork_server(tuple(hubs.SESSION_COMMAND)).pid
    assert qemu in descendants(server)
    # Pasta gives it the name of the host's own.
    assert "lan:" in Path(f"/proc/{qemu}/net/dev").read_text()
    assert Path(f"/proc/{qemu}/root/etc/resolv.conf").read_text() == ""
    await hub.stop(alice)
