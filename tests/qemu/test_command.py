"""What QEMU is given, compared whole with golden files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from qemuspawner.machine import Machine, decode_unit
from qemuspawner.machines.catalogue import load_machine
from qemuspawner.paths import EXAMPLE_MACHINES, StatePaths
from qemuspawner.qemu.command import qemu_args
from qemuspawner.qemu.jail import Limits, in_jail, tie_to_parent
from qemuspawner.qemu.vm import Memory, Vm, make_vm
from qemuspawner.vfio import Passed

PATHS = StatePaths(root=Path("/state")).session("0123456789abcdef0123")


def machine(image: dict[str, Any], **keys: Any) -> Machine:
    table = {"name": "Test", "image": {"file": "/images/disk", "format": "qcow2", **image}, **keys}
    return msgspec.convert(table, Machine, dec_hook=decode_unit)


def windows_11(accelerator: Any, *, drivers: str = "") -> Vm:
    """The machine that comes with us."""
    known = load_machine(EXAMPLE_MACHINES / "windows-11", Path("/images"))
    image = msgspec.structs.replace(known.image, drivers=drivers)
    return make_vm(
        msgspec.structs.replace(known, image=image),
        PATHS,
        accelerator=accelerator,
        cpus=known.cpus.default,
        memory=Memory(size_mib=known.memory.default),
        uefi_code=Path("/firmware/code.fd"),
        tpm=17,
    )


def vm(
    image: dict[str, Any] | None = None,
    *,
    accelerator: Any = "kvm",
    gpus: tuple[Passed, ...] = (),
    incoming: bool = False,
    seed: Path | None = None,
    **keys: Any,
) -> Vm:
    return make_vm(
        machine(image or {}, **keys),
        PATHS,
        accelerator=accelerator,
        cpus=2,
        memory=Memory(size_mib=2048),
        uefi_code=Path("/firmware/code.fd"),
        tpm=17 if keys.get("tpm") else None,
        gpus=gpus,
        incoming=incoming,
        seed=seed,
    )


DIRECT = {"kernel": "/images/vmlinuz", "initrd": "/images/initrd", "cmdline": "root=/dev/vda quiet"}
EMULATED = {**DIRECT, "cmdline_tcg": "norandmaps"}
DESKTOP = {"firmware": "direct", "display": "virtio", "agent": True, "clipboard": True, "sound": True}

ARM = {"architecture": "aarch64", "machine_type": "virt"}

PCI = Path("/sys/devices/pci0000:00")
CARD = Passed(
    name="0000:65:00.0",
    folders=(PCI / "0000:65:00.0", PCI / "0000:65:00.1"),
    node=Path("/dev/vfio/17"),
)
PART = Passed(
    name="aaaaaaaa-0000-4000-8000-000000000001",
    folders=(PCI / "0000:66:00.0/aaaaaaaa-0000-4000-8000-000000000001",),
    node=Path("/dev/vfio/21"),
)
OPTIONAL: dict[str, Any] = {"gpu": {"need": "optional"}}

CASES = {
    "bios-qcow2-kvm": vm(),
    "direct-desktop-kvm": vm(EMULATED, **DESKTOP),
    "direct-desktop-tcg": vm(EMULATED, accelerator="tcg", **DESKTOP),
    "uefi-nvme": vm({"bus": "nvme"}, firmware="uefi", display="bochs"),
    "sound-pc": vm(machine_type="pc", sound=True),
    "sata-vmdk-pc": vm({"format": "vmdk", "bus": "sata"}, machine_type="pc"),
    "scsi-vdi": vm({"format": "vdi", "bus": "scsi"}, display="qxl"),
    "vhd": vm({"format": "vhd"}),
    "vhdx": vm({"format": "vhdx"}, display="cirrus"),
    "qed": vm({"format": "qed"}, display="vmware"),
    "raw": vm({"format": "raw"}),
    "iso-live": vm({"format": "iso"}),
    "iso-with-disk": vm({"format": "iso", "disk": "8 GiB"}),
    "seed": vm(cloud_init=True, seed=PATHS.seed),
    "seed-taken-out": vm(cloud_init=True),
    "seed-pc": vm(cloud_init=True, seed=PATHS.seed, machine_type="pc"),
    "gpu-port": vm(**OPTIONAL),
    "gpu-plugged-later": vm(**OPTIONAL, gpus=(CARD,), incoming=True),
    "gpus-at-boot": vm(**OPTIONAL, gpus=(CARD, PART)),
    "windows-kvm": windows_11("kvm"),
    "windows-tcg": windows_11("tcg"),
    "windows-drivers": windows_11("kvm", drivers="/images/windows-11/virtio-win.iso"),
    "arm-direct-desktop-kvm": vm(EMULATED, **ARM, **DESKTOP),
    "arm-uefi-tcg": vm(accelerator="tcg", firmware="uefi", display="bochs", **ARM),
    "arm-iso-with-disk": vm({"format": "iso", "disk": "8 GiB", "bus": "scsi"}, display="virtio", **ARM),
    "gpu-required": vm(gpu={"need": "required"}, gpus=(PART,)),
}


@pytest.mark.parametrize("name", CASES)
def test_qemu_is_given_what_the_golden_file_says(
    name: str, compare_with_golden: Callable[[str, list[str]], None]
) -> None:
    """A changed command line shows in the diff of its golden file."""
    compare_with_golden(f"qemu-{name}", qemu_args(CASES[name]))


def test_the_jail_is_what_the_golden_file_says(
    compare_with_golden: Callable[[str, list[str]], None],
) -> None:
    qemu = ["/usr/bin/qemu-system-x86_64"]
    command = in_jail(qemu, work_dir=PATHS.vm, files=CASES["direct-desktop-tcg"].files, kvm=True)
    limits = Limits(memory_mib=2048, cpus=2, file_mib=4096)
    compare_with_golden("jail", tie_to_parent(command, parent_pid=4711, limits=limits))


def test_a_gpu_adds_its_nodes_and_folders_to_the_jail_and_nothing_more() -> None:
    card = CASES["gpus-at-boot"]

    with_gpus = in_jail(["qemu"], work_dir=PATHS.vm, files=card.files, kvm=True, devices=card.devices)

    without = in_jail(["qemu"], work_dir=PATHS.vm, files=CASES["gpu-port"].files, kvm=True)
    added = [word for word in with_gpus if word not in without]
    assert added == [
        *(str(folder) for gpu in (CARD, PART) for folder in gpu.folders for _ in range(2)),
        *(node for node in ("/dev/vfio/vfio", "/dev/vfio/17", "/dev/vfio/21") for _ in range(2)),
    ]


def test_a_machine_with_a_free_port_for_a_gpu_is_restored_with_the_same_one() -> None:
    """Or QEMU refuses what was saved."""
    saved, restored = (qemu_args(CASES[name]) for name in ("gpu-port", "gpu-plugged-later"))

    *same, paused = saved
    assert restored == [*same, "-incoming", "defer", paused]


def test_a_path_with_commas_stays_one_value() -> None:
    """A comma in a path begins no new option: it travels as JSON."""
    path = "/images/a,file=b,snapshot=on/disk.qcow2"

    args = qemu_args(vm({"file": path}))

    disks = [json.loads(value) for value in args if value.startswith("{") and "disk0-base" in value]
    assert disks[0]["backing"]["file"]["filename"] == path


def test_no_user_text_reaches_the_command_line() -> None:
    """The VM is named after its session's id; names and titles stay outside."""
    args = qemu_args(vm(name="bob,process=INJECTED"))

    assert not [value for value in args if "INJECTED" in value]


def test_every_base_image_is_opened_without_following_names_in_it() -> None:
    """Formats that can name a backing file get none."""
    for format_name in ("qcow2", "qed", "vmdk"):
        args = qemu_args(vm({"format": format_name}))
        disk = next(json.loads(value) for value in args if value.startswith("{") and "disk0-base" in value)

        assert disk["backing"]["backing"] is None
        assert disk["backing"]["read-only"] is True
