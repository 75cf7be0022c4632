"""The audit log of a host, as a test reads it."""

import json
from pathlib import Path
from typing import Any


def audit_lines(state_dir: Path) -> list[dict[str, Any]]:
    """All that was noted, of all accounts, the oldest day first."""
    files = sorted((state_dir / "sessions").glob(".audit-*/*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]
