"""Where a job's session tells its port: that, and nothing else.

batchspawner's own route sets any attribute of a spawner from what a user's token sends, commands among them.
Importing batchspawner adds it, so it is taken out here.
"""

import batchspawner  # noqa: F401 - for the route that it adds
from jupyterhub import apihandlers
from jupyterhub.apihandlers.base import APIHandler
from jupyterhub.scopes import needs_scope
from tornado import web

_LEAST_PORT, _MOST_PORT = 1024, 65535

apihandlers.default_handlers[:] = [
    route for route in apihandlers.default_handlers if route[0] != r"/api/batchspawner"
]


class PortHandler(APIHandler):  # type: ignore[misc]
    @needs_scope("access:servers")  # type: ignore[untyped-decorator]
    async def post(self, user_name: str, server_name: str) -> None:
        """A session that starts as a job tells its port; on which host it is, Slurm says, not the job."""
        user = self.find_user(user_name)
        spawner = None if user is None else user.spawners.get(server_name)
        if (
            spawner is None
            or not hasattr(spawner, "note_port")
            or not spawner.is_session_token(self.get_token())
        ):
            raise web.HTTPError(403, "Only a desktop's own session tells its port.")
        body = self.get_json_body()
        port = body.get("port") if isinstance(body, dict) and len(body) == 1 else None
        if not isinstance(port, int) or isinstance(port, bool) or not _LEAST_PORT <= port <= _MOST_PORT:
            raise web.HTTPError(
                400, f'The request\'s body is {{"port": NUMBER}}, from {_LEAST_PORT} to {_MOST_PORT}.'
            )
        if not spawner.note_port(port):
            raise web.HTTPError(409, "This desktop does not wait for a port.")
        self.set_status(204)


apihandlers.default_handlers.append((r"/api/users/([^/]+)/desktops/([^/]*)/port", PortHandler))
