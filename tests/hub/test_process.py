"""A process is known by more than its pid."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qemuspawner.hub.sessions.process import KnownProcess

Child = subprocess.Popen[bytes]


@pytest.fixture
def child() -> Iterator[Child]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_a_process_is_known_again_from_its_saved_state(child: Child) -> None:
    known = KnownProcess.find(child.pid)
    assert known is not None

    again = KnownProcess.from_state(known.state())

    assert again == known
    assert again.alive


def test_a_signal_reaches_it(child: Child) -> None:
    known = KnownProcess.find(child.pid)
    assert known is not None

    assert known.signal(signal.SIGTERM)

    assert child.wait(10) == -signal.SIGTERM


@pytest.mark.parametrize("change", [{"start_time": 1}, {"boot_id": "another"}])
def test_a_recycled_pid_is_neither_alive_nor_killed(child: Child, change: dict[str, object]) -> None:
    """Another process has the pid: of a later start, or after a reboot."""
    known = KnownProcess.find(child.pid)
    assert known is not None
    stale = replace(known, **change)

    assert not stale.alive
    assert not stale.signal(signal.SIGKILL)
    assert child.poll() is None


def test_a_zombie_is_dead(child: Child) -> None:
    known = KnownProcess.find(child.pid)
    assert known is not None
    child.kill()
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)

    assert not known.alive
    assert not known.signal(0)


def test_a_name_with_parentheses_does_not_confuse(tmp_path: Path) -> None:
    odd = tmp_path / "a) Z 1 (b"
    odd.symlink_to(sys.executable)
    with subprocess.Popen([str(odd), "-c", "input()"], stdin=subprocess.PIPE) as process:
        known = KnownProcess.find(process.pid)

        assert known is not None
        assert known.alive


@pytest.mark.parametrize("state", [{}, {"pid": 1}, {"pid": "1", "start_time": 2, "boot_id": "x"}])
def test_an_incomplete_state_is_no_process(state: dict[str, object]) -> None:
    assert KnownProcess.from_state(state) is None
