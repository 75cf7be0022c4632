"""What a saved VM depends on, and its folder: written, checked, and read again."""

import contextlib
import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import structs

from qemuspawner.errors import ImageError, VmError
from qemuspawner.machine import Image, Machine
from qemuspawner.paths import SavedPaths, SessionPaths
from qemuspawner.qemu.command import TCG_CPUS, qemu_args
from qemuspawner.qemu.digests import find_digest, image_files
from qemuspawner.qemu.host import Qemu, find_uefi
from qemuspawner.qemu.image import repair_layer
from qemuspawner.qemu.tpm import MAX_STATE_BYTES
from qemuspawner.qemu.vm import Accelerator, Memory, make_vm
from qemuspawner.saved import FileDigest, Fingerprint, Saved
from qemuspawner.texts import Text
from qemuspawner.units import render_mib

# Everything that differs between two sessions of a machine stands still in the fingerprint.
_NOWHERE = SessionPaths(root=Path("/session"))
# What the guest sees of a command line. All else is the host's, and may change: walls, sockets, caches.
_SEEN_BY_GUEST = {
    "-machine", "-cpu", "-smp", "-m", "-rtc", "-object", "-device", "-serial",
    "-kernel", "-initrd", "-append",
}  # fmt: skip
_WITHOUT_VALUE = {"-nodefaults", "-no-user-config", "-S"}
# UEFI's variables take half a megabyte.
_MAX_FIRMWARE_BYTES = 64 << 20
# Read at every start, in a hundredth of a second.
_QUICK_BYTES = 16 << 20


def fingerprint(
    machine: Machine, *, cpus: int, memory_mib: int, accelerator: Accelerator, qemu: Qemu
) -> Fingerprint:
    """What a VM of this machine and size depends on, as it is on this host now.

    Raises:
        OSError: A file of the machine's image is missing.
        HostError: The machine needs UEFI firmware, and this host has none.
    """
    image = machine.image
    # The files' own names are elsewhere on another host, and in the command line.
    plain = structs.replace(
        machine,
        image=structs.replace(
            image,
            file="image",
            kernel="kernel" if image.kernel else "",
            initrd="",
            drivers="drivers" if image.drivers else "",
        ),
    )
    vm = make_vm(
        plain,
        _NOWHERE,
        accelerator=accelerator,
        cpus=cpus,
        memory=Memory(size_mib=memory_mib),
        uefi_code=Path("uefi"),
        tpm=0 if machine.tpm else None,
    )
    seen = [*_guest_options(qemu_args(vm)), image.format, str(image.disk), _firmware_identity(machine)]
    return Fingerprint(
        qemu=qemu.build,
        accelerator=accelerator,
        cpu=_host_cpu() if accelerator == "kvm" else TCG_CPUS[machine.architecture],
        machine=f"sha256:{hashlib.sha256(json.dumps(seen).encode()).hexdigest()}",
        image=image_identity(image),
        cpus=cpus,
        memory_mib=memory_mib,
    )


def _guest_options(args: Sequence[str]) -> Iterator[str]:
    """Those of QEMU's options that the guest sees, with their values."""
    words = iter(args)
    for option in words:
        if option in _WITHOUT_VALUE:
            continue
        value = next(words)
        if option in _SEEN_BY_GUEST:
            yield f"{option} {value}"
        elif option == "-netdev":
            # What the card can do depends on the kind of network behind it.
            yield f"{option} {json.loads(value)['type']}"


def _firmware_identity(machine: Machine) -> str:
    """Which UEFI code it is: what is restored goes on in it, and reads the rest of it at its next boot."""
    if machine.firmware != "uefi":
        return machine.firmware
    code, _ = find_uefi(machine.architecture, secure=machine.secure_boot)
    status = code.stat()
    return f"{code.name}:{status.st_size}:{status.st_mtime_ns}"


def image_identity(image: Image) -> str:
    """Which files a machine starts from, as text: what they hold, where somebody has read that.

    Raises OSError where one is missing.
    """
    digests = [find_digest(path) for path in image_files(image)]
    return " ".join(digests) if all(digests) else place_identity(image)


def is_image(image: Image, identity: str) -> bool:
    """Whether a machine's files are those of this identity, also of one from before they were read.

    Raises OSError where one is missing.
    """
    return identity in (image_identity(image), place_identity(image))


def place_identity(image: Image) -> str:
    """Which files they are and that nobody has written to them, without reading gigabytes at every start."""
    return " ".join(map(_place, image_files(image)))


def _place(path: Path) -> str:
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


