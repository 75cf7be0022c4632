"""Another account of the host, with a running desktop before it: nothing of that opens."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sessions import Session

from qemuspawner.errors import SessionError
from qemuspawner.paths import StatePaths, session_id
from qemuspawner.session.directory import claim, sweep

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
    "list": lambda: os.listdir(root),
    "spec": lambda: open(os.path.join(root, "spec.json")).read(),
    "lock": lambda: os.open(os.path.join(root, "lock"), os.O_RDWR),
    "plant": lambda: os.symlink("/etc/passwd", os.path.join(root, "vm", "screen.png")),
    "plant beside": lambda: os.mkdir(os.path.join(os.path.dirname(root), "0" * 20)),
    "rename": lambda: os.rename(root, root + "x"),
    "supervisor's secrets": lambda: open(f"/proc/{supervisor}/environ").read(),
    "qemu's memory": lambda: open(f"/proc/{qemu}/mem", "rb").read(1),
    "qemu's descriptors": lambda: os.listdir(f"/proc/{qemu}/fd"),
    "kill qemu": lambda: os.kill(qemu, signal.SIGKILL),
    "kill the supervisor": lambda: os.kill(supervisor, signal.SIGKILL),
    "status": lambda: get("api/status"),
    "screenshot": lambda: get("api/screenshot"),
    "files": lambda: get("api/files?path=/"),
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
    web = {name: results.pop(name) for name in ("status", "screenshot", "files")}
    assert set(results.values()) == {"PermissionError"}, results
    # By the way to a login that it does not have, never with an answer.
    assert set(web.values()) <= {"got 403", "got 404", "URLError"}, web
    assert session.probe() == 200


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
