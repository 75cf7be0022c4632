"""That a session takes the fake QEMU of tests for a real one, and that it does as it is told."""

import asyncio
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import guests
import pytest
import vms
from fake_qemu import FakeQemu

from qemuspawner.errors import VmError
from qemuspawner.paths import SessionPaths
from qemuspawner.qemu.walls import JAIL
from qemuspawner.session.life.supervisor import Supervisor
from qemuspawner.session.screen import desktop, rfb
from qemuspawner.spec import SessionSpec, SessionStatus


@pytest.fixture(params=["real", "fake"])
def any_qemu(request: pytest.FixtureRequest) -> None:
    """Each of them in turn."""
    if request.param == "fake":
        request.getfixturevalue("fake_qemu")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A QEMU that does not answer is given less time than on a host that is busy."""
    monkeypatch.setattr("qemuspawner.qemu.process._QMP_TIMEOUT_S", 1)
    monkeypatch.setattr("qemuspawner.qemu.process._QUIT_TIMEOUT_S", 0.2)


def make_spec(folder: Path) -> SessionSpec:
    disk = folder / "disk"
    if not disk.exists():
        guests.make_disk(disk)
    machine = vms.make_machine(image={"file": str(disk), "format": "raw"}, shutdown="1 s")
    return vms.make_spec(folder, machine, suspend_on=("stop",))


def is_running(status: SessionStatus) -> bool:
    return status.state == "running"


def paths_of(supervisor: Supervisor) -> SessionPaths:
    assert supervisor.keeper is not None
    return supervisor.keeper.paths


async def wait_for_colour(supervisor: Supervisor, colour: tuple[int, int, int]) -> None:
    async with asyncio.timeout(30):
        while (await vms.screen(supervisor.running_guest())).getpixel((9, 9)) != colour:
            await asyncio.sleep(0.05)


async def test_a_session_is_the_same_with_it(any_qemu: None, tmp_path: Path) -> None:
    """It boots within all walls, shows what keys do, has its disk locked, sleeps, and wakes."""
    spec = make_spec(tmp_path)
    async with vms.supervised(spec) as supervisor:
        await vms.wait_for_status(supervisor, is_running)
        assert set(JAIL) <= set(supervisor.running_guest().walls)
        await wait_for_colour(supervisor, guests.GREEN)
        await supervisor.running_guest().qemu.execute("send-key", keys=[{"type": "qcode", "data": "x"}])
        await wait_for_colour(supervisor, guests.RED)
        looked = subprocess.run(
            ["qemu-img", "check", str(paths_of(supervisor).overlay(0))], capture_output=True
        )
        assert b"Is another process using the image" in looked.stderr

        await supervisor.suspend(by="alice")

    async with vms.supervised(spec) as supervisor:
        status = await vms.wait_for_status(supervisor, is_running)
        assert status.way == "woken"


async def test_it_notes_what_reaches_it(fake_qemu: FakeQemu, tmp_path: Path) -> None:
    """Without the release of a key that was never pressed, as QEMU."""
    async with vms.supervised(make_spec(tmp_path)) as supervisor:
        await vms.wait_for_status(supervisor, is_running)
        paths = paths_of(supervisor)
        with await desktop.connect_desktop(paths.vnc_socket) as viewer:
            for key, down in ((ord("x"), True), (ord("y"), False), (ord("x"), False)):
                await viewer.send(rfb.extended_key(keysym=key, scan_code=0x2D, down=down))
            await viewer.send(rfb.set_desktop_size(width=800, height=600))
            async with asyncio.timeout(30):
                while ["size", 800, 600] not in (notes := fake_qemu.notes(paths)):
                    await asyncio.sleep(0.05)

    keys = [note for note in notes if note[0] == "key"]
    assert keys == [["key", ord("x"), True], ["key", ord("x"), False]]
    assert ["qmp", "cont"] in notes


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        ({"start": "die"}, "QEMU could not start the machine."),
        ({"sockets": "die"}, "QEMU could not start the machine."),
        ({"greeting": "die"}, "QEMU could not start the machine."),
        ({"cont": "refuse"}, "QEMU refused 'cont': as told"),
        ({"sandbox": "ignore"}, "QEMU runs without walls that it must have: seccomp."),
        ({"_2": "die"}, "QEMU refused 'cont':"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
async def test_it_fails_a_start_where_it_is_told(
    orders: dict[str, Any], message: str, fake_qemu: FakeQemu, tmp_path: Path
) -> None:
    fake_qemu.order(**orders)

    async with vms.supervised(make_spec(tmp_path)) as supervisor:
        status = await vms.wait_for_status(supervisor, lambda status: status.state == "failed")

    assert status.message.startswith(message)


@pytest.mark.parametrize("fault", ["silent", "half", "ignore"])
async def test_it_falls_silent_where_it_is_told(
    fault: str, fake_qemu: FakeQemu, tmp_path: Path, impatient: None
) -> None:
    async with vms.supervised(make_spec(tmp_path)) as supervisor:
        await vms.wait_for_status(supervisor, is_running)
        fake_qemu.order(
            paths_of(supervisor), **{"query-status": fault, "quit": "ignore", "SIGTERM": "ignore"}
        )
        qemu = supervisor.running_guest().qemu
        async with asyncio.timeout(30):
            with pytest.raises(VmError, match="did not answer"):
                while True:  # its orders come by a signal
                    await qemu.run_state()
        os.kill(qemu.pid, signal.SIGTERM)

        assert qemu.running


async def test_it_stops_panics_and_floods_at_once(
    fake_qemu: FakeQemu, tmp_path: Path, impatient: None
) -> None:
    async with vms.supervised(make_spec(tmp_path)) as supervisor:
        await vms.wait_for_status(supervisor, is_running)
        qemu = supervisor.running_guest().qemu

        fake_qemu.order(now="panic")
        await vms.wait_for_status(supervisor, lambda status: status.trouble is not None)
        fake_qemu.order(now="flood")
        with qemu.events("RTC_CHANGE") as events:
            for _ in range(100):
                await events.get()
        fake_qemu.order(now="stop")
        async with asyncio.timeout(30):
            while "State:\tT" not in Path(f"/proc/{qemu.pid}/status").read_text():
                await asyncio.sleep(0.05)


async def test_it_greets_viewers_with_what_it_is_told(fake_qemu: FakeQemu, tmp_path: Path) -> None:
    fake_qemu.order(rfb="garbage")
    async with vms.supervised(make_spec(tmp_path)) as supervisor:
        await vms.wait_for_status(supervisor, is_running)

        with pytest.raises(desktop.DesktopError):
            await desktop.connect_desktop(paths_of(supervisor).vnc_socket)
