"""Vm -> QEMU's argument list; one pure function a device, options as JSON wherever QEMU takes it.

Where QEMU takes only its own `key=value,` text, the values are ours: numbers and names from fixed sets,
never a path or a user's words (a comma in those would begin a new option).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from qemuspawner.machine import Architecture
from qemuspawner.paths import AGENT_SOCKET, QMP_SOCKET, VNC_SOCKET
from qemuspawner.qemu.passing import function_args, port_args
from qemuspawner.qemu.vm import DirectKernel, Disk, Export, Lan, Memory, Uefi, Vm, node_name

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

CLIPBOARD_CHARDEV = "vdagent0"
NETWORK = "net0"
_LAN = "lan0"
SOUND = "sound0"
SEED = "seed0"
REPORT_CHARDEV = "report0"
# More than all that a first boot tells until it is read, the output of a script as base64 included.
REPORT_BYTES = 1 << 20
# Far from the numbers of other ports.
_SEED_CHASSIS = 90
SOUND_RATE_HZ = 48000
TPM = "tpm0"
# What Windows knows of Hyper-V, and is faster with. Source: QEMU docs/system/i386/hyperv.rst.
HYPERV = (
    "hv_relaxed=on", "hv_vapic=on", "hv_spinlocks=0x1fff", "hv_vpindex=on", "hv_runtime=on", "hv_time=on",
    "hv_synic=on", "hv_stimer=on", "hv_frequencies=on", "hv_tlbflush=on", "hv_ipi=on",
)  # fmt: skip
# Of QEMU's board; far from those that it hands out itself, from 1 on.
_SPARE_SLOT = 0x10

# TCG caches translated code, by default up to 1 GiB a VM. A desktop fills whatever it gets and is no faster
# above 64; with 32 it boots 40 % slower.
TCG_CACHE_MIB = 64
# ARM's own way to sign pointers takes most of the time of a program that uses it.
TCG_CPUS: dict[Architecture, str] = {"x86_64": "max", "aarch64": "max,pauth-impdef=on"}

_DISPLAYS: dict[str, dict[str, object]] = {
    "virtio": {"driver": "virtio-vga"},
    "std": {"driver": "VGA", "vgamem_mb": 16},
    "qxl": {"driver": "qxl-vga"},
    "bochs": {"driver": "bochs-display"},
    "cirrus": {"driver": "cirrus-vga"},
    "vmware": {"driver": "vmware-svga"},
}
# Those that need no PC.
_ARM_DISPLAYS: dict[str, dict[str, object]] = {
    "virtio": {"driver": "virtio-gpu-pci"},
    "bochs": {"driver": "bochs-display"},
}


def qemu_args(vm: Vm) -> list[str]:
    """Everything after the program's name."""
    args = ["-nodefaults", "-no-user-config", "-name", vm.name, "-sandbox", SANDBOX]
    args += machine_args(vm)
    args += memory_args(vm.memory)
    args += firmware_args(vm.firmware)
    # 0 is taken by a kernel given with -kernel.
    for index, disk in enumerate(vm.disks, start=1):
        args += disk_args(disk, boot_index=index, is_pc=vm.is_pc)
    args += display_args(vm.display, is_pc=vm.is_pc, sound=vm.sound)
    args += input_args(vm.display, is_pc=vm.is_pc)
    args += network_args(restrict=not vm.network)
    if vm.lan is not None:
        args += lan_args(vm.lan)
    args += entropy_args()
    if vm.is_pc:
        args += identity_args()
    if vm.tpm is not None:
        args += tpm_args(vm.tpm)
    args += serial_args()
    args += channel_args(agent=vm.agent, clipboard=vm.clipboard, report=vm.has_seed)
    if vm.has_seed:
        args += seed_args(vm)
    if vm.sound:
        args += sound_args()
    args += gpu_args(vm)
    args += spare_port_args(vm.spare_ports)
    args += export_args(vm.exports)
    args += control_args()
    args += panic_args(is_pc=vm.is_pc)
    if vm.incoming:
        args += ["-incoming", "defer"]
    # Nothing of the guest runs before its walls were looked at.
    args.append("-S")
    return args


def json_option(option: str, value: Mapping[str, object]) -> list[str]:
    return [option, json.dumps(value, separators=(",", ":"))]


def machine_args(vm: Vm) -> list[str]:
    if vm.accelerator == "kvm":
        # By emulation QEMU has none of Hyper-V's.
        accelerator, cpu = "kvm", ",".join(["host", *(HYPERV if vm.windows else ())])
    else:
        accelerator, cpu = f"tcg,thread=multi,tb-size={TCG_CACHE_MIB}", TCG_CPUS[vm.architecture]
    board: str = vm.machine_type
    if not vm.is_pc:
        board += ",gic-version=host" if vm.accelerator == "kvm" else ",gic-version=max"
    if isinstance(vm.firmware, Uefi) and vm.firmware.secure:
        board += ",smm=on"
    return [
        *("-machine", f"{board},memory-backend=memory0"),
        *("-accel", accelerator),
        *("-cpu", cpu),
        *("-smp", str(vm.cpus)),
        *("-m", f"{vm.memory.size_mib}M"),
        # Windows takes the clock for local time, and the host's is what its people see.
        *("-rtc", "base=localtime" if vm.windows else "base=utc"),
    ]


