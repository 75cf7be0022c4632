"""The websocket of the desktop's sound."""

from tornado import web

from qemuspawner.session.routes.base import Handler
from qemuspawner.session.sound import Sound
from qemuspawner.session.visitors import Visitor
from qemuspawner.session.websocket import accept_websocket


class SoundHandler(Handler):
    """Sound in binary messages, the first of which says in which form."""

    async def get(self) -> None:
        self.check_opener()
        spec = self.supervisor.spec
        if spec.policy.sound == "nobody":
            raise web.HTTPError(403, "Sound is switched off at this site.")
        if not self.person.may(spec.policy.sound):
            raise web.HTTPError(
                403, f"Sound needs the role '{spec.policy.sound}'; yours is '{self.person.role}'."
            )
        if not spec.machine.sound:
            raise web.HTTPError(404, "This machine has no sound card.")
        if self.supervisor.state not in ("booting", "running"):
            raise web.HTTPError(503, "The machine is not running.")
        sound: Sound = self.settings["sound"]
        person, login, is_browser = self.person, self.login, self.is_browser
        listener = Visitor(name=person.name, is_owner=person.role == "owner")
        with self.people.seated(
            person, login, is_browser=is_browser, least=spec.policy.sound, dismiss=listener.dismiss
        ):
            websocket = await accept_websocket(self)
            if refusal := self.people.refuse_screen(person):
                await websocket.close(*refusal)
            else:
                await sound.serve(websocket, listener)
