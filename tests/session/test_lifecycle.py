"""The process qemuspawner-session with a real QEMU: its ends, and what each leaves behind."""

import os
import signal
import subprocess
import time
from collections.abc import Callable

import guests
import vms
from processes import find_processes, find_qemu
from sessions import Session, wait_for

from qemuspawner.machine import Image, Machine, Seconds
from qemuspawner.paths import StatePaths
from qemuspawner.policy import Policy


def test_a_stopped_session_leaves_nothing(start: Callable[..., Session]) -> None:
    session = start()
    session.wait_until_ready()
    assert find_qemu(session.paths)

    session.process.send_signal(signal.SIGINT)

    assert session.process.wait(30) == 0
    assert not find_processes(session.paths)
    assert not session.paths.root.exists()


_FORGIVING = """
import contextlib, os, signal
from qemuspawner.session import main
from qemuspawner.session.life.supervisor import Supervisor

prepare = Supervisor.prepare

def forgive(self):
    with contextlib.suppress(SystemExit):
        os.kill(os.getpid(), signal.SIGTERM)
    prepare(self)

Supervisor.prepare = forgive
main()
"""


def test_a_stop_that_code_in_between_forgave_still_ends_the_session(state: StatePaths) -> None:
    """As msgspec forgives whatever is raised while it looks at a type for the first time."""
    disk = guests.make_disk(state.root / "painter")
    machine = Machine(name="Painter", image=Image(file=str(disk), format="raw"), shutdown=Seconds(1))
    session = Session(state, vms.make_spec(state.root, machine), program=_FORGIVING)
    try:
        assert session.process.wait(30) == 0
    finally:
        session.process.kill()
    assert not find_processes(session.paths)
    assert not session.paths.root.exists()


def test_a_session_is_for_its_account_alone(start: Callable[..., Session]) -> None:
    """Directory 0700; every socket and file in it closed to others as well."""
    session = start()
    session.wait_until_ready()

    modes = {path.name: path.stat().st_mode & 0o777 for path in session.paths.root.rglob("*")}

    assert session.paths.root.stat().st_mode & 0o777 == 0o700
    assert {"vnc", "qmp", "lock", "spec.json"} <= set(modes)
    assert not [name for name, mode in modes.items() if mode & 0o077]


def test_no_network_port_but_the_sessions_own_is_opened(start: Callable[..., Session]) -> None:
    """VNC, QMP and agent are unix sockets; the web side listens on the loopback address."""
    session = start()
    session.wait_until_ready()

    pids = {session.process.pid, session.qemu_pid}
    listening = subprocess.run(["ss", "-Hltnup"], capture_output=True, text=True, check=True).stdout

    own = [line.split() for line in listening.splitlines() if any(f"pid={pid}," in line for pid in pids)]
    assert [columns[4] for columns in own] == [f"127.0.0.1:{session.port}"]


def test_a_session_ends_with_its_lifetime(start: Callable[..., Session]) -> None:
    session = start(lifetime_s=4, max_lifetime_s=4)

    assert session.process.wait(60) == 0
    assert not session.paths.root.exists()


def test_a_session_whose_guest_computes_is_not_idle(state: StatePaths, start: Callable[..., Session]) -> None:
    """Nobody touches it, and only its lifetime ends it; one whose guest waits for a key ends long before."""
    spinner = guests.make_disk(state.root / "spinner", sector=guests.boot_sector(guests.SPINNER))
    disk = Image(file=str(spinner), format="raw")
    machine = Machine(name="Spinner", image=disk, shutdown=Seconds(1))
    began = time.monotonic()

    waiting = start("waiting", idle_s=8)
    spinning = start("spinning", idle_s=8, machine=machine, lifetime_s=45, max_lifetime_s=45)

    assert waiting.process.wait(60) == 0
    assert spinning.process.poll() is None
    assert spinning.process.wait(60) == 0
    assert time.monotonic() - began >= 45


def test_an_idle_session_ends(start: Callable[..., Session]) -> None:
    """Its boot is no work here, which would keep it awake for the half minute that is looked at."""
    session = start(idle_s=3, policy=Policy(busy=()))

    assert session.process.wait(60) == 0


def test_a_guest_that_switches_itself_off_ends_its_session(start: Callable[..., Session]) -> None:
    """As QEMU does for it when asked over QMP with SIGTERM: an exit nobody in here asked for."""
    session = start()
    session.wait_until_ready()

    os.kill(session.qemu_pid, signal.SIGTERM)

    assert session.process.wait(30) == 0
    assert not session.paths.root.exists()


def test_a_killed_qemu_fails_its_session_and_leaves_nothing(start: Callable[..., Session]) -> None:
    session = start()
    session.wait_until_ready()

    os.kill(session.qemu_pid, signal.SIGKILL)

    wait_for(lambda: not session.paths.root.exists(), timeout_s=10)
    session.process.send_signal(signal.SIGTERM)
    assert session.process.wait(10) == 1


def test_a_killed_supervisor_takes_qemu_with_it_and_the_next_session_sweeps(
    start: Callable[..., Session],
) -> None:
    killed = start("first")
    killed.wait_until_ready()
    killed.process.kill()
    killed.process.wait()

    wait_for(lambda: not find_processes(killed.paths), timeout_s=5)
    assert killed.paths.root.exists()
    start("second").wait_until_ready()
    wait_for(lambda: not killed.paths.root.exists(), timeout_s=5)


def test_a_session_that_the_hub_has_lost_gives_way(start: Callable[..., Session]) -> None:
    """The second start of the same server ends the first, and has a directory of its own."""
    lost = start()
    lost.wait_until_ready()

    start().wait_until_ready()

    assert lost.process.wait(1) == 0


def test_a_session_with_a_missing_image_fails_and_leaves_nothing(
    start: Callable[..., Session],
) -> None:
    machine = Machine(name="Gone", image=Image(file="/nowhere/disk", format="raw"))
    session = start(machine=machine)

    wait_for(lambda: session.probe() == 503)

    assert not session.paths.root.exists()
    session.process.send_signal(signal.SIGTERM)
    assert session.process.wait(10) == 1
