"""The way to a guest's ports: QEMU's own network, and nobody else's."""

import asyncio
import errno
import os
import signal
import socket
from pathlib import Path

import guests
import pytest
import vms
from msgspec import structs

from qemuspawner.errors import VmError
from qemuspawner.machine import Machine
from qemuspawner.qemu.inside import make_sockets, open_network
from qemuspawner.session.vm.ports import Ports
from qemuspawner.spec import SessionSpec


@pytest.fixture
def spec(tmp_path: Path) -> SessionSpec:
    """Of the painter, which has no network of its own and lets everybody wait."""
    disk = guests.make_disk(tmp_path / "painter")
    machine: Machine = vms.make_machine(
        image={"file": str(disk), "format": "raw"}, ports={"a": 80, "b": 8888}
    )
    return vms.make_spec(tmp_path, machine)


async def listening(guest: vms.Guest) -> list[tuple[str, str]]:
    """Where QEMU listens for its guest, and the guest's port behind it."""
    text = str(await guest.qemu.execute("human-monitor-command", **{"command-line": "info usernet"}))
    words = [line.split() for line in text.splitlines() if "HOST_FORWARD" in line]
    return sorted((":".join(line[2:4]), line[5]) for line in words)


async def test_a_port_is_open_from_the_first_connection_on(spec: SessionSpec) -> None:
    async with vms.running_guest(spec) as (guest, _):
        assert await listening(guest) == []

        # More than there are sockets made at a time, and at once.
        connections = await asyncio.gather(*(guest.ports.connect("b") for _ in range(40)))

        assert await listening(guest) == [("127.0.0.1:10001", "8888")]
        assert {connection.getpeername() for connection in connections} == {("127.0.0.1", 10001)}
        for connection in connections:
            connection.close()


async def test_no_port_of_the_host_is_opened(spec: SessionSpec) -> None:
    async with vms.running_guest(spec) as (guest, _):
        (await guest.ports.connect("a")).close()

        with socket.socket() as stranger, pytest.raises(ConnectionRefusedError):
            stranger.connect(("127.0.0.1", 10000))


async def test_no_other_guest_is_reached(spec: SessionSpec) -> None:
    """And in that network there is nothing but what was forwarded."""
    other = vms.make_spec(Path(spec.state_dir), spec.machine, server_name="other")
    async with vms.running_guest(spec) as (guest, _), vms.running_guest(other) as (neighbour, _):
        (await guest.ports.connect("a")).close()
        network = open_network(neighbour.qemu.pid)

        for address in (("127.0.0.1", 10000), ("10.0.2.15", 80), ("10.0.2.2", 80), ("192.0.2.1", 80)):
            (inside,) = make_sockets(network, 1)
            with inside, pytest.raises(OSError) as refused:
                await asyncio.get_running_loop().sock_connect(inside, address)
            assert refused.value.errno in (errno.ECONNREFUSED, errno.ENETUNREACH)
        os.close(network)


async def test_without_the_jail_nothing_is_opened(spec: SessionSpec) -> None:
    """Every account of the host could connect with it."""
    async with vms.running_guest(structs.replace(spec, jail=False)) as (guest, _):
        with pytest.raises(VmError, match="open to every account") as refused:
            await guest.ports.connect("a")

        assert "jail = True" in refused.value.hint
        assert await listening(guest) == []


async def test_who_leaves_early_does_not_keep_the_next_one_out(spec: SessionSpec) -> None:
    async with vms.running_guest(spec) as (guest, _):
        for _ in range(20):
            leaving = asyncio.create_task(guest.ports.connect("a"))
            await asyncio.sleep(0)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)

        (await guest.ports.connect("a")).close()


async def test_an_ended_machine_is_not_reached(spec: SessionSpec) -> None:
    async with vms.running_guest(spec) as (guest, _):
        await guest.stop()

        with pytest.raises(VmError, match="not running"):
            await guest.ports.connect("a")


async def test_a_machine_that_died_is_not_reached(spec: SessionSpec) -> None:
    async with vms.running_guest(spec) as (guest, _):
        ports = Ports(guest.qemu, {"a": 80})
        (await ports.connect("a")).close()
        os.kill(guest.qemu.pid, signal.SIGKILL)
        await guest.qemu.wait()

        with pytest.raises(VmError):
            await ports.connect("a")
        ports.close()
