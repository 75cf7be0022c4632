"""R8: a guest or a QEMU that hangs, in whatever way: that is said soon, and a stop ends it."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import guests
import pytest
import vms
from attacks import FORK_BOMB, attack, check_promise, running_demo
from fake_qemu import FakeQemu
from processes import find_processes
from proofs import Proof

from qemuspawner.paths import StatePaths
from qemuspawner.qemu.counters import read_counters
from qemuspawner.qemu.process import QemuProcess
from qemuspawner.saved import find_suspended
from qemuspawner.session.life.life import Ending
from qemuspawner.session.life.supervisor import Supervisor
from qemuspawner.spec import SessionStatus
from qemuspawner.texts import Text

TOLD_S = 15
STOPPED_S = 40
AT_ONCE = 5  # of each way


@dataclass(frozen=True, kw_only=True)
class Hang:
    """A way to hang; `kind` is the trouble that is to be told of, "" where QEMU and guest still answer."""

    name: str
    kind: str = ""
    guest: bytes | None = None  # a real QEMU's; None: the fake one
    orders: Mapping[str, str] = field(default_factory=dict)
    is_stopped: bool = False  # by SIGSTOP
    has_agent: bool = False
    share: int = 1  # of the rounds, one in so many


NO_QUIT = {"quit": "ignore", "SIGTERM": "ignore"}
HANGS = (
    Hang(name="QEMU stands still", kind="silent", is_stopped=True),
    Hang(name="real QEMU stands still", kind="silent", guest=guests.SPINNER, is_stopped=True, share=4),
    Hang(name="QMP falls silent", kind="silent", orders={"query-status": "silent", **NO_QUIT}),
    Hang(name="QMP says half", kind="silent", orders={"query-status": "half", **NO_QUIT}),
    Hang(name="the guest panics", kind="crashed", orders={"now": "panic"}),
    Hang(name="a real guest panics", kind="crashed", guest=guests.PANICKER, share=4),
    Hang(name="the guest panics, no quit", kind="crashed", orders={"now": "panic", **NO_QUIT}),
    Hang(name="the guest hangs", kind="silent", has_agent=True, orders={"agent": "silent"}),
    Hang(name="a real guest computes for ever", guest=guests.SPINNER, share=4),
    Hang(name="QEMU does not quit", orders=NO_QUIT),
    Hang(name="QEMU floods with events", orders={"now": "flood", **NO_QUIT}, share=4),
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one, in seconds."""

    hang: Hang
    told_s: float | None  # None: nothing was to be told
    stopped_s: float
    left: str  # what it left behind; "" where nothing


class Sufferer:
    """A session that is to hang."""

    def __init__(self, folder: Path, fake: FakeQemu, hang: Hang, *, sleeps: bool) -> None:
        self._fake, self._hang = fake, hang
        # Its own: the locks of another session are none for the sweep of one in the same process.
        (folder / "sessions").mkdir(parents=True)
        sector = guests.BOOT_SECTOR if hang.guest is None else guests.boot_sector(hang.guest)
        disk = guests.make_disk(folder / "disk", sector=sector)
        machine = vms.make_machine(image={"file": str(disk), "format": "raw"}, agent=hang.has_agent)
        spec = vms.make_spec(folder, machine, server_name=folder.name, suspend_on=("stop",) * sleeps)
        self._paths = StatePaths.of(spec.state_dir).session(spec.session_id)
        self._supervisor = Supervisor(spec)
        with pytest.MonkeyPatch.context() as patch:
            if hang.guest is None:
                patch.setenv("PATH", fake.path)
            self._supervisor.prepare()
        self._running = asyncio.create_task(self._supervisor.run())

    async def boot(self) -> None:
        await vms.wait_for_status(self._supervisor, lambda status: status.state == "running", timeout_s=240)
        if self._hang.has_agent:
            # Of one that has never answered nobody expects it.
            async with asyncio.timeout(60):
                while ["agent", "guest-ping"] not in self._fake.notes(self._paths):
                    await asyncio.sleep(0.2)

    async def suffer(self) -> Outcome:
        """Hang, wait until that is told, and be stopped."""
        hang = self._hang
        began = time.monotonic()
        if hang.is_stopped:
            os.kill(self._supervisor.running_guest().qemu.pid, signal.SIGSTOP)
        if hang.orders:
            self._fake.order(self._paths, **hang.orders)
        told_s = None
        if hang.kind:
            with contextlib.suppress(TimeoutError):
                await vms.wait_for_status(self._supervisor, self._is_told, timeout_s=3 * TOLD_S)
            told_s = time.monotonic() - began
        began = time.monotonic()
        await self.stop()
        return Outcome(hang=hang, told_s=told_s, stopped_s=time.monotonic() - began, left=self._find_left())

    def _is_told(self, status: SessionStatus) -> bool:
        return status.trouble is not None and status.trouble.kind == self._hang.kind

    async def stop(self) -> None:
        self._supervisor.end(Ending(reason=Text("The desktop was stopped."), cause="stop"))
        await self._running

    def _find_left(self) -> str:
        left = [str(pid) for pid in find_processes(self._paths)]
        root = self._paths.root
        if root.exists() and (self._paths.vm.exists() or find_suspended(self._paths) is None):
            left += sorted(entry.name for entry in root.iterdir())
        return " ".join(left)


