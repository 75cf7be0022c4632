"""Disk images: checked before QEMU sees them, and the overlay a session writes to.

An image from elsewhere may name other files (a backing file, an external data file, an extent) that QEMU
would open with our rights. Its header is read here, by us, and such an image is refused.
"""

import json
import os
import resource
import shutil
import stat
import struct
import subprocess
from pathlib import Path

from qemuspawner.errors import ImageError, printable
from qemuspawner.machine import Image, ImageFormat
from qemuspawner.qemu.command import merge_node
from qemuspawner.qemu.qcow2 import MAX_DISK_BYTES, find_qcow2_problem
from qemuspawner.qemu.vm import DRIVERS, Disk
from qemuspawner.qemu.vmdk import HEAD_BYTES, find_vmdk_problem
from qemuspawner.texts import Text
from qemuspawner.units import render_mib

_CONVERT = Text("Convert it with 'qemu-img convert' into a file that stands alone.")
_MAKE_AGAIN = Text("Ask the administrator to build or fetch the machine's image again.")

_HEAD_BYTES, _FOOT_BYTES = 0x8100, 512
# The last that qemu-img says where the image under a new one cannot be opened.
_BASE_FAILED = "Could not open backing image."

# magic bytes and where they lie; the order matters only for the message
_MAGIC: dict[ImageFormat, tuple[int, bytes]] = {
    "qcow2": (0, b"QFI\xfb"),
    "vmdk": (0, b"KDMV"),
    "vdi": (0x40, b"\x7f\x10\xda\xbe"),
    "vhdx": (0, b"vhdxfile"),
    "qed": (0, b"QED\0"),
    "iso": (0x8001, b"CD001"),
}


def check_image(image: Image) -> None:
    """Refuse an image that is not what its machine.toml says, or that reaches for other files.

    Raises:
        ImageError: With the file's name and what is wrong with it.

    Sources: QEMU docs/interop/{qcow2,qed_spec}.txt, VMDK 5.0 specification, VHD 1.0, VHDX 1.0.
    """
    path = Path(image.file)
    try:
        # Not blocking: a FIFO in the image's place must not hang the session.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise ImageError(
            Text(
                "The disk image '{name}' cannot be opened: {strerror}.", name=path.name, strerror=exc.strerror
            ),
            hint=_MAKE_AGAIN,
        ) from exc
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(Text("The disk image '{name}' is not a regular file.", name=path.name))
        head = os.pread(descriptor, _HEAD_BYTES, 0)
        foot = os.pread(descriptor, _FOOT_BYTES, max(0, status.st_size - _FOOT_BYTES))
        problem = _find_problem(image.format, head, foot, descriptor)
    except struct.error:
        problem = Text("its header is cut off.")
    finally:
        os.close(descriptor)
    if problem:
        raise ImageError(
            Text("The disk image '{name}' is refused: {problem}", name=path.name, problem=problem),
            hint=_CONVERT,
        )


def _find_problem(image_format: ImageFormat, head: bytes, foot: bytes, descriptor: int) -> str:
    """Why the image is refused; empty where it is not."""
    found = _recognise(head, foot)
    if found != image_format and not (image_format == "raw" and found == "iso"):
        if found == "raw":
            return Text("machine.toml says {format}, but the file is a raw disk.", format=image_format)
        return Text(
            "machine.toml says {format}, but the file is in the format {found}.",
            format=image_format,
            found=found,
        )
    if (size := _read_disk_bytes(image_format, head, foot, descriptor)) > MAX_DISK_BYTES:
        return Text("its disk of {size} is larger than 16 TiB.", size=render_mib(size >> 20))
    match image_format:
        case "qcow2":
            return find_qcow2_problem(head, file_bytes=os.fstat(descriptor).st_size)
        case "vmdk":
            return find_vmdk_problem(os.pread(descriptor, HEAD_BYTES, 0))
        case "qed":
            (features,) = struct.unpack_from("<Q", head, 16)
            return Text("it has a backing file.") if features & 1 else ""
        case "vdi":
            # uuidLink and uuidParent of a difference image are not zero.
            return "" if head[0x1A8:0x1C8] == bytes(32) else Text("it is a difference image.")
        case "vhd":
            (kind,) = struct.unpack_from(">I", foot, 60)
            return "" if kind in (2, 3) else Text("it is a difference image.")
    # VHDX: QEMU itself refuses one with a parent. RAW and ISO have no header to lie in.
    return ""


def _read_disk_bytes(image_format: ImageFormat, head: bytes, foot: bytes, descriptor: int) -> int:
    """How large the disk in it is; 0 where others look, of a VHDX QEMU itself: it allows 64 TiB."""
    match image_format:
        case "raw" | "iso":
            size = os.fstat(descriptor).st_size
        case "vmdk" if head.startswith(b"KDMV"):
            size = struct.unpack_from("<Q", head, 12)[0] * 512
        case "vdi":
            (size,) = struct.unpack_from("<Q", head, 0x170)
        case "vhd":
            (size,) = struct.unpack_from(">Q", foot, 48)
        case "qed":
            (size,) = struct.unpack_from("<Q", head, 48)
        case _:
            size = 0
    return size


