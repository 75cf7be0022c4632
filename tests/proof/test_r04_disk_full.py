"""Desktops whose disk takes no more, for the host or for their own limit: nothing of theirs is lost."""

import asyncio
import contextlib
import itertools
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random

import guests
import pytest
import vms
from msgspec import structs
from proofs import Proof

from qemuspawner.session.life.supervisor import Supervisor
from qemuspawner.session.vm import prepare
from qemuspawner.spec import SessionSpec, SessionStatus, TroubleKind

pytestmark = [pytest.mark.goal("R4"), pytest.mark.timeout(3600)]

DISK_MIB = 16
# What the guest writes, and how: see guests.NUMBERER.
FIRST, SECTORS = 2048, DISK_MIB * 2048
PATTERN = b"".join(struct.pack("<I", sector) * 128 for sector in range(FIRST, SECTORS))
AT_ONCE = 4


def make_spec(folder: Path, disk_limit_mib: int = 0) -> SessionSpec:
    folder.mkdir()
    disk = guests.make_disk(folder / "disk", sector=guests.boot_sector(guests.NUMBERER))
    image = {"file": str(disk), "format": "raw", "disk": f"{DISK_MIB} MiB"}
    machine = vms.make_machine(image=image, shutdown="1 s")
    return vms.make_spec(folder, machine, disk_limit_mib=disk_limit_mib, max_disk_limit_mib=2 * DISK_MIB)


async def wait_until_paused(supervisor: Supervisor, kind: TroubleKind, *, more_than: int = -1) -> int:
    """Wait for the trouble, and for the VM to stand still; how much it has written, more than `more_than`."""
    qemu = supervisor.running_guest().qemu
    async with asyncio.timeout(60):
        while True:
            await vms.wait_for_status(supervisor, lambda status: is_paused(status, kind))
            if await qemu.run_state() == "io-error" and (count := await written(supervisor)) > more_than:
                return count
            await asyncio.sleep(0.05)


def is_paused(status: SessionStatus, kind: TroubleKind) -> bool:
    """Whether people read that it is, and that nothing is lost."""
    trouble = status.trouble
    return trouble is not None and trouble.kind == kind and "paused, and nothing is lost" in status.message


async def written(supervisor: Supervisor) -> int:
    """Bytes that the guest has written so far."""
    disks = await supervisor.running_guest().qemu.execute("query-blockstats")
    assert isinstance(disks, list)
    return sum(disk["stats"]["wr_bytes"] for disk in disks)


async def is_all_there(supervisor: Supervisor, folder: Path) -> bool:
    """Let the guest write to its disk's end, and compare what is on it with the pattern."""
    async with asyncio.timeout(120):
        while await written(supervisor) < len(PATTERN):
            await asyncio.sleep(0.05)
    await vms.wait_for_status(supervisor, lambda status: status.trouble is None)
    guest = supervisor.running_guest()
    await guest.qemu.execute("stop")
    (disk,) = guest.disks
    whole = folder / "whole.raw"
    command = ["qemu-img", "convert", "-U", "-O", "raw", str(disk), str(whole)]
    await asyncio.to_thread(subprocess.run, command, check=True)
    return whole.read_bytes()[FIRST * 512 :] == PATTERN


async def fill_its_limit(folder: Path, random: Random) -> bool:
    """A desktop that may write less than its disk is large, and is allowed more each time that it asks."""
    limit_mib = random.randint(3, 12)
    async with vms.supervised(make_spec(folder, limit_mib)) as supervisor:
        await vms.wait_for_status(supervisor, lambda status: status.state == "running")
        so_far = -1
        # By its tables its file is a little larger than what the guest writes, all but the first MiB.
        for _ in range((DISK_MIB - 1) // limit_mib):
            so_far = await wait_until_paused(supervisor, "disk-limit", more_than=so_far)
            await supervisor.act("extend", by="alice")
        return await is_all_there(supervisor, folder)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A folder on a file system of 64 MiB."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=755", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


async def fill_the_host(folder: Path, random: Random) -> bool:
    """A desktop on a disk of the host on which others leave too little room, until they make some."""
    spec = make_spec(folder)
    with small_disk(folder / "small") as state:
        filler = state / "filler"
        filler.write_bytes(bytes((64 - random.randint(3, 15)) << 20))
        async with vms.supervised(structs.replace(spec, state_dir=str(state))) as supervisor:
            await vms.wait_for_status(supervisor, lambda status: status.state == "running")
            so_far = await wait_until_paused(supervisor, "disk-full")
            await supervisor.act("retry", by="alice")
            assert await wait_until_paused(supervisor, "disk-full") == so_far
            filler.unlink()
            await supervisor.act("retry", by="alice")
            return await is_all_there(supervisor, folder)


@pytest.mark.parametrize(
    ("fill", "what"),
    [(fill_its_limit, "their own limits"), (fill_the_host, "their host's disk")],
    ids=["limit", "host"],
)
async def test_what_a_desktop_wrote_to_a_full_disk_is_all_there(
    fill, what: str, proof: Proof, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    # That such a host starts nothing is another test.
    monkeypatch.setattr(prepare, "check_disk", lambda _folder: None)
    rounds = proof.rounds(short=1, full=50)
    places = asyncio.Semaphore(AT_ONCE)
    numbers = itertools.count()

    async def run() -> bool:
        number = next(numbers)
        async with places:
            return await fill(state_dir / str(number), Random(number))

    whole = await asyncio.gather(*(run() for _ in range(rounds)))

    proof.note(
        done=f"{rounds} desktops of which each fills {what}, and its disk when there is room",
        found=f"{sum(whole)} were paused, said so, and had every sector of their {DISK_MIB} MiB right",
        limit="all of them",
    )
    assert all(whole)
