"""What a saved VM depends on, and its folder: written, checked, and read again."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from msgspec import structs

from qemuspawner.errors import VmError
from qemuspawner.machine import Image, Machine
from qemuspawner.paths import SavedPaths, SessionPaths
from qemuspawner.qemu.command import TCG_CPU, qemu_args
from qemuspawner.qemu.host import Qemu
from qemuspawner.qemu.vm import Accelerator, Memory, make_vm
from qemuspawner.saved import FileDigest, Fingerprint, Saved

# Everything that differs between two sessions of a machine stands still in the fingerprint.
_NOWHERE = SessionPaths(root=Path("/session"))
# Read at every start, in a hundredth of a second.
_QUICK_BYTES = 16 << 20


def fingerprint(
    machine: Machine, *, cpus: int, memory_mib: int, accelerator: Accelerator, qemu: Qemu
) -> Fingerprint:
    """What a VM of this machine and size depends on, as it is on this host now.

    Raises:
        OSError: A file of the machine's image is missing.
    """
    image = machine.image
    # The files' own names are elsewhere on another host, and in the command line.
    plain = structs.replace(
        machine,
        image=structs.replace(image, file="image", kernel="kernel" if image.kernel else "", initrd=""),
    )
    vm = make_vm(
        plain,
        _NOWHERE,
        accelerator=accelerator,
        cpus=cpus,
        memory=Memory(size_mib=memory_mib),
        uefi_code=Path("uefi"),
    )
    arguments = json.dumps(qemu_args(vm))
    return Fingerprint(
        qemu=qemu.build,
        accelerator=accelerator,
        cpu=_host_cpu() if accelerator == "kvm" else TCG_CPU,
        machine=f"sha256:{hashlib.sha256(arguments.encode()).hexdigest()}",
        image=image_identity(image),
        cpus=cpus,
        memory_mib=memory_mib,
    )


def image_identity(image: Image) -> str:
    """Which files a machine starts from, as text. Raises OSError where one is missing."""
    return " ".join(_identity(Path(name)) for name in (image.file, image.kernel, image.initrd) if name)


def _identity(path: Path) -> str:
    """Which file it is and that nobody has written to it, without reading gigabytes at every start."""
    status = path.stat()
    return f"{path.name}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"


def _host_cpu() -> str:
    """What `-cpu host` gives a guest: the model and what it can do, microcode's changes included."""
    keys = ("vendor_id", "cpu family", "model\t", "stepping", "flags")
    first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    lines = [line for line in first.splitlines() if line.startswith(keys)]
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def digest_file(path: Path) -> FileDigest:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return FileDigest(size_bytes=path.stat().st_size, digest=f"sha256:{digest.hexdigest()}")


def size_only(path: Path) -> FileDigest:
    return FileDigest(size_bytes=path.stat().st_size, digest="")


def collect_disks(target: SavedPaths, disks: Sequence[Path], firmware_vars: Path) -> dict[str, FileDigest]:
    """Give what was frozen a second name in `target`: it takes no room there, and outlives its first one.

    Raises:
        OSError: Such as a full disk.
    """
    files = {}
    for depth, path in enumerate(disks):
        layer = target.layer(depth)
        os.link(path, layer)
        sync_file(layer)
        files[layer.name] = size_only(layer)
    if firmware_vars.exists():
        shutil.copyfile(firmware_vars, target.firmware_vars)
        sync_file(target.firmware_vars)
        files[target.firmware_vars.name] = digest_file(target.firmware_vars)
    return files


def sync_file(path: Path) -> None:
    """Bring a file to the platter: sessions' disks are written without that."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_files(paths: SavedPaths, saved: Saved) -> None:
    """Refuse what was cut off, swapped or lost; large files by their size alone.

    Raises:
        VmError: With what is wrong.
    """
    needed = {paths.state.name} if saved.memory != "lost" else set()
    needed |= {paths.memory.name} if saved.memory == "mapped" else set()
    if missing := needed - saved.files.keys():
        raise VmError(f"its list of files lacks '{missing.pop()}'")
    for name, expected in saved.files.items():
        path = paths.root / name
        try:
            found = path.lstat().st_size
        except OSError as exc:
            raise VmError(f"its file '{name}' is missing") from exc
        if found != expected.size_bytes:
            raise VmError(f"its file '{name}' has {found} bytes instead of {expected.size_bytes}")
        if expected.digest and found < _QUICK_BYTES and digest_file(path) != expected:
            raise VmError(f"its file '{name}' was changed")


def check_state(paths: SavedPaths, saved: Saved) -> None:
    """Read the whole state, which may be large, and compare it with its digest.

    Raises:
        VmError: It was changed.
    """
    expected = saved.files[paths.state.name]
    if expected.size_bytes >= _QUICK_BYTES and digest_file(paths.state) != expected:
        raise VmError(f"its file '{paths.state.name}' was changed")
