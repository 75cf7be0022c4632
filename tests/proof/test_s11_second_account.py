"""Another account of the host, with a running desktop before it: nothing of that opens."""

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import other_account
import pytest
from proofs import Proof
from sessions import Session, account

from qemuspawner.errors import SessionError
from qemuspawner.paths import StatePaths, session_id
from qemuspawner.session.host.directory import claim, sweep

pytestmark = pytest.mark.goal("S11")

OTHER = 4242

# What the account of the sessions gets itself, or the proof would show nothing.
ITS_OWN = (
    *("screen", "list", "list of QEMU's files", "disk", "specification", "lock", "audit log"),
    *(f"{name}'s {what}" for name in ("the session", "QEMU") for what in ("environment", "memory")),
    *("QEMU's files", "QEMU's descriptors", "QEMU's account", "QEMU's limits"),
)


class Intruder:
    """tests/other_account.py as a process of some account."""

    def __init__(self, uid: int, gid: int, *attempts: str) -> None:
        self._process = subprocess.Popen(
            # As text: this folder need not be open to other accounts.
            [sys.executable, "-I", "-c", Path(other_account.__file__).read_text(), *attempts],
            user=uid, group=gid, extra_groups=[],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def try_session(self, session: Session) -> None:
        """Begin with it; `wait_for_round` waits until all was tried."""
        assert self._process.stdin is not None
        arguments = [str(session.paths.root), session.port, session.process.pid]
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()

    def wait_for_round(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "round\n"

    def end(self) -> dict[str, Counter[str]]:
        """How often each attempt ended how."""
        said, _ = self._process.communicate(timeout=60)
        assert self._process.returncode == 0
        return {name: Counter(ended) for name, ended in json.loads(said.splitlines()[-1]).items()}


def test_its_own_account_gets_in(start: Callable[..., Session]) -> None:
    """Or the next test proved nothing."""
    session = start()
    session.wait_until_ready()
    intruder = Intruder(*account(), *ITS_OWN)
    intruder.try_session(session)
    intruder.wait_for_round()

    assert {name for name, ended in intruder.end().items() if ended["got"]} == set(ITS_OWN)


def test_nothing_of_a_desktop_opens_to_another_account(start: Callable[..., Session], proof: Proof) -> None:
    """At no moment from before its start until after its end, by a kill or not."""
    intruder = Intruder(OTHER, OTHER)
    starts = proof.rounds(short=1, full=50)
    for number in range(starts):
        session = start()
        intruder.try_session(session)
        session.wait_until_ready()
        intruder.wait_for_round()
        assert session.probe() == 200
        session.process.send_signal(signal.SIGTERM if number % 2 else signal.SIGKILL)
        session.process.wait()
    ended = intruder.end()

    made = sum(counts.total() for counts in ended.values())
    got = {name: counts["got"] for name, counts in ended.items() if counts["got"]}
    proof.note(
        done=f"another account tried {len(ended)} ways in, again and again, while {starts} desktops started,"
        f" ran and ended: {made} attempts",
        found=f"{sum(got.values())} succeeded",
        limit="0 successes",
    )
    assert not got
    assert len(ended) > 40


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


def test_links_that_another_account_races_to_put_there_are_not_followed(
    state: StatePaths, proof: Proof
) -> None:
    """Each claim is refused, or is of a folder that is ours; what the links lead to stays."""
    state.sessions.chmod(0o1733)
    name = session_id("alice", "")
    root = state.session(name).root
    elsewhere = state.root / "elsewhere"
    (elsewhere / "vm").mkdir(parents=True)
    for path in (elsewhere / "thesis", elsewhere / "lock", elsewhere / "vm" / "thesis"):
        path.write_text("years")
    claims, held = proof.rounds(short=200, full=10_000), 0
    with subprocess.Popen(
        [sys.executable, "-I", "-c", _RACER, str(root), str(elsewhere)],
        user=OTHER, group=OTHER, extra_groups=[], stdout=subprocess.PIPE,
    ) as racer:  # fmt: skip
        assert racer.stdout is not None
        racer.stdout.readline()
        for _ in range(claims):
            with contextlib.suppress(SessionError), claim(state, name) as paths:
                held += 1
                status = paths.root.lstat()
                assert stat.S_ISDIR(status.st_mode)
                assert (status.st_uid, status.st_mode & 0o777) == (os.geteuid(), 0o700)
                (paths.vm / "disk").write_text("")
        racer.kill()

    found = [path.read_text() for path in elsewhere.rglob("*") if path.is_file()]
    harmed = len(found) - 3 + len([text for text in found if text != "years"])
    proof.note(
        done=f"another account put links and folders in a session's place while it was claimed {claims}"
        f" times, {held} times with success",
        found=f"{harmed} files behind the links were changed",
        limit="0 successes",
    )
    assert found == ["years"] * 3


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
