"""The desktop page and its files, and what the hub asks before it shows it."""

import jinja2
from jupyterhub import __version__ as jupyterhub_version
from jupyterhub.utils import url_path_join
from tornado import web

from qemuspawner.paths import TEMPLATES
from qemuspawner.session.access import Tickets
from qemuspawner.session.routes.base import Handler
from qemuspawner.session.supervisor import Supervisor

# Loaded once: the fork server's sessions share it.
_PAGE = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True).get_template(
    "session.html"
)


class PageHandler(Handler):
    """The desktop page."""

    least = "waiting"

    def on_unknown_person(self) -> None:
        # Raises 403 for somebody who is known to the hub and may not come in.
        self.redirect(self.get_login_url())

    async def get(self) -> None:
        spec = self.supervisor.spec
        prefix = self.settings["prefix"]
        tickets: Tickets = self.settings["tickets"]
        hears = spec.machine.sound and spec.policy.sound != "nobody"
        config = {
            "prefix": prefix,
            "static": prefix + "static/",
            "hub_home": url_path_join(self.hub_auth.hub_prefix, "home"),
            "user": self.person.name,
            "session_title": spec.server_name or spec.machine.name,
            "machine": spec.machine.name,
            "owner": spec.user,
            "server_name": spec.server_name,
            # Who may hear the desktop; "" where nobody can.
            "sound": spec.policy.sound if hears else "",
            "files": {
                "has_home": bool(spec.machine.agent and spec.machine.home),
                "in": spec.policy.files_in,
                "out": spec.policy.files_out,
                "max_mib": spec.policy.max_file_mib,
            },
            "xsrf": self.xsrf_token.decode(),
            # With these the page connects at once, without asking for them.
            "status": self.status(),
            "ticket": tickets.issue(self.person),
        }
        self.finish(_PAGE.render(config=config))


class ProbeHandler(web.RequestHandler):
    """What the hub asks until it says that the server is up; tells nothing, so anybody may."""

    def get(self) -> None:
        supervisor: Supervisor = self.settings["supervisor"]
        self.set_header("X-JupyterHub-Version", jupyterhub_version)
        self.set_status(200 if supervisor.state == "running" else 503)
        self.finish({"version": jupyterhub_version})


class StaticHandler(web.StaticFileHandler):
    """Scripts and styles, the same for everybody. Module scripts load without login, so these do."""

    def set_extra_headers(self, path: str) -> None:  # noqa: ARG002
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")


class NotFoundHandler(Handler):
    async def get(self) -> None:
        raise web.HTTPError(404, "There is no such page.")

    post = put = patch = delete = head = options = get
