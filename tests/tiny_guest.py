"""A real QEMU that runs a boot sector of `guests`: for what lies between a machine and a person."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guests import BOOT_SECTOR, TONE_SECTOR, make_disk

from qemuspawner.qemu.command import SOUND, sound_args

WIDTH, HEIGHT = 640, 400  # mode 13h as QEMU shows it

_START_TIMEOUT_S = 30


# What QEMU's trace can have of what people do to a guest, and of its viewers.
INPUT_EVENTS = "input_event_*"
SIZE_EVENT = "vnc_msg_client_set_desktop_size"
GONE_EVENT = "vnc_client_disconnect_finish"


@contextmanager
def tiny_guest(folder: Path, *, sound: bool = False, trace: Path | None = None) -> Iterator[Path]:
    """Start the painter, or the tone with `sound`; yields its VNC socket's path, which answers by then.

    QEMU notes the events above in the file `trace`.
    """
    disk = make_disk(folder / "guest.img", sector=TONE_SECTOR if sound else BOOT_SECTOR)
    vnc = folder / "vnc"
    events = (INPUT_EVENTS, SIZE_EVENT, GONE_EVENT) if trace else ()
    noted = [word for event in events for word in ("-trace", event)]
    card, listens = (sound_args(), f",audiodev={SOUND}") if sound else ([], "")
    process = subprocess.Popen([
        "qemu-system-x86_64", "-nodefaults", "-machine", "pc", "-accel", "tcg", "-m", "64",
        "-display", "none", "-vga", "std", "-vnc", f"unix:{vnc}{listens}", *card,
        "-drive", f"file={disk},format=raw,if=ide,snapshot=on",
        *noted, *(["-D", str(trace)] if trace else []),
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
