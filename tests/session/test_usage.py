"""What a session's desktop has used over its whole life."""

import asyncio
import base64
from pathlib import Path
from typing import Any

import guests
import pytest
import vms

from qemuspawner.errors import VmError
from qemuspawner.qemu.agent import AgentRefusalError
from qemuspawner.qemu.counters import Counters, read_counters
from qemuspawner.session.life.clocks import Clocks
from qemuspawner.session.life.usage import UsageMeter, parse_used_mib
from qemuspawner.spec import Usage

MEMINFO = (
    "MemTotal:       16384000 kB\nMemFree:          100000 kB\nMemAvailable:   13312000 kB\nBuffers: 1 kB\n"
)


def counters(at: float, cpu_s: float = 0, *, written_mib: int = 0) -> Counters:
    return Counters(at=at, cpu_s=cpu_s, disk_bytes=written_mib << 20, written_bytes=written_mib << 20)


@pytest.fixture
def clocks(tmp_path: Path) -> Clocks:
    clocks = Clocks(vms.make_spec(tmp_path, vms.make_machine(image={"file": "/x", "format": "raw"})))
    clocks.note_input()
    return clocks


@pytest.fixture
def meter(clocks: Clocks) -> UsageMeter:
    meter = UsageMeter(cpus=8, memory_mib=16384, clocks=clocks)
    meter.begin(counters(1000))
    return meter


def usage_of(meter: UsageMeter) -> Usage:
    usage = meter.usage()
    assert usage is not None
    return usage


# Calculation


def test_nothing_is_said_before_the_desktop_is_there(clocks: Clocks) -> None:
    assert UsageMeter(cpus=8, memory_mib=16384, clocks=clocks).usage() is None


def test_a_desktop_that_is_just_there_has_used_nothing(meter: UsageMeter) -> None:
    assert meter.usage() == Usage(span_s=0)


def test_cpus_are_counted_by_their_time(meter: UsageMeter) -> None:
    """One busy half minute in an hour: the mean and the percentile are low, the peak is not."""
    for number in range(119):
        meter.count(counters(1030 + 30 * number, 3 * (number + 1)))
    meter.count(counters(4600, 3 * 119 + 48))

    usage = usage_of(meter)

    assert usage.span_s == 3600
    assert usage.cpu_mean == round((3 * 119 + 48) / 3600, 2)
    assert usage.cpu_p95 <= 0.16
    assert usage.cpu_peak == 1.6


def test_a_guest_that_works_all_the_time_has_a_high_percentile(meter: UsageMeter) -> None:
    for number in range(20):
        meter.count(counters(1030 + 30 * number, 8 * 30 * (number + 1)))

    assert (usage_of(meter).cpu_p95, usage_of(meter).cpu_peak) == (8, 8)


def test_what_is_looked_at_often_is_not_taken_for_a_peak(meter: UsageMeter) -> None:
    """Looks a second apart are one after ten seconds: a burst of a second is a tenth of it."""
    for second in range(1, 31):
        meter.count(counters(1000 + second, 8 if second >= 5 else 0))

    assert usage_of(meter).cpu_peak == pytest.approx(0.8)


def test_a_short_last_look_is_time_but_no_peak(meter: UsageMeter) -> None:
    meter.count(counters(1030, 3))
    meter.count(counters(1031, 11), least_s=0)

    usage = usage_of(meter)

    assert (usage.span_s, usage.cpu_peak) == (31, 0.1)
    assert usage.cpu_mean == round(11 / 31, 2)


def test_a_thread_that_has_ended_takes_nothing_away(meter: UsageMeter) -> None:
    meter.count(counters(1030, 30, written_mib=5))
    meter.count(counters(1060, 10, written_mib=0))

    usage = usage_of(meter)

    assert (usage.cpu_mean, usage.written_mib) == (0.5, 5)


def test_another_vm_of_the_session_is_added(meter: UsageMeter) -> None:
    meter.count(counters(1030, 30, written_mib=100))
    meter.begin(counters(1100, 2, written_mib=1))
    meter.count(counters(1130, 32, written_mib=2))

    usage = usage_of(meter)

    assert (usage.span_s, usage.cpu_mean, usage.written_mib) == (60, 1, 101)


def test_only_time_with_input_is_active(meter: UsageMeter, clocks: Clocks) -> None:
    meter.count(counters(1030))
    clocks.note_input()
    meter.count(counters(1060))
    clocks.note_busy()
    meter.count(counters(1090))

    assert (usage_of(meter).span_s, usage_of(meter).active_s) == (90, 30)


def test_it_never_grows(meter: UsageMeter) -> None:
    def size() -> int:
        return sum(len(value) for value in vars(meter).values() if isinstance(value, list))

    before = size()
    for number in range(10_000):
        meter.count(counters(1030 + 30 * number, number))

    assert size() == before


