"""Folders of servers: connected with an account and a password that this session alone is told."""

from tornado import web

from qemuspawner.session.inside.remote_mounts import Login
from qemuspawner.session.web.fields import Fields
from qemuspawner.session.web.routes.base import Handler

_LONGEST = 1000


class RemoteFoldersHandler(Handler):
    """Mount one, or take one out."""

    least = "owner"

    async def post(self) -> None:
        fields = Fields(self.body(), known=("name", "account", "password"))
        name = fields.text("name", most=_LONGEST)
        login = None
        if fields.has("account") or fields.has("password"):
            account = fields.text("account", most=_LONGEST)
            # Fields shows what it refuses, and a password must not come back in a sentence.
            password = self.body().get("password")
            try:
                login = Login(account=account, password=password if isinstance(password, str) else "")
            except ValueError as exc:
                raise web.HTTPError(400, f"{exc}.") from None
        await self.supervisor.connect_folder(name, login, by=self.person.name)
        self.audit("folder-connected", folder=name)
        self.write_status()

    async def delete(self) -> None:
        name = Fields(self.body(), known=("name",)).text("name", most=_LONGEST)
        await self.supervisor.disconnect_folder(name, by=self.person.name)
        self.audit("folder-disconnected", folder=name)
        self.write_status()
