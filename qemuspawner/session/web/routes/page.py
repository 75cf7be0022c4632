"""The desktop page and its files, and what the hub asks before it shows it."""

import gzip
import os.path
from typing import Any

from jupyterhub import __version__ as jupyterhub_version
from jupyterhub.utils import url_path_join
from tornado import web

from qemuspawner.languages import Language, list_choices, load_languages
from qemuspawner.paths import STATIC
from qemuspawner.session.life.supervisor import Supervisor
from qemuspawner.session.people.access import Tickets
from qemuspawner.session.web.bundle import FOLDER, find_bundle
from qemuspawner.session.web.routes.base import Handler

# Loaded once: the fork server's sessions share them.
_PAGES = {tag: language.template("session.html") for tag, language in load_languages().items()}
_BUNDLE = find_bundle(STATIC)


class PageHandler(Handler):
    """The desktop page."""

    least = "waiting"

    def on_unknown_person(self) -> None:
        # Raises 403 for somebody who is known to the hub and may not come in.
        self.redirect(self.get_login_url())

    async def get(self) -> None:
        if self.person.role == "owner":
            self.supervisor.language = self.language
        spec = self.supervisor.spec
        prefix = self.settings["prefix"]
        tickets: Tickets = self.settings["tickets"]
        hears = spec.machine.sound and spec.policy.sound != "nobody"
        config = {
            "prefix": prefix,
            "static": prefix + "static/",
            "icons": prefix + "static/" + (_BUNDLE.icons if _BUNDLE else "icons.svg"),
            # A language that was chosen here counts on all pages of this hub.
            "cookie_path": self.hub_auth.hub_prefix.removesuffix("hub/"),
            "hub_home": url_path_join(self.hub_auth.hub_prefix, "home"),
            "user": self.person.name,
            "session_title": spec.name or spec.server_name or spec.machine.name,
            "machine": spec.machine.name,
            "owner": spec.user,
            # Chosen before the start: the page sets no other one by itself.
            "keyboard": spec.keyboard,
            "server_name": spec.server_name,
            # Who may hear the desktop; "" where nobody can.
            "sound": spec.policy.sound if hears else "",
            "files": {
                "has_home": bool(spec.machine.agent and spec.machine.home),
                "in": spec.policy.files_in,
                "out": spec.policy.files_out,
                "max_mib": spec.policy.max_file_mib,
            },
            "web_tools": self._web_tools(),
            "remote_folders": bool(spec.remote_folders),
            "xsrf": self.xsrf_token.decode(),
            # With these the page connects at once, without asking for them.
            "status": self.status(),
            "ticket": tickets.issue(self.person),
        }
        text = render_page(self.language, config).encode()
        # Of the request it holds but one language of a few, so its compressed size tells nobody its secrets.
        self.set_header("Vary", "Accept-Encoding, Accept-Language, Cookie")
        if _takes_gzip(self):
            self.set_header("Content-Encoding", "gzip")
            text = gzip.compress(text, 6)
        self.finish(text)

    def _web_tools(self) -> dict[str, Any]:
        """Their names and the role that they ask for; {} where nobody has any."""
        names = list(self.supervisor.spec.machine.ports)
        least = self.supervisor.spec.policy.ports
        return {"names": names, "least": least} if names and least != "nobody" else {}


def render_page(language: Language, config: dict[str, Any]) -> str:
    """The desktop page, with all that its scripts are told."""
    choices = list_choices(load_languages().values())
    return _PAGES[language.tag].render(config=config, bundle=_BUNDLE, languages=choices)


class ProbeHandler(web.RequestHandler):
    """What the hub asks until it says that the server is up; tells nothing, so anybody may."""

    def get(self) -> None:
        supervisor: Supervisor = self.settings["supervisor"]
        self.set_header("X-JupyterHub-Version", jupyterhub_version)
        self.set_status(200 if supervisor.state == "running" else 503)
        self.finish({"version": jupyterhub_version})


def _takes_gzip(handler: web.RequestHandler) -> bool:
    accepted = handler.request.headers.get("Accept-Encoding", "")
    return any(coding.strip().lower() == "gzip" for coding in accepted.split(","))


class StaticHandler(web.StaticFileHandler):
    """Scripts and styles, the same for everybody. Module scripts load without login, so these do.

    What the build has compressed goes out as it lies there; what it named by its content browsers may keep.
    """

    async def get(self, path: str, include_body: bool = True) -> None:
        packed = f"{path}.gz"
        if _takes_gzip(self) and os.path.isfile(self.get_absolute_path(self.root, packed)):  # noqa: ASYNC240, PTH113
            self.set_header("Content-Encoding", "gzip")
            path = packed
        await super().get(path, include_body)

    def get_content_type(self) -> str:
        # The type of what comes out of the gzip.
        assert self.absolute_path is not None
        self.absolute_path, packed = self.absolute_path.removesuffix(".gz"), self.absolute_path
        try:
            return super().get_content_type()
        finally:
            self.absolute_path = packed

    def set_extra_headers(self, path: str) -> None:
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")
        self.set_header("Vary", "Accept-Encoding")
        lasting = path.startswith(f"{FOLDER}/")
        self.set_header("Cache-Control", "public, max-age=31536000, immutable" if lasting else "no-cache")


class NotFoundHandler(Handler):
    async def get(self) -> None:
        raise web.HTTPError(404, "There is no such page.")

    post = put = patch = delete = head = options = get
