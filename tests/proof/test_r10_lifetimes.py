"""Desktops of which the time is over: warned of before, ended in time, and nothing of them is left."""

import asyncio
from pathlib import Path

import guests
import pytest
import vms
from fake_qemu import FakeQemu
from moved_clock import Clock, make_spec
from processes import find_processes
from proofs import Proof

from qemuspawner.paths import StatePaths
from qemuspawner.session.life.clocks import Clocks, boot_time
from qemuspawner.session.life.notices import Notices

pytestmark = [pytest.mark.goal("R10"), pytest.mark.timeout(1800)]

LIFETIME_S = 5
# The guest does not know the power button.
SHUTDOWN_S = 1
LATEST_S = 2
# One every so often: starting all at once would take longer than they live.
PACE_S = 0.4


async def live(folder: Path) -> float:
    """A desktop from its start to when nothing of it is left; how long after its deadline that was."""
    folder.mkdir()
    machine = vms.make_machine(
        image={"file": str(folder.parent / "disk"), "format": "raw"}, shutdown=f"{SHUTDOWN_S} s"
    )
    spec = vms.make_spec(folder, machine, lifetime_s=LIFETIME_S, max_lifetime_s=LIFETIME_S)
    paths = StatePaths(root=folder).session(spec.session_id)
    async with vms.supervised(spec) as supervisor:
        await vms.wait_for_status(supervisor, lambda status: status.state == "running")
        status = await vms.wait_for_status(supervisor, lambda status: status.state == "ended")
        assert status.message == "The session's lifetime of 5 s is over."
        while find_processes(paths) or paths.root.exists():
            await asyncio.sleep(0.02)
        return boot_time() - supervisor.clocks.deadline


async def test_a_desktop_whose_time_is_over_is_gone_soon(
    proof: Proof, fake_qemu: FakeQemu, tmp_path: Path
) -> None:
    guests.make_disk(tmp_path / "disk")
    count = proof.rounds(short=5, full=100)
    lives = []
    async with asyncio.TaskGroup() as works:
        for number in range(count):
            lives.append(works.create_task(live(tmp_path / str(number))))
            await asyncio.sleep(PACE_S)
    late_s = sorted(life.result() for life in lives)

    proof.note(
        done=f"{count} desktops with a lifetime of {LIFETIME_S} s, one started every {PACE_S} s",
        found=f"process and folder gone {late_s[0]:.2f} to {late_s[-1]:.2f} s after the deadline, with the "
        f"{SHUTDOWN_S} s that their guests have to shut down",
        limit=f"{LATEST_S} s and those",
    )
    assert late_s[0] >= 0
    assert late_s[-1] <= proof.within(LATEST_S) + SHUTDOWN_S


def test_every_lifetime_is_warned_of_in_time(proof: Proof) -> None:
    """In the guest, at looks twice a minute, as the session has them: ten and two minutes before the end."""
    lifetimes = [60 * minutes for minutes in range(1, proof.rounds(short=120, full=2880) + 1)]
    missed = []
    for lifetime_s in lifetimes:
        clock = Clock()
        spec = make_spec(lifetime_s=lifetime_s, max_lifetime_s=lifetime_s)
        clocks = Clocks(spec, now=clock)
        notices = Notices(clocks, spec)
        warned = []
        while clock.seconds + 30 < clocks.deadline:
            clock.seconds += 30
            if notices.due() is not None:
                warned.append(clocks.deadline - clock.seconds)
        wanted = [lead_s for lead_s in (600, 120) if lifetime_s > lead_s + 30] or [lifetime_s]
        in_time = all(any(lead_s - 30 <= left_s <= lead_s for left_s in warned) for lead_s in wanted)
        if not in_time or not 1 <= len(warned) <= 2:
            missed.append((lifetime_s, warned))

    proof.note(
        done=f"{len(lifetimes)} lifetimes from 1 min on, on a clock that is moved",
        found=f"{len(lifetimes) - len(missed)} were warned of 10 and 2 min before their end",
        limit="all, each once; of shorter ones as soon as they run",
    )
    assert not missed
