"""Routes of the hub's REST API for shares of desktops: what JupyterHub's own do not tell or take.

JupyterHub stores until when a share lasts, but no route of its own sets it or tells it. Who has no access yet
can tell nobody that they would like to have it, and owners who are not at the desktop see nobody who asks.
"""

import asyncio
import json
import time
from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from jupyterhub import apihandlers, orm
from jupyterhub.scopes import needs_scope
from tornado import web

from qemuspawner.hub.languages import SpeakingHandler, http_error
from qemuspawner.texts import Text

_LONGEST_S = 366 * 86400
_LEAST_S = 60
_MAX_REASON = 200
# The same person may ask for the same desktop so often.
_ASK_EVERY_S = 10.0
_MAX_ASKED = 1000


class _ServerHandler(SpeakingHandler):
    def find_server(self, user_name: str, server_name: str) -> Any:
        """The database's row of a server; raises 404."""
        user = self.find_user(user_name)
        if user is None or server_name not in user.orm_spawners:
            raise http_error(self.request, 404, Text("There is no such server."))
        return user.orm_spawners[server_name]

    def find_running(self, user_name: str, server_name: str) -> Any:
        """The spawner of a desktop that runs, or None."""
        user = self.find_user(user_name)
        if user is None or server_name not in user.spawners:
            return None
        spawner = user.spawners[server_name]
        return spawner if spawner.ready and hasattr(spawner, "ask_session") else None

    def body(self) -> dict[str, Any]:
        """The request's JSON object; {} where it has none. Raises HTTPError 400."""
        body = self.get_json_body()
        if body is not None and not isinstance(body, dict):
            raise web.HTTPError(400, "The request's body is not a JSON object.")
        return body or {}


class DesktopSharesHandler(_ServerHandler):
    """With whom a desktop is shared, and until when."""

    @needs_scope("read:shares")  # type: ignore[untyped-decorator]
    def get(self, user_name: str, server_name: str) -> None:
        """All shares; what has expired is deleted, and so nobody comes in by it any more."""
        server = self.find_server(user_name, server_name)
        shares = self.db.query(orm.Share).filter_by(spawner_id=server.id).all()
        for share in [share for share in shares if share.expired]:
            self.log.info("%r has expired", share)
            self.db.delete(share)
            shares.remove(share)
        self.db.commit()
        self.finish(json.dumps({"shares": [_model(share) for share in shares]}))

    @needs_scope("shares")  # type: ignore[untyped-decorator]
    def post(self, user_name: str, server_name: str) -> None:
        """Set when a share ends: `{"user" or "group": NAME, "expires_in": seconds}`; 0: never by itself."""
        server = self.find_server(user_name, server_name)
        body = self.body()
        seconds = body.get("expires_in", 0)
        if type(seconds) is not int or not (seconds == 0 or _LEAST_S <= seconds <= _LONGEST_S):
            raise web.HTTPError(400, f"'expires_in' is 0, or from {_LEAST_S} to {_LONGEST_S} seconds.")
        share = self._find_share(server, body)
        if share is None:
            raise http_error(self.request, 404, Text("It is not shared with them."))
        share.expires_at = _utc_now() + timedelta(seconds=seconds) if seconds else None
        self.db.commit()
        self.finish(json.dumps(_model(share)))

    def _find_share(self, server: Any, body: dict[str, Any]) -> Any:
        user, group = body.get("user"), body.get("group")
        if isinstance(user, str):
            found = orm.User.find(self.db, user)
        elif isinstance(group, str):
            found = orm.Group.find(self.db, group)
        else:
            raise web.HTTPError(400, "'user' or 'group' says with whom it is shared.")
        return found and orm.Share.find(self.db, server, share_with=found)


