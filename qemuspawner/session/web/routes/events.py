"""What happens at a desktop, told to its pages as it happens: status, people, everyone's pointer."""

import asyncio
import contextlib
import json
import time
from typing import Any

from tornado.websocket import WebSocketClosedError, WebSocketHandler

from qemuspawner.errors import SessionError
from qemuspawner.session.people.people import Seat
from qemuspawner.session.screen.frames import cut_reason
from qemuspawner.session.screen.visitors import CloseCode
from qemuspawner.session.web.routes.base import Handler, describe_status
from qemuspawner.texts import Text

SUBPROTOCOL = "events"
_MAX_MESSAGE_BYTES = 1024
# Whoever sends more is no hand with a mouse.
_MOST_MESSAGES_S = 100
_MAX_PIXELS = 16384


class EventsHandler(Handler, WebSocketHandler):
    """A websocket of JSON texts. Each says what is so now: who is slow misses some, and is told no old ones.

    To the page: `{"status": ...}`, `{"people": ...}`, `{"pointers": {NAME: [x, y]}}`, `{"pong": ...}`.
    From it: `{"pointer": [x, y]}`, `{"ping": ...}`.
    """

    least = "waiting"
    max_message_size = _MAX_MESSAGE_BYTES
    ping_interval = 20.0

    async def get(self) -> None:
        self.check_opener()
        await WebSocketHandler.get(self)

    def check_origin(self, _origin: str) -> bool:
        return True  # looked at by check_opener, which knows of the hub's public address

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return SUBPROTOCOL if SUBPROTOCOL in subprotocols else None

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        super().close(code, None if reason is None else cut_reason(self.language.say(reason)))

    async def open(self, *_args: str, **_kwargs: str) -> None:
        self._second, self._messages = 0, 0
        self._stack = contextlib.ExitStack()
        try:
            self._seat = self._stack.enter_context(
                self.people.seated(
                    self.person, self.login, is_browser=self.is_browser, least="waiting", dismiss=self.close
                )
            )
        except SessionError as exc:
            self.close(CloseCode.FULL, exc.message)
            return
        telling = asyncio.create_task(self._tell_all(self._seat))
        self._stack.callback(telling.cancel)

    async def _tell_all(self, seat: Seat) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._tell_status(seat))
                tasks.create_task(self._tell_people(seat))
                tasks.create_task(self._tell_pointers(seat))
        except* WebSocketClosedError:
            pass

    async def _tell_status(self, seat: Seat) -> None:
        while True:
            changed = self.supervisor.changed
            await self._tell({"status": describe_status(self.supervisor, seat.person)})
            person = seat.person
            while seat.person == person and not changed.is_set():
                await _first(changed.wait(), self.people.changed.wait())

    async def _tell_people(self, seat: Seat) -> None:
        while True:
            changed = self.people.changed
            await self._tell({"people": self.people.describe(seat.person)})
            await changed.wait()

    async def _tell_pointers(self, seat: Seat) -> None:
        with self.people.pointers.followed(seat.person.name) as moves:
            while True:
                pointers = await moves.get()
                if seat.person.may("view"):
                    await self._tell({"pointers": pointers})

    async def _tell(self, message: dict[str, Any]) -> None:
        # Written when the one before is out: what is told next is made only then, and so is the newest.
        await self.write_message(json.dumps(self.language.say(message)))

    async def on_message(self, message: str | bytes) -> None:
        self._count()
        try:
            body = json.loads(message)
        except ValueError:
            body = None
        match body:
            case {"ping": int() | float() as moment}:
                with contextlib.suppress(WebSocketClosedError):
                    await self.write_message(json.dumps({"pong": moment}))
            case {"pointer": [int() as x, int() as y]} if _on_screen(x) and _on_screen(y):
                if self._seat.person.may("view"):
                    self.people.point(self._seat.person.name, x, y)
            case _:
                self.close(CloseCode.MALFORMED, Text("This is no message that is understood here."))

    def _count(self) -> None:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._messages = second, 0
        self._messages += 1
        if self._messages > _MOST_MESSAGES_S:
            self.close(CloseCode.FULL, Text("Too many messages."))

    def on_close(self) -> None:
        self._stack.close()


def _on_screen(pixels: int) -> bool:
    return 0 <= pixels < _MAX_PIXELS


async def _first(*waits: Any) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
