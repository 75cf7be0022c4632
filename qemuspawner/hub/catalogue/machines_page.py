"""The hub's page of the machines, for administrators; it acts by `machines_api` and `images_api`."""

from typing import get_args

from jupyterhub import handlers
from jupyterhub.handlers.base import BaseHandler
from tornado import web

from qemuspawner.hub.catalogue.machines_api import for_administrators
from qemuspawner.hub.languages import speak_languages
from qemuspawner.machine import ImageFormat


class MachinesPageHandler(BaseHandler):  # type: ignore[misc]
    @web.authenticated
    @for_administrators
    async def get(self) -> None:
        # Nobody may have a spawner yet, which does this, too.
        speak_languages(self.settings)
        self.finish(await self.render_template("machines.html", formats=get_args(ImageFormat)))


ROUTES = [(r"/machines", MachinesPageHandler)]
handlers.default_handlers += ROUTES
