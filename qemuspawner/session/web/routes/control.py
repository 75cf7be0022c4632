"""The status of a session, and what steers it."""

import asyncio
import contextlib
from typing import Any, TypeGuard, get_args

from tornado import web

from qemuspawner.errors import printable
from qemuspawner.given_texts import MAX_NAME, MAX_NOTES, Parse, text_of
from qemuspawner.keyboards import KEYBOARDS
from qemuspawner.session.people.access import Tickets
from qemuspawner.session.screen.rates import Rates
from qemuspawner.session.screen.thumbnails import Thumbnails
from qemuspawner.session.web.routes.base import Handler, Refusal, TooFast
from qemuspawner.spec import Act
from qemuspawner.texts import Text

# Shorter than the proxies in between wait.
_LONGEST_POLL_S = 10
# Of a reason or a comment.
_MAX_TEXT = 300
# As long as the hub's announcements, which come here too.
_MAX_MESSAGE = 1000


class StatusHandler(Handler):
    """The status; with `?after=VERSION` as soon as it is another one, or after a while."""

    least = "waiting"

    async def get(self) -> None:
        after = self.get_query_argument("after", None)
        if after is not None and after == str(self.supervisor.status().version):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LONGEST_POLL_S):
                    await self.supervisor.changed.wait()
        self.write_status()


class ScreenshotHandler(Handler):
    """The screen as it is; so many for each person, as it is QEMU's main loop that draws them."""

    async def get(self) -> None:
        rates: Rates = self.settings["screenshots"]
        if wait_s := rates.spend(self.person.name, 1):
            raise TooFast(
                f"You have taken too many screenshots: at most {rates.burst} at once, and then "
                f"{rates.per_s:g} each second.",
                wait_s=wait_s,
            )
        picture = await self.supervisor.screenshot()
        self.people.note_look(self.person, "screenshot")
        self.set_header("Content-Type", "image/png")
        self.finish(picture)


class ThumbnailHandler(Handler):
    """The screen made small, as often as pages like; whoever looks at it is not at the desktop by that."""

    async def get(self) -> None:
        thumbnails: Thumbnails = self.settings["thumbnails"]
        picture = await thumbnails.newest()
        self.people.note_look(self.person, "thumbnail")
        self.set_header("Content-Type", "image/jpeg")
        self.finish(picture)


class ScriptHandler(Handler):
    """How the start script does, and the end of what it wrote, which may be anything."""

    least = "owner"

    async def get(self) -> None:
        run = self.supervisor.script
        if run is None:
            raise Refusal(404, Text("No start script has run in this desktop."))
        self.finish({"state": run.state, "code": run.code, "output": run.output})


class TicketHandler(Handler):
    least = "waiting"

    async def post(self) -> None:
        tickets: Tickets = self.settings["tickets"]
        self.finish({"ticket": tickets.issue(self.person)})


class ExtendHandler(Handler):
    """Move the end later; where that cannot be, ask for it with a reason."""

    least = "control"

    async def post(self) -> None:
        body = self.body()
        seconds = body.get("seconds")
        if seconds is not None and not _is_span(seconds):
            raise web.HTTPError(400, "'seconds' must be a whole number of at least 60.")
        reason = _text(body, "reason")
        if reason and not self.supervisor.clocks.can_extend:
            self.supervisor.ask_extension(by=self.person.name, reason=reason, seconds=seconds)
            self.audit("extension-asked", seconds=seconds, reason=reason)
            self.set_status(202)
        else:
            self.supervisor.extend(seconds, by=self.person.name)
            self.audit("extended", seconds=seconds)
        self.write_status()


class ExtensionHandler(Handler):
    """The answer to who asked for more time; staff give it, also where they may not see the desktop."""

    least = "waiting"

    async def post(self) -> None:
        if not self.person.is_staff:
            raise Refusal(403, Text("Only the site's staff can grant more time."))
        body = self.body()
        grant = body.get("grant")
        if grant is not False and not _is_span(grant):
            raise web.HTTPError(400, "'grant' must be false, or a whole number of seconds of at least 60.")
        comment = _text(body, "comment")
        self.supervisor.answer_extension(by=self.person.name, granted_s=grant or 0, comment=comment)
        self.audit("extension-granted" if grant else "extension-refused", seconds=grant or 0, comment=comment)
        self.write_status()


class MessageHandler(Handler):
    """A word of the site's staff to everybody at the desktop; also where they may not see it."""

    least = "waiting"

    async def post(self) -> None:
        if not self.person.is_staff:
            raise Refusal(403, Text("Only the site's staff can tell everybody something."))
        text = _text(self.body(), "text", longest=_MAX_MESSAGE)
        if not text:
            raise web.HTTPError(400, "'text' is what everybody is to read.")
        self.supervisor.tell(text, by=self.person.name)
        self.audit("message", text=text)
        self.write_status()


def _is_span(value: object) -> TypeGuard[int]:
    return type(value) is int and 60 <= value <= 366 * 86400


def _text(body: dict[str, Any], name: str, *, longest: int = _MAX_TEXT) -> str:
    """A line of text of a request's body, in one line and without what a terminal would obey."""
    value = body.get(name, "")
    if not isinstance(value, str) or len(value) > longest:
        raise web.HTTPError(400, f"'{name}' must be a text of at most {longest} characters.")
    return printable(value).strip()


class AboutHandler(Handler):
    """What the owner calls the desktop, and what they want to remember about it; what is not given stays."""

    least = "owner"

    async def post(self) -> None:
        body, spec = self.body(), self.supervisor.spec
        name = _parse(body, "name", text_of(MAX_NAME), spec.name)
        notes = _parse(body, "notes", text_of(MAX_NOTES, lines=True), spec.notes)
        self.supervisor.describe(name=name, notes=notes)
        self.audit("described")
        self.write_status()


def _parse(body: dict[str, Any], field: str, parse: Parse, present: str) -> str:
    try:
        return parse(body.get(field, present))
    except ValueError as exc:
        raise web.HTTPError(400, f"'{field}' cannot be accepted: {exc}.") from exc


class KeyboardHandler(Handler):
    """The layout by which the guest takes keys."""

    least = "control"

    async def post(self) -> None:
        layout = self.body().get("layout")
        if not isinstance(layout, str) or layout not in KEYBOARDS:
            raise web.HTTPError(400, f"'layout' must be one of {', '.join(KEYBOARDS)}.")
        await self.supervisor.set_keyboard(layout, by=self.person.name)
        self.audit("keyboard", layout=layout)
        self.write_status()


class SuspendHandler(Handler):
    """Put the desktop to sleep; the answer comes when it is saved."""

    least = "owner"

    async def post(self) -> None:
        await self.supervisor.suspend(by=self.person.name)
        self.write_status()


class TroubleHandler(Handler):
    """What can be done about what is wrong with the desktop; what its status offers."""

    least = "control"

    async def post(self) -> None:
        known: tuple[Act, ...] = get_args(Act)
        asked = self.body().get("act")
        act = next((act for act in known if act == asked), None)
        if act is None:
            raise web.HTTPError(400, f"'act' must be one of {', '.join(known)}.")
        await self.supervisor.act(act, by=self.person.name)
        self.audit("trouble", act=act)
        self.write_status()


class PowerHandler(Handler):
    least = "owner"

    async def post(self) -> None:
        action = self.body().get("action")
        if action not in ("shutdown", "reset", "poweroff"):
            raise web.HTTPError(400, "'action' must be 'shutdown', 'reset' or 'poweroff'.")
        await self.supervisor.power(action, by=self.person.name)
        self.audit("power", action=action)
        self.write_status()
