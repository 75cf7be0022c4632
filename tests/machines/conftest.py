from collections.abc import Callable
from pathlib import Path

import pytest

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
