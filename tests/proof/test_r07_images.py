"""Images that are made to do harm, as entries of the catalogue: what is not refused does none."""

import contextlib
import os
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path

import pytest
import vms
from baits import Bait, laid_bait
from hostile_images import HOSTILE
from mutated_images import FORMATS, Mutants
from proofs import Proof

from qemuspawner.errors import ImageError
from qemuspawner.machine import Image, ImageFormat, Machine, Mib
from qemuspawner.machines.catalogue import load_machine
from qemuspawner.qemu.convert import measure
from qemuspawner.qemu.image import check_image, create_overlay

pytestmark = [pytest.mark.goal("R7"), pytest.mark.timeout(3600)]

REFUSED = r"The disk image 'disk' (is|cannot be) "
LONGEST_S = 10
STARTING = ("preparing", "booting")
# The painter's guest does not know the power button.
TOML = 'name = "Hostile"\nshutdown = "1 s"\n[image]\nfile = "disk"\nformat = "{image_format}"\n'


@pytest.fixture
def bait(tmp_path: Path) -> Iterator[Bait]:
    with laid_bait(tmp_path / "bait") as bait:
        yield bait


def make_entry(folder: Path, image_format: ImageFormat) -> Machine:
    """A machine of the catalogue whose image is to be written."""
    (folder / "hostile").mkdir(parents=True)
    (folder / "hostile/machine.toml").write_text(TOML.format(image_format=image_format))
    (folder / "images/hostile").mkdir(parents=True)
    return load_machine(folder / "hostile", folder / "images")


async def test_every_known_hostile_image_is_refused_by_name(proof: Proof, bait: Bait, tmp_path: Path) -> None:
    """As a session starts it; the sentence names the file and says what is wrong with it."""
    wrong, longest_s = [], 0.0
    for number, hostile in enumerate(HOSTILE):
        folder = tmp_path / str(number)
        machine = make_entry(folder, hostile.image_format)
        hostile.make(Path(machine.image.file), bait)
        bait.count_touches()
        began = time.monotonic()
        async with vms.supervised(vms.make_spec(folder, machine)) as supervisor:
            status = supervisor.status()
        longest_s = max(longest_s, time.monotonic() - began)
        touches = bait.count_touches()
        if touches or status.state != "failed" or not re.match(REFUSED, status.message):
            wrong.append(f"{hostile.name}: {status.state}, {status.message} ({touches} touches)")

    proof.note(
        done=f"{len(HOSTILE)} hostile images as the catalogue's, each started",
        found=f"{len(HOSTILE) - len(wrong)} refused by name, the longest in {longest_s:.1f} s",
        limit=f"all refused by name within {LONGEST_S} s, and no other file opened",
    )
    assert not wrong
    assert longest_s <= proof.within(LONGEST_S)


@pytest.mark.parametrize("way", ["path", "nbd"])
def test_who_opens_such_an_image_unseen_takes_the_bait(way: str, bait: Bait, tmp_path: Path) -> None:
    """Else that nobody does would say nothing."""
    (hostile,) = [one for one in HOSTILE if one.name == f"qcow2: backing file by {way}"]
    hostile.make(tmp_path / "disk", bait)

    with contextlib.suppress(subprocess.TimeoutExpired):
        # NBD's greeting never comes.
        subprocess.run(["qemu-img", "map", str(tmp_path / "disk")], capture_output=True, timeout=2)

    assert bait.count_touches()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one mutant."""

    refused: str  # the sentence; "" where a disk was made on it
    seconds: float


def try_mutant(mutants: Mutants, number: int, folder: Path, *, makes_disk: bool = True) -> Outcome:
    """Do with it what a start does before QEMU runs: look at it, and make a disk on it."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        # A disc has none of its own.
        disk = Mib(64) if mutants.image_format == "iso" else Mib(0)
        image = Image(file=f"{own}/disk", format=mutants.image_format, disk=disk)
        mutants.write(Path(image.file), number)
        began = time.monotonic()
        try:
            check_image(image)
            if makes_disk:
                create_overlay(Path(own) / "overlay", image)
        except ImageError as exc:
            return Outcome(refused=exc.message, seconds=time.monotonic() - began)
        return Outcome(refused="", seconds=time.monotonic() - began)


def test_no_mutant_of_an_image_leads_elsewhere_or_holds_anybody_up(
    proof: Proof, bait: Bait, tmp_path: Path
) -> None:
    every, disk_every = proof.rounds(short=100, full=1250), proof.rounds(short=5, full=1)
    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for image_format in FORMATS:
            mutants = Mutants(image_format, tmp_path / image_format, bait)
            bait.count_touches()
            for with_disk in (True, False):
                numbers = (n for n in range(every) if (n % disk_every == 0) is with_disk)
                work = partial(try_mutant, mutants, folder=tmp_path, makes_disk=with_disk)
                outcomes += pool.map(work, numbers)
    touches = bait.count_touches()
    refused = [outcome.refused for outcome in outcomes if outcome.refused]
    unclear = [words for words in refused if not re.match(REFUSED, words)]
    longest_s = max(outcome.seconds for outcome in outcomes)

    proof.note(
        done=f"{len(outcomes)} mutated images of {len(FORMATS)} formats looked at, "
        f"and {'a disk made on each' if disk_every == 1 else 'disks made on some'}",
        found=f"{len(refused)} refused, {len(unclear)} of them without their name; "
        f"{touches} touches of other files and ports; the longest took {longest_s:.1f} s",
        limit=f"all refused by name or harmless; no touch; {LONGEST_S} s",
    )
    assert touches == 0
    assert not unclear
    assert longest_s <= proof.within(LONGEST_S)
    # Neither all of them nor none, or they are no test.
    assert every / 2 < len(refused) < len(outcomes) * 0.9


async def test_what_is_not_refused_runs_or_ends_with_a_sentence(
    proof: Proof, bait: Bait, tmp_path: Path
) -> None:
    """As a desktop, in QEMU itself; and as the source of a conversion."""
    every = proof.rounds(short=1, full=12)
    states: Counter[str] = Counter()
    longest_s = 0.0
    for image_format in FORMATS:
        mutants = Mutants(image_format, tmp_path / image_format, bait)
        accepted = (n for n in count() if not try_mutant(mutants, n, tmp_path).refused)
        for number in islice(accepted, every):
            folder = tmp_path / f"{image_format}-{number}"
            machine = make_entry(folder, image_format)
            mutants.write(Path(machine.image.file), number)
            bait.count_touches()
            began = time.monotonic()
            with contextlib.suppress(ImageError):
                measure(machine.image, target="qcow2", folder=folder)
            async with vms.supervised(vms.make_spec(folder, machine)) as supervisor:
                status = await vms.wait_for_status(supervisor, lambda status: status.state not in STARTING)
            longest_s = max(longest_s, time.monotonic() - began)
            states[status.state] += 1
            assert status.state == "running" or status.message
    touches = bait.count_touches()

    proof.note(
        done=f"{states.total()} of those that were not refused measured for a conversion, and started",
        found=f"{states['running']} ran, {states['failed']} ended with a sentence; "
        f"{touches} touches of other files and ports; the longest took {longest_s:.1f} s",
        limit=f"no touch; {LONGEST_S} s",
    )
    assert touches == 0
    assert longest_s <= proof.within(LONGEST_S)