def memory_args(memory: Memory) -> list[str]:
    """The guest's memory; its id is in what is saved, so it is the same wherever the memory lies."""
    backend: dict[str, object] = {"id": "memory0", "size": memory.size_mib << 20}
    if memory.descriptor is None:
        return json_option("-object", {"qom-type": "memory-backend-ram", **backend})
    return json_option(
        "-object",
        {
            "qom-type": "memory-backend-file",
            **backend,
            "mem-path": f"/proc/self/fd/{memory.descriptor}",
            "share": not memory.private,
        },
    )


def firmware_args(firmware: DirectKernel | Uefi | None) -> list[str]:
    match firmware:
        case DirectKernel(kernel=kernel, initrd=initrd, cmdline=cmdline):
            args = ["-kernel", str(kernel)]
            if initrd:
                args += ["-initrd", str(initrd)]
            return [*args, "-append", cmdline]
        case Uefi(code=code, variables=variables, secure=secure):
            return [
                # Only the firmware itself, in the mode that smm=on gives it, may write its variables.
                *(("-global", "driver=cfi.pflash01,property=secure,value=on") if secure else ()),
                *(("-global", "ICH9-LPC.disable_s3=1") if secure else ()),
                *json_option("-blockdev", _raw_file("uefi-code", code, read_only=True)),
                *json_option("-blockdev", _raw_file("uefi-vars", variables, read_only=False)),
                *("-machine", "pflash0=uefi-code,pflash1=uefi-vars"),
            ]
    return []


def _raw_file(node: str, path: Path, *, read_only: bool) -> dict[str, object]:
    return {
        "driver": "raw",
        "node-name": node,
        "read-only": read_only,
        "file": {"driver": "file", "filename": str(path)},
    }


def disk_args(disk: Disk, *, boot_index: int, is_pc: bool = True) -> list[str]:
    """A disk with its whole graph spelled out: QEMU follows no file name found inside an image."""
    device: dict[str, object] = {"drive": disk.node, "id": f"{disk.id}-device", "bootindex": boot_index}
    if disk.cdrom:
        file = {"driver": "file", "filename": str(disk.path)}
        node = {"driver": disk.driver, "node-name": disk.node, "read-only": True, "file": file}
        if is_pc:
            bus = "ide.2" if disk.id == "drivers0" else "ide.1"
            drive = json_option("-device", {"driver": "ide-cd", "bus": bus, **device})
        else:
            controller_id = f"{disk.id}-controller"
            drive = json_option("-device", {"driver": "virtio-scsi-pci", "id": controller_id})
            drive += json_option("-device", {"driver": "scsi-cd", "bus": f"{controller_id}.0", **device})
        return [*json_option("-blockdev", node), *drive]
    node = overlay_node(disk.node, disk.path) | {"backing": _backing_node(disk)}
    # A full host disk pauses the VM instead of failing the guest's writes: nothing is lost.
    device |= {"werror": "stop", "rerror": "stop"}
    controller: list[str] = []
    match disk.bus:
        case "virtio":
            driver: dict[str, object] = {"driver": "virtio-blk-pci"}
        case "sata":
            driver = {"driver": "ide-hd", "bus": "ide.0"}
        case "nvme":
            driver = {"driver": "nvme", "serial": disk.id}
            # QEMU's NVMe controller has no error policy.
            del device["werror"], device["rerror"]
        case "scsi":
            controller = json_option("-device", {"driver": "virtio-scsi-pci", "id": "scsi0"})
            driver = {"driver": "scsi-hd", "bus": "scsi0.0"}
    return [*json_option("-blockdev", node), *controller, *json_option("-device", driver | device)]


def overlay_node(name: str, path: Path) -> dict[str, object]:
    """A qcow2 that is written to, as -blockdev and `blockdev-add` take it, with nothing under it."""
    return {
        "driver": "qcow2",
        "node-name": name,
        "file": {"driver": "file", "filename": str(path)},
        "discard": "unmap",
        "detect-zeroes": "unmap",
        # What is kept is written to the platter when it is saved; flushing before that buys nothing.
        "cache": {"no-flush": True},
        "backing": None,
    }


