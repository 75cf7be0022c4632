"""GPUs are taken by one session at a time, on a made-up host; sessions are processes."""

import contextlib
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import vms
from fake_sysfs import FakeHost

from qemuspawner.errors import SessionError
from qemuspawner.session.host import gpus
from qemuspawner.session.host.gpus import take_gpus
from qemuspawner.spec import Gpus
from qemuspawner.vfio import Obstacle

FIRST, SECOND = "0000:65:00.0", "0000:66:00.0"
PART = "aaaaaaaa-0000-4000-8000-000000000001"
TYPE = "nvidia-222"


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    host = FakeHost(tmp_path)
    host.add(FIRST, group=1)
    host.add("0000:65:00.1", "0x040300", group=1)
    host.add(SECOND, group=2)
    return host


@pytest.fixture
def locks(tmp_path: Path) -> Path:
    return tmp_path / "gpus"


@pytest.fixture(autouse=True)
def can_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the limits of who runs the tests."""
    monkeypatch.setattr(gpus, "allow_locking", lambda _memory_mib: None)


def take(
    host: FakeHost,
    locks: Path,
    stack: contextlib.ExitStack,
    *,
    count: int = 1,
    devices: Any = (FIRST, SECOND),
) -> list[str]:
    machine = vms.make_machine(image={"file": "/nowhere", "format": "raw"})
    spec = vms.make_spec(host.dev, machine, gpus=Gpus(count=count, model="A100"), gpu_devices=tuple(devices))
    return [passed.name for passed in take_gpus(spec, locks, stack, sysfs=host.sysfs, dev=host.dev)]


@contextlib.contextmanager
def another_session(host: FakeHost, locks: Path, **keys: Any) -> Iterator[int]:
    """A process that has taken its GPUs; killed at the end."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        with contextlib.ExitStack() as stack:
            os.write(write, ",".join(take(host, locks, stack, **keys)).encode())
            signal.pause()
        os._exit(0)
    os.close(write)
    try:
        assert os.read(read, 100)
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)


def test_the_first_that_may_be_taken_is(host: FakeHost, locks: Path) -> None:
    with contextlib.ExitStack() as stack:
        assert take(host, locks, stack) == [FIRST]


def test_what_another_session_has_is_passed_over(host: FakeHost, locks: Path) -> None:
    with another_session(host, locks), contextlib.ExitStack() as stack:
        assert take(host, locks, stack) == [SECOND]


def test_a_session_that_was_killed_has_nothing_any_more(host: FakeHost, locks: Path) -> None:
    with another_session(host, locks):
        pass

    with contextlib.ExitStack() as stack:
        assert take(host, locks, stack) == [FIRST]


def test_what_was_taken_is_given_back_at_the_end(host: FakeHost, locks: Path) -> None:
    with contextlib.ExitStack() as stack:
        assert take(host, locks, stack, count=2) == [FIRST, SECOND]

    with another_session(host, locks, count=2):
        pass


def test_more_than_are_free_are_refused_and_nothing_is_held(host: FakeHost, locks: Path) -> None:
    with another_session(host, locks), contextlib.ExitStack() as stack:
        with pytest.raises(SessionError, match=r"promised a GPU \(A100:2\), and this host has none free"):
            take(host, locks, stack, count=2)

        # The one that it could have had.
        with another_session(host, locks, devices=[SECOND]):
            pass


def test_what_is_not_bound_any_more_is_passed_over(host: FakeHost, locks: Path) -> None:
    """The hub looked some seconds ago."""
    driver = host.sysfs / "bus/pci/devices/0000:65:00.1/driver"
    driver.unlink()
    driver.symlink_to("../../../bus/pci/drivers/snd_hda_intel")

    with contextlib.ExitStack() as stack:
        assert take(host, locks, stack) == [SECOND]


def test_a_gpu_that_has_vanished_is_passed_over(host: FakeHost, locks: Path) -> None:
    (host.sysfs / "bus/pci/devices" / FIRST).unlink()

    with contextlib.ExitStack() as stack:
        assert take(host, locks, stack) == [SECOND]


def test_a_node_that_cannot_be_opened_is_passed_over(host: FakeHost, locks: Path) -> None:
    """A folder is in its place: nobody, root neither, opens one for writing."""
    (host.dev / "vfio/1").unlink()
    (host.dev / "vfio/1").mkdir()

    with contextlib.ExitStack() as stack:
        assert take(host, locks, stack) == [SECOND]


def test_a_link_in_place_of_a_lock_is_not_followed(host: FakeHost, locks: Path, tmp_path: Path) -> None:
    locks.mkdir()
    (locks / FIRST).symlink_to(tmp_path / "elsewhere")

    with contextlib.ExitStack() as stack:
        assert take(host, locks, stack) == [SECOND]

    assert not (tmp_path / "elsewhere").exists()


def test_a_session_without_a_promise_takes_none(host: FakeHost, locks: Path) -> None:
    machine = vms.make_machine(image={"file": "/nowhere", "format": "raw"})

    with contextlib.ExitStack() as stack:
        assert take_gpus(vms.make_spec(host.dev, machine), locks, stack) == ()

    assert not locks.exists()


def test_memory_that_cannot_be_locked_is_told(
    host: FakeHost, locks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before QEMU fails with a number."""
    monkeypatch.setattr(gpus, "allow_locking", lambda _memory_mib: Obstacle(text="Too much.", hint="Less."))

    with (
        contextlib.ExitStack() as stack,
        pytest.raises(SessionError, match="does not let a desktop with a GPU keep its memory in place"),
    ):
        take(host, locks, stack)


@pytest.fixture
def part(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The type's folder of a GPU that can be divided; the next device of it is there before it is made."""
    monkeypatch.setattr(uuid, "uuid4", lambda: PART)
    folder = host.add_type("0000:70:00.0", TYPE, name="GRID T4-1Q", free=2)
    host.add_mediated(PART, group=9)
    return folder


def test_a_part_of_a_gpu_is_made_and_removed_at_the_end(host: FakeHost, locks: Path, part: Path) -> None:
    removal = host.sysfs / "bus/mdev/devices" / PART / "remove"

    with contextlib.ExitStack() as stack:
        assert take(host, locks, stack, devices=[f"0000:70:00.0/{TYPE}"]) == [PART]
        assert ((part / "create").read_text(), removal.read_text()) == (PART, "")

    assert removal.read_text() == "1"
    assert list(locks.iterdir()) == []


def test_a_part_that_a_killed_session_left_is_removed(host: FakeHost, locks: Path, part: Path) -> None:
    with another_session(host, locks, devices=[f"0000:70:00.0/{TYPE}"]):
        pass
    removal = host.sysfs / "bus/mdev/devices" / PART / "remove"
    assert removal.read_text() == ""

    with contextlib.ExitStack() as stack:
        take(host, locks, stack)

    assert removal.read_text() == "1"


def test_a_part_of_a_session_that_lives_stays(host: FakeHost, locks: Path, part: Path) -> None:
    with another_session(host, locks, devices=[f"0000:70:00.0/{TYPE}"]), contextlib.ExitStack() as stack:
        take(host, locks, stack)

        assert (host.sysfs / "bus/mdev/devices" / PART / "remove").read_text() == ""


def test_a_type_of_which_no_more_can_be_made_is_passed_over(host: FakeHost, locks: Path, part: Path) -> None:
    (part / "create").unlink()
    part.chmod(0o500)
    (part / "create").mkdir()

    with contextlib.ExitStack() as stack:
        assert take(host, locks, stack, devices=[f"0000:70:00.0/{TYPE}", SECOND]) == [SECOND]
