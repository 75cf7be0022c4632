"""How busy a guest is, so that a running computation is never put to sleep and a forgotten tab is."""

from dataclasses import dataclass

from msgspec import structs

from qemuspawner.errors import VmError
from qemuspawner.policy import Busy, Policy
from qemuspawner.qemu.agent import AgentRefusalError
from qemuspawner.qemu.counters import Counters, read_counters, read_memory_mib
from qemuspawner.qemu.traffic import Traffic, read_traffic
from qemuspawner.session.vm.guest import Guest
from qemuspawner.spec import Load

# An idle time is minutes at least; looking costs two questions to QEMU and some files of /proc.
_EVERY_S = 30
# The load is the average of so long: what a clock or a warning inside does for a second is no work.
_WINDOW_S = 30
# More often near its end, so that the last look is a fresh one; but an answer may take a busy host a while.
_LEAST_PAUSE_S = 1
_GPU_COMMAND = ("nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits")
_GPU_TIMEOUT_S = 5
_MAX_GPUS = 64


def next_look_s(idle_left_s: float | None) -> float:
    """Seconds until the next look: at half of the time that is left."""
    if idle_left_s is None:
        return _EVERY_S
    return min(max(idle_left_s / 2, _LEAST_PAUSE_S), _EVERY_S)


def calculate_load(before: Counters, after: Counters, *, gpu_percent: int | None) -> Load:
    """The average between two moments."""
    span_s = max(after.at - before.at, 0.001)
    return Load(
        # A thread that has ended takes its seconds with it.
        cpu_percent=max(0, round(100 * (after.cpu_s - before.cpu_s) / span_s)),
        disk_kib_s=max(0, round((after.disk_bytes - before.disk_bytes) / 1024 / span_s)),
        gpu_percent=gpu_percent,
    )


def calculate_traffic(before: Traffic | None, after: Traffic | None) -> tuple[int | None, int | None]:
    """KiB received and sent a second between two moments; None where one of them is not known."""
    if before is None or after is None:
        return None, None
    span_s = max(after.at - before.at, 0.001)
    # An interface that was taken away takes its bytes with it.
    received = max(0, after.received_bytes - before.received_bytes)
    sent = max(0, after.sent_bytes - before.sent_bytes)
    return round(received / 1024 / span_s), round(sent / 1024 / span_s)


def find_busy(load: Load, policy: Policy) -> tuple[Busy, ...]:
    """What of `load` keeps the desktop awake."""
    bounds: dict[Busy, tuple[int | None, int]] = {
        "cpu": (load.cpu_percent, policy.busy_cpu_percent),
        "disk": (load.disk_kib_s, policy.busy_disk_kib_s),
        "gpu": (load.gpu_percent, policy.busy_gpu_percent),
    }
    return tuple(
        what
        for what, (value, least) in bounds.items()
        if what in policy.busy and value is not None and value >= least
    )


def parse_gpu_percent(output: str) -> int | None:
    """The busiest GPU of what nvidia-smi printed, one number a line; None where it is anything else.

    The guest may print what it likes.
    """
    numbers = [line.strip() for line in output.splitlines()[:_MAX_GPUS]]
    percents = [int(text) for text in numbers if text.isascii() and text.isdigit() and len(text) <= 3]
    return min(max(percents), 100) if percents else None


@dataclass(frozen=True, kw_only=True)
class _Reading:
    counters: Counters
    traffic: Traffic | None  # None: the guest did not say it

    @property
    def at(self) -> float:
        return self.counters.at


class LoadMeter:
    """Looks at one guest from time to time."""

    def __init__(self, guest: Guest, policy: Policy) -> None:
        self._guest = guest
        self._readings: list[_Reading] = []  # the first one is a window old, where there is one as old
        machine = guest.machine
        self.newest: Counters | None = None  # of the last look
        self._asks_gpu = "gpu" in policy.busy and machine.agent and guest.has_gpu
        self._asks_traffic = True

    async def look(self) -> Load | None:
        """The load of the last while; None at the first look, and while QEMU does not answer."""
        self.newest = None
        try:
            self.newest = await read_counters(self._guest.qemu)
        except VmError:
            self._readings.clear()
            return None
        now = _Reading(counters=self.newest, traffic=await self._traffic())
        self._readings.append(now)
        while len(self._readings) > 2 and now.at - self._readings[1].at >= _WINDOW_S:
            del self._readings[0]
        if len(self._readings) == 1:
            return None
        first = self._readings[0]
        load = calculate_load(first.counters, now.counters, gpu_percent=await self._gpu_percent())
        received, sent = calculate_traffic(first.traffic, now.traffic)
        memory_mib = read_memory_mib(self._guest.qemu)
        return structs.replace(load, memory_mib=memory_mib, received_kib_s=received, sent_kib_s=sent)

    async def _traffic(self) -> Traffic | None:
        if not self._asks_traffic or self._guest.agent is None:
            return None
        try:
            return await read_traffic(self._guest.agent)
        except AgentRefusalError:
            # It does not know that: not later, either.
            self._asks_traffic = False
            return None
        except VmError:
            return None

    async def _gpu_percent(self) -> int | None:
        if not self._asks_gpu or self._guest.agent is None:
            return None
        try:
            code, output = await self._guest.agent.run(*_GPU_COMMAND, timeout_s=_GPU_TIMEOUT_S)
        except AgentRefusalError:
            # There is no such program: not later, either.
            self._asks_gpu = False
            return None
        except VmError:
            return None
        return parse_gpu_percent(output) if code == 0 else None
