"""Policy: what the people at one desktop may do there, as the site decides it."""

from typing import Literal

import msgspec

# What somebody may do at a desktop, each role with all that those before it may. "waiting" may ask to be let
# in, and sees nothing.
Role = Literal["waiting", "view", "control", "owner"]
RANK: dict[Role, int] = {"waiting": 0, "view": 1, "control": 2, "owner": 3}

# The least role that may do something.
Least = Literal["view", "control", "owner", "nobody"]

# What a guest can be busy with while nobody touches it.
Busy = Literal["cpu", "disk", "gpu"]


def may(role: Role, least: Role | Least) -> bool:
    """Whether `role` may do what asks for `least`."""
    return least != "nobody" and RANK[role] >= RANK[least]


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Part of the SessionSpec; each field is a trait of the spawner, described there."""

    staff: Literal["ask", "view", "control", "nobody"] = "ask"
    owner_away: Literal["stay", "view", "leave"] = "stay"
    one_driver: bool = False
    clipboard_in: Least = "control"
    clipboard_out: Least = "control"
    files_in: Least = "control"
    files_out: Least = "control"
    max_file_mib: int = 1024
    sound: Least = "view"
    ports: Least = "control"
    agents: bool = True
    busy: tuple[Busy, ...] = ("cpu", "disk", "gpu")
    busy_cpu_percent: int = 25  # of one of the host's cores
    busy_disk_kib_s: int = 1024
    busy_gpu_percent: int = 5
