"""Another account of the host, with a running desktop before it: nothing of that opens."""

import contextlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sessions import Session

from qemuspawner.errors import SessionError
from qemuspawner.paths import StatePaths, session_id
from qemuspawner.session.host.directory import claim, sweep

OTHER = 4242

# Each attempt by its name: what it got, or the error.
_ATTEMPTS = """
import json, os, signal, socket, sys, urllib.error, urllib.request
root, port, supervisor, qemu = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])

def connect(name):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.path.join(root, name))
        return connection.recv(12).decode()

def get(path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/user/alice/{path}", timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as exc:
        return exc.code

attempts = {
    "vnc": lambda: connect("vnc"),
    "qmp": lambda: connect("qmp"),
    "vnc in vm": lambda: connect("vm/vnc"),
    "agent": lambda: connect("qga"),
    "list": lambda: os.listdir(root),
    "list vm": lambda: os.listdir(os.path.join(root, "vm")),
    "disk": lambda: open(os.path.join(root, "vm", "disk-0.qcow2"), "rb").read(1),
    "spec": lambda: open(os.path.join(root, "spec.json")).read(),
    "lock": lambda: os.open(os.path.join(root, "lock"), os.O_RDWR),
    "plant": lambda: os.symlink("/etc/passwd", os.path.join(root, "vm", "screen.png")),
    "plant beside": lambda: os.mkdir(os.path.join(os.path.dirname(root), "0" * 20)),
    "rename": lambda: os.rename(root, root + "x"),
    "supervisor's secrets": lambda: open(f"/proc/{supervisor}/environ").read(),
    "qemu's memory": lambda: open(f"/proc/{qemu}/mem", "rb").read(1),
    "qemu's files": lambda: os.listdir(f"/proc/{qemu}/root/"),
    "qemu's network": lambda: os.readlink(f"/proc/{qemu}/ns/net"),
    "qemu's descriptors": lambda: os.listdir(f"/proc/{qemu}/fd"),
    "kill qemu": lambda: os.kill(qemu, signal.SIGKILL),
    "kill the supervisor": lambda: os.kill(supervisor, signal.SIGKILL),
    "status": lambda: get("api/status"),
    "screenshot": lambda: get("api/screenshot"),
    "files": lambda: get("api/files?path=/"),
    "web tool": lambda: get("proxy/tool/"),
}
results = {}
for name, attempt in attempts.items():
    try:
        results[name] = f"got {attempt()!r}"
    except OSError as exc:
        results[name] = type(exc).__name__
print(json.dumps(results))
"""


def test_nothing_of_a_desktop_opens_to_another_account(start: Callable[..., Session]) -> None:
    session = start()
    session.wait_until_ready()
    arguments = [session.paths.root, session.port, session.process.pid, session.qemu_pid]

    done = subprocess.run(
        [sys.executable, "-I", "-c", _ATTEMPTS, *map(str, arguments)],
        user=OTHER, group=OTHER, extra_groups=[], capture_output=True, check=True,
    )  # fmt: skip

    results = json.loads(done.stdout)
    web = {name: results.pop(name) for name in ("status", "screenshot", "files", "web tool")}
    assert set(results.values()) == {"PermissionError"}, results
    # By the way to a login that it does not have, never with an answer.
    assert set(web.values()) <= {"got 403", "got 404", "URLError"}, web
    assert session.probe() == 200


def test_a_desktop_listens_at_one_port_and_under_no_name_that_everybody_finds(
    start: Callable[..., Session],
) -> None:
    """Abstract sockets have no owner, and any account connects to them."""
    session = start()
    session.wait_until_ready()
    held = {
        str(link.readlink())
        for pid in (session.process.pid, session.qemu_pid)
        for link in Path(f"/proc/{pid}/fd").iterdir()
        if link.is_symlink()
    }

    def ours(table: str, column: int) -> list[list[str]]:
        lines = [line.split() for line in Path("/proc/net", table).read_text().splitlines()[1:]]
        return [words for words in lines if f"socket:[{words[column]}]" in held]

    listening = [words[1] for table in ("tcp", "tcp6") for words in ours(table, 9) if words[3] == "0A"]
    assert listening == [f"0100007F:{session.port:04X}"]
    assert [words[1] for table in ("udp", "udp6") for words in ours(table, 9)] == []
    assert [words[7:] for words in ours("unix", 6) if words[7:] and words[7].startswith("@")] == []


