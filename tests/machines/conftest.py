import os
from collections.abc import Callable
from pathlib import Path

import pytest

from qemuspawner.machines import build

MINIMAL = """
name = "Minimal"
[image]
file = "disk.qcow2"
format = "qcow2"
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tmp_path / "images"


@pytest.fixture
def write_machine(tmp_path: Path) -> Callable[..., Path]:
    """Write `machines/NAME/machine.toml` and return its folder."""

    def write(text: str = MINIMAL, *, name: str = "mini", catalogue: str = "machines") -> Path:
        folder = tmp_path / catalogue / name
        folder.mkdir(parents=True)
        (folder / "machine.toml").write_text(text)
        return folder

    return write


@pytest.fixture
def use_mmdebstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Build as root, with a script in mmdebstrap's place."""

    def use(script: str) -> None:
        tool = tmp_path / "bin/mmdebstrap"
        tool.parent.mkdir()
        tool.write_text(script)
        tool.chmod(0o755)
        monkeypatch.setattr(build, "_TOOL_PATH", f"{tool.parent}:{os.environ['PATH']}:/usr/sbin")
        monkeypatch.setattr(os, "geteuid", lambda: 0)

    return use
