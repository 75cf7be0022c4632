"""A route of the hub's REST API: JupyterHub's events of a start, in the language of who waits."""

from typing import Any

from jupyterhub import apihandlers
from jupyterhub.apihandlers.users import SpawnProgressAPIHandler
from jupyterhub.spawner import SpawnException

from qemuspawner.languages import choose_language
from qemuspawner.texts import Text

# JupyterHub's own word at the beginning.
_REQUESTED = "Server requested"


class ProgressHandler(SpawnProgressAPIHandler):  # type: ignore[misc]
    """A user's desktop that starts."""

    async def send_event(self, event: dict[str, Any]) -> None:
        if event.get("failed"):
            event = event | {"message": self._find_failure() or event["message"]}
        elif event.get("message") == _REQUESTED:
            event = event | {"message": Text("The desktop is asked for")}
        await super().send_event(choose_language(self.request).say(event))

    def _find_failure(self) -> str:
        """Why the start that this is about has failed; "" where only JupyterHub can say that."""
        user_name, server_name = self.path_args
        future = self.find_user(user_name).spawners[server_name]._spawn_future
        if future is None or not future.done():
            return ""
        if future.cancelled():
            return Text("The start was cancelled.")
        exc = future.exception()
        return exc.message if isinstance(exc, SpawnException) else ""


apihandlers.default_handlers += [
    (r"/api/users/([^/]+)/desktops/([^/]*)/progress", ProgressHandler),
]
