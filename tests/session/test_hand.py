"""The agent's hand, on a real QEMU that paints, and on a VNC server of ours that notes what it is sent."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from tiny_guest import HEIGHT, WIDTH, tiny_guest

from qemuspawner.errors import SessionError, VmError
from qemuspawner.session.screen import rfb
from qemuspawner.session.screen.hand import Hand, Watcher
from qemuspawner.session.screen.keyboard import parse_chord, parse_text
from qemuspawner.session.screen.updates import Changes, Rect

SCREEN = Rect(x=0, y=0, width=WIDTH, height=HEIGHT)
SPACE = parse_chord("space")


async def go_on() -> None:
    """Nobody objects."""


def watcher(*, still_s: float | None = None, region: Rect = SCREEN, least_px: int = 1) -> Watcher:
    return Watcher(Changes(region, least_px=least_px), still_s=still_s)


async def watch(hand: Hand, *, timeout_s: float = 20, **wanted: object) -> bool:
    return await hand.watch(watcher(**wanted), timeout_s=timeout_s, go_on=go_on)  # type: ignore[arg-type]


class Noting:
    """A VNC server with a pointer that can be put anywhere; notes keys and pointer as text."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.absolute = True
        self.noted: list[str] = []
        self.connections = 0
        self.writer: asyncio.StreamWriter | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writer = writer
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            writer.write(rfb.VERSION)
            await reader.readexactly(12)
            writer.write(b"\x01\x01")
            await reader.readexactly(1)
            writer.write(bytes(4))
            await reader.readexactly(1)
            writer.write(struct.pack(">HHB", WIDTH, HEIGHT, 32) + bytes(15) + bytes(4))
            while True:
                await self.note(await reader.readexactly(1), reader, writer)

    async def note(self, kind: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        match kind[0]:
            case 2:
                (count,) = struct.unpack(">xH", await reader.readexactly(3))
                await reader.readexactly(4 * count)
                # The kind of pointer, as QEMU tells it.
                writer.write(struct.pack(">BxHHHHHi", 0, 1, self.absolute, 0, WIDTH, HEIGHT, -257))
            case 3:
                await reader.readexactly(9)
            case 5:
                buttons, x, y = struct.unpack(">BHH", await reader.readexactly(5))
                self.noted.append(f"{buttons}@{x},{y}")
            case 255:
                _, down, keysym, code = struct.unpack(">BHII", await reader.readexactly(11))
                self.noted.append(f"{'down' if down else 'up'} {code:02x} {keysym:x}")

    async def wait_for(self, entry: str) -> None:
        async with asyncio.timeout(10):
            while entry not in self.noted:
                await asyncio.sleep(0.005)


@pytest.fixture
async def noting(tmp_path: Path) -> AsyncIterator[Noting]:
    noting = Noting(tmp_path / "vnc")
    server = await asyncio.start_unix_server(noting.serve, noting.path)
    yield noting
    server.close()
    if noting.writer is not None:
        noting.writer.close()


async def test_a_chord_is_pressed_and_released_in_reverse(noting: Noting) -> None:
    hand = Hand(noting.path)

    await hand.press(parse_text("Q")[0])

    await noting.wait_for("up 2a ffe1")
    assert noting.noted == ["down 2a ffe1", "down 10 51", "up 10 51", "up 2a ffe1"]


async def test_keys_are_released_where_the_program_goes_away_meanwhile(noting: Noting) -> None:
    pressing = asyncio.create_task(Hand(noting.path).press(parse_chord("ctrl+alt+f2")))
    await noting.wait_for("down 3c ffbf")
    pressing.cancel()

    await noting.wait_for("up 1d ffe3")
    assert noting.noted[3:] == ["up 3c ffbf", "up 38 ffe9", "up 1d ffe3"]


async def test_clicks_come_where_the_pointer_was_put(noting: Noting) -> None:
    await Hand(noting.path).click(30, 40, button="right", times=2)

    await noting.wait_for("4@30,40")
    async with asyncio.timeout(10):
        while len(noting.noted) < 5:
            await asyncio.sleep(0.005)
    assert noting.noted == ["0@30,40", "4@30,40", "0@30,40", "4@30,40", "0@30,40"]


async def test_a_drag_goes_there_in_steps_and_lets_go(noting: Noting) -> None:
    await Hand(noting.path).drag(10, 20, (130, 140), button="left")

    await noting.wait_for("0@130,140")
    assert noting.noted[:3] == ["0@10,20", "1@10,20", "1@20,30"]
    assert noting.noted[-2:] == ["1@130,140", "0@130,140"]


async def test_a_button_is_released_where_the_program_goes_away_meanwhile(noting: Noting) -> None:
    dragging = asyncio.create_task(Hand(noting.path).drag(0, 0, (120, 0), button="left"))
    await noting.wait_for("1@10,0")
    dragging.cancel()
    with suppress(asyncio.CancelledError):
        await dragging

    async with asyncio.timeout(10):
        while not noting.noted[-1].startswith("0@"):
            await asyncio.sleep(0.005)
    assert noting.noted[-1] != "0@0,0"


async def test_the_wheel_turns_by_notches(noting: Noting) -> None:
    await Hand(noting.path).scroll(5, 6, down=-2)

    async with asyncio.timeout(10):
        while len(noting.noted) < 5:
            await asyncio.sleep(0.005)
    assert noting.noted == ["0@5,6", "8@5,6", "0@5,6", "8@5,6", "0@5,6"]


async def test_a_pointer_that_can_only_be_pushed_is_left_alone(noting: Noting) -> None:
    noting.absolute = False

    with pytest.raises(SessionError, match="can only be pushed"):
        await Hand(noting.path).click(1, 1, button="left", times=1)
    assert noting.noted == []


async def test_one_connection_does_for_all_and_a_new_one_after_it_was_lost(noting: Noting) -> None:
    hand = Hand(noting.path)
    await hand.press(SPACE)
    await hand.press(SPACE)
    assert noting.connections == 1

    assert noting.writer is not None
    noting.writer.close()
    async with asyncio.timeout(10):
        while noting.connections == 1:
            with suppress(VmError):
                await hand.press(SPACE)
            await asyncio.sleep(0.01)


async def test_who_waits_for_a_turn_in_vain_is_told(noting: Noting) -> None:
    hand = Hand(noting.path)
    release = asyncio.Event()

    async def hold() -> None:
        async with hand.turn():
            await release.wait()

    holding = [asyncio.create_task(hold()) for _ in range(8)]
    await asyncio.sleep(0)
    with pytest.raises(SessionError, match="8 programs wait"):
        async with hand.turn():
            pass
    release.set()
    await asyncio.gather(*holding)
    async with hand.turn():
        pass


async def test_a_desktop_that_is_not_there_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(VmError, match="does not answer"):
        await Hand(tmp_path / "nothing").press(SPACE)


# With QEMU


async def test_a_change_ends_the_waiting_for_one(tmp_path: Path) -> None:
    with tiny_guest(tmp_path) as vnc:
        hand = Hand(vnc)
        assert await watch(hand, still_s=0.5)  # it has booted

        waiting = asyncio.create_task(watch(hand))
        assert not (await asyncio.wait([waiting], timeout=0.5))[0]
        await hand.press(SPACE)

        assert await waiting


async def test_where_nothing_changes_the_time_runs_out(tmp_path: Path) -> None:
    """Neither what changed before is a change, nor what another program waits for."""
    with tiny_guest(tmp_path) as vnc:
        hand = Hand(vnc)
        assert await watch(hand, still_s=0.5)
        await hand.press(SPACE)
        await watch(hand, still_s=0.2)

        assert await asyncio.gather(*(watch(hand, timeout_s=1) for _ in range(3))) == [False] * 3


async def test_a_screen_that_goes_on_changing_is_not_still(tmp_path: Path) -> None:
    with tiny_guest(tmp_path) as vnc:
        hand = Hand(vnc)
        assert await watch(hand, still_s=0.5)

        waiting = asyncio.create_task(watch(hand, still_s=0.5, timeout_s=2))
        while not waiting.done():
            await hand.press(SPACE)
            await asyncio.sleep(0.05)

        assert not await waiting
        assert await watch(hand, still_s=0.5)


async def test_waiting_ends_with_the_desktop(tmp_path: Path) -> None:
    hand = Hand(tmp_path / "vnc")
    with tiny_guest(tmp_path):
        await watch(hand, still_s=0.2)
        waiting = asyncio.create_task(watch(hand))

    with pytest.raises(VmError, match="does not answer"):
        await waiting


async def test_waiting_ends_where_somebody_objects(tmp_path: Path) -> None:
    async def object_() -> None:
        raise SessionError("No.")

    with tiny_guest(tmp_path) as vnc, pytest.raises(SessionError, match="No"):
        await Hand(vnc).watch(watcher(), timeout_s=20, go_on=object_)
