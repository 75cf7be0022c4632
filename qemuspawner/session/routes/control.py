"""The status of a session, and what steers it."""

import asyncio
import contextlib

from tornado import web

from qemuspawner.session.access import Tickets
from qemuspawner.session.routes.base import Handler

# Shorter than the proxies in between wait.
_LONGEST_POLL_S = 10


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
    async def get(self) -> None:
        picture = await self.supervisor.screenshot()
        self.set_header("Content-Type", "image/png")
        self.finish(picture)


class TicketHandler(Handler):
    least = "waiting"

    async def post(self) -> None:
        tickets: Tickets = self.settings["tickets"]
        self.finish({"ticket": tickets.issue(self.person)})


class ExtendHandler(Handler):
    least = "control"

    async def post(self) -> None:
        seconds = self.body().get("seconds")
        if seconds is not None and (type(seconds) is not int or not 60 <= seconds <= 366 * 86400):
            raise web.HTTPError(400, "'seconds' must be a whole number of at least 60.")
        self.supervisor.extend(seconds, by=self.person.name)
        self.write_status()


class SuspendHandler(Handler):
    """Put the desktop to sleep; the answer comes when it is saved."""

    least = "owner"

    async def post(self) -> None:
        await self.supervisor.suspend(by=self.person.name)
        self.write_status()


class PowerHandler(Handler):
    least = "owner"

    async def post(self) -> None:
        action = self.body().get("action")
        if action not in ("shutdown", "reset", "poweroff"):
            raise web.HTTPError(400, "'action' must be 'shutdown', 'reset' or 'poweroff'.")
        await self.supervisor.power(action, by=self.person.name)
        self.write_status()
