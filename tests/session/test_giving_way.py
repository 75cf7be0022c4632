"""A real session whose storage fails, or whose directory another host takes over or wants."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from processes import find_processes
from sessions import Session, wait_for

from qemuspawner.saved import find_suspended
from qemuspawner.session.host.lease import ask_for

LEASE_S = 1


# Between its lease and its disk another host comes, and has noticed that it is late.
_LATE = """
import time
from qemuspawner.session import main
from qemuspawner.session.vm import prepare

plan_network = prepare._plan_network

def late(spec, paths):
    for lease in paths.root.glob("lease-*"):
        lease.unlink()
    time.sleep(1)
    paths.overlay(0).write_text("another host's")
    return plan_network(spec, paths)

prepare._plan_network = late
main()
"""


def lease_of(session: Session) -> Path:
    return next(session.paths.root.glob("lease-*"))


def stands_still(session: Session) -> bool:
    """Whether the kernel has stopped its QEMU."""
    return Path(f"/proc/{session.qemu_pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def fail_storage(session: Session) -> None:
    """Nothing can be written to its lease any more."""
    lease_of(session).chmod(0)


def test_a_vm_whose_storage_fails_stands_still_and_goes_on_later(start: Callable[..., Session]) -> None:
    session = start(lease_s=LEASE_S)
    session.wait_until_ready()

    fail_storage(session)
    wait_for(lambda: stands_still(session))
    lease_of(session).chmod(0o600)
    wait_for(lambda: not stands_still(session))

    assert session.probe() == 200


def test_a_session_that_was_taken_over_ends_and_leaves_everything_alone(
    start: Callable[..., Session],
) -> None:
    """Even what it would have kept: the directory is another host's."""
    session = start(lease_s=LEASE_S, suspend_on=("stop", "lifetime"))
    session.wait_until_ready()
    fail_storage(session)
    wait_for(lambda: stands_still(session))

    lease_of(session).unlink()

    assert session.process.wait(30) == 0
    assert not find_processes(session.paths)
    assert session.paths.overlay(0).exists()
    assert find_suspended(session.paths) is None


def test_a_session_that_stands_still_can_be_killed(start: Callable[..., Session]) -> None:
    session = start(lease_s=LEASE_S)
    session.wait_until_ready()
    fail_storage(session)
    wait_for(lambda: stands_still(session))

    session.process.send_signal(signal.SIGKILL)
    session.process.wait(30)

    wait_for(lambda: not find_processes(session.paths))


def test_a_session_that_is_wanted_elsewhere_falls_asleep(start: Callable[..., Session]) -> None:
    session = start(lease_s=LEASE_S, suspend_on=("stop",))
    session.wait_until_ready()

    ask_for(session.paths.root)

    assert session.process.wait(60) == 0
    saved = find_suspended(session.paths)
    assert saved is not None
    assert saved.memory == "streamed"
    assert list(session.paths.root.glob("lease-*")) == []


def test_its_disk_is_locked_by_qemu_itself(start: Callable[..., Session]) -> None:
    """Where all else fails."""
    session = start(lease_s=LEASE_S)
    session.wait_until_ready()

    done = subprocess.run(
        ["qemu-img", "check", str(session.paths.overlay(0))], capture_output=True, text=True, check=False
    )

    assert done.returncode != 0
    assert "lock" in done.stderr


def test_a_start_whose_directory_was_taken_over_meanwhile_touches_nothing_in_it(
    start: Callable[..., Session],
) -> None:
    """As where copying the image took long, and the storage was away for a while."""
    session = start(lease_s=LEASE_S, program=_LATE)

    wait_for(lambda: session.probe() == 503)

    assert session.paths.overlay(0).read_text() == "another host's"
