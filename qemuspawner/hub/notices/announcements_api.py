"""Routes of the hub's REST API for announcements: staff make them, everybody acknowledges them."""

import asyncio
import contextlib
import json
import time
from typing import Any, ClassVar

from jupyterhub import apihandlers, orm
from jupyterhub.scopes import needs_scope
from jupyterhub.utils import url_path_join
from tornado import web

from qemuspawner.errors import OptionsError
from qemuspawner.hub.desktops.api import DesktopsHandler
from qemuspawner.hub.desktops.overview import find_spawners
from qemuspawner.hub.desktops.staff_api import StaffHandler
from qemuspawner.hub.languages import http_error
from qemuspawner.hub.notices.announcements import (
    LEVELS,
    Announcement,
    acknowledge,
    add_announcement,
    delete_announcement,
    list_announcements,
)
from qemuspawner.hub.sessions.follow import ask_session
from qemuspawner.texts import Text

_MAX_TEXT = 1000
_LATEST_S = 366 * 86400


class AnnouncementsHandler(StaffHandler, DesktopsHandler):
    _telling: ClassVar[set[asyncio.Task[None]]] = set()

    @needs_scope("admin:servers")  # type: ignore[untyped-decorator]
    def get(self) -> None:
        """All announcements, with how many people have acknowledged each."""
        found = list_announcements(self.records)
        self.write(json.dumps({"announcements": [_model(one, count) for one, count in found]}))

    @needs_scope("admin:servers")  # type: ignore[untyped-decorator]
    def post(self) -> None:
        """`text`; optional `level`, `begins_in` and `lasts` in seconds, and `must_acknowledge`."""
        text = self.text("text", longest=_MAX_TEXT)
        body = self.get_json_body()
        level = body.get("level", "info")
        if level not in LEVELS:
            text = Text("'level' must be one of {names}.", names=", ".join(LEVELS))
            raise http_error(self.request, 400, text)
        must = body.get("must_acknowledge", False)
        if not isinstance(must, bool):
            raise http_error(self.request, 400, Text("'must_acknowledge' must be true or false."))
        begins = time.time() + (self.seconds(body, "begins_in") or 0)
        lasts = self.seconds(body, "lasts")
        ends = begins + lasts if lasts is not None else None
        try:
            number = add_announcement(
                self.records,
                text,
                level=level,
                begins=begins,
                ends=ends,
                must_acknowledge=must,
                by=self.current_user.name,
            )
        except OptionsError as exc:
            raise http_error(self.request, 409, exc.text) from exc
        self.log.info("%s announces: %s", self.current_user.name, text)
        if not body.get("begins_in"):
            task = asyncio.create_task(self._tell_desktops(text))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)
        self.set_status(201)
        self.write(json.dumps({"id": number}))

    async def _tell_desktops(self, text: str) -> None:
        """Who is at a desktop sees none of the hub's pages: they get it as a message of the same person."""
        for spawner in find_spawners(self.users):
            if not spawner.ready:
                continue
            # Whoever may not open a desktop has no say there.
            with contextlib.suppress(web.HTTPError), self.token_for(spawner) as token:
                await ask_session(
                    "POST",
                    url_path_join(spawner.server.url, "api/message"),
                    {"text": text},
                    token=token,
                    ssl_context=spawner.session_ssl_context,
                )

    def seconds(self, body: dict[str, Any], name: str) -> int | None:
        """A span of the request's body. Raises HTTPError 400."""
        value = body.get(name)
        if value is not None and (type(value) is not int or not 0 <= value <= _LATEST_S):
            text = Text("'{name}' must be null, or from 0 to {most} seconds.", name=name, most=_LATEST_S)
            raise http_error(self.request, 400, text)
        return value


class AnnouncementHandler(StaffHandler):
    @needs_scope("admin:servers")  # type: ignore[untyped-decorator]
    def delete(self, number: str) -> None:
        if not delete_announcement(self.records, int(number)):
            raise http_error(self.request, 404, Text("There is no such announcement."))
        self.set_status(204)


class AcknowledgementHandler(StaffHandler):
    def post(self, number: str) -> None:
        """Whoever asks has read it."""
        person = self.current_user
        if person is None or isinstance(person, orm.Service):
            raise http_error(
                self.request, 403, Text("Only people who are logged in can acknowledge an announcement.")
            )
        if not acknowledge(self.records, int(number), person.name):
            raise http_error(self.request, 404, Text("There is no such announcement."))
        self.set_status(204)


def _model(announcement: Announcement, count: int) -> dict[str, Any]:
    """Spans instead of moments: a page's clock need not agree with the hub's."""
    now = time.time()
    return {
        "id": announcement.id,
        "text": announcement.text,
        "level": announcement.level,
        "begins_in_s": max(0, round(announcement.begins - now)),
        "ends_in_s": None if announcement.ends is None else round(announcement.ends - now),
        "must_acknowledge": announcement.must_acknowledge,
        "acknowledged": count,
        "by": announcement.by,
    }


# The largest number that SQLite's keys take has 19 digits.
_NUMBER = "([0-9]{1,18})"

apihandlers.default_handlers += [
    (r"/api/announcements", AnnouncementsHandler),
    (rf"/api/announcements/{_NUMBER}", AnnouncementHandler),
    (rf"/api/announcements/{_NUMBER}/acknowledgement", AcknowledgementHandler),
]