def _backing_node(disk: Disk) -> dict[str, object] | None:
    """The frozen layers, the newest outside, around the base image."""
    node = base_node(disk) if disk.backing else None
    for depth, path in enumerate(disk.layers):
        file = {"driver": "file", "filename": str(path), "read-only": True}
        name = node_name(disk.id, depth)
        node = {"driver": "qcow2", "node-name": name, "read-only": True, "file": file, "backing": node}
    return node


def merge_node(disk: Disk) -> dict[str, object]:
    """The whole disk as `qemu-img commit` takes it, which writes the overlay into the layer below it."""
    *frozen, lower = disk.layers
    node = {
        "driver": "qcow2",
        "file": {"driver": "file", "filename": str(lower)},
        "backing": _backing_node(replace(disk, layers=tuple(frozen))),
    }
    return {"driver": "qcow2", "file": {"driver": "file", "filename": str(disk.path)}, "backing": node}


def frozen_node(disk: Disk) -> dict[str, object]:
    """The whole disk as `qemu-img convert` takes it, where all of it is only read."""
    node = _backing_node(replace(disk, layers=(*disk.layers, disk.path)))
    assert node is not None
    return node


def base_node(disk: Disk) -> dict[str, object]:
    """The base image under a disk, without the layers above it."""
    base: dict[str, object] = {
        "driver": disk.backing_driver,
        "node-name": f"{disk.id}-base",
        "read-only": True,
        "file": {"driver": "file", "filename": str(disk.backing), "read-only": True},
    }
    # A base image that names a file of its own never gets it, whatever its header says.
    if disk.backing_driver in ("qcow2", "qed", "vmdk"):
        base["backing"] = None
    return base


def display_args(display: str, *, is_pc: bool, sound: bool) -> list[str]:
    # force-shared: no client can throw the others out. lossy: motion as JPEG, 33 instead of 4 fps.
    server = f"unix:{VNC_SOCKET},share=force-shared,lossy=on"
    if sound:
        server += f",audiodev={SOUND}"
    return [
        *json_option("-device", (_DISPLAYS if is_pc else _ARM_DISPLAYS)[display] | {"id": "display0"}),
        *("-display", "none"),
        *("-vnc", server),
    ]


def input_args(display: str, *, is_pc: bool) -> list[str]:
    """An absolute pointer, so that the guest's and the browser's lie on each other.

    A guest with virtio graphics has virtio input as well; every other one knows USB and a PS/2 keyboard.
    """
    if display == "virtio":
        return [
            *json_option("-device", {"driver": "virtio-tablet-pci"}),
            *json_option("-device", {"driver": "virtio-keyboard-pci"}),
        ]
    return [
        *json_option("-device", {"driver": "qemu-xhci", "id": "usb0"}),
        *json_option("-device", {"driver": "usb-tablet", "bus": "usb0.0"}),
        *([] if is_pc else json_option("-device", {"driver": "usb-kbd", "bus": "usb0.0"})),
    ]


def network_args(*, restrict: bool) -> list[str]:
    """A network card with DHCP and what QEMU's own process can reach behind it, or nothing with `restrict`.

    The guest's card is the same one: what was saved with nothing behind it goes on with something.
    """
    return [
        *json_option("-netdev", {"type": "user", "id": NETWORK, "restrict": restrict}),
        *json_option("-device", {"driver": "virtio-net-pci", "netdev": NETWORK, "romfile": ""}),
    ]


def lan_args(lan: Lan) -> list[str]:
    """A second card; the first one stays, as the machine's ports are reached by it."""
    netdev: dict[str, object] = {"type": "user", "id": _LAN, "restrict": True}
    if lan.descriptor is not None:
        netdev = {"type": "tap", "id": _LAN, "fd": str(lan.descriptor)}
    card = {"driver": "virtio-net-pci", "id": f"{_LAN}-card", "netdev": _LAN, "mac": lan.mac, "romfile": ""}
    return [*json_option("-netdev", netdev), *json_option("-device", card)]


def entropy_args() -> list[str]:
    return [
        *json_option("-object", {"qom-type": "rng-builtin", "id": "rng0"}),
        *json_option("-device", {"driver": "virtio-rng-pci", "rng": "rng0"}),
    ]


def identity_args() -> list[str]:
    """A number that is another one in each copy of a saved VM: the guest's kernel renews its randomness."""
    return json_option("-device", {"driver": "vmgenid", "guid": "auto"})


def tpm_args(descriptor: int) -> list[str]:
    """A TPM 2.0, whose process is at the other end of an inherited socket."""
    return [
        *("-chardev", f"socket,id={TPM},fd={descriptor}"),
        *("-tpmdev", f"emulator,id={TPM},chardev={TPM}"),
        *json_option("-device", {"driver": "tpm-crb", "tpmdev": TPM}),
    ]


