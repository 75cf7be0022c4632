"""Routes of the hub's REST API for shares of desktops: what JupyterHub's own do not tell or take.

JupyterHub stores until when a share lasts, but no route of its own sets it or tells it. And who has no access
yet can tell nobody that they would like to have it.
"""

import json
import logging
import time
from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from jupyterhub import apihandlers, orm
from jupyterhub.apihandlers.base import APIHandler
from jupyterhub.scopes import needs_scope
from tornado import web

log = logging.getLogger(__name__)

_LONGEST_S = 366 * 86400
_LEAST_S = 60
_MAX_REASON = 200
# The same person may ask for the same desktop so often.
_ASK_EVERY_S = 10.0
_MAX_ASKED = 1000


class _ServerHandler(APIHandler):  # type: ignore[misc]
    def find_server(self, user_name: str, server_name: str) -> Any:
        """The database's row of a server; raises 404."""
        user = self.find_user(user_name)
        if user is None or server_name not in user.orm_spawners:
            raise web.HTTPError(404, "There is no such server.")
        return user.orm_spawners[server_name]


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
        body = self.get_json_body() or {}
        seconds = body.get("expires_in", 0)
        if type(seconds) is not int or not (seconds == 0 or _LEAST_S <= seconds <= _LONGEST_S):
            raise web.HTTPError(400, f"'expires_in' is 0, or from {_LEAST_S} to {_LONGEST_S} seconds.")
        share = self._find_share(server, body)
        if share is None:
            raise web.HTTPError(404, "It is not shared with them.")
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

    async def post(self, user_name: str, server_name: str) -> None:
        asker = self.current_user
        # A token acts for a program; to ask is for people.
        if asker is None or isinstance(asker, orm.Service) or self.get_token() is not None:
            raise web.HTTPError(403, "Only people who are logged in can ask for access.")
        reason = (self.get_json_body() or {}).get("reason", "")
        if not isinstance(reason, str) or len(reason) > _MAX_REASON:
            raise web.HTTPError(400, f"'reason' is a text of at most {_MAX_REASON} characters.")
        if self._is_due((asker.name, user_name, server_name)):
            await self._tell_owner(user_name, server_name, asker.name, reason)
        self.set_status(202)
        self.finish(json.dumps({"message": "Where this desktop is running, its owner has been asked."}))

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
        user = self.find_user(user_name)
        if user is None or server_name not in user.spawners:
            return
        spawner = user.spawners[server_name]
        if spawner.ready and hasattr(spawner, "tell_session"):
            body = {"name": asker, "wants": "view", "reason": reason}
            if not await spawner.tell_session("api/requests", body):
                self.log.warning("%s: its session does not hear of a request for access", spawner._log_name)


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
]
