"""Routes of the hub's REST API for what is kept of desktops, beside JupyterHub's own.

JupyterHub's `extra_handlers` are a setting of each hub; these come with the spawner.
"""

import json
from typing import Any

from jupyterhub import apihandlers
from jupyterhub.apihandlers.base import APIHandler
from jupyterhub.scopes import needs_scope
from tornado import web


class _SavedHandler(APIHandler):  # type: ignore[misc]
    def find_spawner(self, user_name: str) -> Any:
        """The user's default spawner, which knows of all."""
        user = self.find_user(user_name)
        if user is None or not hasattr(user.spawner, "saved_desktops"):
            raise web.HTTPError(404)
        return user.spawner


class SavedListHandler(_SavedHandler):
    @needs_scope("read:servers")  # type: ignore[untyped-decorator]
    async def get(self, user_name: str) -> None:
        """What is kept of the user's desktops."""
        self.write(json.dumps(await self.find_spawner(user_name).describe_saved()))


class SavedHandler(_SavedHandler):
    @needs_scope("delete:servers")  # type: ignore[untyped-decorator]
    async def delete(self, user_name: str, session_id: str, name: str = "") -> None:
        """Delete everything that is kept of a session, or the one of this name."""
        spawner = self.find_spawner(user_name)
        deleted = await spawner.delete_saved(session_id, name)
        if deleted is None:
            raise web.HTTPError(404, "Nothing of this name is kept.")
        if not deleted:
            raise web.HTTPError(409, "This desktop is running; stop it first")
        self.set_status(204)


apihandlers.default_handlers += [
    (r"/api/users/([^/]+)/saved", SavedListHandler),
    (r"/api/users/([^/]+)/saved/([0-9a-f]{20})", SavedHandler),
    (r"/api/users/([^/]+)/saved/([0-9a-f]{20})/([0-9a-f]{6,20})", SavedHandler),
]
