"""What an administrator sees and ends of the desktops on a host, whoever's accounts they run as."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import guests
import pytest
import sessions
import vms

from qemuspawner.cli import main
from qemuspawner.paths import StatePaths


@pytest.fixture
def desk(state_dir: Path) -> Iterator[sessions.Session]:
    """A desktop of alice's that runs."""
    disk = guests.make_disk(state_dir / "disk")
    machine = vms.make_machine(id="painter", shutdown="1 s", image={"file": str(disk), "format": "raw"})
    spec = vms.make_spec(state_dir, machine, server_name="desk")
    (state_dir / "sessions").mkdir()
    os.chown(state_dir / "sessions", *sessions.account())
    session = sessions.Session(StatePaths(root=state_dir), spec)
    try:
        session.wait_until_ready()
        yield session
    finally:
        session.process.kill()
        session.process.wait()


@pytest.fixture
def run(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command's exit code, and what it says."""

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["--state", str(state_dir), "sessions", *arguments])
        said = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, said.out, said.err

    return call


def test_a_desktop_that_runs_is_listed_with_whose_it_is(
    desk: sessions.Session, run: Callable[..., tuple[int, str, str]]
) -> None:
    (row,) = json.loads(run("list", "--json")[1])
    _, table, _ = run("list")

    assert row["pid"] == desk.process.pid
    assert (row["user"], row["server"], row["machine"], row["state"]) == (
        "alice",
        "desk",
        "painter",
        "running",
    )
    assert table.splitlines()[1].split()[:5] == [row["session"], "alice", "desk", "painter", "running"]


@pytest.mark.parametrize("name", ["alice", "alice/desk", ""])
def test_a_desktop_is_ended_by_any_of_its_names(
    name: str, desk: sessions.Session, run: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, _ = run("stop", name or desk.spec.session_id)

    assert (code, out) == (0, f"{desk.spec.session_id} has ended.\n")
    assert desk.process.wait(10) == 0
    assert json.loads(run("list", "--json")[1]) == []


def test_what_does_not_run_cannot_be_ended(run: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = run("stop", "bob")

    assert code == 1
    assert err.startswith("error: No desktop 'bob' runs here.\nhint: 'qemuspawner sessions list'")


def test_what_a_killed_session_left_is_swept_as_its_account(
    desk: sessions.Session, run: Callable[..., tuple[int, str, str]]
) -> None:
    desk.process.send_signal(signal.SIGKILL)
    desk.process.wait()
    (row,) = json.loads(run("list", "--json")[1])

    code, out, _ = run("sweep")

    assert (row["state"], row["user"]) == ("dead", "alice")
    assert (code, out) == (0, "Swept what was left of 1 sessions.\n")
    assert not desk.paths.root.exists()
    assert run("sweep")[1] == "There is nothing to sweep.\n"


def test_what_we_may_not_see_into_is_not_called_dead(
    state_dir: Path, run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may see everything: the kernel's word is stood in for."""
    (state_dir / "sessions" / "theirs").mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: False)

    assert json.loads(run("list", "--json")[1]) == []


def test_names_that_somebody_wrote_into_a_session_do_not_command_the_terminal(
    state_dir: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    spec = vms.make_spec(state_dir, vms.make_machine(id="\x1b[2J", image={"file": "x", "format": "raw"}))
    folder = state_dir / "sessions" / "evil"
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(spec.to_json())
    os.mkfifo(folder / "lock")

    code, out, _ = run("list")

    assert code == 0
    assert "evil" in out
    assert "\x1b" not in out
