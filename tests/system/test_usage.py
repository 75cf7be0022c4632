"""What a real desktop says of its memory, restored from its template: the host could not tell."""

from pathlib import Path

import vms

from qemuspawner.machines.catalogue import load_machine
from qemuspawner.paths import EXAMPLE_MACHINES
from qemuspawner.qemu.counters import read_counters
from qemuspawner.session.life.clocks import Clocks
from qemuspawner.session.life.usage import UsageMeter

HELD_MIB = 200


async def test_a_restored_guest_tells_what_its_programs_hold(warm_state: Path) -> None:
    machine = load_machine(EXAMPLE_MACHINES / "debian-desktop", warm_state / "images")
    spec = vms.make_spec(warm_state, machine, memory_mib=1024, server_name="usage")
    async with vms.running_guest(spec) as (guest, prepared):
        assert prepared.started.plan.way == "restored"
        assert guest.agent is not None
        assert await guest.agent.wait_until_ready(timeout_s=60)
        meter = UsageMeter(cpus=spec.cpus, memory_mib=spec.memory_mib, clocks=Clocks(spec))
        meter.begin(await read_counters(guest.qemu))
        await meter.look(guest, await read_counters(guest.qemu), gpu_percent=None)
        before = meter.usage()
        await guest.agent.run("/bin/sh", "-c", f"head -c {HELD_MIB}M /dev/zero >/dev/shm/held", timeout_s=120)
        await meter.look(guest, await read_counters(guest.qemu), gpu_percent=None)
        after = meter.usage()

    assert before is not None
    assert after is not None
    assert (before.memory_by, after.memory_by) == ("guest", "guest")
    assert before.memory_mib is not None
    assert after.memory_mib is not None
    assert 50 < before.memory_mib < 1024 - HELD_MIB
    assert HELD_MIB * 0.8 < after.memory_mib - before.memory_mib < HELD_MIB * 1.4
