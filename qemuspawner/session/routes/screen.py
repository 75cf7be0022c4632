"""The desktop's websocket."""

from tornado import web

from qemuspawner.session.relay import Relay, Viewer
from qemuspawner.session.routes.base import Handler
from qemuspawner.session.websocket import accept_websocket


class VncHandler(Handler):
    """Plain RFB, subprotocol `binary`."""

    async def get(self) -> None:
        self.check_opener()
        if self.supervisor.state not in ("booting", "running"):
            raise web.HTTPError(503, "The machine is not running.")
        relay: Relay = self.settings["relay"]
        websocket = await accept_websocket(self)
        await relay.serve(websocket, Viewer(name=self.person.name, role=self.person.role))