def recognise_format(path: Path) -> ImageFormat:
    """The format of a file by its own words, "raw" where it says nothing; raises OSError."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        file.seek(max(0, file.seek(0, os.SEEK_END) - _FOOT_BYTES))
        return _recognise(head, file.read())


def _recognise(head: bytes, foot: bytes) -> ImageFormat:
    for name, (offset, magic) in _MAGIC.items():
        if head[offset : offset + len(magic)] == magic:
            return name
    if foot.startswith(b"conectix"):
        return "vhd"
    if head.lstrip()[:21] == b"# Disk DescriptorFile":
        return "vmdk"
    return "raw"


def create_overlay(overlay: Path, image: Image) -> None:
    """Make the session's own disk, backed by the base image; `check_image` comes first.

    Raises:
        ImageError: qemu-img could not, with its own words; the image is named where it is at fault.
    """
    create = ["qemu-img", "create", "-q", "-f", "qcow2"]
    if image.format == "iso":
        _run_qemu_img([*create, str(overlay), f"{image.disk}M"])
        return
    # "file:" keeps a colon in a path from being read as a protocol.
    from_image = ["-b", f"file:{image.file}", "-F", DRIVERS[image.format], str(overlay)]
    _run_qemu_img([*create, *from_image], base=Path(image.file))
    if not image.disk:
        return
    size_bytes = _read_size(overlay)
    if image.disk << 20 < size_bytes:
        raise ImageError(
            Text(
                "machine.toml asks for a disk of {wanted}, and the image's own has {own}.",
                wanted=render_mib(image.disk),
                own=render_mib(-(-size_bytes >> 20)),
            ),
            hint=Text("The administrator sets image.disk to at least that, or leaves it out."),
        )
    _run_qemu_img(["qemu-img", "resize", "-q", "-f", "qcow2", str(overlay), f"{image.disk}M"])


def create_layer(overlay: Path, below: Path) -> None:
    """Make an empty overlay on one of our own qcow2s, which QEMU may have open at this moment.

    Raises:
        ImageError: qemu-img fails.
    """
    size_bytes = _read_size(below)
    _run_qemu_img(
        [
            *("qemu-img", "create", "-q", "-f", "qcow2"),
            *("-u", "-b", f"file:{below}", "-F", "qcow2", str(overlay), str(size_bytes)),
        ]
    )


def merge_layer(disk: Disk) -> None:
    """Write everything in the disk's overlay into the layer below it; nobody may have them open.

    Interrupted, it has lost nothing: read through the overlay, all is as it was.

    Raises:
        ImageError: qemu-img fails, such as for a full disk.
    """
    _run_qemu_img(["qemu-img", "commit", "-q", "-d", f"json:{json.dumps(merge_node(disk))}"])


def repair_layer(path: Path) -> None:
    """Give back what a QEMU that was killed had taken of the file and not yet used; nobody may have it open.

    Raises:
        ImageError: It reaches for other files, or has more wrong with it than that.
    """
    check_layer(path)
    node = {"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}, "backing": None}
    _run_qemu_img(["qemu-img", "check", "-q", "-r", "leaks", f"json:{json.dumps(node)}"])


def check_layer(path: Path) -> None:
    """Refuse a frozen disk of a session that reaches for other files than the one below it.

    Raises:
        ImageError: With what is wrong.
    """
    with path.open("rb") as file:
        head = file.read(0x8100)
        try:
            problem = (
                find_qcow2_problem(head, file_bytes=path.stat().st_size, is_layer=True)
                if _recognise(head, b"") == "qcow2"
                else Text("it is no qcow2.")
            )
        except struct.error:
            problem = Text("its header is cut off.")
    if problem:
        raise ImageError(
            Text("The desktop's disk '{name}' is refused: {problem}", name=path.name, problem=problem)
        )


def read_disk_mib(overlay: Path) -> int:
    """The size of the disk, rounded up, in a qcow2 that we made ourselves."""
    return -(-_read_size(overlay) >> 20)


def _read_size(overlay: Path) -> int:
    """The size in bytes of the disk in a qcow2 that we made ourselves."""
    with overlay.open("rb") as file:
        (size_bytes,) = struct.unpack_from(">Q", file.read(32), 24)
    return int(size_bytes)


def _run_qemu_img(command: list[str], *, base: Path | None = None) -> None:
    """`base` is the image that is read for it."""
    if shutil.which(command[0]) is None:
        raise ImageError(
            Text("qemu-img was not found on this host."), hint=Text("Install QEMU's disk tools (qemu-utils).")
        )
    try:
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
            preexec_fn=_limit_tool,
        )
    except subprocess.CalledProcessError as exc:
        lines = exc.stderr.strip().splitlines()
        if base is not None and len(lines) > 1 and lines[-1] == _BASE_FAILED:
            raise _cannot_open(base, lines[0]) from exc
        last = lines[-1:] or [f"exit code {exc.returncode}"]
        raise ImageError(
            Text("The session's disk could not be made: {words}", words=last[0]),
            hint=Text("Is the host's disk full?"),
        ) from exc
    except subprocess.TimeoutExpired as exc:
        raise ImageError(Text("Making the session's disk took longer than 60 s.")) from exc


def _cannot_open(base: Path, line: str) -> ImageError:
    """What qemu-img says begins with its own name and that of the file which it was to make."""
    words = line.split(": ", 2)[-1].removeprefix(f"Could not open '{base}': ").replace(str(base), base.name)
    problem = Text("QEMU cannot open it ({words}).", words=printable(words))
    return ImageError(
        Text("The disk image '{name}' is refused: {problem}", name=base.name, problem=problem),
        hint=_MAKE_AGAIN,
    )


def _limit_tool() -> None:
    """A hostile image must not make the tool eat the host."""
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
