"""Sound as QEMU's VNC server sends it, heard by a client written from the protocol, not from our code."""

import asyncio
import math
import struct
from pathlib import Path

import guests
import pytest

RATE_HZ = 48000
# What `loudest_hz` finds of the guest's tone: a busy host loses a few samples, which shifts it a little.
NEAR_TONE = pytest.approx(guests.TONE_HZ, abs=5)
FRAME_BYTES = 4  # 16 bits, two channels

_AUDIO = -259


async def listen(vnc_socket: Path, *, seconds: float) -> bytes:
    """What the guest plays in the next `seconds`, which must be that much; fails on any picture."""
    reader, writer = await asyncio.open_unix_connection(vnc_socket)
    try:
        assert await reader.readexactly(12) == b"RFB 003.008\n"
        writer.write(b"RFB 003.008\n\x01")
        await reader.readexactly(2 + 4)
        writer.write(b"\x01")
        *_, size = struct.unpack(">HH16sI", await reader.readexactly(24))
        await reader.readexactly(size)
        writer.write(struct.pack(">BxHi", 2, 1, _AUDIO))
        # Signed 16 bits are format 3; then: enable.
        writer.write(struct.pack(">BBHBBI", 255, 1, 2, 3, 2, RATE_HZ) + struct.pack(">BBH", 255, 1, 0))
        heard = b""
        while len(heard) < seconds * RATE_HZ * FRAME_BYTES:
            if (await reader.readexactly(1)) == b"\0":
                _, count, *rectangle = struct.unpack(">BHHHHHi", await reader.readexactly(15))
                assert (count, rectangle[-1]) == (1, _AUDIO)
                continue
            kind, operation = struct.unpack(">BH", await reader.readexactly(3))
            assert kind == 1
            if operation == 2:
                (size,) = struct.unpack(">I", await reader.readexactly(4))
                heard += await reader.readexactly(size)
        return heard
    finally:
        writer.close()


def loudest_hz(heard: bytes, *, low: int = 100, high: int = 2000) -> int:
    """The frequency that is strongest in the left channel's last second, to 1 Hz, by Goertzel's algorithm."""
    left = [value for value, _ in struct.iter_unpack("<hh", heard[-RATE_HZ * FRAME_BYTES :])]
    coarse = max(range(low, high, 20), key=lambda hz: strength(left[: RATE_HZ // 20], hz))
    return max(range(coarse - 20, coarse + 21), key=lambda hz: strength(left, hz))


def strength(samples: list[int], hz: float) -> float:
    """How much of `hz` is in the samples; 0 for none."""
    factor = 2 * math.cos(2 * math.pi * hz / RATE_HZ)
    last = before = 0.0
    for sample in samples:
        last, before = sample + factor * last - before, last
    return last * last + before * before - factor * last * before
