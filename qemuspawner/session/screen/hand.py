"""The agent's hand: keys and pointer of programs, and what they wait for, by one VNC connection a session.

VNC and not QMP: QEMU's VNC server tells the screen's size and takes pixels, says what changes, looks at the
screen more often after each message (see `keep_fresh`), and knows which buttons are this connection's. One
connection, kept for a while: when one ends, QEMU lifts every key, also those that people hold down.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal

from qemuspawner.errors import SessionError, VmError
from qemuspawner.session.screen import rfb
from qemuspawner.session.screen.desktop import Desktop, DesktopError, connect_desktop
from qemuspawner.session.screen.keyboard import SHIFT, Chord
from qemuspawner.session.screen.updates import ENCODINGS, Changes, Rect, Updates
from qemuspawner.texts import Text

Button = Literal["left", "middle", "right"]
BUTTONS: dict[Button, int] = {"left": 1, "middle": 2, "right": 4}
_WHEEL_UP, _WHEEL_DOWN = 8, 16

# A PS/2 keyboard remembers 16 bytes that the guest has not fetched; faster typing loses keys.
BETWEEN_KEYS_S = 0.015
# Some programs take presses that are 250 ms apart for two clicks, and a slow guest stretches them.
_BETWEEN_CLICKS_S = 0.03
_DRAG_STEPS = 12
_MOST_WAITING = 8

_SETUP_TIMEOUT_S = 5.0
_KEPT_OPEN_S = 30.0

# How often who waits looks: by itself QEMU would look ever less often, and send as often as it can.
_LOOK_EVERY_S = 0.1
# What `watch` asks for first. QEMU compares the screen in pieces of 16 pixels, and so sends as much.
_MARK = Rect(x=0, y=0, width=16, height=1)


class Watcher:
    """Waits for a change of the screen, or for its end; fed with all that QEMU sends."""

    def __init__(self, changes: Changes, *, still_s: float | None) -> None:
        """Waits until nothing has changed for `still_s` seconds; None: until something has."""
        self._changes = changes
        self._still_s = still_s
        self._quiet_since: float | None = None  # None: still sent what had changed before

    def note(self, update: list[Rect]) -> None:
        if self._quiet_since is None:
            # With the mark comes all that had not been sent before: no change since.
            if any(rect.meets(_MARK) for rect in update):
                self._quiet_since = asyncio.get_running_loop().time()
            return
        for rect in update:
            # Another watcher's mark is no change either.
            if rect != _MARK:
                self._changes.note(rect)

    def is_over(self, now: float) -> bool:
        """Whether what it waits for has come about at `now`, a moment of the event loop."""
        if self._quiet_since is None:
            return False
        if self._still_s is None:
            return self._changes.any
        if self._changes.any:
            self._changes.clear()
            self._quiet_since = now
        return now - self._quiet_since >= self._still_s


class _Console:
    """An open connection to QEMU, and the task that reads it."""

    def __init__(self, desktop: Desktop) -> None:
        self.updates = Updates(desktop.head)
        self.watchers: set[Watcher] = set()
        self._desktop = desktop
        self._told_pointer = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @property
    def lost(self) -> bool:
        return self._reading.done()

    async def set_up(self) -> None:
        """Wait until QEMU has told the kind of pointer; raises VmError where it does not."""
        await self.send(rfb.set_encodings(ENCODINGS))
        try:
            async with asyncio.timeout(_SETUP_TIMEOUT_S):
                await self._told_pointer.wait()
        except TimeoutError as exc:
            raise _unreachable() from exc

    async def send(self, data: bytes) -> None:
        """Raises VmError where the desktop is gone."""
        try:
            await self._desktop.send(data)
        except DesktopError as exc:
            raise _unreachable() from exc

    async def _read(self) -> None:
        """Until the desktop is gone, or says what it should not."""
        with suppress(DesktopError, rfb.RfbError), self._desktop:
            self._note(memoryview(self._desktop.early))
            while True:
                self._note(memoryview(await self._desktop.receive()))

    def _note(self, data: memoryview) -> None:
        for update in self.updates.feed(data):
            for watcher in self.watchers:
                watcher.note(update)
        if self.updates.absolute is not None:
            self._told_pointer.set()

    def close(self) -> None:
        self._reading.cancel()


class Hand:
    """Of one session; what programs do with it is done one after the other."""

    def __init__(self, vnc_socket: Path) -> None:
        """Nothing is opened before somebody needs it."""
        self._vnc_socket = vnc_socket
        self._console: _Console | None = None
        self._opening = asyncio.Lock()
        self._closing: asyncio.TimerHandle | None = None
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def screen(self) -> Rect:
        """The screen as it is now. Raises VmError where there is none."""
        return (await self._open()).updates.screen

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """The hand to oneself. Raises SessionError where too many wait for it."""
        if self._waiting >= _MOST_WAITING:
            raise SessionError(
                Text(
                    "{most_waiting} programs wait for their turn at this desktop already.",
                    most_waiting=_MOST_WAITING,
                ),
                hint=Text("Try again in a moment."),
            )
        self._waiting += 1
        try:
            async with self._turn:
                yield
        finally:
            self._waiting -= 1

    async def press(self, chord: Chord) -> None:
        """Press keys, and release them whatever happens. Raises VmError where the desktop is gone."""
        console = await self._open()
        shifted = SHIFT in chord
        pressed: list[bytes] = []
        try:
            for key in chord:
                keysym = key.shifted if shifted else key.plain
                pressed.append(rfb.extended_key(keysym=keysym, scan_code=key.scan_code, down=False))
                await console.send(rfb.extended_key(keysym=keysym, scan_code=key.scan_code, down=True))
            if len(chord) > 2:
                await asyncio.sleep(BETWEEN_KEYS_S)
        finally:
            # Where the desktop is gone, QEMU has lifted them itself.
            with suppress(VmError):
                await console.send(b"".join(reversed(pressed)))

    async def move(self, x: int, y: int) -> None:
        """Put the pointer there.

        Raises:
            SessionError: The machine's pointer can only be pushed, not put anywhere.
            VmError: The desktop is gone.
        """
        await self._point(await self._open_pointer(), x, y)

    async def click(self, x: int, y: int, *, button: Button, times: int) -> None:
        """Press and release a button there; raises as `move` does."""
        console = await self._open_pointer()
        await self._point(console, x, y)
        for _ in range(times):
            await asyncio.sleep(_BETWEEN_CLICKS_S)
            async with self._button(console, BUTTONS[button], x, y):
                await asyncio.sleep(_BETWEEN_CLICKS_S)

    async def drag(self, x: int, y: int, to: tuple[int, int], *, button: Button) -> None:
        """Press a button there, and release it at `to`; raises as `move` does."""
        console = await self._open_pointer()
        await self._point(console, x, y)
        await asyncio.sleep(_BETWEEN_CLICKS_S)
        at = x, y
        down = BUTTONS[button]
        try:
            for step in range(_DRAG_STEPS + 1):
                at = x + (to[0] - x) * step // _DRAG_STEPS, y + (to[1] - y) * step // _DRAG_STEPS
                await self._point(console, *at, buttons=down)
                # Programs take a jump for something else than a drag.
                await asyncio.sleep(BETWEEN_KEYS_S)
        finally:
            with suppress(VmError):
                await self._point(console, *at)

    async def scroll(self, x: int, y: int, *, down: int) -> None:
        """Turn the wheel there by so many notches, negative ones up; raises as `move` does."""
        console = await self._open_pointer()
        await self._point(console, x, y)
        for _ in range(abs(down)):
            async with self._button(console, _WHEEL_DOWN if down > 0 else _WHEEL_UP, x, y):
                pass
            await asyncio.sleep(BETWEEN_KEYS_S)

    @asynccontextmanager
    async def _button(self, console: _Console, button: int, x: int, y: int) -> AsyncIterator[None]:
        try:
            await self._point(console, x, y, buttons=button)
            yield
        finally:
            with suppress(VmError):
                await self._point(console, x, y)

    async def _point(self, console: _Console, x: int, y: int, *, buttons: int = 0) -> None:
        await console.send(rfb.pointer_event(x=x, y=y, buttons=buttons))

    async def watch(
        self, watcher: Watcher, *, timeout_s: float, go_on: Callable[[], Awaitable[None]]
    ) -> bool:
        """Wait until `watcher` has seen what it waits for; whether it has, within `timeout_s` seconds.

        Args:
            go_on: Called before each look; what it raises ends the waiting.

        Raises:
            VmError: The desktop is gone.
        """
        console = await self._open()
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        console.watchers.add(watcher)
        try:
            await console.send(rfb.update_request(incremental=False, width=1, height=1))
            while not watcher.is_over(loop.time()):
                if loop.time() >= end:
                    return False
                if console.lost:
                    raise _unreachable()
                await go_on()
                screen = console.updates
                await console.send(
                    rfb.update_request(incremental=True, width=screen.width, height=screen.height)
                )
                await asyncio.sleep(min(_LOOK_EVERY_S, max(0.0, end - loop.time())))
            return True
        finally:
            console.watchers.discard(watcher)

    async def _open_pointer(self) -> _Console:
        console = await self._open()
        if not console.updates.absolute:
            raise SessionError(
                Text("This machine's pointer can only be pushed, not put anywhere, at least for now."),
                hint=Text("Use the keyboard, or wait until the guest's desktop is there."),
            )
        return console

    async def _open(self) -> _Console:
        """The connection, opened where there is none. Raises VmError where it cannot be."""
        async with self._opening:
            if self._console is None or self._console.lost:
                try:
                    console = _Console(await connect_desktop(self._vnc_socket))
                except DesktopError as exc:
                    raise _unreachable() from exc
                try:
                    await console.set_up()
                except BaseException:
                    console.close()
                    raise
                self._console = console
        self._close_later()
        return self._console

    def _close_later(self) -> None:
        """Open connections cost QEMU looks at the screen; `_KEPT_OPEN_S` after the last use it is closed."""
        if self._closing is not None:
            self._closing.cancel()
        self._closing = asyncio.get_running_loop().call_later(_KEPT_OPEN_S, self._close_unused)

    def _close_unused(self) -> None:
        if self._console is None:
            return
        if self._turn.locked() or self._console.watchers:
            self._close_later()
        else:
            self._console.close()
            self._console = None


def _unreachable() -> VmError:
    return VmError(
        Text("The desktop does not answer."), hint=Text("Is it asleep or ending? Look at its status.")
    )
