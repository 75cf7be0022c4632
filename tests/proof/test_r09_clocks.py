"""Lifetimes on a host whose wall clock is set to another day, that is suspended, or whose hub dies."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import guests
import pytest
import vms
from hub_process import HubProcess, running_hub_process
from processes import find_processes
from proofs import Proof

import qemuspawner
from qemuspawner.hub.sessions.process import KnownProcess
from qemuspawner.paths import StatePaths, session_id
from qemuspawner.session.life.clocks import Clocks, boot_time
from qemuspawner.session.life.supervisor import Supervisor

pytestmark = [pytest.mark.goal("R9"), pytest.mark.timeout(1800)]

TESTS = Path(__file__).parent.parent
LONGEST_ERROR_S = 2
DAY_S, HOUR_S = 86400, 3600


class MovedHost:
    """A host whose clocks a test moves, as the sessions on it see them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._wall_s = self._asleep_s = 0
        wall = time.time
        monkeypatch.setattr(time, "time", lambda: wall() + self._wall_s + self._asleep_s)

    def set_wall_clock(self, *, by_s: int) -> None:
        self._wall_s += by_s

    def suspend(self, *, for_s: int) -> None:
        """That long nothing runs, and CLOCK_MONOTONIC stands still."""
        self._asleep_s += for_s

    def boot_time(self) -> float:
        return boot_time() + self._asleep_s


async def run_desktop(
    folder: Path, lifetime_s: int, host: MovedHost, ready: asyncio.Queue[Supervisor]
) -> tuple[float, float]:
    """A desktop from its start to its end; its deadline, and when it began to end."""
    folder.mkdir()
    disk = guests.make_disk(folder / "disk")
    machine = vms.make_machine(image={"file": str(disk), "format": "raw"}, shutdown="1 s")
    spec = vms.make_spec(folder, machine, lifetime_s=lifetime_s, max_lifetime_s=lifetime_s)
    clocks = Clocks(spec, now=host.boot_time)
    async with vms.supervised(spec, clocks=clocks) as supervisor:
        await vms.wait_for_status(supervisor, lambda status: status.state == "running")
        ready.put_nowait(supervisor)
        await vms.wait_for_status(supervisor, lambda status: status.state != "running", timeout_s=120)
        return clocks.deadline, host.boot_time()


async def test_a_lifetime_is_the_time_that_passes(
    proof: Proof, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wall clock is set under desktops, and their host suspended; some end before, some during that."""
    count = proof.rounds(short=1, full=10)
    host = MovedHost(monkeypatch)
    ready: asyncio.Queue[Supervisor] = asyncio.Queue()
    before_s, during_s, after_s = 6 + 2 * count, HOUR_S // 2, HOUR_S + 12 + 4 * count
    async with asyncio.TaskGroup() as works:
        before, during, after = (
            [
                works.create_task(run_desktop(tmp_path / f"{lifetime_s}-{n}", lifetime_s, host, ready))
                for n in range(count)
            ]
            for lifetime_s in (before_s, during_s, after_s)
        )
        for _ in range(3 * count):
            await ready.get()
        for by_s in (DAY_S, -2 * DAY_S, DAY_S):
            host.set_wall_clock(by_s=by_s)
            await asyncio.sleep(LONGEST_ERROR_S)
        await asyncio.wait(before)
        host.suspend(for_s=HOUR_S)
        woken = host.boot_time()
    worst_s = max(abs(end - deadline) for deadline, end in (task.result() for task in (*before, *after)))
    over_for_s = max(end - woken for _, end in (task.result() for task in during))

    proof.note(
        done=f"{3 * count} desktops whose host's wall clock is set by 1 day forth, 2 back and 1 forth, and "
        "which is then suspended for an hour, by what its clocks say",
        found=f"those whose deadline was before or after that ended {worst_s:.2f} s from it at most; "
        f"those whose deadline was during it at most {over_for_s:.2f} s after the host went on",
        limit=f"{LONGEST_ERROR_S} s",
    )
    assert worst_s <= proof.within(LONGEST_ERROR_S)
    assert over_for_s <= proof.within(LONGEST_ERROR_S)


# A session whose host can be suspended by writing how long into a file.
_SESSION = """
import time
from pathlib import Path
asleep, clock = Path({asleep!r}), time.clock_gettime
time.clock_gettime = lambda number: clock(number) + (
    float(asleep.read_text()) if number == time.CLOCK_BOOTTIME else 0
)
from qemuspawner.session import main
main()
"""


@pytest.fixture
def asleep(state_dir: Path) -> Path:
    file = state_dir / "asleep"
    file.write_text("0")
    file.chmod(0o644)
    return file


@pytest.fixture
async def hub(state_dir: Path, machines_dir: Path, tmp_path: Path, asleep: Path) -> AsyncIterator[HubProcess]:
    root = str(Path(qemuspawner.__file__).parent.parent)
    session = [sys.executable, "-c", _SESSION.format(asleep=str(asleep))]
    folders = f"{str(state_dir)!r}, {str(machines_dir)!r}"
    environment = {"PYTHONPATH": root}
    merged = f"import hubs; c.merge(hubs.hub_config({folders}, cmd={session!r}, environment={environment!r}))"
    async with running_hub_process(tmp_path, merged, path=[str(TESTS), root], state=state_dir) as hub:
        yield hub


async def left_s(hub: HubProcess) -> float:
    (desktop,) = (await hub.ask("GET", "/users/alice/desktops"))["desktops"]
    return float(desktop["left_s"])


async def test_a_deadline_is_kept_over_restarts_of_the_hub_and_without_it(
    proof: Proof, hub: HubProcess, state_dir: Path, asleep: Path
) -> None:
    """An hour's lifetime: in the end the hub is dead, the host wakes after the deadline, and it ends."""
    restarts = proof.rounds(short=1, full=5)
    await hub.ask("POST", "/users/alice/server")
    state = (await hub.wait_for_server("ready", True))["state"]
    deadlines = [boot_time() + await left_s(hub)]
    for _ in range(restarts):
        hub.kill()
        await hub.start()
        await hub.wait_for_server("ready", True)
        deadlines.append(boot_time() + await left_s(hub))
    moved_s = max(deadlines) - min(deadlines)
    hub.kill()

    began = boot_time()
    draft = asleep.with_name("draft")
    draft.write_text(str(HOUR_S))
    draft.replace(asleep)
    known = KnownProcess.from_state(state)
    paths = StatePaths(root=state_dir).session(session_id("alice", ""))
    async with asyncio.timeout(60):
        while find_processes(paths):
            await asyncio.sleep(0.05)
        gone_s = boot_time() - began
        # It has tried to tell the hub.
        while known is not None and known.alive:
            await asyncio.sleep(0.05)
    await hub.start()
    await hub.wait_for_server("stopped", True)

    proof.note(
        done=f"a hub killed and started again {restarts} times under a desktop, which ends without it",
        found=f"the deadline differed by {moved_s:.1f} s, as told in whole seconds; "
        f"QEMU was gone {gone_s:.1f} s after it, with the second that its guest has to shut down",
        limit=f"{LONGEST_ERROR_S} s; {LONGEST_ERROR_S} s and that one",
    )
    assert moved_s <= LONGEST_ERROR_S
    assert gone_s <= proof.within(LONGEST_ERROR_S) + 1
