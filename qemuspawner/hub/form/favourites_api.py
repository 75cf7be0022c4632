"""The REST routes of favourites, for the stars on the hub's pages."""

import json
from typing import Any

from jupyterhub import apihandlers
from jupyterhub.scopes import needs_scope

from qemuspawner.errors import QemuSpawnerError
from qemuspawner.hub.desktops.api import DesktopsHandler
from qemuspawner.hub.form.favourites import add_favourite, delete_favourite, list_favourites
from qemuspawner.hub.languages import http_error


class FavouritesHandler(DesktopsHandler):
    @needs_scope("read:servers")  # type: ignore[untyped-decorator]
    async def get(self, user_name: str, kind: str) -> None:
        """The keys of what the user has marked."""
        spawner: Any = self.find_spawner(user_name)
        self.write(json.dumps(list_favourites(spawner.records, user=user_name, kind=kind)))


class FavouriteHandler(DesktopsHandler):
    @needs_scope("start:servers")  # type: ignore[untyped-decorator]
    async def put(self, user_name: str, kind: str, key: str) -> None:
        spawner: Any = self.find_spawner(user_name)
        try:
            add_favourite(spawner.records, user=user_name, kind=kind, key=key)
        except QemuSpawnerError as exc:
            raise http_error(self.request, 400, exc.text) from exc
        self.set_status(204)

    @needs_scope("start:servers")  # type: ignore[untyped-decorator]
    async def delete(self, user_name: str, kind: str, key: str) -> None:
        spawner: Any = self.find_spawner(user_name)
        delete_favourite(spawner.records, user=user_name, kind=kind, key=key)
        self.set_status(204)


_KIND = "(machine|proposal)"

apihandlers.default_handlers += [
    (rf"/api/users/([^/]+)/favourites/{_KIND}", FavouritesHandler),
    (rf"/api/users/([^/]+)/favourites/{_KIND}/(.+)", FavouriteHandler),
]
