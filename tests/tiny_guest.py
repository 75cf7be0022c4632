"""A real QEMU that runs the painter of `guests`: for what lies between a screen and a person."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guests import make_disk

WIDTH, HEIGHT = 640, 400  # mode 13h as QEMU shows it

_START_TIMEOUT_S = 30


@contextmanager
def tiny_guest(folder: Path) -> Iterator[Path]:
    """Start the guest; yields the path of its VNC socket, which answers by then."""
    disk = make_disk(folder / "painter.img")
    vnc = folder / "vnc"
    process = subprocess.Popen([
        "qemu-system-x86_64", "-nodefaults", "-machine", "pc", "-accel", "tcg", "-m", "64",
        "-display", "none", "-vga", "std", "-vnc", f"unix:{vnc}",
        "-drive", f"file={disk},format=raw,if=ide,snapshot=on",
    ])  # fmt: skip
    try:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not vnc.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("QEMU did not start.")
            time.sleep(0.02)
        yield vnc
    finally:
        process.kill()
        process.wait()
