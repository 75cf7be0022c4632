"""The demo machine with a root who means harm: it stays in its bounds, its owner reads it, others go on."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import vms
from attacks import attack, check_promise, demo_spec, run, running_demo

from qemuspawner.session.life.supervisor import Supervisor
from qemuspawner.session.vm.guest import Guest

pytestmark = pytest.mark.timeout(600)

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


@pytest.fixture
async def hostile(warm_state: Path) -> AsyncIterator[Supervisor]:
    async with running_demo(warm_state, "hostile") as supervisor:
        yield supervisor


@pytest.fixture
async def neighbour(warm_state: Path) -> AsyncIterator[Guest]:
    async with vms.running_guest(demo_spec(warm_state, "neighbour")) as (guest, _):
        yield guest


async def test_a_guest_that_eats_its_memory_is_no_more_than_its_promise_to_the_host(
    hostile: Supervisor, neighbour: Guest
) -> None:
    await attack(hostile, MEMORY_EATERS)
    for _ in range(5):
        # Each a round of the host's clock in which the attack goes on.
        assert await run(neighbour, "echo $((6 * 7))") == "42\n"

    check_promise(hostile.running_guest().qemu.pid)
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
