"""Vm: what QEMU is given. Everything is decided here; `command` only writes it down."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from qemuspawner.machine import Architecture, ImageFormat, Machine, MachineType
from qemuspawner.paths import SessionPaths
from qemuspawner.vfio import CONTROL, Passed

Accelerator = Literal["kvm", "tcg"]

# What QEMU calls the formats of the catalogue.
DRIVERS: dict[ImageFormat, str] = {
    "qcow2": "qcow2",
    "raw": "raw",
    "iso": "raw",
    "vmdk": "vmdk",
    "vdi": "vdi",
    "vhd": "vpc",
    "vhdx": "vhdx",
    "qed": "qed",
}


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A disk or, read-only with `cdrom`, a disc in a drive."""

    id: str
    path: Path
    driver: str  # QEMU's name of the format; never probed
    bus: Literal["virtio", "sata", "nvme", "scsi"] = "virtio"
    cdrom: bool = False
    layers: tuple[Path, ...] = ()  # frozen qcow2s under an overlay, the lowest first
    backing: Path | None = None  # the base image under all that
    backing_driver: str = ""

    @property
    def node(self) -> str:
        """QEMU's name of what is written to; every overlay on top of another gets a name of its own."""
        return node_name(self.id, len(self.layers))


def node_name(disk_id: str, depth: int) -> str:
    return f"{disk_id}-{depth}"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Where the guest's memory lies: QEMU's own, or behind a descriptor that it inherits."""

    size_mib: int
    descriptor: int | None = None
    private: bool = True  # what the guest writes stays in this VM


@dataclass(frozen=True, kw_only=True)
class Export:
    """A folder of the host that QEMU itself serves, by 9p, once a device for it is plugged."""

    id: str
    path: str  # as QEMU sees it: ours
    read_only: bool


@dataclass(frozen=True, kw_only=True)
class DirectKernel:
    """A Linux kernel that QEMU starts without firmware menu or boot loader."""

    kernel: Path
    initrd: Path | None
    cmdline: str


@dataclass(frozen=True, kw_only=True)
class Uefi:
    """UEFI firmware: the code is shared, the variables are the VM's own."""

    code: Path
    variables: Path
    secure: bool = False  # it starts only what is signed, and keeps the guest from changing its variables


@dataclass(frozen=True, kw_only=True)
class Lan:
    """A second card, for an interface of the host's."""

    mac: str
    descriptor: int | None = None  # the tap it is at, which QEMU inherits; None: nothing is behind it


@dataclass(frozen=True, kw_only=True)
class Vm:
    """One virtual machine. Sockets lie in QEMU's working directory: `vnc`, `qmp` and `qga`."""

    name: str  # our own id, never a user's text
    architecture: Architecture
    machine_type: MachineType
    accelerator: Accelerator
    cpus: int
    memory: Memory
    disks: tuple[Disk, ...]
    incoming: bool = False  # waits for what was saved, instead of booting
    firmware: DirectKernel | Uefi | None = None  # None: BIOS
    display: str = "std"
    agent: bool = False
    has_seed: bool = False  # it has a port for a seed, and a channel to tell what became of it
    seed: Path | None = None  # the volume, while it boots for the first time
    clipboard: bool = False
    sound: bool = False
    network: bool = False  # it reaches what QEMU reaches: that is for walls around QEMU
    lan: Lan | None = None
    spare_ports: int = 0  # where devices can be plugged while it runs
    exports: tuple[Export, ...] = ()
    gpus: tuple[Passed, ...] = ()
    tpm: int | None = None  # the descriptor by which QEMU speaks to it
    windows: bool = False  # the guest is told of its host in Windows' terms
    late_gpus: bool = False  # it has a port for them, and they are plugged in when it runs

    @property
    def is_pc(self) -> bool:
        """Whether it has what all PCs have: their graphics, disks and generation id."""
        return self.architecture == "x86_64"

    @property
    def devices(self) -> tuple[Path, ...]:
        """The host's device nodes that QEMU opens, beside KVM's."""
        return (CONTROL, *(gpu.node for gpu in self.gpus)) if self.gpus else ()

    @property
    def files(self) -> tuple[Path, ...]:
        """What QEMU reads outside its working directory; of a device of the host its folder in sysfs."""
        paths = [path for disk in self.disks for path in (*disk.layers, disk.backing) if path]
        paths += [disk.path for disk in self.disks if disk.cdrom]
        paths += [self.seed] if self.seed else []
        paths += [folder for gpu in self.gpus for folder in gpu.folders]
        match self.firmware:
            case DirectKernel(kernel=kernel, initrd=initrd):
                paths += [kernel, *([initrd] if initrd else [])]
            case Uefi(code=code):
                paths.append(code)
        return tuple(paths)


