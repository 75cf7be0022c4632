"""Folders of the host: what is refused, what the one who serves them sees, and servers that hang."""

import contextlib
import ctypes
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import hubs
import pytest

from qemuspawner.errors import HostError
from qemuspawner.qemu import folders
from qemuspawner.qemu.folders import Ids, OpenFolder, bind_folders, open_folder
from qemuspawner.qemu.jail import in_jail
from qemuspawner.qemu.virtiofs import find_virtiofsd, start_server
from qemuspawner.spec import Folder

STATE = Path("/var/lib/no-such-state")
_MNT_DETACH = 2


def folder(path: Path | str, *, read_only: bool = False) -> Folder:
    return Folder(name="data", path=str(path), mount="/mnt/data", read_only=read_only)


@contextlib.contextmanager
def opened(path: Path, *, read_only: bool = False) -> Iterator[OpenFolder]:
    one = open_folder(folder(path, read_only=read_only), state_root=STATE)
    try:
        yield one
    finally:
        os.close(one.descriptor)


def look_inside(one: OpenFolder, script: str) -> str:
    """What a program in QEMU's jail finds of the folder, of which it is told the place."""
    command = in_jail(
        ["/bin/sh", "-c", script], work_dir=Path("/usr"), files=(), kvm=False,
        folders=bind_folders([one], Ids(uid=1234, gid=2345)),
    )  # fmt: skip
    done = subprocess.run(command, pass_fds=[one.descriptor], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


# What is refused


def test_a_folder_that_is_missing_or_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(HostError, match="The folder 'data' cannot be had: it is missing on this host"):
        open_folder(folder(tmp_path / "none"), state_root=STATE)
    with pytest.raises(HostError, match="it is no folder"):
        open_folder(folder(tmp_path / "file"), state_root=STATE)
    with pytest.raises(HostError, match="there is none for this user"):
        open_folder(folder(""), state_root=STATE)


@pytest.mark.parametrize("path", ["link", "link/inner"])
def test_no_part_of_a_path_may_be_a_link(tmp_path: Path, path: str) -> None:
    """Whoever owns a folder on the way could lead the session's account into another user's."""
    (tmp_path / "other/inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "other")

    with pytest.raises(HostError, match="its path has a symbolic link"):
        open_folder(folder(tmp_path / path), state_root=STATE)


def test_a_folder_without_rights_is_refused() -> None:
    """As the account that sessions run as: one that it may not read, and one that it may not write to."""
    with hubs.state_folder() as place:
        (place / "closed").mkdir(mode=0o700)
        (place / "readable").mkdir(mode=0o755)
        program = (
            "import sys; from pathlib import Path; from qemuspawner.spec import Folder\n"
            "from qemuspawner.qemu.folders import open_folder\n"
            "for name, read_only in (('closed', True), ('readable', True), ('readable', False)):\n"
            "    try:\n"
            "        open_folder(Folder(name=name, path=f'{sys.argv[1]}/{name}', mount='/x',"
            " read_only=read_only), state_root=Path('/var/none'))\n"
            "        print(name, 'opened')\n"
            "    except Exception as exc:\n"
            "        print(exc)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(place)], user=hubs.sessions_account() or None,
            env={"PYTHONPATH": os.pathsep.join(sys.path)}, cwd="/", capture_output=True, text=True,
        )  # fmt: skip

    refused = "The folder '{}' cannot be had: the account of the desktop has no right to it."
    assert done.stdout.splitlines() == [
        refused.format("closed"),
        "readable opened",
        refused.format("readable"),
    ], done.stderr


@pytest.mark.parametrize("path", ["", "sessions", ".."])
def test_what_holds_the_desktops_themselves_is_refused(tmp_path: Path, path: str) -> None:
    state = tmp_path / "state"
    (state / "sessions").mkdir(parents=True)

    with pytest.raises(HostError, match="files of the desktops themselves"):
        open_folder(folder((state / path).resolve()), state_root=state)


@contextlib.contextmanager
def silent_file_system(place: Path) -> Iterator[None]:
    """A file system whose server never says a word: FUSE, with nobody who reads what it is asked."""
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    try:
        assert libc.mount(b"silent", os.fsencode(place), b"fuse", 0, options.encode()) == 0
        yield
    finally:
        # Whoever waits for an answer gets an error with that.
        os.close(device)
        libc.umount2(os.fsencode(place), _MNT_DETACH)


def test_a_file_server_that_hangs_is_refused_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a thread waits for it."""
    monkeypatch.setattr(folders, "_TIMEOUT_S", 0.3)

    with silent_file_system(tmp_path), pytest.raises(HostError, match="its file server does not answer"):
        open_folder(folder(tmp_path), state_root=STATE)


# What is seen by who serves it


def test_the_accounts_files_are_the_guests_users(tmp_path: Path) -> None:
    """Both ways: what is made inside belongs to the account outside."""
    (tmp_path / "file").touch()

    with opened(tmp_path) as one:
        words = look_inside(one, "cd /folders/0; stat -c '%u %g' file; mkdir made")

    assert words == "1234 2345\n"
    assert (tmp_path / "made").stat().st_uid == os.geteuid()


def test_a_read_only_folder_cannot_be_written_to(tmp_path: Path) -> None:
    """Not even by a QEMU that was broken into."""
    with opened(tmp_path, read_only=True) as one:
        words = look_inside(one, "echo x > /folders/0/file")

    assert "Read-only file system" in words
    assert not list(tmp_path.iterdir())


def test_links_and_the_folders_own_descriptor_lead_nowhere(tmp_path: Path) -> None:
    """A descriptor from outside the jail would open all that is above it."""
    share, secret = tmp_path / "share", tmp_path / "secret"
    share.mkdir()
    secret.write_text("secret")
    (share / "absolute").symlink_to(secret)
    (share / "relative").symlink_to("../secret")

    with opened(share) as one:
        words = look_inside(
            one,
            "cat /folders/0/absolute /folders/0/relative /folders/0/../secret;"
            f"cat /proc/self/fd/{one.descriptor}/../secret; ls /proc/self/fd",
        )

    assert "secret" not in words.replace("/secret", "").replace("secret:", "")
    assert words.count("No such file") == 4


# virtiofsd


def test_this_hosts_virtiofsd_runs_without_privileges() -> None:
    """As the account that sessions run as; QEMU's own as well, which is made for root."""
    program = "from qemuspawner.qemu.virtiofs import find_virtiofsd; print(find_virtiofsd().program)"
    done = subprocess.run(
        [sys.executable, "-c", program], user=hubs.sessions_account() or None,
        env={"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"]},
        cwd="/", capture_output=True, text=True,
    )  # fmt: skip

    assert done.stdout.strip().endswith("virtiofsd"), done.stderr


def test_a_server_that_hangs_is_ended_all_the_same(tmp_path: Path) -> None:
    """Stopped in the middle of everything, with all that was put around it."""
    with opened(tmp_path) as one:
        server = start_server(find_virtiofsd(), one, Ids(uid=1000, gid=1000), tmp_path / "socket")
    # Its answer comes from within all walls.
    server.connection.sendall(struct.pack("=III", 1, 1, 0))
    assert server.connection.recv(1)
    inside = [pid for pid in _below(server.process.pid) if pid != server.process.pid]
    for pid in inside:
        os.kill(pid, signal.SIGSTOP)

    server.stop()

    assert inside
    end = time.monotonic() + 10
    while any(map(_is_there, inside)):
        assert time.monotonic() < end
        time.sleep(0.01)


def _below(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += _below(int(child))
    return found


def _is_there(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False
