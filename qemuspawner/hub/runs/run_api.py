"""Routes of the hub's REST API for runs of desktops: how one has ended, what to take the next time, mails."""

import asyncio
import json
from typing import Any

import msgspec
from jupyterhub import apihandlers
from jupyterhub.apihandlers.base import APIHandler
from jupyterhub.scopes import needs_scope
from tornado import web

from qemuspawner.hub.notices.no_mail import set_wants_mail, wants_mail
from qemuspawner.languages import choose_language
from qemuspawner.spec import SessionEnd

_MAX_BODY_BYTES = 64 * 1024


class _Handler(APIHandler):  # type: ignore[misc]
    def find_user_with_desktops(self, name: str) -> Any:
        user = self.find_user(name)
        if user is None or not hasattr(user.spawner, "find_advice"):
            raise web.HTTPError(404)
        return user


class EndedHandler(_Handler):
    @needs_scope("access:servers")  # type: ignore[untyped-decorator]
    async def post(self, user_name: str, server_name: str) -> None:
        """A session tells how it has ended, as a SessionEnd; nobody else can, not with any scope."""
        user = self.find_user_with_desktops(user_name)
        # Its own way with [] makes one that is missing.
        spawner = user.spawners.get(server_name)
        if spawner is None or not spawner.is_session_token(self.get_token()):
            raise web.HTTPError(403, "Only a desktop's own session tells how it has ended.")
        if len(self.request.body) > _MAX_BODY_BYTES:
            raise web.HTTPError(413, f"What is told of an end has at most {_MAX_BODY_BYTES} bytes.")
        try:
            end = SessionEnd.from_json(self.request.body)
        # RecursionError is for a deep nesting.
        except (msgspec.DecodeError, RecursionError) as exc:
            raise web.HTTPError(400, f"This is no SessionEnd: {exc}.") from exc
        spawner.note_end(end)
        self.set_status(204)


class AdviceHandler(_Handler):
    @needs_scope("read:servers")  # type: ignore[untyped-decorator]
    async def get(self, user_name: str, server_name: str) -> None:
        """What this desktop used the last time, and what would do; null where too little is known."""
        found = self.find_user_with_desktops(user_name).spawner.find_advice(server_name=server_name)
        said = choose_language(self.request).say({"advice": found.get(server_name)})
        self.write(msgspec.json.encode(said))


class MailsHandler(_Handler):
    """Whether a user wants mails of their desktops."""

    @needs_scope("read:users")  # type: ignore[untyped-decorator]
    async def get(self, user_name: str) -> None:
        records = self.find_user_with_desktops(user_name).spawner.records
        self.write(json.dumps({"wanted": await asyncio.to_thread(wants_mail, records, user_name)}))

    @needs_scope("servers")  # type: ignore[untyped-decorator]
    async def put(self, user_name: str) -> None:
        records = self.find_user_with_desktops(user_name).spawner.records
        body = self.get_json_body()
        if not isinstance(body, dict) or not isinstance(body.get("wanted"), bool):
            raise web.HTTPError(400, """The request's body is {"wanted": true} or {"wanted": false}.""")
        await asyncio.to_thread(set_wants_mail, records, user_name, wanted=body["wanted"])
        self.set_status(204)


apihandlers.default_handlers += [
    (r"/api/users/([^/]+)/desktops/([^/]*)/ended", EndedHandler),
    (r"/api/users/([^/]+)/desktops/([^/]*)/advice", AdviceHandler),
    (r"/api/users/([^/]+)/mails", MailsHandler),
]
