"""The agent's hand: programs type, click and wait, with a token whose scope can be revoked by itself."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

from tornado import web

from qemuspawner.scopes import AGENT
from qemuspawner.session.people.logins import Logins
from qemuspawner.session.screen.agents import Agents, may_lend_hand
from qemuspawner.session.screen.hand import BETWEEN_KEYS_S, BUTTONS, Button, Watcher
from qemuspawner.session.screen.keyboard import Chord, parse_chord, parse_text
from qemuspawner.session.screen.updates import Changes, Rect
from qemuspawner.session.web.fields import Fields
from qemuspawner.session.web.routes.base import Handler, TooFast

_MAX_TEXT = 2000
_MAX_CHORDS = 50
_LONGEST_CHORD = 60
_MAX_NOTCHES = 20
_MAX_WAIT_S = 60
_MAX_STILL_S = 10
# A text cursor that blinks is smaller, a line of text that comes is larger.
_FLICKER_PX = 1024
_MAX_PX = 1 << 24


class AgentHandler(Handler):
    """Something that a program asks for; it is done until the program goes away."""

    least = "control"
    known: ClassVar[tuple[str, ...]]  # the fields of its body

    async def prepare(self) -> None:
        self._acting: asyncio.Task[dict[str, Any]] | None = None
        self._token_id = ""
        await super().prepare()
        await self.check_token()

    @property
    def agents(self) -> Agents:
        agents: Agents = self.settings["agents"]
        return agents

    @property
    def agent(self) -> str:
        """What people see at the pointer."""
        return f"{self.person.name}'s agent"

    async def check_token(self) -> None:
        """Raise HTTPError 403 where this program may not act here, or (in the midst of it) no longer may."""
        if not self.supervisor.spec.policy.agents:
            raise web.HTTPError(403, "This hub lets no programs act at desktops.")
        # A page of another server could use a browser's login, and nobody could revoke just that.
        if self.is_browser:
            raise web.HTTPError(403, "Programs act with a token of their own, not with a browser's login.")
        logins: Logins = self.hub_auth
        model = await logins.find(self.login)
        if model is None:
            raise web.HTTPError(403, "This token was revoked.")
        if not may_lend_hand(model["scopes"], self.supervisor.spec):
            raise web.HTTPError(403, f"This token does not have the scope '{AGENT}' for this desktop.")
        has_access = bool(logins.check_scopes(self.hub_scopes, model))
        person = await self.people.find(model, has_access=has_access, is_browser=False)
        if person is None or not person.may(self.least):
            raise web.HTTPError(403, f"{self.person.name} may not control this desktop any more.")
        self.check_owner_is_here()
        self._token_id = model["token_id"]

    async def post(self) -> None:
        fields = Fields(self.body(), known=self.known)
        self._acting = asyncio.create_task(self.act(fields))
        try:
            await asyncio.wait([self._acting])
        finally:
            self._acting.cancel()
        if not self._acting.cancelled():
            done = self._acting.result()
            screen = await self.agents.hand.screen()
            self.finish({**done, "screen": {"width": screen.width, "height": screen.height}})

    def on_connection_close(self) -> None:
        if self._acting is not None:
            self._acting.cancel()

    async def act(self, fields: Fields) -> dict[str, Any]:
        """Do it, and return what was done."""
        raise NotImplementedError

    @asynccontextmanager
    async def stroke(self) -> AsyncIterator[None]:
        """Around each thing that the guest notices: whether the program may is asked every time.

        Raises:
            HTTPError: It may not; 409 where somebody else drives.
            VmError: The machine does not run.
        """
        await self.check_token()
        if not self.people.may_drive(self.person.name):
            raise web.HTTPError(409, "Somebody else drives this desktop, and only one person may at a time.")
        async with self.supervisor.steady():
            yield
        self.supervisor.clocks.note_input()

    def charge(self, events: int) -> None:
        """Raises TooFast where this person's programs act too fast."""
        rates = self.agents.rates
        if wait_s := rates.spend(self.person.name, events):
            raise TooFast(
                f"{events} keys and clicks are too many for now: you have {rates.burst} of them, and of used "
                f"ones {rates.per_s:g} come back each second.",
                wait_s=wait_s,
            )

    def audit(self, event: str, **facts: object) -> None:
        super().audit(event, token=self._token_id, **facts)


class TypeHandler(AgentHandler):
    """A text, or keys by their names."""

    known = ("text", "keys")

    async def act(self, fields: Fields) -> dict[str, Any]:
        chords = self._chords(fields)
        self.charge(len(chords))
        typed = 0
        try:
            async with self.agents.hand.turn():
                for chord in chords:
                    async with self.stroke():
                        await self.agents.hand.press(chord)
                    typed += 1
                    await asyncio.sleep(BETWEEN_KEYS_S)
        except web.HTTPError as exc:
            before = f"{typed} of {len(chords)} keys were pressed before."
            raise web.HTTPError(exc.status_code, f"{exc.get_message()} {before}") from exc
        finally:
            # How many, never which.
            if typed:
                self.audit("agent-typed", count=typed)
        return {"done": "typed", "count": typed}

    def _chords(self, fields: Fields) -> list[Chord]:
        if fields.has("text") == fields.has("keys"):
            raise web.HTTPError(400, "Send either 'text' or 'keys'.")
        try:
            if fields.has("text"):
                return parse_text(fields.text("text", most=_MAX_TEXT))
            return [
                parse_chord(text) for text in fields.texts("keys", most=_MAX_CHORDS, longest=_LONGEST_CHORD)
            ]
        except ValueError as exc:
            raise web.HTTPError(400, str(exc)) from exc


