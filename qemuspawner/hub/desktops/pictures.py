"""Routes of the hub's REST API for pictures of desktops: the screen of one that runs, and of a saved one.

A page shows many and asks for those that are in view. It asks the hub: a browser has a login of its own for
each session, none for those that it has not opened. Who may see a picture is who may see the desktop: of
one that runs its session says that, of a saved one we do by the same rules. To look is not to use a desktop.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any, ClassVar

from jupyterhub import apihandlers, orm
from jupyterhub.scopes import needs_scope
from tornado import web

from qemuspawner.hub.desktops.api import DesktopsHandler
from qemuspawner.hub.desktops.kept import list_kept, load_picture
from qemuspawner.hub.sessions.follow import fetch_thumbnail
from qemuspawner.paths import StatePaths

# Sessions that are asked for a picture at the same time, for everybody; pages ask again.
_AT_A_TIME = 12


class _PictureHandler(DesktopsHandler):
    def compute_etag(self) -> str:
        return f'"{hashlib.sha256(b"".join(self._write_buffer)).hexdigest()}"'

    def finish_picture(self, picture: bytes, kind: str, *, cached: str) -> None:
        self.set_header("Content-Type", kind)
        self.set_header("Cache-Control", cached)
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.finish(picture)


class ThumbnailHandler(_PictureHandler):
    """The screen of a desktop that runs or boots."""

    _under_way: ClassVar[int] = 0

    @needs_scope("access:servers")  # type: ignore[untyped-decorator]
    async def get(self, user_name: str, server_name: str) -> None:
        spawner = self.find_spawner(user_name).user.spawners.get(server_name)
        url = spawner.session_url if spawner is not None else ""
        if not url:
            raise web.HTTPError(404, "This desktop does not run.")
        with self._slot(), self._token(spawner) as token:
            status, picture = await fetch_thumbnail(url, token=token, ssl_context=spawner.session_ssl_context)
        if status != 200:
            raise web.HTTPError(403 if status == 403 else 503, "There is no picture of it now.")
        self.finish_picture(picture, "image/jpeg", cached="no-store")

    def _token(self, spawner: Any) -> contextlib.AbstractContextManager[str]:
        person = self.current_user
        if not isinstance(person, orm.Service) and person.name == spawner.user.name:
            # The hub has one; making another costs the database more than the picture costs the session.
            return contextlib.nullcontext(spawner.session_token)
        return self.token_for(spawner)

    @contextlib.contextmanager
    def _slot(self) -> Iterator[None]:
        if ThumbnailHandler._under_way >= _AT_A_TIME:
            raise web.HTTPError(503, "Too many pictures are asked for at this moment.")
        ThumbnailHandler._under_way += 1
        try:
            yield
        finally:
            ThumbnailHandler._under_way -= 1


class SavedPictureHandler(_PictureHandler):
    """The screen of a suspended desktop, or of a checkpoint, as it was when that was saved."""

    async def get(self, user_name: str, session_id: str, name: str) -> None:
        if self.current_user is None:
            raise web.HTTPError(403, "Missing or invalid credentials.")
        spawner = self.find_spawner(user_name)
        state = StatePaths.of(spawner.state_dir)
        kept = await asyncio.to_thread(list_kept, state, spawner.user.name)
        server_name = next((one.server_name for one in kept if one.session_id == session_id), None)
        picture = b""
        # The same answer where there is none: who may not see it may not learn of it.
        if server_name is not None and self._may_see(spawner, server_name):
            picture = await asyncio.to_thread(load_picture, state.session(session_id), name)
        if not picture:
            raise web.HTTPError(404, "There is no such picture.")
        # Asked for each time, as an access ends; sent only once.
        self.finish_picture(picture, "image/png", cached="private, no-cache")

    def _may_see(self, spawner: Any, server_name: str) -> bool:
        if not self.has_scope(f"access:servers!server={spawner.user.name}/{server_name}"):
            return False
        person = self.current_user
        # Who comes by a role of the hub needs the owner's consent, which nobody gives while it sleeps.
        if spawner.staff in ("view", "control"):
            return True
        return not isinstance(person, orm.Service) and (
            person.name == spawner.user.name or self._is_shared(spawner, server_name)
        )

    def _is_shared(self, spawner: Any, server_name: str) -> bool:
        """Whether the owner shares this server with who asks, or with a group of theirs."""
        server = spawner.user.orm_user.orm_spawners.get(server_name)
        if server is None:
            return False
        groups = {group.id for group in self.current_user.groups}
        return any(
            not share.expired and (share.user_id == self.current_user.id or share.group_id in groups)
            for share in self.db.query(orm.Share).filter_by(spawner_id=server.id)
        )


apihandlers.default_handlers += [
    (r"/api/users/([^/]+)/desktops/([^/]*)/thumbnail", ThumbnailHandler),
    (r"/api/users/([^/]+)/saved/([0-9a-f]{20})/([0-9a-f]{6,20})/picture", SavedPictureHandler),
]
