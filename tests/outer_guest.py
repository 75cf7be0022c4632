"""A guest that has what this host may lack: an IOMMU, GPUs behind it, and KVM.

It is this host again, read-only, under the demo machine's kernel: the same programs, nothing to build. QEMU
emulates all of it, an AMD processor's virtualization too, so guests inside it run by KVM.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import qemuspawner

# Far more than it takes here; a host with one busy CPU needs several times as long.
_TIMEOUT_S = 900
MEMORY_MIB = 5120

# Two functions in one IOMMU group, as a graphics card with its sound; a second card alone in its own.
_CARDS = [
    *("-device", "pcie-root-port,id=port1,chassis=1,slot=1"),
    *("-device", "secondary-vga,bus=port1,addr=0x0.0,multifunction=on"),
    *("-device", "intel-hda,bus=port1,addr=0x0.1"),
    *("-device", "pcie-root-port,id=port2,chassis=2,slot=2"),
    *("-device", "bochs-display,bus=port2"),
]

# Its init, in the demo machine's own file system; the host's becomes the root of all that follows.
_INIT = """\
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in virtio_console 9pnet_virtio vfio-pci vfio_iommu_type1 kvm_amd; do modprobe $module; done
mkdir /host
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /host
mount -t tmpfs -o mode=1777 run /host/run
cd /host
for folder in proc sys dev; do mount --move /$folder $folder; done
mkdir run/old
pivot_root . run/old
chmod 666 /dev/kvm
cd /run
export TMPDIR=/run PYTHONDONTWRITEBYTECODE=1 PATH={path} {variables}
{program} < /dev/null > /dev/hvc0 2> /dev/ttyS0
echo o > /proc/sysrq-trigger
read forever < /dev/hvc0
"""


def run_in_outer_guest(folder: Path, script: Path, variables: Mapping[str, str]) -> tuple[str, str]:
    """Run a Python script as root in there, until it ends; what it printed, and what went wrong on its way.

    `folder` is for files of ours.
    """
    images = Path(os.environ["QEMUSPAWNER_TEST_IMAGES"]) / "debian-desktop"
    package = Path(qemuspawner.__file__).parent.parent
    init = _INIT.format(
        path=f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
        variables=" ".join(f"{name}={value}" for name, value in {**variables, "PYTHONPATH": package}.items()),
        program=f"{sys.executable} {script}",
    )
    disk, output, errors = folder / "init.img", folder / "output", folder / "errors"
    disk.write_bytes(init.encode().ljust(1 << 16, b"\n"))
    command = [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "q35,kernel-irqchip=split", "-accel", "tcg,thread=multi,tb-size=1024"),
        *("-cpu", "max", "-smp", "2", "-m", str(MEMORY_MIB)),
        *("-device", "intel-iommu,intremap=on,caching-mode=on"),
        *("-kernel", str(images / "vmlinuz"), "-initrd", str(images / "initrd")),
        "-append",
        "root=/dev/vda rw quiet mitigations=off norandmaps panic=-1 console=ttyS0 intel_iommu=on iommu=pt "
        'init=/bin/sh -- -c ". /dev/vdb"',
        *("-drive", f"file={images / 'disk.qcow2'},format=qcow2,if=virtio,snapshot=on"),
        *("-drive", f"file={disk},format=raw,if=virtio,readonly=on"),
        *("-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=host,mount_tag=host"),
        *("-serial", f"file:{errors}"),
        *("-device", "virtio-serial-pci", "-chardev", f"file,id=output,path={output}"),
        *("-device", "virtconsole,chardev=output"),
        *_CARDS,
    ]
    subprocess.run(command, timeout=_TIMEOUT_S, check=True)
    return output.read_text(), errors.read_text(errors="replace")
