"""The route of the hub's REST API for proposals."""

import json

from jupyterhub import apihandlers
from jupyterhub.apihandlers.base import APIHandler
from jupyterhub.scopes import needs_scope
from tornado import web

from qemuspawner.languages import choose_language


class ProposalsHandler(APIHandler):  # type: ignore[misc]
    @needs_scope("read:servers")  # type: ignore[untyped-decorator]
    async def get(self, user_name: str) -> None:
        """The user's proposals, as the form shows them."""
        user = self.find_user(user_name)
        if user is None or not hasattr(user.spawner, "describe_proposals"):
            raise web.HTTPError(404)
        said = choose_language(self.request).say(await user.spawner.describe_proposals())
        self.write(json.dumps(said))


apihandlers.default_handlers += [(r"/api/users/([^/]+)/proposals", ProposalsHandler)]
