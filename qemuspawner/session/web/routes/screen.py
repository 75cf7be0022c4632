"""The desktop's websocket."""

from qemuspawner.errors import SessionError
from qemuspawner.session.screen.relay import Relay, Viewer
from qemuspawner.session.screen.visitors import CloseCode
from qemuspawner.session.screen.websocket import accept_websocket
from qemuspawner.session.web.routes.base import Handler, Refusal
from qemuspawner.texts import Text


class VncHandler(Handler):
    """Plain RFB, subprotocol `binary`."""

    tells_of_absence = True

    async def get(self) -> None:
        self.check_opener()
        if self.supervisor.state not in ("booting", "running"):
            raise Refusal(503, Text("The machine is not running."))
        relay: Relay = self.settings["relay"]
        person, login, is_browser = self.person, self.login, self.is_browser
        viewer = Viewer(name=person.name, allowed=self.people.kinds(person), is_owner=person.role == "owner")
        websocket = await accept_websocket(self, say=self.language.say)
        if refusal := self.people.refuse_screen(person):
            await websocket.close(*refusal)
            return
        try:
            with self.people.seated(
                person, login, is_browser=is_browser, least="view", dismiss=viewer.dismiss, viewer=viewer
            ):
                await relay.serve(websocket, viewer)
        except SessionError as exc:
            await websocket.close(CloseCode.FULL, exc.message)
