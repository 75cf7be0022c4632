"""What a guest has received and sent, as its agent says: QEMU itself counts nothing on its user network."""

import time
from dataclasses import dataclass
from typing import TypeGuard

from qemuspawner.qemu.agent import GuestAgent

_MAX_INTERFACES = 64
# More has no counter of a kernel.
_MAX_BYTES = 2**64
_LOOPBACK = "00:00:00:00:00:00"


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Of the interface through which most went, at one moment: a bridge or a tunnel inside has it again."""

    at: float  # seconds of the monotonic clock
    received_bytes: int
    sent_bytes: int


async def read_traffic(agent: GuestAgent) -> Traffic | None:
    """None where the guest does not say it.

    Raises:
        AgentRefusalError: Its agent does not know that.
        VmError: It is silent.
    """
    counts = parse_interfaces(await agent.execute("guest-network-get-interfaces"))
    if counts is None:
        return None
    return Traffic(at=time.monotonic(), received_bytes=counts[0], sent_bytes=counts[1])


def parse_interfaces(answer: object) -> tuple[int, int] | None:
    """Bytes received and sent by an answer of the agent, which may be anything.

    Source: qga/qapi-schema.json, GuestNetworkInterface.
    """
    found: list[tuple[int, int]] = []
    for interface in answer[:_MAX_INTERFACES] if isinstance(answer, list) else []:
        if not isinstance(interface, dict) or interface.get("hardware-address") in (None, _LOOPBACK):
            continue
        statistics = interface.get("statistics")
        if not isinstance(statistics, dict):
            continue
        received, sent = statistics.get("rx-bytes"), statistics.get("tx-bytes")
        if _is_count(received) and _is_count(sent):
            found.append((received, sent))
    return max(found, key=sum, default=None)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < _MAX_BYTES
