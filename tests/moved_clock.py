"""A clock that a test moves, and a session whose times it is about."""

from typing import Any

import msgspec

from qemuspawner.machine import Image, Machine
from qemuspawner.spec import SessionSpec

MACHINE = Machine(name="Test", image=Image(file="/x", format="raw"))


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def make_spec(**keys: Any) -> SessionSpec:
    spec = SessionSpec(
        session_id="x", user="alice", server_name="", state_dir="/x", machine=MACHINE,
        cpus=1, memory_mib=64, lifetime_s=600, max_lifetime_s=1000,
    )  # fmt: skip
    return msgspec.structs.replace(spec, **keys)
