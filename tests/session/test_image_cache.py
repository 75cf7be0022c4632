"""Copies of images on a host's own disk: made once, whole, and anew where something changed."""

import hashlib
import os
from pathlib import Path

import pytest

from qemuspawner.errors import ImageError
from qemuspawner.session.host.image_cache import ImageCache


class Steps:
    """What a start was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __call__(self, text: str, _percent: int) -> None:
        self.said.append(text)


@pytest.fixture
def steps() -> Steps:
    return Steps()


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    cache = ImageCache.within(str(tmp_path / "local"))
    assert cache is not None
    return cache


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """With a hole of 8 MiB."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.write(b"boot sector")
        file.seek(8 << 20)
        file.write(b"the end")
    return path


def digest_of(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_an_image_is_copied_once_with_its_holes(cache: ImageCache, image: Path, steps: Steps) -> None:
    first = cache.find(str(image), steps, digest=digest_of(image))
    second = cache.find(str(image), steps, digest=digest_of(image))

    assert first == second
    assert Path(first).parent == cache.folder
    assert Path(first).read_bytes() == image.read_bytes()
    assert Path(first).stat().st_blocks * 512 < 4 << 20
    assert len(steps.said) == 1


def test_an_image_that_was_replaced_is_copied_again(cache: ImageCache, image: Path, steps: Steps) -> None:
    first = cache.find(str(image), steps)
    image.write_bytes(b"another")

    second = cache.find(str(image), steps)

    assert first != second
    assert Path(second).read_bytes() == b"another"


def test_a_copy_that_was_cut_off_is_made_again(cache: ImageCache, image: Path, steps: Steps) -> None:
    copy = Path(cache.find(str(image), steps))
    copy.chmod(0o600)
    copy.write_bytes(b"boot")

    assert Path(cache.find(str(image), steps)).read_bytes() == image.read_bytes()


def test_what_is_not_the_image_that_machine_toml_names_is_refused(
    cache: ImageCache, image: Path, steps: Steps
) -> None:
    with pytest.raises(ImageError, match="not the one that machine"):
        cache.find(str(image), steps, digest="sha256:" + "0" * 64)

    assert list(cache.folder.glob("[!.]*")) == []
    assert list(cache.folder.glob(".*.draft")) == []


def test_the_least_recently_used_makes_room(
    cache: ImageCache, tmp_path: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [tmp_path / name for name in ("first", "second", "third")]
    for image in images:
        image.write_text(image.name)
    first, second = (Path(cache.find(str(image), steps)) for image in images[:2])
    for copy, moment in ((first, 2000), (second, 1000)):
        os.utime(copy.with_name(f".{copy.name}.lock"), (moment, moment))
    full = os.statvfs(tmp_path)
    # Until one is gone.
    monkeypatch.setattr(
        "qemuspawner.session.host.image_cache.DISK_RESERVE_MIB",
        (full.f_bavail * full.f_frsize >> 20) + 1,
    )
    monkeypatch.setattr(
        "qemuspawner.session.host.image_cache.os.statvfs",
        lambda _folder: os.statvfs_result(
            (1, 1 << 40, 0, 0, 0 if second.exists() else 1 << 30, 0, 0, 0, 0, 0)
        ),
    )

    cache.find(str(images[2]), steps)

    assert (first.exists(), second.exists()) == (True, False)


def test_without_room_the_image_is_used_where_it_lies(
    cache: ImageCache, image: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qemuspawner.session.host.image_cache.os.fsync", fail)

    assert cache.find(str(image), steps) == str(image)


def test_a_folder_that_others_may_write_to_is_not_used(tmp_path: Path) -> None:
    """They could put another image in its place."""
    (tmp_path / "local" / str(os.geteuid())).mkdir(parents=True)
    (tmp_path / "local" / str(os.geteuid())).chmod(0o777)

    assert ImageCache.within(str(tmp_path / "local")) is None
