"""How busy a guest is, and what follows from it: with real guests that compute, read or wait."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import guests
import pytest
import vms

from qemuspawner.errors import VmError
from qemuspawner.policy import Policy
from qemuspawner.qemu.agent import AgentRefusalError
from qemuspawner.qemu.counters import Counters
from qemuspawner.qemu.traffic import Traffic, parse_interfaces
from qemuspawner.session.vm.guest import Guest
from qemuspawner.session.vm.load import (
    LoadMeter,
    calculate_load,
    calculate_traffic,
    find_busy,
    next_look_s,
    parse_gpu_percent,
)
from qemuspawner.spec import Load

# Calculation


def test_the_load_is_what_was_used_between_two_moments() -> None:
    before = Counters(at=100, cpu_s=50, disk_bytes=1 << 20, written_bytes=0)
    after = Counters(at=110, cpu_s=65, disk_bytes=11 << 20, written_bytes=0)

    load = calculate_load(before, after, gpu_percent=7)

    assert load == Load(cpu_percent=150, disk_kib_s=1024, gpu_percent=7)


@pytest.mark.parametrize(
    ("load", "busy"),
    [
        (Load(cpu_percent=24, disk_kib_s=1023, gpu_percent=4), ()),
        (Load(cpu_percent=25), ("cpu",)),
        (Load(disk_kib_s=1024), ("disk",)),
        (Load(gpu_percent=5), ("gpu",)),
        (Load(cpu_percent=400, disk_kib_s=9000, gpu_percent=99), ("cpu", "disk", "gpu")),
        (Load(), ()),
    ],
)
def test_a_guest_is_busy_from_the_policys_bounds_on(load: Load, busy: tuple[str, ...]) -> None:
    assert find_busy(load, Policy()) == busy


def test_what_the_policy_does_not_name_keeps_nothing_awake() -> None:
    load = Load(cpu_percent=400, disk_kib_s=9000, gpu_percent=99)

    assert find_busy(load, Policy(busy=("gpu",))) == ("gpu",)
    assert find_busy(load, Policy(busy=())) == ()


@pytest.mark.parametrize(
    ("left_s", "pause_s"), [(None, 30), (3600, 30), (60, 30), (20, 10), (1.5, 1), (0, 1), (-5, 1)]
)
def test_looks_are_more_frequent_when_the_idle_time_is_nearly_over(
    left_s: float | None, pause_s: float
) -> None:
    assert next_look_s(left_s) == pause_s


@pytest.mark.parametrize(
    ("output", "percent"),
    [
        ("37\n", 37),
        ("0\n98\n12\n", 98),
        ("999\n", 100),
        ("[N/A]\n", None),
        ("[N/A]\n3\n", 3),
        ("", None),
        ("No devices were found\n", None),
        ("-1\n1e9\n²\n0x50\n" + "9" * 5000, None),
        ("\n" * 100_000 + "50", None),
    ],
)
def test_what_nvidia_smi_prints_is_a_number_or_nothing(output: str, percent: int | None) -> None:
    assert parse_gpu_percent(output) == percent


ETH = {"name": "enp0s2", "hardware-address": "52:54:00:12:34:56"}
LO = {
    "name": "lo",
    "hardware-address": "00:00:00:00:00:00",
    "statistics": {"rx-bytes": 9000, "tx-bytes": 9000},
}


@pytest.mark.parametrize(
    ("answer", "counts"),
    [
        ([LO, {**ETH, "statistics": {"rx-bytes": 700, "tx-bytes": 30}}], (700, 30)),
        (
            [
                {**ETH, "statistics": {"rx-bytes": 7, "tx-bytes": 3}},
                {**ETH, "name": "docker0", "statistics": {"rx-bytes": 5, "tx-bytes": 900}},
            ],
            (5, 900),
        ),
        ([LO], None),
        ([ETH], None),
        ([{**ETH, "statistics": {"rx-bytes": -1, "tx-bytes": 2}}], None),
        ([{**ETH, "statistics": {"rx-bytes": 10**40, "tx-bytes": 2}}], None),
        ([{**ETH, "statistics": {"rx-bytes": True, "tx-bytes": "2"}}], None),
        ([{**ETH, "statistics": [1]}, 7, None, []], None),
        ({"rx-bytes": 1}, None),
        ("x" * 100_000, None),
        (None, None),
    ],
)
def test_what_an_agent_says_of_its_network_is_two_counts_or_nothing(
    answer: object, counts: tuple[int, int] | None
) -> None:
    """Of the busiest interface but the loopback; a guest may say what it likes."""
    assert parse_interfaces(answer) == counts


def test_traffic_is_told_both_ways_and_is_never_negative() -> None:
    before = Traffic(at=100, received_bytes=1 << 20, sent_bytes=1 << 20)
    after = Traffic(at=110, received_bytes=11 << 20, sent_bytes=0)

    assert calculate_traffic(before, after) == (1024, 0)
    assert calculate_traffic(None, after) == (None, None)
    assert calculate_traffic(before, None) == (None, None)


# Real guests


StartMeter = Callable[[bytes], Awaitable[LoadMeter]]


@pytest.fixture
async def meter_of(tmp_path: Path) -> AsyncIterator[StartMeter]:
    """Starts a guest from this boot sector; the meter that looks at it."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(sector: bytes) -> LoadMeter:
            disk = guests.make_disk(tmp_path / "disk", sector=sector)
            machine = vms.make_machine(image={"file": str(disk), "format": "raw"})
            guest, _ = await stack.enter_async_context(vms.running_guest(vms.make_spec(tmp_path, machine)))
            return LoadMeter(guest, Policy())

        yield start


