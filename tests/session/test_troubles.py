"""Guests that fill their disk, crash, or fall silent: said so, and their people can do something about it."""

import asyncio
import contextlib
import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

import guests
import pytest
import vms
from moved_clock import Clock

from qemuspawner.errors import SessionError, VmError
from qemuspawner.qemu.process import QemuProcess
from qemuspawner.session.life.supervisor import Supervisor
from qemuspawner.session.vm.oom import OomWatch, count_kills
from qemuspawner.session.vm.paused_disk import PausedDisk
from qemuspawner.session.vm.pulse import Pulse
from qemuspawner.session.vm.troubles import Troubles
from qemuspawner.spec import SessionSpec, SessionStatus


def make_spec(folder: Path, code: bytes, **keys: Any) -> SessionSpec:
    """A session of a guest that runs `code`, on a disk of 64 MiB."""
    disk = guests.make_disk(folder / "disk", sector=guests.boot_sector(code))
    image = {"file": str(disk), "format": "raw", "disk": "64 MiB"}
    return vms.make_spec(folder, vms.make_machine(image=image, shutdown="1 s"), **keys)


def is_trouble(kind: str, *acts: str) -> Any:
    return lambda status: (
        status.trouble is not None and status.trouble.kind == kind and status.trouble.acts == acts
    )


def is_calm(status: SessionStatus) -> bool:
    return status.trouble is None and status.message == ""


def written_bytes(supervisor: Supervisor, spec: SessionSpec) -> int:
    assert supervisor.keeper is not None
    return supervisor.keeper.paths.overlay(0).stat().st_size


async def test_a_guest_that_writes_more_than_it_may_is_paused_and_goes_on_with_more_room(
    tmp_path: Path,
) -> None:
    """Three times: at the limit, at the extended limit, and where no more is allowed."""
    spec = make_spec(tmp_path, guests.WRITER, disk_limit_mib=8, max_disk_limit_mib=20)
    async with vms.supervised(spec) as supervisor:
        status = await vms.wait_for_status(supervisor, is_trouble("disk-limit", "extend"))
        assert "all that it may, 8 MiB: the machine is paused, and nothing is lost" in status.message
        assert 7 << 20 < written_bytes(supervisor, spec) <= 8 << 20

        await supervisor.act("extend", by="alice")

        await vms.wait_for_status(supervisor, lambda status: "16 MiB" in status.message)
        assert 15 << 20 < written_bytes(supervisor, spec) <= 16 << 20

        await supervisor.act("extend", by="alice")

        status = await vms.wait_for_status(supervisor, is_trouble("disk-limit"))
        assert "20 MiB" in status.message
        with pytest.raises(SessionError, match="nothing that this would help"):
            await supervisor.act("extend", by="alice")
        assert written_bytes(supervisor, spec) <= 20 << 20


class FullDisk:
    """A guest whose first write fails at its limit, and the second at the next one."""

    def __init__(self) -> None:
        self.qemu = self
        self.file_limit_mib = 8
        self.tries = 0
        self.paused: PausedDisk

    def limit_files(self, mib: int) -> None:
        self.file_limit_mib = mib

    async def run_state(self) -> str:
        return "io-error"

    async def execute(self, command: str) -> None:
        assert command == "cont"
        self.tries += 1
        if self.tries == 1:
            # Before QEMU's answer has come somebody has read it and allows the disk more again.
            self.paused.note_failure({"reason": os.strerror(errno.EFBIG)})
            self.paused.extend()


async def test_who_allows_more_while_the_disk_is_tried_is_heard(tmp_path: Path) -> None:
    calm = asyncio.Event()
    troubles = Troubles(lambda: troubles.worst or calm.set())
    guest = FullDisk()
    spec = make_spec(tmp_path, guests.WRITER, disk_limit_mib=8, max_disk_limit_mib=24)
    guest.paused = PausedDisk(guest, spec, troubles, lock=asyncio.Lock(), log=vms.LOG)  # type: ignore[arg-type]
    guest.paused.note_failure({"reason": os.strerror(errno.EFBIG)})

    guest.paused.extend()

    async with asyncio.timeout(10):
        await calm.wait()
    assert guest.tries == 2
    assert guest.file_limit_mib == 24


