"""Every format of the catalogue really boots, inside the jail."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import guests
import pytest
import vms

from qemuspawner.session.vm.guest import Guest
from qemuspawner.session.vm.prepare import Prepared


@contextlib.asynccontextmanager
async def running(
    state: Path, *, memory_mib: int = 64, **machine: Any
) -> AsyncIterator[tuple[Guest, Prepared]]:
    spec = vms.make_spec(state, vms.make_machine(**machine), memory_mib=memory_mib)
    async with vms.running_guest(spec) as both:
        yield both


async def wait_for_colour(guest: Guest, colour: tuple[int, int, int]) -> None:
    async with asyncio.timeout(60):
        while True:
            picture = await vms.screen(guest)
            if picture.getpixel((picture.width // 2, picture.height // 2)) == colour:
                return
            await asyncio.sleep(0.1)


async def wait_for_firmware(guest: Guest) -> None:
    """It draws something, and not in the size of QEMU's words about an unused display."""
    async with asyncio.timeout(60):
        while True:
            picture = await vms.screen(guest)
            if picture.size != (640, 480) and picture.convert("L").getextrema()[1] > 100:
                return
            await asyncio.sleep(0.2)


@pytest.mark.parametrize("image_format", ["raw", "qcow2", "vmdk", "vdi", "vhd", "vhdx", "qed", "iso"])
async def test_a_disk_of_every_format_boots(image_format: str, tmp_path: Path) -> None:
    """The guest paints the screen green, so firmware, disk and display work."""
    disk = guests.make_disk(tmp_path / "disk", image_format)

    async with running(tmp_path, image={"file": str(disk), "format": image_format}) as (guest, _):
        await wait_for_colour(guest, guests.GREEN)


@pytest.mark.parametrize("bus", ["sata", "scsi", "nvme"])
async def test_a_disk_on_every_bus_boots(bus: str, tmp_path: Path) -> None:
    disk = guests.make_disk(tmp_path / "disk", "qcow2")

    async with running(tmp_path, image={"file": str(disk), "format": "qcow2", "bus": bus}) as (guest, _):
        await wait_for_colour(guest, guests.GREEN)


async def test_an_iso_boots_beside_an_empty_disk(tmp_path: Path) -> None:
    disc = guests.make_disk(tmp_path / "disc", "iso")

    async with running(tmp_path, image={"file": str(disc), "format": "iso", "disk": "1 GiB"}) as (guest, _):
        await wait_for_colour(guest, guests.GREEN)


@pytest.mark.parametrize("display", ["virtio", "std", "qxl", "cirrus", "vmware"])
async def test_every_display_shows_a_bios_guest(display: str, tmp_path: Path) -> None:
    disk = guests.make_disk(tmp_path / "disk")

    async with running(tmp_path, display=display, image={"file": str(disk), "format": "raw"}) as (guest, _):
        await wait_for_colour(guest, guests.GREEN)


async def test_uefi_firmware_starts(tmp_path: Path) -> None:
    disk = guests.make_disk(tmp_path / "disk")

    async with running(tmp_path, firmware="uefi", image={"file": str(disk), "format": "raw"}) as (guest, _):
        await wait_for_firmware(guest)


async def test_a_guest_as_windows_wants_it_starts_and_keeps_its_tpm(tmp_path: Path) -> None:
    """Secure boot, and a TPM into which the firmware measures what it starts: the same when awake again."""
    disk = guests.make_disk(tmp_path / "disk")
    machine = vms.make_machine(
        firmware="uefi", secure_boot=True, tpm=True, system="windows",
        image={"file": str(disk), "format": "raw", "drivers": str(guests.make_disk(tmp_path / "iso", "iso"))},
    )  # fmt: skip
    spec = vms.make_spec(tmp_path, machine)
    async with vms.running_guest(spec) as (guest, prepared):
        await wait_for_firmware(guest)
        assert (await guest.qemu.execute("query-tpm"))[0]["model"] == "tpm-crb"
        state = (prepared.paths.tpm / "state").read_bytes()
        await vms.suspend(guest, prepared)
    assert len(state) > 1000

    async with vms.running_guest(spec) as (guest, prepared):
        assert prepared.started.plan.way == "woken"
        assert (prepared.paths.tpm / "state").read_bytes()[-1000:] == state[-1000:]


async def test_an_arm_guest_starts(tmp_path: Path) -> None:
    """Another processor, board and firmware, in the same jail."""
    disk = guests.make_disk(tmp_path / "disk")
    board = {"architecture": "aarch64", "machine_type": "virt", "firmware": "uefi", "display": "virtio"}

    image = {"file": str(disk), "format": "raw"}
    async with running(tmp_path, memory_mib=256, image=image, **board) as (guest, _):
        await wait_for_firmware(guest)


async def test_the_base_image_is_not_written_and_the_directory_goes(tmp_path: Path) -> None:
    """What a session writes goes to its overlay, and the overlay goes with it."""
    disk = guests.make_disk(tmp_path / "disk", "qcow2")
    before = disk.read_bytes()

    async with running(tmp_path, image={"file": str(disk), "format": "qcow2"}) as (guest, prepared):
        await wait_for_colour(guest, guests.GREEN)
        assert prepared.paths.overlay(0).exists()

    assert disk.read_bytes() == before
    assert list((tmp_path / "sessions").iterdir()) == []


async def test_qemu_runs_filtered_and_without_capabilities(tmp_path: Path) -> None:
    """As the kernel sees it: seccomp filter on, no new privileges, no capability, own namespaces."""
    disk = guests.make_disk(tmp_path / "disk")

    async with running(tmp_path, image={"file": str(disk), "format": "raw"}) as (guest, _):
        process = Path(f"/proc/{guest.qemu.pid}")
        status = dict(
            line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line
        )
        inside = {name: (process / "ns" / name).readlink() for name in ("net", "pid", "mnt", "ipc", "uts")}
        files = sorted(path.name for path in (process / "root").iterdir())
        etc = sorted(path.name for path in (process / "root" / "etc").iterdir())

    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    assert int(status["CapEff"], 16) == 0
    assert not [
        name for name, namespace in inside.items() if namespace == Path(f"/proc/self/ns/{name}").readlink()
    ]
    assert "home" not in files
    assert "root" not in files
    assert set(etc) <= {"ld.so.cache", "alternatives"}
