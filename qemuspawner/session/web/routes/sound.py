"""The websocket of the desktop's sound."""

from qemuspawner.session.screen.sound import Sound
from qemuspawner.session.screen.visitors import Visitor
from qemuspawner.session.screen.websocket import accept_websocket
from qemuspawner.session.web.routes.base import Handler, Refusal
from qemuspawner.texts import Text


class SoundHandler(Handler):
    """Sound in binary messages, the first of which says in which form."""

    tells_of_absence = True

    async def get(self) -> None:
        self.check_opener()
        spec = self.supervisor.spec
        if spec.policy.sound == "nobody":
            raise Refusal(403, Text("Sound is switched off at this site."))
        if not self.person.may(spec.policy.sound):
            raise Refusal(
                403,
                Text(
                    "Sound needs the role '{least}'; yours is '{role}'.",
                    least=spec.policy.sound,
                    role=self.person.role,
                ),
            )
        if not spec.machine.sound:
            raise Refusal(404, Text("This machine has no sound card."))
        if self.supervisor.state not in ("booting", "running"):
            raise Refusal(503, Text("The machine is not running."))
        sound: Sound = self.settings["sound"]
        person, login, is_browser = self.person, self.login, self.is_browser
        listener = Visitor(name=person.name, is_owner=person.role == "owner")
        with self.people.seated(
            person, login, is_browser=is_browser, least=spec.policy.sound, dismiss=listener.dismiss
        ):
            websocket = await accept_websocket(self, say=self.language.say)
            if refusal := self.people.refuse_screen(person):
                await websocket.close(*refusal)
            else:
                self.audit("listened", staff=person.is_staff)
                await sound.serve(websocket, listener)
