"""Sessions restored from a real template: a guest that sleeps twenty times, and two side by side."""

import asyncio
import contextlib
import time
from pathlib import Path

import vms
import writing_guest

from qemuspawner.machines.catalogue import load_machine
from qemuspawner.paths import EXAMPLE_MACHINES
from qemuspawner.session.vm.personal import personalise

ROUNDS = 20


async def test_no_write_is_lost_in_twenty_rounds(warm_state: Path) -> None:
    """Every file has its checksum, the log has no gap, and the file system is clean."""
    machine = load_machine(EXAMPLE_MACHINES / "debian-desktop", warm_state / "images")
    spec = vms.make_spec(warm_state, machine, memory_mib=1024, server_name="rounds")
    for number in range(ROUNDS + 1):
        async with vms.running_guest(spec) as (guest, prepared):
            assert prepared.started.plan.way == ("woken" if number else "restored")
            assert guest.agent is not None
            assert await guest.agent.wait_until_ready(timeout_s=60)
            if number == 0:
                await guest.agent.run("/bin/sh", "-c", writing_guest.WRITE)
            await asyncio.sleep(0.3)  # something is written
            if number < ROUNDS:
                await vms.suspend(guest, prepared)
                continue
            _, words = await guest.agent.run("/bin/sh", "-c", writing_guest.CHECK, timeout_s=120)
            await guest.shut_down()
            verdict = writing_guest.fsck(guest, warm_state)

    assert words.startswith("bad=0 ")
    assert int(words.split("lines=")[1]) > ROUNDS
    assert verdict.startswith("exit code 0")


async def test_two_sessions_restored_from_one_template_are_two_machines(warm_state: Path) -> None:
    """Side by side, each told whose it is; nothing of what tells machines apart is the same."""
    machine = load_machine(EXAMPLE_MACHINES / "debian-desktop", warm_state / "images")
    told = []
    async with contextlib.AsyncExitStack() as stack:
        for name in ("left", "right"):
            spec = vms.make_spec(warm_state, machine, memory_mib=1024, server_name=name)
            guest, prepared = await stack.enter_async_context(vms.running_guest(spec))
            assert prepared.started.plan.way == "restored"
            assert guest.agent is not None
            assert await guest.agent.wait_until_ready(timeout_s=60)
            await personalise(guest, spec)
            look = "cat /etc/machine-id /etc/hostname; head -c 16 /dev/urandom | base64; date +%s"
            told.append((await guest.agent.run("/bin/sh", "-c", look))[1].split())

    for left, right in zip(told[0][:3], told[1][:3], strict=True):
        assert left != right
    assert all(abs(int(words[3]) - time.time()) < 120 for words in told)