class PointerHandler(AgentHandler):
    """What is done somewhere on the screen."""

    async def place(self, fields: Fields) -> tuple[int, int]:
        """The fields `x` and `y`, which lie on the screen as it is now."""
        screen = await self.agents.hand.screen()
        why = f", as the screen has {screen.width}x{screen.height} pixels"
        return (
            fields.whole("x", least=0, most=screen.width - 1, why=why),
            fields.whole("y", least=0, most=screen.height - 1, why=why),
        )

    @asynccontextmanager
    async def turn(self, x: int, y: int) -> AsyncIterator[None]:
        """The hand for something done there, and its pointer shown there afterwards."""
        async with self.agents.hand.turn(), self.stroke():
            yield
        self.people.point(self.agent, x, y)


class MoveHandler(PointerHandler):
    """The pointer alone."""

    known = ("x", "y")

    async def act(self, fields: Fields) -> dict[str, Any]:
        x, y = await self.place(fields)
        self.charge(1)
        async with self.turn(x, y):
            await self.agents.hand.move(x, y)
        self.audit("agent-moved", x=x, y=y)
        return {"done": "moved", "x": x, "y": y}


class ClickHandler(PointerHandler):
    """A button: once, twice, or down at one place and up at another."""

    known = ("x", "y", "button", "double", "drag_to")

    async def act(self, fields: Fields) -> dict[str, Any]:
        x, y = await self.place(fields)
        button = fields.choice("button", tuple(BUTTONS), default="left")
        double = fields.flag("double", default=False)
        if not fields.has("drag_to"):
            return await self._click(x, y, button, times=2 if double else 1)
        if double:
            raise web.HTTPError(400, "Send either 'double' or 'drag_to'.")
        return await self._drag(x, y, await self.place(fields.inner("drag_to", known=("x", "y"))), button)

    async def _click(self, x: int, y: int, button: Button, *, times: int) -> dict[str, Any]:
        self.charge(times)
        async with self.turn(x, y):
            await self.agents.hand.click(x, y, button=button, times=times)
        self.audit("agent-clicked", x=x, y=y, button=button, times=times)
        return {"done": "clicked", "x": x, "y": y, "button": button, "times": times}

    async def _drag(self, x: int, y: int, to: tuple[int, int], button: Button) -> dict[str, Any]:
        self.charge(1)
        async with self.turn(*to):
            await self.agents.hand.drag(x, y, to, button=button)
        target = {"x": to[0], "y": to[1]}
        self.audit("agent-clicked", x=x, y=y, button=button, drag_to=target)
        return {"done": "dragged", "x": x, "y": y, "button": button, "drag_to": target}


class ScrollHandler(PointerHandler):
    """The wheel."""

    known = ("x", "y", "down")

    async def act(self, fields: Fields) -> dict[str, Any]:
        x, y = await self.place(fields)
        down = fields.whole("down", least=-_MAX_NOTCHES, most=_MAX_NOTCHES, why=" notches, negative ones up")
        self.charge(max(1, abs(down)))
        async with self.turn(x, y):
            await self.agents.hand.scroll(x, y, down=down)
        self.audit("agent-scrolled", x=x, y=y, down=down)
        return {"done": "scrolled", "x": x, "y": y, "down": down}


class WaitHandler(AgentHandler):
    """Until something on the screen changes, or nothing does any more."""

    known = ("for", "timeout_s", "region", "still_s", "least_px")

    async def act(self, fields: Fields) -> dict[str, Any]:
        what = fields.choice("for", ("change", "still"))
        timeout_s = fields.number("timeout_s", least=0, most=_MAX_WAIT_S, default=10)
        still_s = fields.number("still_s", least=0.2, most=_MAX_STILL_S, default=1)
        least_px = fields.whole(
            "least_px", least=1, most=_MAX_PX, default=_FLICKER_PX if what == "still" else 1
        )
        changes = Changes(await self._region(fields), least_px=least_px)
        watcher = Watcher(changes, still_s=still_s if what == "still" else None)
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with self._only_wait():
            met = await self.agents.hand.watch(watcher, timeout_s=timeout_s, go_on=self.check_token)
        return {"done": "waited", "met": met, "waited_s": round(loop.time() - began, 2)}

    @asynccontextmanager
    async def _only_wait(self) -> AsyncIterator[None]:
        """Raises TooFast where another program of this person waits already."""
        if self.person.name in self.agents.waiting:
            raise TooFast(
                "A program of yours waits at this desktop already, and one may at a time.", wait_s=1
            )
        self.agents.waiting.add(self.person.name)
        try:
            yield
        finally:
            self.agents.waiting.discard(self.person.name)

    async def _region(self, fields: Fields) -> Rect:
        screen = await self.agents.hand.screen()
        if not fields.has("region"):
            return screen
        region = fields.inner("region", known=("x", "y", "width", "height"))
        why = f", as the screen has {screen.width}x{screen.height} pixels"
        x = region.whole("x", least=0, most=screen.width - 1, why=why)
        y = region.whole("y", least=0, most=screen.height - 1, why=why)
        return Rect(
            x=x,
            y=y,
            width=region.whole("width", least=1, most=screen.width - x, why=why),
            height=region.whole("height", least=1, most=screen.height - y, why=why),
        )