# Memory, as the guest's agent says it


@pytest.mark.parametrize(
    ("text", "used_mib"),
    [
        (MEMINFO, 3000),
        (MEMINFO.replace("13312000", "99999999"), 0),
        (MEMINFO.replace("MemAvailable", "MemSomething"), None),
        ("MemTotal: 1 MB\nMemAvailable: 1 MB\n", None),
        ("MemTotal: " + "9" * 4000, None),
        ("", None),
        ("\xff\x00" * 100, None),
    ],
)
def test_the_guests_memory_is_a_number_or_nothing(text: str, used_mib: int | None) -> None:
    assert parse_used_mib(base64.b64encode(text.encode("latin-1")).decode()) == used_mib


@pytest.mark.parametrize("answer", [None, 5, "no base64 é", ["x"], "A"])
def test_an_answer_of_another_kind_is_no_memory(answer: object) -> None:
    assert parse_used_mib(answer) is None


class FakeAgent:
    """Has one file, or refuses or keeps silent."""

    def __init__(self, text: str = "", *, error: VmError | None = None) -> None:
        self.text = text
        self.error = error
        self.asked: list[str] = []

    async def execute(self, command: str, **arguments: Any) -> object:
        self.asked.append(command)
        if self.error is not None:
            raise self.error
        match command:
            case "guest-file-open":
                assert arguments == {"path": "/proc/meminfo", "mode": "r"}
                return 7
            case "guest-file-read":
                assert arguments["handle"] == 7
                return {"count": 1, "buf-b64": base64.b64encode(self.text.encode()).decode(), "eof": True}
        return {}


class FakePlan:
    way = "restored"


class FakeGuest:
    def __init__(self, agent: FakeAgent) -> None:
        self.agent = agent
        self.plan = FakePlan()


async def look(meter: UsageMeter, agent: FakeAgent, *, at: float = 1030) -> None:
    await meter.look(FakeGuest(agent), counters(at), gpu_percent=None)  # type: ignore[arg-type]


async def test_the_most_memory_counts_and_is_the_guests_word(meter: UsageMeter) -> None:
    agent = FakeAgent(MEMINFO)
    await look(meter, agent)
    agent.text = MEMINFO.replace("13312000", "15000000")
    await look(meter, agent, at=1060)

    assert (usage_of(meter).memory_mib, usage_of(meter).memory_by) == (3000, "guest")
    # Nothing is left open in the guest.
    assert agent.asked.count("guest-file-close") == agent.asked.count("guest-file-open")


async def test_a_guest_cannot_use_more_memory_than_it_has(meter: UsageMeter) -> None:
    await look(meter, FakeAgent("MemTotal: 999999999999 kB\nMemAvailable: 0 kB\n"))

    assert usage_of(meter).memory_mib == 16384


async def test_a_guest_without_such_a_file_is_asked_once(meter: UsageMeter) -> None:
    agent = FakeAgent(error=AgentRefusalError("no"))
    for number in range(4):
        await look(meter, agent, at=1030 + 30 * number)

    assert agent.asked == ["guest-file-open"]
    assert (usage_of(meter).memory_mib, usage_of(meter).memory_by) == (None, "")


async def test_a_silent_agent_is_asked_again(meter: UsageMeter) -> None:
    agent = FakeAgent(error=VmError("silent"))
    await look(meter, agent)
    await look(meter, agent, at=1060)

    assert len(agent.asked) == 2


async def test_the_busiest_moment_of_the_gpu_is_kept(meter: UsageMeter) -> None:
    guest: Any = FakeGuest(FakeAgent())
    for number, percent in enumerate((3, None, 70, 5)):
        await meter.look(guest, counters(1030 + 30 * number), gpu_percent=percent)

    assert usage_of(meter).gpu_percent == 70


# Real guests


async def test_a_guest_that_computes_has_used_its_cpu(tmp_path: Path, clocks: Clocks) -> None:
    """Also where it was only looked at in its end, and it has touched some memory, but less than it has."""
    disk = guests.make_disk(tmp_path / "disk", sector=guests.boot_sector(guests.SPINNER))
    machine = vms.make_machine(image={"file": str(disk), "format": "raw"})
    spec = vms.make_spec(tmp_path, machine)
    async with vms.running_guest(spec) as (guest, _):
        meter = UsageMeter(cpus=spec.cpus, memory_mib=spec.memory_mib, clocks=clocks)
        meter.begin(await read_counters(guest.qemu))
        async with asyncio.timeout(60):
            while (usage := meter.usage()) is None or usage.cpu_mean < 0.25 or usage.span_s < 1:
                await asyncio.sleep(0.3)
                await meter.look_again(guest)

    assert usage.cpu_peak >= 0.25
    assert usage.memory_by == "host"
    assert usage.memory_mib is not None
    assert 0 < usage.memory_mib <= spec.memory_mib