# For so many folders of the host there is room.
SPARE_PORTS = 8


def make_vm(
    machine: Machine,
    paths: SessionPaths,
    *,
    accelerator: Accelerator,
    cpus: int,
    memory: Memory,
    layers: tuple[Path, ...] = (),
    incoming: bool = False,
    uefi_code: Path | None = None,
    network: bool = False,
    lan: Lan | None = None,
    gpus: tuple[Passed, ...] = (),
    exports: tuple[Export, ...] = (),
    tpm: int | None = None,
    seed: Path | None = None,
) -> Vm:
    """The VM of a session of `machine`, its writes going to the session's overlay on top of `layers`.

    Into one that boots `gpus` are built, into one that is restored they are plugged later.
    """
    image = machine.image
    base = Path(image.file)
    overlay = Disk(id="disk0", path=paths.overlay(len(layers)), driver="qcow2", layers=layers, bus=image.bus)
    if image.format == "iso":
        disc = Disk(id="disc0", path=base, driver="raw", cdrom=True)
        disks: tuple[Disk, ...] = (overlay, disc) if image.disk else (disc,)
    else:
        disks = (replace(overlay, backing=base, backing_driver=DRIVERS[image.format]),)
    firmware: DirectKernel | Uefi | None = None
    if machine.firmware == "direct":
        initrd = Path(image.initrd) if image.initrd else None
        words = (image.cmdline, image.cmdline_tcg) if accelerator == "tcg" else (image.cmdline,)
        cmdline = " ".join(filter(None, words))
        firmware = DirectKernel(kernel=Path(image.kernel), initrd=initrd, cmdline=cmdline)
    elif machine.firmware == "uefi":
        if uefi_code is None:
            raise AssertionError("The caller finds the UEFI firmware.")
        firmware = Uefi(code=uefi_code, variables=paths.firmware_vars, secure=machine.secure_boot)
    if image.drivers:
        disks += (Disk(id="drivers0", path=Path(image.drivers), driver="raw", cdrom=True),)
    return Vm(
        name=paths.root.name,
        architecture=machine.architecture,
        machine_type=machine.machine_type,
        accelerator=accelerator,
        cpus=cpus,
        memory=memory,
        disks=disks,
        incoming=incoming,
        firmware=firmware,
        display=machine.display,
        agent=machine.agent,
        has_seed=machine.has_seed,
        seed=seed,
        clipboard=machine.clipboard,
        sound=machine.sound,
        network=network,
        lan=lan,
        gpus=gpus,
        late_gpus=can_plug_gpus(machine) and (incoming or not gpus),
        # Without an agent nobody in the guest could mount a folder. A "pc" has free slots as it is.
        spare_ports=SPARE_PORTS if machine.agent and machine.machine_type != "pc" else 0,
        exports=exports,
        tpm=tpm,
        windows=machine.system == "windows",
    )


def can_plug_gpus(machine: Machine) -> bool:
    """Whether its VMs have a port for a GPU that comes when they run already."""
    return machine.gpu.need == "optional" and machine.gpu.plug
