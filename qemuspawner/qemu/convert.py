"""A disk image converted into another format by qemu-img, which sees nothing but the two files.

The image is somebody else's, and its formats are read by C code of many years: the tool works in the jail of
QEMU, without a network or rights, and its memory, its time and what it writes have bounds.
"""

import errno
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qemuspawner.errors import HostError, ImageError, printable
from qemuspawner.machine import Image, ImageFormat
from qemuspawner.qemu.command import base_node, frozen_node
from qemuspawner.qemu.image import check_image, read_disk_mib
from qemuspawner.qemu.jail import Limits, check_jail, in_jail, tie_to_parent
from qemuspawner.qemu.qcow2 import MAX_DISK_BYTES
from qemuspawner.qemu.vm import DRIVERS, Disk
from qemuspawner.units import render_mib

TARGETS: tuple[ImageFormat, ...] = ("qcow2", "raw")

_MEMORY_BYTES = 2 << 30
# Far more than the slowest processor takes.
_LEAST_CPU_S, _CPU_S_PER_GIB = 120, 120
_MEASURE_S = 120
# Of what is measured qemu-img may be some clusters off.
_SPARE_MIB = 16
_MAX_WORDS_BYTES = 4096
_PERCENT = re.compile(rb"\(([0-9.]+)/100%\)")


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of an image in another format."""

    disk_bytes: int  # of the disk in it
    file_bytes: int  # what the file is expected to take
    max_file_bytes: int  # larger it does not become


def measure(source: Image, *, target: ImageFormat, folder: Path) -> Size:
    """What `source`, at which `check_image` has looked, will take in `folder`, where it shall be converted.

    Raises:
        ImageError: qemu-img cannot read it, or its disk is larger than disks may be.
        HostError: There is no qemu-img, or no jail.
    """
    of_source = ["--output=json", "-f", DRIVERS[source.format], source.file]
    disk_bytes = _ask(source, folder, ["info", *of_source])["virtual-size"]
    if disk_bytes > MAX_DISK_BYTES:
        raise ImageError(f"The image's disk of {render_mib(disk_bytes >> 20)} is larger than 16 TiB.")
    # Of its other formats it does not know; they hold what a qcow2 does, in larger pieces.
    known = target in TARGETS
    file_bytes = _ask(source, folder, ["measure", "-O", target if known else "qcow2", *of_source])["required"]
    most = file_bytes if known else max(file_bytes, disk_bytes + disk_bytes // 64)
    return Size(disk_bytes=disk_bytes, file_bytes=file_bytes, max_file_bytes=most)


def convert_image(
    source: Image,
    path: Path,
    *,
    target: ImageFormat,
    size: Size,
    on_part: Callable[[float], None],
    compressed: bool = False,
) -> None:
    """Write the new file at `path`, and tell the part that is done, up to 1; only a qcow2 is `compressed`.

    Raises:
        ImageError: qemu-img fails; no file is left.
        OSError: The disk is full; no file is left.
        HostError: There is no qemu-img, or no jail.
    """
    formats = ["-f", DRIVERS[source.format], "-O", DRIVERS[target]]
    arguments = [*_convert_words(compressed=compressed), *formats, source.file, str(path)]
    command = _walled(
        [Path(source.file)],
        path.parent,
        arguments,
        cpu_s=_LEAST_CPU_S + _CPU_S_PER_GIB * (size.disk_bytes >> 30),
        file_mib=(size.max_file_bytes >> 20) + _SPARE_MIB,
    )
    _convert(command, Image(file=str(path), format=target), source.format, on_part=on_part)


def convert_disk(
    disk: Disk,
    path: Path,
    *,
    target: Literal["qcow2", "raw"],
    on_part: Callable[[float], None],
    below: bool = False,
    compressed: bool = False,
) -> None:
    """Write the whole of a session's disk, or with `below` what it began from, into a new file at `path`.

    Every layer is one that `check_layer` has looked at. `on_part` may raise.

    Raises:
        ImageError: qemu-img fails; no file is left.
        OSError: The disk is full; no file is left.
        HostError: There is no qemu-img, or no jail.
    """
    node = base_node(disk) if below else frozen_node(disk)
    files = [*disk.layers, disk.path, *([disk.backing] if disk.backing else [])]
    disk_mib = read_disk_mib(disk.path)
    command = _walled(
        files,
        path.parent,
        [*_convert_words(compressed=compressed), "-O", target, f"json:{json.dumps(node)}", str(path)],
        cpu_s=_LEAST_CPU_S + _CPU_S_PER_GIB * (disk_mib >> 10),
        # A qcow2's tables are a small part of it.
        file_mib=disk_mib + disk_mib // 64 + _SPARE_MIB,
    )
    _convert(command, Image(file=str(path), format=target), "qcow2", on_part=on_part)


def _convert_words(*, compressed: bool) -> list[str]:
    return ["convert", "-p", *(["-c"] if compressed else [])]


def _convert(
    command: list[str], made: Image, source: ImageFormat, *, on_part: Callable[[float], None]
) -> None:
    path = Path(made.file)
    path.unlink(missing_ok=True)
    pipe = subprocess.PIPE
    try:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            try:
                # It writes over one line.
                while piece := os.read(process.stdout.fileno(), 4096):
                    if found := _PERCENT.findall(piece):
                        on_part(min(1.0, float(found[-1]) / 100))
                words = process.stderr.read(_MAX_WORDS_BYTES)
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            _check_full(words)
            raise _failed(source, words)
        check_image(made)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _ask(source: Image, folder: Path, arguments: Sequence[str]) -> dict[str, int]:
    command = _walled([Path(source.file)], folder, arguments, cpu_s=_MEASURE_S, file_mib=0)
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=2 * _MEASURE_S)
    except subprocess.TimeoutExpired as exc:
        raise _failed(source.format, b"it takes too long") from exc
    if done.returncode != 0:
        raise _failed(source.format, done.stderr)
    answer: dict[str, int] = json.loads(done.stdout)
    return answer


def _walled(
    files: Sequence[Path], folder: Path, arguments: Sequence[str], *, cpu_s: int, file_mib: int
) -> list[str]:
    program = shutil.which("qemu-img")
    if program is None:
        raise HostError("qemu-img was not found on this host.", hint="Install it (Debian: qemu-utils).")
    check_jail()
    # Where the source lies in the same folder, it is bound over it to be read only.
    inside = in_jail([program, *arguments], work_dir=folder, files=files, kvm=False)
    bounds = ["prlimit", f"--as={_MEMORY_BYTES}", f"--cpu={cpu_s}"]
    return tie_to_parent([*bounds, *inside], parent_pid=os.getpid(), limits=Limits(file_mib=file_mib))


def _check_full(words: bytes) -> None:
    """Raises OSError where qemu-img's last words are that the disk is full: the image is not to blame."""
    for code in (errno.ENOSPC, errno.EDQUOT):
        if os.strerror(code).encode() in words:
            raise OSError(code, os.strerror(code))


def _failed(source: ImageFormat, words: bytes) -> ImageError:
    last = words.decode(errors="replace").strip().splitlines()[-1:] or ["it was ended"]
    return ImageError(
        f"The image in the format {source} cannot be converted: {printable(last[0])}.",
        hint="It is damaged.",
    )