# Puts a link, or a folder with links in it, where a session's directory is to be, again and again.
_RACER = """
import os, sys
root, elsewhere = sys.argv[1:]
attempts = [
    lambda: os.symlink(elsewhere, root),
    lambda: os.unlink(root),
    lambda: os.mkdir(root, 0o777),
    lambda: os.symlink(elsewhere, os.path.join(root, "vm")),
    lambda: os.symlink(os.path.join(elsewhere, "lock"), os.path.join(root, "lock")),
    lambda: os.rename(root, root + "x"),
    lambda: os.unlink(os.path.join(root + "x", "vm")),
    lambda: os.unlink(os.path.join(root + "x", "lock")),
    lambda: os.rmdir(root + "x"),
]
print("ready", flush=True)
while True:
    for attempt in attempts:
        try:
            attempt()
        except OSError:
            pass
"""


def test_links_that_another_account_races_to_put_there_are_not_followed(state: StatePaths) -> None:
    """Each claim is refused, or is of a folder that is ours; what the links lead to stays."""
    state.sessions.chmod(0o1733)
    name = session_id("alice", "")
    root = state.session(name).root
    elsewhere = state.root / "elsewhere"
    (elsewhere / "vm").mkdir(parents=True)
    for path in (elsewhere / "thesis", elsewhere / "lock", elsewhere / "vm" / "thesis"):
        path.write_text("years")
    with subprocess.Popen(
        [sys.executable, "-I", "-c", _RACER, str(root), str(elsewhere)],
        user=OTHER, group=OTHER, extra_groups=[], stdout=subprocess.PIPE,
    ) as racer:  # fmt: skip
        assert racer.stdout is not None
        racer.stdout.readline()
        for _ in range(200):
            with contextlib.suppress(SessionError), claim(state, name) as paths:
                status = paths.root.lstat()
                assert stat.S_ISDIR(status.st_mode)
                assert (status.st_uid, status.st_mode & 0o777) == (os.geteuid(), 0o700)
                (paths.vm / "disk").write_text("")
        racer.kill()

    found = {path: path.read_text() for path in elsewhere.rglob("*") if path.is_file()}
    assert len(found) == 3
    assert set(found.values()) == {"years"}


@pytest.mark.parametrize("squat", ["folder", "link", "open folder"])
def test_a_directory_that_another_account_made_first_is_not_used(state: StatePaths, squat: str) -> None:
    """Where accounts share the folder, as with one for each user: who guesses the id gains nothing."""
    state.sessions.chmod(0o1733)
    paths = state.session(session_id("alice", ""))
    elsewhere = state.root / "elsewhere"
    elsewhere.mkdir()
    if squat == "link":
        paths.root.symlink_to(elsewhere)
        os.lchown(paths.root, OTHER, OTHER)
    else:
        paths.root.mkdir(mode=0o700)
        os.chown(paths.root, OTHER, OTHER)
        paths.root.chmod(0o777 if squat == "open folder" else 0o700)

    with pytest.raises(SessionError, match="belongs to somebody else"), claim(state, paths.root.name):
        pass

    assert list(elsewhere.iterdir()) == []
    assert [path for path in paths.root.iterdir() if squat != "link"] == []


def test_a_sweep_follows_no_link_of_another_account(state: StatePaths) -> None:
    """A dead session's place is taken by a link to something that would be deleted."""
    precious = state.root / "precious"
    precious.mkdir()
    (precious / "thesis").write_text("years")
    link = state.sessions / ("0" * 20)
    link.symlink_to(precious)
    os.lchown(link, OTHER, OTHER)

    assert sweep(state, own_id="") == 0

    assert (precious / "thesis").read_text() == "years"


def test_the_command_line_that_everybody_reads_holds_no_secret(start: Callable[..., Session]) -> None:
    session = start(script="#!/bin/sh\necho the-secret\n", name="the-secret", notes="the-secret")
    session.wait_until_ready()

    lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (session.process.pid, session.qemu_pid)]

    assert not [line for line in lines if b"the-secret" in line or b"unused" in line]