async def test_a_guest_that_talks_on_its_serial_port_fills_nothing(tmp_path: Path) -> None:
    """A ring of 64 KiB in QEMU, several times around; no line of it in a log, no byte in a file."""
    spec = make_spec(tmp_path, guests.CHATTERER)
    async with vms.supervised(spec) as supervisor:
        await vms.wait_for_status(supervisor, lambda status: status.state == "running")
        qemu = supervisor.running_guest().qemu
        assert supervisor.keeper is not None
        before = sizes(supervisor.keeper.paths.root)
        heard = 0
        while heard < 4 * 65536:
            said = await qemu.execute("ringbuf-read", device="serial0", size=65536)
            assert isinstance(said, str)
            assert set(said) <= {"A"}
            heard += len(said)

        assert sizes(supervisor.keeper.paths.root) == before
        assert qemu.last_words == ""


def sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.rglob("*")}


async def press_until_ended(qemu: QemuProcess) -> None:
    """Press a key until QEMU is gone: the firmware may still be at work, and takes none then."""
    async with asyncio.timeout(60):
        while qemu.running:
            with contextlib.suppress(VmError):
                await qemu.execute("send-key", keys=[{"type": "qcode", "data": "a"}])
            # Its keyboard has room for a few, and loses the others' ends.
            await asyncio.sleep(0.2)


async def test_a_guest_that_copies_four_gigabytes_takes_no_memory_of_the_host(tmp_path: Path) -> None:
    """QEMU makes room for what the clipboard's agent announces; it ends, and so does nobody else."""
    spec = make_spec(tmp_path, guests.COPIER)
    async with vms.supervised(spec) as supervisor:
        await vms.wait_for_status(supervisor, lambda status: status.state == "running")
        qemu = supervisor.running_guest().qemu
        agent = {"type": "qemu-vdagent", "data": {"clipboard": True, "mouse": False}}
        await qemu.execute("chardev-change", id="serial0", backend=agent)

        await press_until_ended(qemu)

        status = await vms.wait_for_status(supervisor, lambda status: status.state == "failed")
        assert status.message == "The virtual machine ended unexpectedly."


async def test_a_desktop_that_somebody_killed_is_not_out_of_memory(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, guests.SPINNER)
    async with vms.supervised(spec) as supervisor:
        await vms.wait_for_status(supervisor, lambda status: status.state == "running")

        os.kill(supervisor.running_guest().qemu.pid, signal.SIGKILL)

        status = await vms.wait_for_status(supervisor, lambda status: status.state == "failed")
        assert status.message == "The virtual machine ended unexpectedly."


