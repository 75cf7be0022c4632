"""`qemuspawner machines add, edit, undo, remove...` as an administrator of the host meets them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qemuspawner.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `qemuspawner machines`, as root called by sudo; exit code, output and errors."""
    monkeypatch.setenv("SUDO_USER", "carol")
    (tmp_path / "machines").mkdir()

    def machines(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(
                [
                    "--state",
                    str(tmp_path / "state"),
                    "--machines",
                    str(tmp_path / "machines"),
                    "machines",
                    *arguments,
                ]
            )
        said = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, said.out, said.err

    return machines


@pytest.fixture
def alma(run: Run) -> None:
    code, _, err = run("add", "alma", "--name", "Alma 9", "--format", "raw", "--firmware", "uefi")
    assert code == 0, err


@pytest.mark.usefixtures("alma")
def test_a_machine_is_added_hidden_and_unhidden(run: Run) -> None:
    assert "Alma 9 (hidden)" in run("list")[1]

    assert run("unhide", "alma") == (0, "'alma' is offered.\n", "")
    assert "(hidden)" not in run("list")[1]


@pytest.mark.usefixtures("alma")
def test_keys_are_set_and_taken_out(run: Run) -> None:
    settings = ("--set", "cpus.offered=[1, 8]", "--set", "name=Alma <9>", "--set", "firmware=")

    assert run("edit", "alma", *settings)[:2] == (0, "'alma' was changed.\n")
    shown = run("show", "alma")[1]
    assert "Alma <9>" in shown
    assert "1 (default), 8" in shown
    assert "firmware     bios" in shown


@pytest.mark.usefixtures("alma")
def test_what_is_wrong_is_said_by_line(run: Run) -> None:
    code, _, err = run("edit", "alma", "--set", "cpus.default=0", "--set", "nane=x")

    assert code == 1
    assert "error: line 4, key 'nane': there is no such key; is 'name' meant?." in err
    assert "key 'cpus.default'" in err


@pytest.mark.usefixtures("alma")
def test_the_editor_changes_the_text(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nsed -i 's/Alma/Edited/' \"$1\"\n")
    editor.chmod(0o755)
    monkeypatch.setenv("VISUAL", str(editor))

    assert run("edit", "alma")[:2] == (0, "'alma' was changed.\n")
    assert "Edited 9" in run("list")[1]
    monkeypatch.setenv("VISUAL", "false")
    assert "did not end well; nothing was changed" in run("edit", "alma")[2]


@pytest.mark.usefixtures("alma")
def test_history_and_undo(run: Run) -> None:
    run("hide", "alma")
    run("edit", "alma", "--set", "version=v2")

    versions = json.loads(run("history", "alma", "--json")[1])
    assert [(one["by"], one["what"]) for one in versions] == [
        ("carol (host)", "edit"),
        ("carol (host)", "add"),
    ]
    assert run("undo", "alma")[1] == "'alma': back to version 1.\n"
    assert "3 *" in run("history", "alma")[1]


@pytest.mark.usefixtures("alma")
def test_remove_and_restore(run: Run) -> None:
    assert run("remove", "alma")[0] == 0
    (removed,) = json.loads(run("removed", "--json")[1])
    assert (removed["id"], removed["by"]) == ("alma", "carol (host)")
    assert removed["name"] in run("removed")[1]

    assert run("restore", removed["name"])[:2] == (0, "'alma' is back.\n")
    assert "alma" in run("list")[1]


@pytest.mark.usefixtures("alma")
def test_a_copy_with_a_name(run: Run) -> None:
    assert run("copy", "alma", "alma-2", "--name", "Second")[0] == 0
    assert "Second (hidden)" in run("list")[1]


@pytest.mark.usefixtures("alma")
def test_import_tells_people_and_programs(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "disk"
    source.write_bytes(bytes(3 << 20))

    assert run("import", "alma", str(source))[1].splitlines()[-1] == "The image is in place: 3 MiB."
    lines = [json.loads(line) for line in run("import", "alma", str(source), "--json")[1].splitlines()]
    assert lines[-1] == {"step": "done", "done": 3 << 20, "total": 3 << 20}
    assert "present" in run("list")[1]


@pytest.mark.usefixtures("alma")
def test_fetch_without_a_url_says_what_to_do(run: Run) -> None:
    code, _, err = run("fetch", "alma")

    assert code == 1
    assert err.endswith("hint: Set image.url in its machine.toml, or give a URL.\n")
    assert run("fetch", "alma", "--url", "https://x.org/", "--max-size", "much")[0] == 1


def test_no_machine_is_said_so(run: Run) -> None:
    for action in ("hide", "history", "undo", "remove", "edit"):
        assert run(action, "none")[2].startswith("error: There is no machine 'none'")
