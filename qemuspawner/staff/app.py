"""The service's routes: pages that hold no data, and what they ask of the hub with their person's login."""

import functools
import os
from typing import Any

from jupyterhub.services.auth import HubOAuthCallbackHandler, HubOAuthenticated
from jupyterhub.utils import url_path_join
from tornado import web

from qemuspawner.languages import Language, choose_language, list_choices, load_languages
from qemuspawner.paths import STATIC
from qemuspawner.staff.hub import Answer, SilentHubError, ask_hub
from qemuspawner.texts import Text

_CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        # Bootstrap's own icons are data.
        "img-src 'self' data: blob:",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
# Nothing else of the package's static files is for this page.
_FILES = r"(staff\.(?:js|css)|i18n\.js)"

_DESKTOP = r"api/desktops/([^/]+)/([^/]*)"
_HOST = r"api/hosts/([^/]+)"
# What the page asks, and what the hub is asked then.
_RELAYED: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("GET", r"api/desktops", ("desktops",)),
    ("DELETE", _DESKTOP, ("users", "{}", "servers", "{}")),
    ("POST", rf"{_DESKTOP}/message", ("users", "{}", "desktops", "{}", "message")),
    ("GET", rf"{_DESKTOP}/picture", ("users", "{}", "desktops", "{}", "thumbnail")),
    ("GET", r"api/hosts", ("desktops", "hosts")),
    ("POST", rf"{_HOST}/drain", ("desktops", "hosts", "{}", "drain")),
    ("DELETE", rf"{_HOST}/drain", ("desktops", "hosts", "{}", "drain")),
    ("GET", r"api/announcements", ("announcements",)),
    ("POST", r"api/announcements", ("announcements",)),
    ("DELETE", r"api/announcements/([0-9]+)", ("announcements", "{}")),
)


def make_app(prefix: str) -> web.Application:
    """The application; `prefix` begins and ends with a slash."""
    relayed: dict[str, dict[str, tuple[str, ...]]] = {}
    for method, pattern, path in _RELAYED:
        relayed.setdefault(pattern, {})[method] = path
    handlers: list[Any] = [
        (prefix, PageHandler),
        (f"{prefix}oauth_callback", HubOAuthCallbackHandler),
        (f"{prefix}static/{_FILES}", StaticHandler, {"path": STATIC}),
        *((prefix + pattern, RelayHandler, {"paths": paths}) for pattern, paths in relayed.items()),
        # What people type.
        (prefix.rstrip("/"), web.RedirectHandler, {"url": prefix, "permanent": False}),
    ]
    return web.Application(
        handlers,
        default_handler_class=NotFoundHandler,
        prefix=prefix,
        cookie_secret=os.urandom(32),
    )


class Handler(HubOAuthenticated, web.RequestHandler):  # type: ignore[misc]
    """A route for those whom the hub lets into this service, and nobody else."""

    async def prepare(self) -> None:
        # A token in a URL ends up in logs and histories.
        if "token" in self.request.query_arguments:
            raise self.error(403, Text("A token belongs into the Authorization header, not into the URL."))
        # Fills the cache that `current_user` reads; on its own that would block the event loop.
        await self.hub_auth.get_user(self, sync=False)
        if self.current_user is None:
            self.on_unknown_person()

    @functools.cached_property
    def language(self) -> Language:
        """What this request's person reads."""
        return choose_language(self.request)

    def error(self, status: int, text: str) -> web.HTTPError:
        """What tells them why they get nothing."""
        return web.HTTPError(status, self.language.say(text))

    def on_unknown_person(self) -> None:
        raise self.error(403, Text("You are not logged in, or these pages are not for you."))

    def set_default_headers(self) -> None:
        self.set_header("Content-Security-Policy", _CONTENT_SECURITY_POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cross-Origin-Opener-Policy", "same-origin")
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")
        self.set_header("Cache-Control", "no-store")

    def write_error(self, status_code: int, **kwargs: Any) -> None:  # noqa: ARG002
        exc = kwargs.get("exc_info", (None, None, None))[1]
        message = exc.get_message() if isinstance(exc, web.HTTPError) else ""
        self.finish({"message": message or self.language.say(Text("The request failed."))})


class PageHandler(Handler):
    """The page. Everything that it shows it asks for."""

    def on_unknown_person(self) -> None:
        # Raises 403 for somebody whom the hub knows and does not let in.
        self.redirect(self.get_login_url())

    async def get(self) -> None:
        hub = self.hub_auth.hub_prefix
        config = {
            "prefix": self.settings["prefix"],
            "hub": hub,
            # A language that was chosen here counts on all pages of this hub.
            "cookie_path": hub.removesuffix("hub/"),
            "user": self.current_user["name"],
            "xsrf": self.xsrf_token.decode(),
        }
        page = self.language.template("staff.html")
        self.set_header("Vary", "Accept-Language, Cookie")
        self.finish(
            page.render(
                config=config,
                hub_static=url_path_join(hub, "static/"),
                languages=list_choices(load_languages().values()),
                # Of those that this login was lent; `needs_scope` of the pages that are led to decides.
                scopes=self.current_user["scopes"],
            )
        )


class RelayHandler(Handler):
    """A question of the page, asked of the hub by the same person."""

    def initialize(self, paths: dict[str, tuple[str, ...]]) -> None:
        self._paths = paths

    async def _relay(self, *names: str) -> None:
        path = self._paths.get(self.request.method or "")
        if path is None:
            raise web.HTTPError(405)
        named = iter(names)
        try:
            answer: Answer = await ask_hub(
                self.request.method or "",
                [next(named) if part == "{}" else part for part in path],
                body=self.request.body or None,
                token=self.hub_auth.get_token(self) or "",
                language=self.language.tag,
            )
        except SilentHubError as exc:
            raise self.error(502, exc.message) from exc
        self.set_status(answer.status)
        if answer.status != 204:
            self.set_header("Content-Type", answer.kind)
            self.write(answer.body)

    get = post = delete = _relay


class StaticHandler(web.StaticFileHandler):
    """The page's script and style, which hold nothing of anybody."""

    def set_extra_headers(self, path: str) -> None:  # noqa: ARG002
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")
        self.set_header("Cache-Control", "no-cache")


class NotFoundHandler(Handler):
    async def get(self) -> None:
        raise self.error(404, Text("There is no such page."))

    post = put = patch = delete = head = options = get