def test_kills_are_counted_in_our_group_of_either_version(tmp_path: Path) -> None:
    """Where the host's own count is not to be read, as in some containers."""
    files = {
        "proc/self/cgroup": "7:cpu,memory:/old/job\n0::/new/job\nother:nonsense:/\n",
        "cgroup/memory/old/job/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        "cgroup/new/job/memory.events": "low 0\noom 7\noom_kill 3\noom_group_kill 9\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert count_kills(proc=tmp_path / "proc", cgroups=tmp_path / "cgroup") == 5


def test_a_kill_that_was_counted_before_its_process_had_ended_is_still_a_kill() -> None:
    """The usual look of twice a minute came in between; one of long ago is none."""
    clock, kills = Clock(), [0]
    watch = OomWatch(count=lambda: kills[0], now=clock)
    assert not watch.look()
    kills[0] += 1
    assert watch.look()

    clock.seconds += 1
    assert watch.look()

    clock.seconds += 60
    assert not watch.look()


async def test_a_guest_with_room_for_its_whole_disk_fills_it_and_runs(tmp_path: Path) -> None:
    """Its writes past the disk's end are its own errors."""
    spec = make_spec(tmp_path, guests.WRITER)
    async with vms.supervised(spec) as supervisor:
        await vms.wait_for_status(supervisor, lambda status: status.state == "running")
        guest = supervisor.running_guest()
        while written_bytes(supervisor, spec) < 62 << 20:
            await guest.qemu.execute("query-status")

        assert await guest.qemu.run_state() == "running"
        assert is_calm(supervisor.status())


async def test_a_guest_that_says_it_has_crashed_is_paused_and_can_be_restarted(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, guests.PANICKER)
    async with vms.supervised(spec) as supervisor:
        status = await vms.wait_for_status(supervisor, is_trouble("crashed", "reset"))
        assert status.message == "The machine's system has crashed."
        assert await supervisor.running_guest().qemu.run_state() == "guest-panicked"

        await supervisor.act("reset", by="alice")

        # It boots, and crashes again.
        await vms.wait_for_status(supervisor, is_calm)
        await vms.wait_for_status(supervisor, is_trouble("crashed", "reset"))


async def test_without_a_trouble_there_is_nothing_to_be_done(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, guests.SPINNER)
    async with vms.supervised(spec) as supervisor:
        await vms.wait_for_status(supervisor, lambda status: status.state == "running")

        with pytest.raises(SessionError, match="nothing that this would help"):
            await supervisor.act("reset", by="alice")


class FakeGuest:
    """As far as its pulse is felt."""

    def __init__(self) -> None:
        self.qemu = self.agent = self
        self.state: object = "running"
        self.answers = True
        self.answered_at = 0.0

    async def run_state(self) -> object:
        if self.state is None:
            raise VmError("QEMU did not answer.")
        return self.state

    async def execute(self, command: str) -> object:
        assert command == "guest-ping"
        if not self.answers:
            raise VmError("The guest agent did not answer.")
        self.answered_at = time.monotonic()
        return {}


class TestPulse:
    guest: FakeGuest
    pulse: Pulse
    troubles: Troubles

    @pytest.fixture(autouse=True)
    def feel(self) -> None:
        self.guest = FakeGuest()
        self.troubles = Troubles(lambda: None)
        self.pulse = Pulse(self.guest, self.troubles, is_saved=lambda: False)  # type: ignore[arg-type]

    async def look(self, times: int = 1) -> tuple[str, ...] | None:
        """What could be done after so many looks; None where nothing is wrong."""
        for _ in range(times):
            await self.pulse.look()
        return None if self.troubles.worst is None else self.troubles.worst.trouble.acts

    async def test_a_guest_that_stops_answering_can_be_restarted(self) -> None:
        await self.look()
        self.guest.answers = False

        assert await self.look() == ("reset",)

        self.guest.answers = True
        assert await self.look() is None

    async def test_a_guest_whose_agent_serves_somebody_else_is_not_silent(self) -> None:
        """Whose turn it is not waits, as long as others are answered."""
        await self.look()
        self.guest.answers = False
        self.guest.answered_at = float("inf")

        assert await self.look() is None

    async def test_a_guest_whose_agent_never_answered_is_not_called_silent(self) -> None:
        self.guest.answers = False

        assert await self.look(10) is None

    async def test_a_guest_that_boots_anew_is_given_time(self) -> None:
        await self.look()
        self.guest.answers = False
        await self.look()

        self.pulse.note_reset()

        assert await self.look(10) is None

    async def test_a_paused_guest_need_not_answer(self) -> None:
        await self.look()
        self.guest.answers, self.guest.state = False, "paused"

        assert await self.look(10) is None

    async def test_a_qemu_that_hangs_is_told_from_a_guest(self) -> None:
        self.guest.state = None

        assert await self.look() is None
        assert await self.look() == ()


async def test_a_desktop_that_is_paused_for_its_disk_sleeps_and_goes_on_with_new_room(tmp_path: Path) -> None:
    """The write that was not done waits in what is saved, and is done on the new layer."""
    spec = make_spec(tmp_path, guests.WRITER, disk_limit_mib=8, max_disk_limit_mib=8, suspend_on=("stop",))
    async with vms.supervised(spec) as supervisor:
        await vms.wait_for_status(supervisor, is_trouble("disk-limit"))
        await supervisor.suspend(by="alice")
        assert supervisor.status().state == "suspended"

    async with vms.supervised(spec) as supervisor:
        await vms.wait_for_status(supervisor, is_trouble("disk-limit"))

        assert supervisor.status().way == "woken"
        assert supervisor.keeper is not None
        paths = supervisor.keeper.paths
        below, now = paths.layers / "disk-0.qcow2", paths.overlay(1)
        assert 7 << 20 < below.stat().st_size <= 8 << 20
        assert 7 << 20 < now.stat().st_size <= 8 << 20
