"""How much a guest has computed and how much it has read and written, by the kernel and by QEMU."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from qemuspawner.qemu.process import QemuProcess

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Counters:
    """What a guest has used since its start, at one moment."""

    at: float  # seconds of the monotonic clock
    cpu_s: float  # of the guest's own CPUs: neither drawing for viewers nor QEMU's own work is in it
    disk_bytes: int  # read and written, all its disks
    written_bytes: int  # of these


async def read_counters(qemu: QemuProcess) -> Counters:
    """Raises VmError where QEMU does not answer or has just ended."""
    cpus = await qemu.execute("query-cpus-fast")
    disks = await qemu.execute("query-blockstats")
    inner = {cpu["thread-id"] for cpu in cpus} if isinstance(cpus, list) else set()
    stats = [disk["stats"] for disk in disks] if isinstance(disks, list) else []
    return Counters(
        at=time.monotonic(),
        cpu_s=sum(_cpu_seconds(task) for task in _find_threads(qemu.pid, inner)),
        disk_bytes=sum(_disk_bytes(disk) for disk in stats),
        written_bytes=sum(disk["wr_bytes"] for disk in stats),
    )


def read_peak_memory_mib(qemu: QemuProcess) -> int | None:
    """The most of the host's memory that QEMU has had at once, its own included; None where it has ended.

    What a guest has touched once stays with it, so of a guest that booted here it is an upper bound. Of a
    restored one it is not: what it has not touched since lies in the template's file, or nowhere yet.
    """
    return _read_status_mib(qemu.pid, "VmHWM")


def read_memory_mib(qemu: QemuProcess) -> int | None:
    """What QEMU has of the host's memory now, shared and its own included; None where it has ended."""
    return _read_status_mib(qemu.pid, "VmRSS")


def _read_status_mib(pid: int, name: str) -> int | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return None
    # "VmHWM:     12345 kB"; a zombie has no such line. Source: proc(5).
    words = status.partition(f"\n{name}:")[2].partition("\n")[0].split()
    return int(words[0]) // 1024 if words else None


def _find_threads(pid: int, inner: set[int]) -> list[Path]:
    """The threads of a process that have these ids in its own process-id namespace.

    The last number of NSpid, proc(5): QEMU knows no other.
    """
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            status = (task / "status").read_text(errors="replace")
        except OSError:
            continue  # it has just ended
        numbers = status.partition("\nNSpid:")[2].partition("\n")[0].split()
        if numbers and int(numbers[-1]) in inner:
            found.append(task)
    return found


def _cpu_seconds(task: Path) -> float:
    try:
        text = (task / "stat").read_text(errors="replace")
    except OSError:
        return 0.0
    # Fields 14 and 15 are utime and stime; the name before them may hold anything. Source: proc(5).
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _disk_bytes(stats: dict[str, int]) -> int:
    return stats["rd_bytes"] + stats["wr_bytes"]
