"""The REST route of what can start now, which the form asks while somebody looks at it."""

import json
from typing import Any

from jupyterhub import apihandlers
from jupyterhub.scopes import needs_scope

from qemuspawner.hub.desktops.api import DesktopsHandler
from qemuspawner.languages import choose_language


class ChoicesHandler(DesktopsHandler):
    @needs_scope("read:servers")  # type: ignore[untyped-decorator]
    async def get(self, user_name: str) -> None:
        """Each choice of the form with what stands against it, in a sentence; "" where it can start."""
        spawner: Any = self.find_spawner(user_name)
        await spawner.look_around()
        said = choose_language(self.request).say(spawner.find_obstacles())
        self.write(json.dumps(said))


apihandlers.default_handlers += [(r"/api/users/([^/]+)/choices", ChoicesHandler)]
