"""Routes of the hub's REST API for desktops that run and for what is kept of them, beside JupyterHub's own.

JupyterHub's `extra_handlers` are a setting of each hub; these come with the spawner.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import aiohttp
from jupyterhub import apihandlers, orm
from jupyterhub.scopes import needs_scope
from jupyterhub.utils import url_path_join
from tornado import web

from qemuspawner.hub.languages import SpeakingHandler, http_error
from qemuspawner.hub.sessions.follow import SUSPEND_TIMEOUT, TIMEOUT, ask_session
from qemuspawner.hub.sessions.running import describe_running
from qemuspawner.texts import Text

# Of a session's own words.
_MAX_WHY = 1000


class DesktopsHandler(SpeakingHandler):
    """What routes about a user's desktops have in common."""

    def find_spawner(self, user_name: str) -> Any:
        """The user's default spawner, which knows of all."""
        user = self.find_user(user_name)
        if user is None or not hasattr(user.spawner, "desktop_cards"):
            raise web.HTTPError(404)
        return user.spawner

    def find_running(self, user_name: str, server_name: str) -> Any:
        user = self.find_spawner(user_name).user
        # Its own way with [] makes one that is missing.
        spawner = user.spawners.get(server_name)
        if spawner is None or not spawner.ready:
            raise http_error(self.request, 404, Text("This desktop does not run."))
        return spawner

    @contextlib.contextmanager
    def token_for(self, spawner: Any) -> Iterator[str]:
        """With it a session takes us for who sent this request. Raises HTTPError 403 without access."""
        try:
            token = spawner.new_token_for(self.current_user)
        except ValueError as exc:
            raise http_error(self.request, 403, Text("This needs access to the desktop.")) from exc
        try:
            yield token
        finally:
            if found := orm.APIToken.find(self.db, token):
                self.db.delete(found)
                self.db.commit()

    async def act(
        self,
        user_name: str,
        server_name: str,
        path: str,
        *,
        timeout: aiohttp.ClientTimeout = TIMEOUT,  # noqa: ASYNC109
    ) -> None:
        """Do what this request asks for at a session in the name of who sent it; its answer becomes ours."""
        spawner = self.find_running(user_name, server_name)
        with self.token_for(spawner) as token:
            status, answer = await ask_session(
                "POST",
                url_path_join(spawner.server.url, path),
                self.get_json_body() or {},
                token=token,
                ssl_context=spawner.session_ssl_context,
                language=self.language.tag,
                timeout=timeout,
            )
        if not status:
            raise http_error(
                self.request, 503, Text("The desktop's session does not answer. Try again in a moment.")
            )
        self.set_status(status)
        self.write(json.dumps(answer))


class RunningHandler(DesktopsHandler):
    @needs_scope("read:servers")  # type: ignore[untyped-decorator]
    async def get(self, user_name: str) -> None:
        """The user's desktops that run, with the time that is left."""
        spawners = self.find_spawner(user_name).user.spawners
        self.say(await describe_running(list(spawners.values())))


class AskingHandler(DesktopsHandler):
    @needs_scope("admin:servers")  # type: ignore[untyped-decorator]
    async def get(self) -> None:
        """Everybody's desktops for which more time was asked for and nobody has answered."""
        spawners = [spawner for user in list(self.users.values()) for spawner in user.spawners.values()]
        ours = [spawner for spawner in spawners if hasattr(spawner, "desktop_cards")]
        self.say(await describe_running(ours, asking=True))


class ExtendHandler(DesktopsHandler):
    @needs_scope("access:servers")  # type: ignore[untyped-decorator]
    async def post(self, user_name: str, server_name: str) -> None:
        """As the session's own `api/extend`."""
        await self.act(user_name, server_name, "api/extend")


class SuspendHandler(DesktopsHandler):
    @needs_scope("access:servers")  # type: ignore[untyped-decorator]
    async def post(self, user_name: str, server_name: str) -> None:
        """As the session's own `api/suspend`: the answer comes when the desktop is saved."""
        await self.act(user_name, server_name, "api/suspend", timeout=SUSPEND_TIMEOUT)


class CardsHandler(DesktopsHandler):
    @needs_scope("read:servers")  # type: ignore[untyped-decorator]
    async def get(self, user_name: str) -> None:
        """All desktops of the user, whatever their state, with what their sessions say."""
        self.say(await self.find_spawner(user_name).desktop_cards(ask=True))


class AboutHandler(DesktopsHandler):
    @needs_scope("access:servers")  # type: ignore[untyped-decorator]
    async def post(self, user_name: str, server_name: str) -> None:
        """As the session's own `api/about`; the next start has the same name and notes."""
        await self.act(user_name, server_name, "api/about")
        if self.get_status() == 200:
            self.find_running(user_name, server_name).note_about(self.get_json_body())


class ExtensionHandler(DesktopsHandler):
    @needs_scope("admin:servers")  # type: ignore[untyped-decorator]
    async def post(self, user_name: str, server_name: str) -> None:
        """As the session's own `api/extension`."""
        await self.act(user_name, server_name, "api/extension")


class SavedListHandler(DesktopsHandler):
    @needs_scope("read:servers")  # type: ignore[untyped-decorator]
    async def get(self, user_name: str) -> None:
        """What is kept of the user's desktops."""
        self.say(await self.find_spawner(user_name).describe_saved())


class SavedHandler(DesktopsHandler):
    @needs_scope("delete:servers")  # type: ignore[untyped-decorator]
    async def delete(self, user_name: str, session_id: str, name: str = "") -> None:
        """Delete everything that is kept of a session, or the one of this name."""
        spawner = self.find_spawner(user_name)
        deleted = await spawner.delete_saved(session_id, name)
        if deleted is None:
            raise http_error(self.request, 404, Text("Nothing of this name is kept."))
        if not deleted:
            raise http_error(self.request, 409, Text("This desktop is running; stop it first."))
        self.set_status(204)


apihandlers.default_handlers += [
    (r"/api/desktops/asking", AskingHandler),
    (r"/api/users/([^/]+)/desktops", RunningHandler),
    (r"/api/users/([^/]+)/desktops/([^/]*)/extend", ExtendHandler),
    (r"/api/users/([^/]+)/desktops/([^/]*)/about", AboutHandler),
    (r"/api/users/([^/]+)/desktops/([^/]*)/extension", ExtensionHandler),
    (r"/api/users/([^/]+)/desktops/([^/]*)/suspend", SuspendHandler),
    (r"/api/users/([^/]+)/desktop-cards", CardsHandler),
    (r"/api/users/([^/]+)/saved", SavedListHandler),
    (r"/api/users/([^/]+)/saved/([0-9a-f]{20})", SavedHandler),
    (r"/api/users/([^/]+)/saved/([0-9a-f]{20})/([0-9a-f]{6,20})", SavedHandler),
]
