"""What a session's desktop uses over its whole life, in a few numbers, so that its user can ask for less."""

import base64
import re

from qemuspawner.errors import VmError
from qemuspawner.qemu.agent import AgentRefusalError, GuestAgent
from qemuspawner.qemu.counters import Counters, read_counters, read_peak_memory_mib
from qemuspawner.session.life.clocks import Clocks
from qemuspawner.session.vm.guest import Guest
from qemuspawner.spec import Usage

# Shorter spans say more about when we looked than about the guest; they are counted with the next one.
_LEAST_SPAN_S = 10.0
# Time is counted in so many bins from none to all of the virtual CPUs.
_BINS = 100
_MEMINFO = "/proc/meminfo"
_MEMINFO_BYTES = 4096
_KIB_LINE = re.compile(r"^(MemTotal|MemAvailable): {1,20}(\d{1,15}) kB$", re.MULTILINE | re.ASCII)


class UsageMeter:
    """Adds up what the VMs of one session use, one after the other; it never grows."""

    def __init__(self, *, cpus: int, memory_mib: int, clocks: Clocks) -> None:
        self._cpus = cpus
        self._memory_total_mib = memory_mib
        self._clocks = clocks
        self._last: Counters | None = None
        self._input_seen: float | None = None  # the newest that was counted
        self._asks_memory = True
        self._seconds = [0.0] * _BINS
        self._cpu_s = self._span_s = self._active_s = self._peak = 0.0
        self._written_bytes = 0
        self._memory_mib: int | None = None
        self._touched_mib: int | None = None
        self._gpu_percent: int | None = None

    def begin(self, counters: Counters | None) -> None:
        """Another VM, which somebody can use from now on; None where it does not say what it has used."""
        self._last = counters
        self._input_seen = self._clocks.last_input
        self._asks_memory = True

    async def look(self, guest: Guest, counters: Counters | None, *, gpu_percent: int | None) -> None:
        """Count what this VM has used since the last look; `counters` are those of now."""
        if gpu_percent is not None:
            self._gpu_percent = max(self._gpu_percent or 0, gpu_percent)
        if counters is not None:
            self.count(counters)
        self._look_at_touched(guest)
        await self._ask_memory(guest)

    async def look_again(self, guest: Guest) -> None:
        """The last look, also where the one before was just now; it asks nothing of the guest."""
        if self._last is None:
            return
        try:
            self.count(await read_counters(guest.qemu), least_s=0)
        except VmError:
            # It has ended by itself: the look before was the last one.
            return
        self._look_at_touched(guest)

    def count(self, now: Counters, *, least_s: float = _LEAST_SPAN_S) -> None:
        """Count from the last counters of the same VM to these."""
        if self._last is None:
            self._last = now
            return
        span_s = now.at - self._last.at
        if span_s <= 0 or span_s < least_s:
            return
        # A thread that has ended takes its seconds with it.
        cpu_s = max(now.cpu_s - self._last.cpu_s, 0.0)
        cores = min(cpu_s / span_s, self._cpus)
        self._seconds[min(int(cores / self._cpus * _BINS), _BINS - 1)] += span_s
        if span_s >= _LEAST_SPAN_S or self._span_s < _LEAST_SPAN_S:
            self._peak = max(self._peak, cores)
        self._cpu_s += cpu_s
        self._span_s += span_s
        self._written_bytes += max(now.written_bytes - self._last.written_bytes, 0)
        if self._clocks.last_input != self._input_seen:
            self._input_seen = self._clocks.last_input
            self._active_s += span_s
        self._last = now

    def usage(self) -> Usage | None:
        """All of it until the last look; None before there was one."""
        if self._last is None:
            return None
        by_guest = self._memory_mib is not None
        memory_mib = self._memory_mib if by_guest else self._touched_mib
        return Usage(
            span_s=round(self._span_s),
            active_s=round(self._active_s),
            cpu_mean=round(self._cpu_s / max(self._span_s, 0.001), 2),
            cpu_p95=round(min(self._percentile(0.95), self._peak), 2),
            cpu_peak=round(self._peak, 2),
            written_mib=self._written_bytes >> 20,
            memory_mib=memory_mib,
            memory_by="" if memory_mib is None else "guest" if by_guest else "host",
            gpu_percent=self._gpu_percent,
        )

    def _percentile(self, share: float) -> float:
        """The upper end of the bin below which this share of the time lies."""
        left_s = share * sum(self._seconds)
        for number, seconds in enumerate(self._seconds, start=1):
            left_s -= seconds
            if left_s <= 0:
                return number * self._cpus / _BINS
        return float(self._cpus)

    def _look_at_touched(self, guest: Guest) -> None:
        if guest.plan.way != "cold":
            # Of a restored VM the host cannot tell, and what it told of another one is not the whole.
            self._touched_mib = None
            return
        touched = read_peak_memory_mib(guest.qemu)
        if touched is not None:
            # QEMU's own memory is in it, too.
            self._touched_mib = max(self._touched_mib or 0, min(touched, self._memory_total_mib))

    async def _ask_memory(self, guest: Guest) -> None:
        if guest.agent is None or not self._asks_memory:
            return
        try:
            used = await _ask_memory_mib(guest.agent)
        except AgentRefusalError:
            # No Linux, or one whose agent opens no files: not later, either.
            self._asks_memory = False
            return
        except VmError:
            return
        if used is not None:
            self._memory_mib = max(self._memory_mib or 0, min(used, self._memory_total_mib))


async def _ask_memory_mib(agent: GuestAgent) -> int | None:
    """What the guest's programs and its kernel hold, without what it would give back at once.

    Raises:
        AgentRefusalError: It has no such file.
        VmError: The agent is silent.
    """
    handle = await agent.execute("guest-file-open", path=_MEMINFO, mode="r")
    try:
        answer = await agent.execute("guest-file-read", handle=handle, count=_MEMINFO_BYTES)
    finally:
        await agent.execute("guest-file-close", handle=handle)
    return parse_used_mib(answer.get("buf-b64")) if isinstance(answer, dict) else None


def parse_used_mib(data: object) -> int | None:
    """What is used by the text of /proc/meminfo, in base64; None where it is anything else.

    The guest may say what it likes.
    """
    try:
        text = base64.b64decode(data).decode("ascii", errors="replace") if isinstance(data, str) else ""
    except ValueError:
        return None
    sizes = {name: int(kib) for name, kib in _KIB_LINE.findall(text)}
    if sizes.keys() != {"MemTotal", "MemAvailable"}:
        return None
    return max(sizes["MemTotal"] - sizes["MemAvailable"], 0) // 1024
