"""Images that nobody here wrote boot, in every format, by BIOS and UEFI: of Debian's packages."""

import asyncio
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import vms
from PIL import Image as Picture

from qemuspawner.qemu.vm import DRIVERS

MEMTEST = Path("/usr/lib/memtest86+/memtest86+x64.iso")
GRUB = Path("/usr/lib/grub-rescue/grub-rescue-cdrom.iso")
IPXE = Path("/usr/lib/ipxe/ipxe.iso")
IPXE_UEFI = Path("/boot/ipxe.efi")
INSTALLER = Path("/usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64")
ISOLINUX = Path("/usr/lib/ISOLINUX/isolinux.bin")
ISOLINUX_MODULE = Path("/usr/lib/syslinux/modules/bios/ldlinux.c32")


def is_memtest(picture: Picture.Image) -> bool:
    """Its blue fills the screen."""
    return count(picture, (0, 0, 168)) > 200_000


def is_grub(picture: Picture.Image) -> bool:
    """The bar over the first entry of its menu, from one side to the other."""
    return count(picture.crop((0, 64, picture.width, 80)), (168, 168, 168)) > 9_000


def is_ipxe(picture: Picture.Image) -> bool:
    """Its address is written in cyan; the firmware's own pages have none."""
    return max(count(picture, (0, 168, 168)), count(picture, (0, 152, 152))) > 300


def is_installer(picture: Picture.Image) -> bool:
    """Its first question, grey on blue."""
    return count(picture, (0, 0, 170)) > 500_000 and count(picture, (170, 170, 170)) > 100_000


def count(picture: Picture.Image, colour: tuple[int, int, int]) -> int:
    colours = picture.getcolors(1 << 24) or []
    return sum(number for number, found in colours if found == colour)


async def wait_for(
    is_there: Callable[[Picture.Image], bool], state: Path, *, memory_mib: int = 0, **machine: Any
) -> None:
    # Memtest is quick where it need not clear much; OVMF wants more.
    memory_mib = memory_mib or (256 if machine.get("firmware") == "uefi" else 64)
    spec = vms.make_spec(state, vms.make_machine(**machine), memory_mib=memory_mib)
    async with vms.running_guest(spec) as (guest, _), asyncio.timeout(90):
        while not is_there(await vms.screen(guest)):
            await asyncio.sleep(0.2)


def convert(source: Path, path: Path, image_format: str) -> dict[str, str]:
    """The `[image]` of a disk."""
    target = DRIVERS[image_format]  # type: ignore[index]
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", target, str(source), str(path)], check=True)
    path.chmod(0o444)
    return {"file": str(path), "format": image_format}


def make_uefi_disk(path: Path) -> Path:
    """A file system that UEFI boots, with iPXE in it."""
    with path.open("wb") as file:
        file.truncate(4 << 20)
    for command in (
        ["mformat", "-i", str(path), "::"],
        ["mmd", "-i", str(path), "::EFI", "::EFI/BOOT"],
        ["mcopy", "-i", str(path), str(IPXE_UEFI), "::EFI/BOOT/BOOTX64.EFI"],
    ):
        subprocess.run(command, check=True)
    return path


@pytest.mark.parametrize("image_format", ["raw", "qcow2", "vmdk", "vdi", "vhd", "vhdx", "qed"])
async def test_memtest_boots_from_a_disk_of_every_format(image_format: str, tmp_path: Path) -> None:
    image = convert(MEMTEST, tmp_path / "disk", image_format)

    await wait_for(is_memtest, tmp_path, image=image)


async def test_memtest_boots_as_a_kernel(tmp_path: Path) -> None:
    image = {"file": str(MEMTEST), "format": "iso", "kernel": "/boot/memtest86+x64.bin"}

    await wait_for(is_memtest, tmp_path, firmware="direct", image=image)


async def test_grub_boots_from_a_disc(tmp_path: Path) -> None:
    await wait_for(is_grub, tmp_path, image={"file": str(GRUB), "format": "iso"})


async def test_ipxe_boots_from_a_disc_beside_an_empty_disk(tmp_path: Path) -> None:
    await wait_for(is_ipxe, tmp_path, image={"file": str(IPXE), "format": "iso", "disk": "64 MiB"})


async def test_ipxe_boots_from_a_disk_by_uefi(tmp_path: Path) -> None:
    image = convert(make_uefi_disk(tmp_path / "raw"), tmp_path / "disk", "qcow2")

    await wait_for(is_ipxe, tmp_path, firmware="uefi", image=image)


async def test_ipxe_boots_from_a_disc_by_uefi(tmp_path: Path) -> None:
    content, disc = tmp_path / "content", tmp_path / "disc"
    content.mkdir()
    shutil.move(make_uefi_disk(tmp_path / "raw"), content / "uefi.img")
    options = ["-eltorito-alt-boot", "-e", "uefi.img", "-no-emul-boot"]
    subprocess.run(["genisoimage", "-quiet", *options, "-o", str(disc), str(content)], check=True)

    await wait_for(is_ipxe, tmp_path, firmware="uefi", image={"file": str(disc), "format": "iso"})


async def test_debians_installer_asks_its_first_question_from_a_disc(tmp_path: Path) -> None:
    content, disc = tmp_path / "content", tmp_path / "disc"
    content.mkdir()
    for file in (INSTALLER / "linux", INSTALLER / "initrd.gz", ISOLINUX, ISOLINUX_MODULE):
        shutil.copy(file, content)
    (content / "isolinux.cfg").write_text(
        "default linux\nlabel linux\nkernel linux\nappend initrd=initrd.gz\n"
    )
    options = ["-b", ISOLINUX.name, "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"]
    subprocess.run(["genisoimage", "-quiet", *options, "-o", str(disc), str(content)], check=True)

    await wait_for(is_installer, tmp_path, memory_mib=512, image={"file": str(disc), "format": "iso"})


async def test_debians_installer_asks_its_first_question_by_uefi(tmp_path: Path) -> None:
    """Its kernel is a program of UEFI's, which the firmware's shell starts."""
    disk, script = tmp_path / "raw", tmp_path / "startup.nsh"
    with disk.open("wb") as file:
        file.truncate(96 << 20)
    script.write_text("fs0:\\linux.efi initrd=\\initrd.gz\r\n")
    subprocess.run(["mformat", "-i", str(disk), "-F", "::"], check=True)
    for source, name in (
        (INSTALLER / "linux", "linux.efi"),
        (INSTALLER / "initrd.gz", "initrd.gz"),
        (script, "startup.nsh"),
    ):
        subprocess.run(["mcopy", "-i", str(disk), str(source), f"::{name}"], check=True)
    image = convert(disk, tmp_path / "disk", "qcow2")

    await wait_for(is_installer, tmp_path, memory_mib=512, firmware="uefi", image=image)
