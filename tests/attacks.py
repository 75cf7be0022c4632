"""Harm that root of the demo machine does, and the session of one."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import vms

from qemuspawner.errors import VmError
from qemuspawner.machines.catalogue import load_machine
from qemuspawner.paths import EXAMPLE_MACHINES
from qemuspawner.session.life.supervisor import Supervisor
from qemuspawner.session.vm.guest import Guest
from qemuspawner.spec import SESSION_OVERHEAD_MIB, SessionSpec

MEMORY_MIB = 1024
# Beyond what systemd lets a service have, and each goes on when no more can be made.
FORK_BOMB = (
    "echo 'echo $$ > /sys/fs/cgroup/cgroup.procs; f() { while :; do f & done; }; f' > /run/bomb;"
    " setsid sh /run/bomb > /dev/null 2>&1 &"
)


def demo_spec(state: Path, server_name: str) -> SessionSpec:
    machine = load_machine(EXAMPLE_MACHINES / "debian-desktop", state / "images")
    return vms.make_spec(state, machine, memory_mib=MEMORY_MIB, server_name=server_name)


@contextlib.asynccontextmanager
async def running_demo(state: Path, server_name: str) -> AsyncIterator[Supervisor]:
    async with vms.supervised(demo_spec(state, server_name)) as supervisor:
        await vms.wait_for_status(supervisor, lambda status: status.state == "running", timeout_s=120)
        yield supervisor


async def run(guest: Guest, command: str, *, timeout_s: float = 60) -> str:
    assert guest.agent is not None
    assert await guest.agent.wait_until_ready(timeout_s=timeout_s)
    _, output = await guest.agent.run("/bin/sh", "-c", command, timeout_s=timeout_s)
    return output


async def attack(supervisor: Supervisor, command: str) -> None:
    """What becomes of the agent meanwhile is the attack's own affair."""
    with contextlib.suppress(VmError):
        await run(supervisor.running_guest(), command, timeout_s=20)


def check_promise(pid: int) -> None:
    """The QEMU of such a desktop takes no more of the host than it was promised, and has no other process."""
    process = Path(f"/proc/{pid}")
    (line,) = [line for line in (process / "status").read_text().splitlines() if line.startswith("VmRSS")]
    assert int(line.split()[1]) >> 10 <= MEMORY_MIB + SESSION_OVERHEAD_MIB
    assert (process / f"task/{pid}/children").read_text() == ""
