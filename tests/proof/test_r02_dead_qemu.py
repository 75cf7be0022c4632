"""R2: a QEMU that is killed while its guest writes: page and hub are told soon, and the disk stays sound."""

import asyncio
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import guests
import hubs
import pytest
from processes import find_processes, find_qemu
from proofs import Proof
from rfb_client import RfbClient

from qemuspawner.paths import SavedPaths, SessionPaths, StatePaths, session_id
from qemuspawner.saved import find_suspended

TOLD_S = 2
POLLED_S = 5
LONGEST_LIFE_S = 1.5


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one kill, in seconds after it."""

    told_s: float  # the viewer's connection was closed, and the status says why
    polled_s: float
    left: str  # "" where nothing is but what is to be kept
    check: (
        str | None
    )  # what qemu-img says against the disk that was kept, "" for nothing; None: not to be kept


@pytest.fixture
def writer(machines_dir: Path, state_dir: Path) -> None:
    """A machine whose guest fills its disk."""
    hubs.add_machine(machines_dir, state_dir, "writer")
    text = machines_dir / "writer" / "machine.toml"
    text.write_text(text.read_text().replace('format = "raw"', 'format = "raw"\ndisk = "64 MiB"'))
    disk = state_dir / "images" / "writer" / "disk.raw"
    disk.unlink()
    guests.make_disk(disk, sector=guests.boot_sector(guests.WRITER))


def keeps(name: str) -> bool:
    """Whether the desktop of this name is one that is kept at its end: three of four are."""
    return int(name.removeprefix("desk")) % 4 != 3


def choose(spawner: Any) -> None:
    spawner.suspend_on = ["stop"] * keeps(spawner.name)


async def kill_one(hub: hubs.Hub, alice: hubs.Person, name: str, *, after_s: float) -> Outcome:
    paths = StatePaths(root=hub.state_dir).session(session_id("alice", name))
    await hub.start(alice, {"machine": "writer"}, server_name=name)
    desktop = await hub.wait_until_ready("alice", server_name=name)
    await asyncio.sleep(after_s)
    qemu = find_qemu(paths)
    assert qemu is not None
    async with RfbClient(alice, desktop) as viewer:
        killed = time.monotonic()
        os.kill(qemu, signal.SIGKILL)
        code, _ = await viewer.wait_for_close()
    # Whichever is noticed first: the process's end or the display's.
    assert code in (4001, 4503)
    while "ended unexpectedly" not in (await alice.request("GET", desktop / "api/status")).text:
        await asyncio.sleep(0.02)
    told_s = time.monotonic() - killed
    while await hub.spawner("alice", name).poll() is None:
        await asyncio.sleep(0.05)
    polled_s = time.monotonic() - killed
    outcome = Outcome(
        told_s=told_s,
        polled_s=polled_s,
        left=find_left(paths, {"lock", "saved"} if keeps(name) else set()),
        check=await asyncio.to_thread(check_kept, paths) if keeps(name) else None,
    )
    await hub.stop(alice, server_name=name)
    await hub.wait_until_stopped("alice", server_name=name)
    # Of hundreds of them.
    shutil.rmtree(paths.root, ignore_errors=True)
    return outcome


def find_left(paths: SessionPaths, expected: set[str]) -> str:
    left = [str(pid) for pid in find_processes(paths)]
    if paths.root.exists():
        left += sorted({entry.name for entry in paths.root.iterdir()} - expected)
    return " ".join(left)


def check_kept(paths: SessionPaths) -> str:
    saved = find_suspended(paths)
    if saved is None:
        return "no disk was kept"
    disk = SavedPaths(root=paths.saved / saved.name).layer(0)
    done = subprocess.run(["qemu-img", "check", "-f", "qcow2", str(disk)], capture_output=True, text=True)
    return "" if done.returncode == 0 else f"code {done.returncode}: {done.stdout} {done.stderr}"


@pytest.mark.goal("R2")
@pytest.mark.timeout(1800)
async def test_a_killed_qemu_is_told_and_its_disk_stays_sound(
    proof: Proof, writer: None, start_hub: Callable[..., Awaitable[hubs.Hub]]
) -> None:
    hub = await start_hub(pre_spawn_hook=choose)
    alice = await hub.with_token("alice")
    # Of which three quarters are kept and checked.
    count = proof.rounds(short=4, full=268)
    chances = random.Random(2)
    lives = [chances.uniform(0, LONGEST_LIFE_S) for _ in range(count)]
    numbers = iter(range(count))
    outcomes: list[Outcome] = []

    async def work() -> None:
        for number in numbers:
            outcome = await kill_one(hub, alice, f"desk{number}", after_s=lives[number])
            outcomes.append(outcome)

    async with asyncio.TaskGroup() as workers:
        for _ in range(proof.rounds(short=1, full=4)):
            workers.create_task(work())

    told_s = max(outcome.told_s for outcome in outcomes)
    polled_s = max(outcome.polled_s for outcome in outcomes)
    left = [outcome.left for outcome in outcomes if outcome.left]
    checks = [outcome.check for outcome in outcomes if outcome.check is not None]
    unsound = [check for check in checks if check]
    proof.note(
        done=f"{len(outcomes)} QEMUs killed while their guests write; {len(checks)} disks were to be kept",
        found=f"page and status said so within {told_s:.2f} s, the hub's poll within {polled_s:.2f} s;"
        f" {len(left)} left something behind; {len(checks) - len(unsound)} of {len(checks)} disks pass"
        " qemu-img check",
        limit=f"page {TOLD_S} s, poll {POLLED_S} s, nothing left, all disks pass",
    )
    assert unsound == []
    assert left == []
    assert told_s <= proof.within(TOLD_S)
    assert polled_s <= proof.within(POLLED_S)
