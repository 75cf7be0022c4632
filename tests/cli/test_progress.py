"""Long work shows how far it is: a bar on a terminal, lines elsewhere."""

import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest

TEXT = 'name = "Big"\n[image]\nfile = "disk.img"\nformat = "raw"\n'
PROGRAM = "from qemuspawner.cli import main; main()"


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Imports 8 MiB."""
    folder = tmp_path / "machines" / "big"
    folder.mkdir(parents=True)
    (folder / "machine.toml").write_text(TEXT)
    (tmp_path / "image").write_bytes(b"x" * (8 << 20))
    paths = ["--state", str(tmp_path / "state"), "--machines", str(tmp_path / "machines")]
    return [sys.executable, "-c", PROGRAM, *paths, "machines", "import", "big", str(tmp_path / "image")]


def test_a_terminal_shows_a_bar(command: list[str]) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    process = subprocess.Popen(
        command, stdout=theirs, stderr=theirs, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    os.close(theirs)
    said = b""
    # A terminal whose program has ended cannot be read any more.
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:
            break
        said += piece
    os.close(ours)

    assert process.wait() == 0
    assert b"Copying: 100%|" in said
    assert said.rstrip().endswith(b"The image is in place: 8 MiB.")


def test_a_file_gets_lines(command: list[str]) -> None:
    done = subprocess.run(
        command, capture_output=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, check=True
    )

    assert b"\r" not in done.stdout
    assert done.stdout.splitlines() == [
        b"Copying: 4 MiB (50 %)",
        b"Checking: 4 MiB (50 %)",
        b"The image is in place: 8 MiB.",
    ]