async def suffer_all(sufferers: Sequence[Sufferer]) -> list[Outcome]:
    try:
        await asyncio.gather(*(sufferer.boot() for sufferer in sufferers))
        return await asyncio.gather(*(sufferer.suffer() for sufferer in sufferers))
    finally:
        await asyncio.gather(*(sufferer.stop() for sufferer in sufferers))


@pytest.mark.goal("R8")
@pytest.mark.timeout(1800)
async def test_what_hangs_is_told_and_ends_when_it_is_stopped(proof: Proof, tmp_path: Path) -> None:
    rounds = proof.rounds(short=1, full=20)
    fake = FakeQemu(tmp_path / "fake")
    outcomes: list[Outcome] = []
    # Each is started before the first of them hangs: their starts hold this process up.
    for first in range(0, rounds, AT_ONCE):
        sufferers = [
            Sufferer(tmp_path / f"{number}-{place}", fake, hang, sleeps=bool((number + place) % 2))
            for number in range(first, min(first + AT_ONCE, rounds))
            for place, hang in enumerate(HANGS)
            if (number + 1) % hang.share == 0
        ]
        outcomes += await suffer_all(sufferers)

    told = {
        hang.name: max(outcome.told_s or 0 for outcome in outcomes if outcome.hang is hang)
        for hang in HANGS
        if hang.kind and any(outcome.hang is hang for outcome in outcomes)
    }
    stopped = max(outcome.stopped_s for outcome in outcomes)
    left = [f"{outcome.hang.name}: {outcome.left}" for outcome in outcomes if outcome.left]
    proof.note(
        done=f"{len(outcomes)} sessions hang in {len({outcome.hang.name for outcome in outcomes})} ways,"
        " every other one to fall asleep at its stop",
        found=f"told after at most {', '.join(f'{took:.1f} s ({name})' for name, took in told.items())};"
        f" stopped within {stopped:.1f} s; {len(left)} left something behind",
        limit=f"told within {TOLD_S} s, stopped within {STOPPED_S} s, nothing left",
    )
    assert {name: took for name, took in told.items() if took > proof.within(TOLD_S)} == {}
    assert stopped <= proof.within(STOPPED_S)
    assert left == []


@pytest.mark.goal("R8")
@pytest.mark.timeout(1800)
async def test_a_fork_bomb_ends_when_its_desktop_is_stopped(proof: Proof, warm_state: Path) -> None:
    """By root of the demo machine; meanwhile it is no more than its promise to the host."""
    stops = [await bomb(warm_state, f"bomb{number}") for number in range(proof.rounds(short=1, full=20))]

    proof.note(
        done=f"{len(stops)} fork bombs in the demo machine",
        found=f"stopped within {max(stops):.1f} s, and nothing left",
        limit=f"stopped within {STOPPED_S} s, nothing left",
    )
    assert max(stops) <= proof.within(STOPPED_S)


async def bomb(warm_state: Path, name: str) -> float:
    """How long the stop takes, seconds."""
    async with running_demo(warm_state, name) as supervisor:
        qemu = supervisor.running_guest().qemu
        await attack(supervisor, FORK_BOMB)
        await wait_until_busy(qemu)
        check_promise(qemu.pid)
        began = time.monotonic()
        supervisor.end(Ending(reason=Text("The desktop was stopped."), cause="stop"))
        await vms.wait_for_status(supervisor, lambda status: status.state in ("ended", "failed"))
        took_s = time.monotonic() - began
        assert not find_processes(StatePaths(root=warm_state).session(supervisor.spec.session_id))
    return took_s


async def wait_until_busy(qemu: QemuProcess) -> None:
    """Until the guest has computed for 5 s more."""
    begin = (await read_counters(qemu)).cpu_s
    while (await read_counters(qemu)).cpu_s < begin + 5:
        await asyncio.sleep(0.2)
