"""The directory of a session: who owns it, who sweeps it, and what a hostile guest could leave in it."""

import os
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qemuspawner.locks import find_holder
from qemuspawner.paths import StatePaths
from qemuspawner.qemu.process import kill_orphan
from qemuspawner.session.host.directory import claim, sweep

ID = "0123456789abcdef0123"


@pytest.fixture
def state(tmp_path: Path) -> StatePaths:
    paths = StatePaths(root=tmp_path)
    paths.sessions.mkdir(parents=True)
    return paths


@pytest.fixture
def sweeper(state: StatePaths) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the middle of sweeping the session ID, for two seconds."""
    root = state.session(ID).root
    root.mkdir(mode=0o700)
    (root / "lock").touch(mode=0o600)
    script = f"""
        import sys, time
        from pathlib import Path
        from qemuspawner.paths import StatePaths
        from qemuspawner.session.host import directory
        def slow(paths):
            print("sweeping", flush=True)
            time.sleep(2)
        directory._kill_orphans = slow
        print(directory.sweep(StatePaths(root=Path({str(state.root)!r})), own_id="other"), flush=True)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"sweeping\n"
    yield process
    process.kill()
    process.wait()


def test_who_sweeps_a_directory_is_not_its_owner(state: StatePaths, sweeper: subprocess.Popen[bytes]) -> None:
    """Nobody asks the kernel for the session's process and gets the sweeper's."""
    assert find_holder(state.session(ID).lock) is None


def test_a_session_that_starts_while_it_is_swept_waits_and_harms_nobody(
    state: StatePaths, sweeper: subprocess.Popen[bytes]
) -> None:
    """The sweeper is another user's new session: it gets no signal and finishes its work."""
    with claim(state, ID) as paths:
        assert paths.vm.is_dir()
        assert paths.lock.exists()

    assert sweeper.wait(10) == 0


def test_a_living_session_is_not_swept(state: StatePaths) -> None:
    """Asked of another process, as locks do not work against one's own."""
    with claim(state, ID) as paths:
        script = (
            "from pathlib import Path; from qemuspawner.paths import StatePaths;"
            "from qemuspawner.session.host.directory import sweep;"
            f"print(sweep(StatePaths(root=Path({str(state.root)!r})), own_id='other'))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

        assert done.stdout.strip() == "0"
        assert paths.vm.is_dir()


def test_a_dead_session_is_swept_and_a_hidden_folder_is_not(state: StatePaths) -> None:
    (state.session(ID).root / "vm").mkdir(parents=True, mode=0o700)
    (state.sessions / ".probes-0").mkdir()

    assert sweep(state, own_id="other") == 1
    assert [path.name for path in state.sessions.iterdir()] == [".probes-0"]


def test_the_lock_names_its_holder_and_nobody_after_the_end(state: StatePaths) -> None:
    script = (
        "import sys; from pathlib import Path; from qemuspawner.paths import StatePaths;"
        "from qemuspawner.session.host.directory import claim;"
        f"c = claim(StatePaths(root=Path({str(state.root)!r})), {ID!r}); c.__enter__();"
        "print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    lock = state.session(ID).lock

    assert find_holder(lock) == holder.pid
    holder.kill()
    holder.communicate()
    assert find_holder(lock) is None


def test_a_link_in_the_place_of_a_socket_kills_nobody(state: StatePaths, tmp_path: Path) -> None:
    """A guest that broke out points its own QMP socket at another session's."""
    victim = tmp_path / "victim"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(victim))
        listener.listen()
        link = tmp_path / "qmp"
        link.symlink_to(victim)

        # Followed, the listener's process would be killed: this one.
        assert kill_orphan(link) is False


def test_a_pipe_in_the_place_of_a_lock_does_not_hang(state: StatePaths, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    done = threading.Event()
    threading.Thread(target=lambda: (find_holder(tmp_path / "lock"), done.set()), daemon=True).start()

    assert done.wait(10)