def serial_args() -> list[str]:
    """The guest's serial port into a ring of QEMU's own memory: a guest cannot fill the host's logs."""
    return [
        *("-chardev", "ringbuf,id=serial0,size=65536"),
        *("-serial", "chardev:serial0"),
    ]


def channel_args(*, agent: bool, clipboard: bool, report: bool = False) -> list[str]:
    """The guest agent's channel, the clipboard's, and one on which a first boot tells how it goes."""
    args: list[str] = []
    if agent or clipboard or report:
        args += json_option("-device", {"driver": "virtio-serial-pci", "id": "channels0"})
    if agent:
        args += ["-chardev", f"socket,id=agent0,path={AGENT_SOCKET},server=on,wait=off"]
        port = {"driver": "virtserialport", "chardev": "agent0", "name": "org.qemu.guest_agent.0"}
        args += json_option("-device", port)
    if clipboard:
        # Connected to QEMU's clipboard when the guest runs: no VM can be saved while it is (QEMU 7.2).
        args += ["-chardev", f"null,id={CLIPBOARD_CHARDEV}"]
        port = {"driver": "virtserialport", "chardev": CLIPBOARD_CHARDEV, "name": "com.redhat.spice.0"}
        args += json_option("-device", port)
    if report:
        # Of QEMU's own memory: nobody has to listen, and a guest cannot fill anything.
        args += ["-chardev", f"ringbuf,id={REPORT_CHARDEV},size={REPORT_BYTES}"]
        port = {"driver": "virtserialport", "chardev": REPORT_CHARDEV, "name": "org.qemuspawner.report.0"}
        args += json_option("-device", port)
    return args


def seed_args(vm: Vm) -> list[str]:
    """A volume for cloud-init as a disk that is only read, and the port that it is taken out of later.

    As a disk, since the kernels of cloud images have no driver for a drive. A "pc" has free slots as it is.
    """
    args: list[str] = []
    device: dict[str, object] = {"driver": "virtio-blk-pci", "id": SEED, "drive": SEED}
    if vm.machine_type != "pc":
        port = {"driver": "pcie-root-port", "id": f"{SEED}-port", "chassis": _SEED_CHASSIS}
        args += json_option("-device", port)
        device["bus"] = f"{SEED}-port"
    if vm.seed is None:
        return args
    node = _raw_file(SEED, vm.seed, read_only=True)
    return [*args, *json_option("-blockdev", node), *json_option("-device", device)]


def sound_args() -> list[str]:
    """A sound card with an output that only the VNC server hears: no device of the host is opened.

    The card has no mixer, so nothing is muted when a guest boots, and none has levels to restore. What plays
    is mixed at the rate that most guests and browsers use.
    """
    return [
        *json_option("-audiodev", {"driver": "none", "id": SOUND, "out": {"frequency": SOUND_RATE_HZ}}),
        *json_option("-device", {"driver": "intel-hda", "id": "card0"}),
        *json_option(
            "-device", {"driver": "hda-output", "bus": "card0.0", "audiodev": SOUND, "mixer": False}
        ),
    ]


def panic_args(*, is_pc: bool) -> list[str]:
    """A device by which a guest's system says that it has crashed.

    It is paused then: running on it could say so without end, faster than anybody reads it.
    """
    driver = "pvpanic" if is_pc else "pvpanic-pci"
    return [*json_option("-device", {"driver": driver}), *("-action", "panic=pause")]


def gpu_args(vm: Vm) -> list[str]:
    """GPUs of the host, and the port for one that comes later."""
    built_in = () if vm.late_gpus else vm.gpus
    devices = [*port_args(vm), *function_args(built_in)]
    return [word for device in devices for word in json_option("-device", device)]


def spare_port_args(count: int) -> list[str]:
    """Empty PCI Express ports: what is saved and restored has them, whatever is plugged meanwhile."""
    args: list[str] = []
    for number in range(count):
        # Eight share a slot of the board; the chassis tells them apart for the guest.
        device: dict[str, object] = {"driver": "pcie-root-port", "id": spare_port(number)}
        device |= {"chassis": number + 1, "addr": f"{_SPARE_SLOT + number // 8:#x}.{number % 8}"}
        if number % 8 == 0:
            device["multifunction"] = True
        args += json_option("-device", device)
    return args


def spare_port(number: int) -> str:
    return f"spare{number}"


def export_args(exports: Sequence[Export]) -> list[str]:
    """Folders that QEMU serves by 9p: nothing of them is in the guest before a device is plugged.

    The guest's user is who QEMU runs as, so that an owner which cannot be set is no error ("none").
    """
    args = []
    for export in exports:
        words = f"local,id={export.id},path={export.path},security_model=none,multidevs=remap"
        args += ["-fsdev", words + (",readonly=on" if export.read_only else "")]
    return args


def control_args() -> list[str]:
    return ["-qmp", f"unix:{QMP_SOCKET},server=on,wait=off"]
