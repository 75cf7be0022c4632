import os
from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture
def compare_with_golden() -> Callable[[str, list[str]], None]:
    """Compare lines with tests/golden/NAME.txt; with GOLDEN=1 (`make golden`) write them instead."""

    def compare(name: str, lines: list[str]) -> None:
        path = GOLDEN / f"{name}.txt"
        text = "\n".join(lines) + "\n"
        if os.environ.get("GOLDEN"):
            path.write_text(text)
        assert text == path.read_text()

    return compare
