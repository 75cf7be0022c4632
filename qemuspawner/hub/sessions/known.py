"""What the hub knows of a session from its start; it is in the server's state, so a new hub knows it, too."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Known:
    """Not what was asked for: options are stored before anything has looked at them."""

    machine: str  # its id; "" where nothing was started
    cpus: int
    memory_mib: int
    node: str  # the host

    @classmethod
    def of(cls, session: Mapping[str, Any]) -> "Known":
        return cls(
            machine=session.get("machine", ""),
            # Sessions of a hub that knew less go on.
            cpus=session.get("cpus", 0),
            memory_mib=session.get("memory_mib", 0),
            node=session.get("node", ""),
        )
