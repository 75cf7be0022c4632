"""The demo machine with a root who means harm: it stays in its bounds, its owner reads it, others go on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import vms

from qemuspawner.errors import VmError
from qemuspawner.machines.catalogue import load_machine
from qemuspawner.paths import EXAMPLE_MACHINES
from qemuspawner.session.life.supervisor import Supervisor
from qemuspawner.session.vm.guest import Guest
from qemuspawner.spec import SESSION_OVERHEAD_MIB, SessionSpec

pytestmark = pytest.mark.timeout(600)

MEMORY_MIB = 1024
FORK_BOMB = "echo 'f() { f | f & }; f' > /run/bomb; setsid sh /run/bomb > /dev/null 2>&1 &"
# Several at once, so that whatever the guest's kernel ends, another one goes on.
MEMORY_EATERS = "for n in 1 2 3 4; do setsid tail /dev/zero > /dev/null 2>&1 & done"
PANIC = "echo c > /proc/sysrq-trigger"
# As the clipboard's agent: a text of 4 GiB is announced, and comes in pieces of 2000 bytes.
CLIPBOARD_FLOOD = """
systemctl stop spice-vdagentd.socket spice-vdagentd desktop-clipboard
perl -e '
    open(my $port, ">", "/dev/virtio-ports/com.redhat.spice.0") or die;
    sub piece { my $data = shift; syswrite($port, pack("LL", 1, length $data) . $data) }
    piece(pack("LLQL", 1, 4, 0, 0xfffff000) . "x" x 1000);
    piece("x" x 2000) while 1
'
"""


def make_spec(state: Path, server_name: str) -> SessionSpec:
    machine = load_machine(EXAMPLE_MACHINES / "debian-desktop", state / "images")
    return vms.make_spec(state, machine, memory_mib=MEMORY_MIB, server_name=server_name)


async def run(guest: Guest, command: str, *, timeout_s: float = 60) -> str:
    assert guest.agent is not None
    assert await guest.agent.wait_until_ready(timeout_s=timeout_s)
    _, output = await guest.agent.run("/bin/sh", "-c", command, timeout_s=timeout_s)
    return output


@pytest.fixture
async def hostile(warm_state: Path) -> AsyncIterator[Supervisor]:
    async with vms.supervised(make_spec(warm_state, "hostile")) as supervisor:
        await vms.wait_for_status(supervisor, lambda status: status.state == "running", timeout_s=120)
        yield supervisor


@pytest.fixture
async def neighbour(warm_state: Path) -> AsyncIterator[Guest]:
    async with vms.running_guest(make_spec(warm_state, "neighbour")) as (guest, _):
        yield guest


async def attack(supervisor: Supervisor, command: str) -> None:
    """What becomes of the agent meanwhile is the attack's own affair."""
    with contextlib.suppress(VmError):
        await run(supervisor.running_guest(), command, timeout_s=20)


@pytest.mark.parametrize("command", [FORK_BOMB, MEMORY_EATERS], ids=["fork bomb", "memory eaters"])
async def test_a_guest_that_eats_itself_up_is_no_more_than_its_promise_to_the_host(
    command: str, hostile: Supervisor, neighbour: Guest
) -> None:
    """It has no other process on the host, no more memory than was promised, and can be ended."""
    qemu = hostile.running_guest().qemu

    await attack(hostile, command)
    for _ in range(5):
        # Each a round of the host's clock in which the attack goes on.
        assert await run(neighbour, "echo $((6 * 7))") == "42\n"

    process = Path(f"/proc/{qemu.pid}")
    (line,) = [line for line in (process / "status").read_text().splitlines() if line.startswith("VmRSS")]
    assert int(line.split()[1]) >> 10 <= MEMORY_MIB + SESSION_OVERHEAD_MIB
    assert (process / f"task/{qemu.pid}/children").read_text() == ""
    assert hostile.status().state == "running"


async def test_a_kernel_that_panics_is_told_and_can_be_restarted(
    hostile: Supervisor, neighbour: Guest
) -> None:
    await attack(hostile, PANIC)

    status = await vms.wait_for_status(hostile, lambda status: status.trouble is not None)
    assert status.message == "The machine's system has crashed."
    assert status.trouble is not None
    assert (status.trouble.kind, status.trouble.acts) == ("crashed", ("reset",))
    assert await run(neighbour, "echo $((6 * 7))") == "42\n"

    await hostile.act("reset", by="alice")

    guest = hostile.running_guest()
    assert "up 0 min" in await run(guest, "uptime", timeout_s=300)
    assert hostile.status().trouble is None


async def test_a_guest_that_copies_four_gigabytes_ends_itself_alone(
    hostile: Supervisor, neighbour: Guest
) -> None:
    flood = asyncio.create_task(attack(hostile, CLIPBOARD_FLOOD))

    status = await vms.wait_for_status(hostile, lambda status: status.state == "failed", timeout_s=120)

    await flood
    assert status.message == "The virtual machine ended unexpectedly."
    assert await run(neighbour, "echo $((6 * 7))") == "42\n"
