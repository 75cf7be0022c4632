"""`qemuspawner audit`, on a log that a session's own code has written."""

import json
import os
from pathlib import Path

import pytest
import vms

from qemuspawner.cli import main
from qemuspawner.machine import Image, Machine
from qemuspawner.paths import StatePaths
from qemuspawner.session.people.audit import Audit

MACHINE = Machine(id="test", name="Test", image=Image(file="/x", format="raw"))


@pytest.fixture
def state(tmp_path: Path) -> StatePaths:
    """Alice's desktop, where bob came and was sent away."""
    state = StatePaths(root=tmp_path)
    state.sessions.mkdir()
    audit = Audit(state.audit, vms.make_spec(tmp_path, MACHINE, server_name="desk"))
    audit.note("started", by="alice")
    audit.note("joined", by="bob", role="view", staff=False)
    audit.note("dropped", by="alice", who="bob")
    return state


def run(state: StatePaths, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    with pytest.raises(SystemExit) as caught:
        main(["--state", str(state.root), "audit", *arguments])
    assert caught.value.code == 0
    return capsys.readouterr().out.splitlines()


def test_each_line_tells_who_did_what_where(state: StatePaths, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(state, capsys)

    assert [line.partition(" ")[2] for line in lines] == [
        "alice/desk alice: started",
        "alice/desk bob: joined role=view staff=False",
        "alice/desk alice: dropped who=bob",
    ]


@pytest.mark.parametrize(
    ("arguments", "events"),
    [
        (["--by", "bob"], ["joined"]),
        (["--event", "dropped"], ["dropped"]),
        (["--owner", "bob"], []),
        (["--since", "2999-01-01"], []),
        (["--since", "2000-01-01", "--owner", "alice", "--by", "alice"], ["started", "dropped"]),
    ],
)
def test_lines_are_chosen(
    state: StatePaths, capsys: pytest.CaptureFixture[str], arguments: list[str], events: list[str]
) -> None:
    lines = run(state, capsys, "--json", *arguments)

    assert [json.loads(line)["event"] for line in lines] == events


def test_what_a_sessions_account_could_put_there_is_not_followed(
    state: StatePaths, capsys: pytest.CaptureFixture[str]
) -> None:
    """Links, pipes, other words, and what would command a terminal."""
    (folder,) = state.sessions.glob(".audit-*")
    secret = state.root / "secret"
    secret.write_text('{"at": "", "event": "secret"}')
    (folder / "2001-01-01.jsonl").symlink_to(secret)
    os.mkfifo(folder / "2001-01-02.jsonl")
    (folder / "2001-01-03.jsonl").write_text('[]\n{"event": 1}\n\n' + "x" * 100_000 + "\n")
    audit = Audit(folder, vms.make_spec(state.root, MACHINE, server_name="desk"))
    audit.note("joined", by="\x1b[2Jeve")

    lines = run(state, capsys)

    assert len(lines) == 4
    assert "secret" not in "".join(lines)
    assert "\x1b" not in "".join(lines)