class AccessRequestHandler(_ServerHandler):
    """Somebody who cannot open a desktop asks its owner, while it runs.

    The answer is the same whether there is such a desktop or not: who may not open it may not learn that.
    """

    _asked: ClassVar[OrderedDict[tuple[str, str, str], float]] = OrderedDict()
    _telling: ClassVar[set[asyncio.Task[None]]] = set()

    async def post(self, user_name: str, server_name: str) -> None:
        asker = self.current_user
        # A token acts for a program; to ask is for people.
        if asker is None or isinstance(asker, orm.Service) or self.get_token() is not None:
            raise http_error(self.request, 403, Text("Only people who are logged in can ask for access."))
        reason = self.body().get("reason", "")
        if not isinstance(reason, str) or len(reason) > _MAX_REASON:
            raise web.HTTPError(400, f"'reason' is a text of at most {_MAX_REASON} characters.")
        if self._is_due((asker.name, user_name, server_name)):
            # Not waited for: how long it takes would tell whether there is such a desktop.
            task = asyncio.create_task(self._tell_owner(user_name, server_name, asker.name, reason))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)
        self.set_status(202)
        self.say({"message": Text("Where this desktop is running, its owner has been asked.")})

    def _is_due(self, key: tuple[str, str, str]) -> bool:
        now = time.monotonic()
        if now - self._asked.get(key, float("-inf")) < _ASK_EVERY_S:
            return False
        self._asked[key] = now
        self._asked.move_to_end(key)
        while len(self._asked) > _MAX_ASKED:
            self._asked.popitem(last=False)
        return True

    async def _tell_owner(self, user_name: str, server_name: str, asker: str, reason: str) -> None:
        spawner = self.find_running(user_name, server_name)
        if spawner is None:
            return
        body = {"name": asker, "wants": "view", "reason": reason}
        status, _ = await spawner.ask_session("POST", "api/requests", body)
        if status != 200:
            self.log.warning("%s: its session does not take a request for access", spawner._log_name)


class DesktopPeopleHandler(_ServerHandler):
    """Who is at a desktop and who asks to come in, for its owner, who may be elsewhere.

    Nobody else: whoever may answer could let themselves in, also where the site has staff ask for that.
    """

    @needs_scope("shares")  # type: ignore[untyped-decorator]
    async def get(self, user_name: str, server_name: str) -> None:
        """As the session's own `api/people` has it; nobody where the desktop does not run."""
        await self._relay(user_name, server_name, "GET", "api/people")

    @needs_scope("shares")  # type: ignore[untyped-decorator]
    async def post(self, user_name: str, server_name: str) -> None:
        """Answer: `{"name": NAME, "grant": "view", "control" or null}`, or send away: `{"drop": NAME}`."""
        body = self.body()
        path = "api/people" if "drop" in body else "api/answers"
        await self._relay(user_name, server_name, "POST", path, body)

    async def _relay(
        self, user_name: str, server_name: str, method: str, path: str, body: object = None
    ) -> None:
        person = self.current_user
        if isinstance(person, orm.Service) or person.name != user_name:
            raise http_error(
                self.request, 403, Text("Only the owner of a desktop sees and answers who asks.")
            )
        self.find_server(user_name, server_name)
        spawner = self.find_running(user_name, server_name)
        if spawner is None:
            if method == "POST":
                raise http_error(self.request, 409, Text("The desktop is not running."))
            self._finish(running=False, answer={})
            return
        status, answer = await spawner.ask_session(method, path, body, language=self.language.tag)
        if status != 200:
            # The session's own words are in the reader's language already.
            message = answer.get("message")
            words = Text(str(message)) if message else Text("The desktop does not answer.")
            raise http_error(self.request, status if 400 <= status < 500 else 503, words)
        self._finish(running=True, answer=answer)

    def _finish(self, *, running: bool, answer: dict[str, Any]) -> None:
        told = {key: answer.get(key, []) for key in ("people", "requests")}
        self.finish(json.dumps({"running": running, **told}))


def _model(share: Any) -> dict[str, Any]:
    return {
        "kind": "group" if share.group else "user",
        "name": (share.group or share.user).name,
        "scopes": share.scopes,
        "expires": share.expires_at.replace(tzinfo=UTC).timestamp() if share.expires_at else 0,
    }


def _utc_now() -> datetime:
    """As the database has it: without a time zone."""
    return datetime.now(UTC).replace(tzinfo=None)


apihandlers.default_handlers += [
    (r"/api/users/([^/]+)/desktop-shares/([^/]*)", DesktopSharesHandler),
    (r"/api/users/([^/]+)/access-requests/([^/]*)", AccessRequestHandler),
    (r"/api/users/([^/]+)/desktop-people/([^/]*)", DesktopPeopleHandler),
]
