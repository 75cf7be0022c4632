"""What `qemuspawner doctor` says of one thing."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was tried, and what to do where it did not go well."""

    level: Level
    text: str
    hint: str = ""
