"""The REST routes of saved settings."""

import json
from typing import Any

from jupyterhub import apihandlers
from jupyterhub.scopes import needs_scope

from qemuspawner.errors import QemuSpawnerError
from qemuspawner.hub.desktops.api import DesktopsHandler
from qemuspawner.hub.form.settings import delete_setting, list_settings, save_setting
from qemuspawner.hub.languages import http_error
from qemuspawner.texts import Text


class SettingsHandler(DesktopsHandler):
    @needs_scope("read:servers")  # type: ignore[untyped-decorator]
    async def get(self, user_name: str) -> None:
        """The user's saved options, by name."""
        spawner: Any = self.find_spawner(user_name)
        self.write(json.dumps(list_settings(spawner.records, user=user_name)))


class SettingHandler(DesktopsHandler):
    @needs_scope("start:servers")  # type: ignore[untyped-decorator]
    async def put(self, user_name: str, name: str) -> None:
        """Save the options of the body, as a start would take them."""
        spawner: Any = self.find_spawner(user_name)
        body = self.get_json_body()
        if not isinstance(body, dict):
            raise http_error(self.request, 400, Text("The body must be an object of options."))
        try:
            options = await spawner.check_setting(body)
            save_setting(spawner.records, user=user_name, name=name, options=options)
        except QemuSpawnerError as exc:
            raise http_error(self.request, 400, exc.text) from exc
        self.set_status(204)

    @needs_scope("start:servers")  # type: ignore[untyped-decorator]
    async def delete(self, user_name: str, name: str) -> None:
        spawner: Any = self.find_spawner(user_name)
        delete_setting(spawner.records, user=user_name, name=name)
        self.set_status(204)


apihandlers.default_handlers += [
    (r"/api/users/([^/]+)/settings", SettingsHandler),
    (r"/api/users/([^/]+)/settings/(.+)", SettingHandler),
]
