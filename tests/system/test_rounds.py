"""A guest that writes all the time falls asleep and wakes twenty times, and has lost nothing."""

from pathlib import Path

import vms
import writing_guest

from qemuspawner.machine import Machine

ROUNDS = 20


async def test_no_write_is_lost_in_twenty_rounds(warm_state: Path, demo_machine: Machine) -> None:
    """Every file has its checksum, the log has no gap, and the file system is clean."""
    spec = vms.make_spec(warm_state, demo_machine, memory_mib=1024, server_name="rounds")
    for number in range(ROUNDS + 1):
        async with vms.running_guest(spec) as (guest, prepared):
            assert prepared.started.plan.way == ("woken" if number else "restored")
            assert guest.agent is not None
            assert await guest.agent.wait_until_ready(timeout_s=60)
            if number == 0:
                await guest.agent.run("/bin/sh", "-c", writing_guest.WRITE)
            if number < ROUNDS:
                await vms.suspend(guest, prepared)
                continue
            _, words = await guest.agent.run("/bin/sh", "-c", writing_guest.CHECK, timeout_s=120)
            await guest.shut_down()
            verdict = writing_guest.fsck(guest, warm_state)

    assert words.startswith("bad=0 ")
    assert int(words.split("lines=")[1]) > ROUNDS
    assert verdict.startswith("exit code 0")
