"""What an image holds is noted beside it, and counts as long as nobody has written to it."""

import os
import shutil
from pathlib import Path

import guests
import pytest
import vms

from qemuspawner.errors import ImageError
from qemuspawner.machine import Image
from qemuspawner.paths import DIGESTS
from qemuspawner.qemu.digests import check_digest, find_digest, note_digest
from qemuspawner.qemu.saving import image_identity, is_image


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    return guests.make_disk(tmp_path / "here" / "disk")


def image_of(disk: Path) -> Image:
    return vms.make_machine(image={"file": str(disk), "format": "raw"}).image


def write(disk: Path, *, keep_time: bool) -> None:
    status = disk.stat()
    disk.chmod(0o644)
    with disk.open("r+b") as file:
        file.seek(1000)
        file.write(b"another")
    if keep_time:
        os.utime(disk, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_what_was_read_is_known_until_somebody_writes(disk: Path) -> None:
    assert find_digest(disk) == ""

    found = check_digest(disk)

    assert find_digest(disk) == found
    assert found.startswith("sha256:")
    write(disk, keep_time=False)
    assert find_digest(disk) == ""


def test_an_image_on_another_host_is_the_same_once_it_was_read(disk: Path, tmp_path: Path) -> None:
    """What was saved on one host fits on another; a copy with an error in it does not."""
    check_digest(disk)
    identity = image_identity(image_of(disk))
    there, broken = tmp_path / "there", tmp_path / "broken"
    for folder in (there, broken):
        shutil.copytree(disk.parent, folder)
    write(broken / "disk", keep_time=True)

    assert not is_image(image_of(there / "disk"), identity)

    for folder in (there, broken):
        check_digest(folder / "disk")
    assert is_image(image_of(there / "disk"), identity)
    assert not is_image(image_of(broken / "disk"), identity)


def test_what_was_saved_before_the_image_was_read_still_fits(disk: Path) -> None:
    before = image_identity(image_of(disk))

    check_digest(disk)

    assert image_identity(image_of(disk)) != before
    assert is_image(image_of(disk), before)


def test_a_change_that_hides_its_date_is_found(disk: Path) -> None:
    before = check_digest(disk)
    write(disk, keep_time=True)

    with pytest.raises(ImageError, match=f"disk has changed: it had the digest {before}"):
        check_digest(disk)

    # Also the next time.
    assert find_digest(disk) == before


@pytest.mark.parametrize("content", [b"", b"[]", b'{"disk": 3}', b"\xff" * 100, b"[" * 100_000])
def test_a_record_that_cannot_be_read_counts_as_none(content: bytes, disk: Path) -> None:
    disk.with_name(DIGESTS).write_bytes(content)

    assert find_digest(disk) == ""
    assert find_digest(disk) != check_digest(disk)


def test_a_pipe_in_the_records_place_stops_nobody(disk: Path) -> None:
    os.mkfifo(disk.with_name(DIGESTS))

    assert find_digest(disk) == ""

    note_digest(disk, "sha256:00")
    assert find_digest(disk) == "sha256:00"