async def load_of(meter: LoadMeter, *, until: Callable[[Load], bool]) -> Load:
    """Looks until the load is so; a guest needs a moment to boot."""
    assert await meter.look() is None
    while True:
        await asyncio.sleep(0.3)
        load = await meter.look()
        assert load is not None
        if until(load):
            return load


async def test_a_guest_that_computes_is_busy(meter_of: StartMeter) -> None:
    meter = await meter_of(guests.boot_sector(guests.SPINNER))

    load = await load_of(meter, until=lambda load: (load.cpu_percent or 0) >= 25)

    assert "cpu" in find_busy(load, Policy())
    assert load.gpu_percent is None


async def test_a_guest_that_reads_is_busy_with_its_disk(meter_of: StartMeter) -> None:
    meter = await meter_of(guests.boot_sector(guests.READER))

    await load_of(meter, until=lambda load: (load.disk_kib_s or 0) > 100)


async def test_drawing_for_viewers_is_no_work_of_the_guests(meter_of: StartMeter) -> None:
    """A guest that has stopped computes nothing, however much QEMU does for who looks on."""
    meter = await meter_of(guests.BOOT_SECTOR)
    await meter._guest.qemu.execute("stop")

    assert await meter.look() is None
    for _ in range(20):
        await meter._guest.screenshot()
    load = await meter.look()

    assert load is not None
    assert load.cpu_percent == 0


# The GPU, by a guest agent that is not there


class FakeAgent:
    def __init__(
        self, answer: tuple[int, str] | VmError = (1, ""), *, received: Sequence[int | VmError] = ()
    ) -> None:
        self.answer = answer
        self.asked: list[tuple[str, ...]] = []
        self.received = list(received) or [AgentRefusalError("no")]
        self.asked_of_network = 0

    async def execute(self, command: str) -> object:
        assert command == "guest-network-get-interfaces"
        self.asked_of_network += 1
        received = self.received.pop(0)
        if isinstance(received, VmError):
            raise received
        return [{**ETH, "statistics": {"rx-bytes": received, "tx-bytes": 0}}]

    async def run(self, *argv: str, timeout_s: float) -> tuple[int, str]:
        self.asked.append(argv)
        if isinstance(self.answer, VmError):
            raise self.answer
        return self.answer


class FakeQemu:
    pid = 1

    async def execute(self, command: str) -> list[Any]:
        return []


def gpu_meter(agent: FakeAgent, *, has_gpu: bool = True, policy: Policy | None = None) -> LoadMeter:
    machine = vms.make_machine(image={"file": "/x", "format": "raw"}, agent=True)
    guest = Guest.__new__(Guest)
    guest.machine, guest.agent, guest.qemu = machine, agent, FakeQemu()  # type: ignore[assignment]
    guest.has_gpu = has_gpu
    return LoadMeter(guest, policy or Policy())


async def test_the_gpu_is_asked_of_the_guest() -> None:
    agent = FakeAgent((0, "12\n80\n"))
    meter = gpu_meter(agent)

    await meter.look()
    load = await meter.look()

    assert load is not None
    assert load.gpu_percent == 80
    assert agent.asked == [("nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits")]


async def test_the_load_has_the_memory_and_the_traffic() -> None:
    """Of the process 1, here."""
    meter = gpu_meter(FakeAgent(received=[0, 1 << 40, VmError("silent")]))

    await meter.look()
    load, silent = await meter.look(), await meter.look()

    assert load is not None
    assert (load.received_kib_s or 0) > 1 << 20
    assert load.sent_kib_s == 0
    assert (load.memory_mib or 0) > 0
    assert silent is not None
    assert (silent.received_kib_s, silent.sent_kib_s) == (None, None)


async def test_an_agent_that_knows_no_network_is_asked_once() -> None:
    agent = FakeAgent(received=[AgentRefusalError("no")])
    meter = gpu_meter(agent)

    for _ in range(4):
        await meter.look()

    assert agent.asked_of_network == 1


async def test_a_guest_without_nvidia_smi_is_asked_once() -> None:
    agent = FakeAgent(AgentRefusalError("no"))
    meter = gpu_meter(agent)

    for _ in range(4):
        await meter.look()

    assert len(agent.asked) == 1


async def test_a_guest_that_is_silent_or_fails_has_no_known_load() -> None:
    for answer in ((9, "50\n"), VmError("silent")):
        meter = gpu_meter(FakeAgent(answer))  # type: ignore[arg-type]
        await meter.look()
        load = await meter.look()
        assert load is not None
        assert load.gpu_percent is None


@pytest.mark.parametrize(("has_gpu", "policy"), [(False, Policy()), (True, Policy(busy=("cpu", "disk")))])
async def test_a_gpu_that_is_not_there_or_does_not_count_is_not_asked_for(
    has_gpu: bool, policy: Policy
) -> None:
    agent = FakeAgent((0, "50\n"))
    meter = gpu_meter(agent, has_gpu=has_gpu, policy=policy)

    await meter.look()
    await meter.look()

    assert agent.asked == []
