"""Who has a session's directory that several hosts see: who is late with its lease stands still."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qemuspawner.errors import SessionError
from qemuspawner.paths import SessionPaths, StatePaths
from qemuspawner.session.host import lease as leases
from qemuspawner.session.host.directory import claim, sweep
from qemuspawner.session.host.holding import Holding
from qemuspawner.session.host.lease import Lease, LeaseLostError, find_host, take_over

ID = "0123456789abcdef0123"


@pytest.fixture
def state(tmp_path: Path) -> StatePaths:
    paths = StatePaths(root=tmp_path)
    paths.sessions.mkdir(parents=True)
    return paths


@pytest.fixture
def paths(state: StatePaths) -> SessionPaths:
    """A session's directory with what a run leaves in it."""
    paths = state.session(ID)
    paths.vm.mkdir(parents=True)
    paths.root.chmod(0o700)
    paths.overlay(0).touch()
    return paths


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Call ourselves a host of this name from now on."""

    def become(name: str) -> None:
        monkeypatch.setattr(leases.platform, "node", lambda: name)

    become("n1")
    return become


def taken(paths: SessionPaths, lease_s: float) -> Lease:
    lease = Lease(paths.root, lease_s=lease_s)
    lease.take()
    return lease


class Vm:
    """What a holding stops and lets go on."""

    def __init__(self, holding: Holding) -> None:
        self.frozen = threading.Event()
        self.holds: list[str] = []
        holding.heed(
            freeze=self.frozen.set, thaw=self.frozen.clear, tell=lambda: self.holds.append(holding.hold)
        )


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_what_is_written_to_in_time_is_not_taken_over(
    paths: SessionPaths, on_host: Callable[[str], None]
) -> None:
    with Holding(taken(paths, lease_s=1.2)):
        on_host("n2")

        with pytest.raises(SessionError, match="still runs on the node n1"):
            take_over(paths.root, patience_s=4)


def test_its_holder_is_asked_to_end(paths: SessionPaths, on_host: Callable[[str], None]) -> None:
    lease = taken(paths, lease_s=0.6)
    with Holding(lease) as holding:
        on_host("n2")
        waiting = threading.Thread(target=take_over, args=(paths.root,), kwargs={"patience_s": 30})
        waiting.start()
        wait_for(lambda: holding.is_wanted)
    lease.release()

    waiting.join(5)
    assert not waiting.is_alive()


def test_a_vm_stands_still_before_another_host_may_have_its_disk(
    paths: SessionPaths, on_host: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage hangs, as where a node is cut off from it."""
    hangs, hung = threading.Event(), threading.Event()
    write = Lease._write

    def slow(self: Lease, flags: int) -> None:
        if hangs.is_set():
            hung.wait()
        write(self, flags)

    lease = taken(paths, lease_s=1)
    monkeypatch.setattr(Lease, "_write", slow)
    with Holding(lease) as holding:
        vm = Vm(holding)
        hangs.set()
        on_host("n2")
        take_over(paths.root, patience_s=30)
        was_frozen = vm.frozen.is_set()
        hangs.clear()
        hung.set()
        wait_for(lambda: holding.hold == "lost")

    assert was_frozen
    assert vm.frozen.is_set()
    assert vm.holds[-2:] == ["lapsed", "lost"]
    assert lease.release() is False


def test_a_vm_whose_storage_comes_back_goes_on(
    paths: SessionPaths, on_host: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    lease = taken(paths, lease_s=0.6)
    with Holding(lease) as holding:
        vm = Vm(holding)

        def fail(_descriptor: int) -> None:
            raise OSError("as a server that is restarted")

        monkeypatch.setattr(os, "fsync", fail)
        wait_for(vm.frozen.is_set)
        monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
        wait_for(lambda: not vm.frozen.is_set())

        assert holding.hold == "held"
    assert vm.holds[-2:] == ["lapsed", "held"]
    assert lease.release() is True


def test_a_holder_that_was_late_cannot_be_taken_for_gone(
    paths: SessionPaths, on_host: Callable[[str], None]
) -> None:
    """It goes on in the same instant in which another believes it gone: one of them comes first."""
    lease = taken(paths, lease_s=0.1)
    before = {path.name for path in paths.root.glob("lease-*")}
    lease.resume()
    after = {path.name for path in paths.root.glob("lease-*")}

    on_host("n2")
    take_over(paths.root, patience_s=10)

    assert len(before) == len(after) == 1
    assert before != after
    with pytest.raises(LeaseLostError):
        lease.resume()


def test_a_start_elsewhere_leaves_nothing_for_its_former_holder_to_delete(
    state: StatePaths, on_host: Callable[[str], None]
) -> None:
    """The lock is lost with the host that is cut off; here another file takes its place."""
    former = Lease(state.session(ID).root, lease_s=0.1)
    with claim(state, ID, lease=former) as paths:
        paths.lock.unlink()
        on_host("n2")
        with claim(state, ID, lease=Lease(paths.root, lease_s=5)):
            paths.overlay(0).write_text("of the second")
            # The first one's end.
            assert former.release() is False
            assert paths.overlay(0).read_text() == "of the second"


def test_a_host_of_the_same_name_is_another_one(paths: SessionPaths, on_host: Callable[[str], None]) -> None:
    taken(paths, lease_s=1)
    assert find_host(paths.root) == ""

    (found,) = paths.root.glob("lease-*")
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    found.write_text(found.read_text().replace(boot, "another"))

    assert find_host(paths.root) == "n1"


def test_who_is_on_another_host_gets_no_signal(
    state: StatePaths, on_host: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of the same number here is anybody's."""
    monkeypatch.setattr("qemuspawner.session.host.directory._TERMINATE_S", 1)
    monkeypatch.setattr("qemuspawner.session.host.directory._KILL_S", 1)
    script = (
        "import sys; from pathlib import Path; from qemuspawner.paths import StatePaths;"
        "from qemuspawner.session.host.directory import claim;"
        "from qemuspawner.session.host.lease import Lease;"
        "import platform; platform.node = lambda: 'n2';"
        f"state = StatePaths(root=Path({str(state.root)!r}));"
        f"c = claim(state, {ID!r}, lease=Lease(state.session({ID!r}).root, lease_s=60)); c.__enter__();"
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"

        with pytest.raises(SessionError, match="still runs on the node n2"), claim(state, ID):
            pass

        assert holder.poll() is None
        holder.kill()


@pytest.fixture
def swept(
    paths: SessionPaths, state: StatePaths, on_host: Callable[[str], None]
) -> Iterator[Callable[[], int]]:
    taken(paths, lease_s=1)
    on_host("n2")
    yield lambda: sweep(state, own_id="other")


def test_what_another_host_had_a_moment_ago_is_not_swept(
    swept: Callable[[], int], paths: SessionPaths
) -> None:
    assert swept() == 0
    assert paths.overlay(0).exists()


def test_what_another_host_has_not_touched_for_hours_is_swept(
    swept: Callable[[], int], paths: SessionPaths
) -> None:
    (found,) = paths.root.glob("lease-*")
    os.utime(found, (time.time() - 7200,) * 2)

    assert swept() == 1
    assert not paths.root.exists()