def collect_disks(
    target: SavedPaths,
    disks: Sequence[Path],
    firmware_vars: Path,
    tpm_state: Path,
    *,
    is_cut_off: bool = False,
) -> dict[str, FileDigest]:
    """Give what was frozen a second name in `target`: it takes no room there, and outlives its first one.

    `is_cut_off`: QEMU was ended while it wrote to the last one, which nobody has open any more.

    Where the files lie now QEMU may write, and one that was broken into may have put anything in their place.

    Raises:
        OSError: Such as a full disk.
        VmError: It did.
    """
    files = {}
    for depth, path in enumerate(disks):
        layer = target.layer(depth)
        os.link(path, layer, follow_symlinks=False)
        # Under its new name QEMU cannot change any more what it is.
        if not stat.S_ISREG(layer.lstat().st_mode):
            layer.unlink()
            raise _not_regular(path)
        if is_cut_off and path == disks[-1]:
            # What else may be wrong with it is no reason not to keep it.
            with contextlib.suppress(ImageError):
                repair_layer(layer)
        sync_file(layer)
        files[layer.name] = size_only(layer)
    if os.path.lexists(firmware_vars):
        copy_from_qemu(firmware_vars, target.firmware_vars, max_bytes=_MAX_FIRMWARE_BYTES)
        files[target.firmware_vars.name] = digest_file(target.firmware_vars)
    if os.path.lexists(tpm_state):
        copy_from_qemu(tpm_state, target.tpm_state, max_bytes=MAX_STATE_BYTES)
        files[target.tpm_state.name] = digest_file(target.tpm_state)
    return files


def copy_from_qemu(source: Path, target: Path, *, max_bytes: int | None = None) -> None:
    """Copy what QEMU wrote to a new file, which is ours, and bring that to the platter.

    Raises:
        OSError: Such as a full disk.
        VmError: It is no regular file, or has more than `max_bytes`.
    """
    with _open_regular(source) as descriptor:
        # It may grow while we read.
        left = os.fstat(descriptor).st_size
        if max_bytes is not None and left > max_bytes:
            raise VmError(
                Text(
                    "QEMU's file '{name}' is larger than {size}.",
                    name=source.name,
                    size=render_mib(max_bytes >> 20),
                )
            )
        with target.open("xb") as copy:
            while chunk := os.read(descriptor, min(1 << 20, left)):
                left -= copy.write(chunk)
            copy.flush()
            os.fsync(copy.fileno())


def sync_file(path: Path) -> None:
    """Bring a file to the platter: sessions' disks are written without that.

    Raises:
        OSError: Such as a broken disk.
        VmError: It is no regular file.
    """
    with _open_regular(path) as descriptor:
        os.fsync(descriptor)


@contextlib.contextmanager
def _open_regular(path: Path) -> Iterator[int]:
    """The descriptor of a file that may be anything: no link is followed, no pipe waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        # A link, or a socket.
        if exc.errno in (errno.ELOOP, errno.ENXIO):
            raise _not_regular(path) from exc
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _not_regular(path)
        yield descriptor
    finally:
        os.close(descriptor)


def _not_regular(path: Path) -> VmError:
    return VmError(Text("In the place of QEMU's file '{name}' lies something else.", name=path.name))


def check_files(paths: SavedPaths, saved: Saved) -> None:
    """Refuse what was cut off, swapped or lost; large files by their size alone.

    Raises:
        VmError: With what is wrong.
    """
    needed = {paths.state.name} if saved.memory != "lost" else set()
    needed |= {paths.memory.name} if saved.memory == "mapped" else set()
    if missing := needed - saved.files.keys():
        raise VmError(Text("its list of files lacks '{name}'", name=missing.pop()))
    for name, expected in saved.files.items():
        path = paths.root / name
        try:
            found = path.lstat().st_size
        except OSError as exc:
            raise VmError(Text("its file '{name}' is missing", name=name)) from exc
        if found != expected.size_bytes:
            raise VmError(
                Text(
                    "its file '{name}' has {found} bytes instead of {size_bytes}",
                    name=name,
                    found=found,
                    size_bytes=expected.size_bytes,
                )
            )
        if expected.digest and found < _QUICK_BYTES and digest_file(path) != expected:
            raise VmError(Text("its file '{name}' was changed", name=name))


def check_state(paths: SavedPaths, saved: Saved) -> None:
    """Read the whole state, which may be large, and compare it with its digest.

    Raises:
        VmError: It was changed.
    """
    expected = saved.files[paths.state.name]
    if expected.size_bytes >= _QUICK_BYTES and digest_file(paths.state) != expected:
        raise VmError(Text("its file '{name}' was changed", name=paths.state.name))
