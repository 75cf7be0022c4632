"""Routes of the hub's REST API for what is free: a user's quotas, and the hosts that desktops start on."""

import json
from typing import Any

from jupyterhub import apihandlers
from jupyterhub.apihandlers.base import APIHandler
from jupyterhub.scopes import needs_scope
from tornado import web

from qemuspawner.errors import QemuSpawnerError
from qemuspawner.hub.admission.claims import ClaimsCapacity
from qemuspawner.hub.languages import http_error


class QuotasHandler(APIHandler):  # type: ignore[misc]
    @needs_scope("read:servers")  # type: ignore[untyped-decorator]
    async def get(self, user_name: str) -> None:
        """The quotas that count for a user, with what is used of them now."""
        user = self.find_user(user_name)
        if user is None or not isinstance(user.spawner, ClaimsCapacity):
            raise web.HTTPError(404)
        try:
            rows = await user.spawner.count_quotas()
        except QemuSpawnerError as exc:
            raise http_error(self.request, 500, exc.text) from exc
        self.finish(json.dumps({"quotas": [row.describe() for row in rows]}))


class CapacityHandler(APIHandler):  # type: ignore[misc]
    # Whosever servers they may read: what is free is the same for everybody.
    @needs_scope("read:servers", post_filter=True)  # type: ignore[untyped-decorator]
    async def get(self) -> None:
        """All hosts with what is free of their CPUs, memory and GPUs; of nobody it says who has the rest."""
        spawner = self._find_spawner()
        hosts = await spawner.capacity() if spawner is not None else []
        self.finish(json.dumps({"hosts": [host.describe() for host in hosts]}))

    def _find_spawner(self) -> Any:
        """Anybody's tells the same; a service has none of its own."""
        users = [self.current_user, *self.users.values()]
        spawners = (user.spawner for user in users if hasattr(user, "spawner"))
        return next((one for one in spawners if isinstance(one, ClaimsCapacity)), None)


apihandlers.default_handlers += [
    (r"/api/users/([^/]+)/quotas", QuotasHandler),
    (r"/api/desktops/capacity", CapacityHandler),
]
