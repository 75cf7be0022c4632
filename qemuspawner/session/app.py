"""The web side of a session: its routes, and JupyterHub's login on every one."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import ssl
import time
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlparse

import jinja2
import msgspec
from jupyterhub import __version__ as jupyterhub_version
from jupyterhub.services.auth import HubOAuthCallbackHandler, HubOAuthenticated
from jupyterhub.utils import make_ssl_context, url_path_join
from tornado import httpserver, web

from qemuspawner.errors import QemuSpawnerError, SessionError, VmError
from qemuspawner.paths import STATIC, TEMPLATES, StatePaths
from qemuspawner.session.access import Person, Role, Tickets, find_person
from qemuspawner.session.keep import Keeper
from qemuspawner.session.relay import CloseCode, Relay, Viewer
from qemuspawner.session.supervisor import Ending, Supervisor
from qemuspawner.session.websocket import accept_websocket, offered_ticket
from qemuspawner.spec import LISTEN_VARIABLE

log = logging.getLogger(__name__)

_MAX_BODY_BYTES = 64 * 1024
_MAX_TITLE = 100
# Shorter than the proxies in between wait.
_LONGEST_POLL_S = 10

_CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "font-src 'self'",
        "media-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)

# Loaded once: the fork server's sessions share it.
_PAGE = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True).get_template(
    "session.html"
)


class _Handler(HubOAuthenticated, web.RequestHandler):  # type: ignore[misc]
    """A route of the session. `least` is the role it asks for."""

    least: ClassVar[Role] = "view"
    person: Person

    @property
    def supervisor(self) -> Supervisor:
        supervisor: Supervisor = self.settings["supervisor"]
        return supervisor

    async def prepare(self) -> None:
        # A token in a URL ends up in logs and histories.
        if "token" in self.request.query_arguments:
            raise web.HTTPError(403, "A token belongs into the Authorization header, not into the URL.")
        # Fills the cache that `current_user` reads; on its own that would block the event loop.
        await self.hub_auth.get_user(self, sync=False)
        if self.current_user is None:
            self.on_unknown_person()
            return
        self.person = find_person(self.current_user, self.supervisor.spec)
        if not self.person.may(self.least):
            raise web.HTTPError(403, f"This needs the role '{self.least}'; yours is '{self.person.role}'.")

    def on_unknown_person(self) -> None:
        raise web.HTTPError(403, "You are not logged in, or this desktop is not shared with you.")

    def set_default_headers(self) -> None:
        self.set_header("X-JupyterHub-Version", jupyterhub_version)
        self.set_header("Content-Security-Policy", _CONTENT_SECURITY_POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cross-Origin-Opener-Policy", "same-origin")
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")
        self.set_header("Cache-Control", "no-store")

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        match kwargs.get("exc_info", (None, None, None))[1]:
            case SessionError():
                status_code = 409
            case VmError():
                status_code = 503
        super().send_error(status_code, **kwargs)

    def write_error(self, status_code: int, **kwargs: Any) -> None:  # noqa: ARG002
        message, hint = self._reason or "The request failed.", ""
        match kwargs.get("exc_info", (None, None, None))[1]:
            case QemuSpawnerError() as exc:
                message, hint = exc.message, exc.hint
            case web.HTTPError(log_message=str(text)):
                message = text
        self.finish({"message": message, "hint": hint})

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if not isinstance(value, QemuSpawnerError):
            super().log_exception(typ, value, tb)

    def body(self) -> dict[str, Any]:
        """The request's JSON object; {} where it has no body."""
        try:
            value = json.loads(self.request.body or b"{}")
        except ValueError as exc:
            raise web.HTTPError(400, "The request's body is not JSON.") from exc
        if not isinstance(value, dict):
            raise web.HTTPError(400, "The request's body is not a JSON object.")
        return value

    def write_status(self) -> None:
        self.finish(self.status())

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = msgspec.to_builtins(self.supervisor.status())
        status["you"] = {"name": self.person.name, "role": self.person.role}
        return status


class PageHandler(_Handler):
    """The desktop page."""

    def on_unknown_person(self) -> None:
        # Raises 403 for somebody who is known to the hub and may not come in.
        self.redirect(self.get_login_url())

    async def get(self) -> None:
        spec = self.supervisor.spec
        prefix = self.settings["prefix"]
        tickets: Tickets = self.settings["tickets"]
        config = {
            "prefix": prefix,
            "static": prefix + "static/",
            "hub_home": url_path_join(self.hub_auth.hub_prefix, "home"),
            "user": self.person.name,
            "session_title": spec.server_name or spec.machine.name,
            "machine": spec.machine.name,
            "owner": spec.user,
            "server_name": spec.server_name,
            "xsrf": self.xsrf_token.decode(),
            # With these the page connects at once, without asking for them.
            "status": self.status(),
            "ticket": tickets.issue(self.person),
        }
        self.finish(self.settings["page"].render(config=config))


class ProbeHandler(web.RequestHandler):
    """What the hub asks until it says that the server is up; tells nothing, so anybody may."""

    def get(self) -> None:
        supervisor: Supervisor = self.settings["supervisor"]
        self.set_header("X-JupyterHub-Version", jupyterhub_version)
        self.set_status(200 if supervisor.state == "running" else 503)
        self.finish({"version": jupyterhub_version})


class StatusHandler(_Handler):
    """The status; with `?after=VERSION` as soon as it is another one, or after a while."""

    async def get(self) -> None:
        after = self.get_query_argument("after", None)
        if after is not None and after == str(self.supervisor.status().version):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LONGEST_POLL_S):
                    await self.supervisor.changed.wait()
        self.write_status()


class ScreenshotHandler(_Handler):
    async def get(self) -> None:
        picture = await self.supervisor.screenshot()
        self.set_header("Content-Type", "image/png")
        self.finish(picture)


class TicketHandler(_Handler):
    async def post(self) -> None:
        tickets: Tickets = self.settings["tickets"]
        self.finish({"ticket": tickets.issue(self.person)})


class ExtendHandler(_Handler):
    least = "control"

    async def post(self) -> None:
        seconds = self.body().get("seconds")
        if seconds is not None and (type(seconds) is not int or not 60 <= seconds <= 366 * 86400):
            raise web.HTTPError(400, "'seconds' must be a whole number of at least 60.")
        self.supervisor.extend(seconds, by=self.person.name)
        self.write_status()


class SuspendHandler(_Handler):
    """Put the desktop to sleep; the answer comes when it is saved."""

    least = "owner"

    async def post(self) -> None:
        await self.supervisor.suspend(by=self.person.name)
        self.write_status()


class CheckpointsHandler(_Handler):
    """The desktop's checkpoints: a list, and one more."""

    least = "owner"

    async def get(self) -> None:
        self.write_checkpoints()

    async def post(self) -> None:
        title = self.body().get("title", "")
        if not isinstance(title, str) or len(title) > _MAX_TITLE:
            raise web.HTTPError(400, f"'title' must be a text of at most {_MAX_TITLE} characters.")
        await self.supervisor.save_checkpoint(title=title.strip(), by=self.person.name)
        self.write_checkpoints()

    def write_checkpoints(self) -> None:
        keeper = self.supervisor.keeper
        now = time.time()
        shown = [
            {
                "name": saved.name,
                "title": saved.title,
                "automatic": saved.automatic,
                "age_s": max(0, round(now - saved.saved_at)),
                "expires_in_s": max(0, round(saved.expires - now)) if saved.expires else 0,
                "size_bytes": saved.size_bytes,
            }
            for saved in (keeper.checkpoints() if keeper else [])
        ]
        self.finish({"checkpoints": shown, "most": self.supervisor.spec.max_checkpoints})


class CheckpointHandler(CheckpointsHandler):
    """One checkpoint: go back to it, or delete it."""

    async def get(self, name: str) -> None:  # type: ignore[override]
        """Its picture."""
        try:
            picture = await asyncio.to_thread(self._keeper.picture(name).read_bytes)
        except OSError as exc:
            raise web.HTTPError(404, "This checkpoint has no picture.") from exc
        self.set_header("Content-Type", "image/png")
        self.finish(picture)

    async def post(self, name: str) -> None:  # type: ignore[override]
        """Go back to it."""
        await self.supervisor.go_back(name, by=self.person.name)
        self.write_status()

    async def delete(self, name: str) -> None:
        await asyncio.to_thread(self._keeper.delete, name)
        self.write_checkpoints()

    @property
    def _keeper(self) -> Keeper:
        if self.supervisor.keeper is None:
            raise SessionError("The machine is not running.")
        return self.supervisor.keeper


class PowerHandler(_Handler):
    least = "owner"

    async def post(self) -> None:
        action = self.body().get("action")
        if action not in ("shutdown", "reset", "poweroff"):
            raise web.HTTPError(400, "'action' must be 'shutdown', 'reset' or 'poweroff'.")
        await self.supervisor.power(action, by=self.person.name)
        self.write_status()


class VncHandler(_Handler):
    """The websocket: plain RFB, subprotocol `binary`.

    With a cookie it needs a ticket, offered as a second subprotocol, and our own Origin; with an
    Authorization header neither, since no other site can forge that.
    """

    async def get(self) -> None:
        if not getattr(self, "_token_authenticated", False):
            self._check_origin()
            self._redeem_ticket()
        if self.supervisor.state not in ("booting", "running"):
            raise web.HTTPError(503, "The machine is not running.")
        relay: Relay = self.settings["relay"]
        websocket = await accept_websocket(self)
        await relay.serve(websocket, Viewer(name=self.person.name, role=self.person.role))

    def _check_origin(self) -> None:
        origin = self.request.headers.get("Origin", "")
        allowed = {self.request.host.lower(), *self.settings["public_hosts"]}
        if urlparse(origin).netloc.lower() not in allowed:
            raise web.HTTPError(403, "The desktop opens only from its own page.")

    def _redeem_ticket(self) -> None:
        tickets: Tickets = self.settings["tickets"]
        ticket = offered_ticket(self.request)
        if ticket is None or not tickets.redeem(ticket, self.person):
            raise web.HTTPError(403, "The websocket's ticket is missing, used or too old.")


class StaticHandler(web.StaticFileHandler):
    """Scripts and styles, the same for everybody. Module scripts load without login, so these do."""

    def set_extra_headers(self, path: str) -> None:  # noqa: ARG002
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")


class NotFoundHandler(_Handler):
    async def get(self) -> None:
        raise web.HTTPError(404, "There is no such page.")

    post = put = patch = delete = head = options = get


class Route(NamedTuple):
    """A path below the session's prefix, and who serves it."""

    path: str
    handler: type[web.RequestHandler]


# Every route there is. tests/system/test_access.py holds a row for each, and fails without.
ROUTES = (
    Route("", PageHandler),
    Route("vnc", VncHandler),
    Route("api", ProbeHandler),
    Route("api/status", StatusHandler),
    Route("api/screenshot", ScreenshotHandler),
    Route("api/ticket", TicketHandler),
    Route("api/extend", ExtendHandler),
    Route("api/power", PowerHandler),
    Route("api/suspend", SuspendHandler),
    Route("api/checkpoints", CheckpointsHandler),
    Route("api/checkpoints/([0-9a-f]+)", CheckpointHandler),
    Route("oauth_callback", HubOAuthCallbackHandler),
    Route("static/(.*)", StaticHandler),
)


def make_app(supervisor: Supervisor, relay: Relay, *, prefix: str) -> web.Application:
    """The application; `prefix` begins and ends with a slash."""
    public_url = os.environ.get("JUPYTERHUB_PUBLIC_URL", "")
    handlers: list[Any] = [
        (prefix + path, handler, {"path": STATIC} if handler is StaticHandler else {})
        for path, handler in ROUTES
    ]
    # The prefix without its slash is what people type.
    handlers.append((prefix.rstrip("/"), web.RedirectHandler, {"url": prefix, "permanent": False}))
    return web.Application(
        handlers,
        default_handler_class=NotFoundHandler,
        supervisor=supervisor,
        relay=relay,
        tickets=Tickets(),
        prefix=prefix,
        page=_PAGE,
        public_hosts={urlparse(public_url).netloc.lower()} if public_url else set(),
        cookie_secret=os.urandom(32),
        log_function=_log_request,
    )


def _log_request(handler: web.RequestHandler) -> None:
    """Without the query: secrets have been sent there."""
    failed = handler.get_status() >= 500 and not isinstance(handler, ProbeHandler)
    level = logging.WARNING if failed else logging.DEBUG
    request = handler.request
    log.log(level, "%s %s %s", handler.get_status(), request.method, request.path)


async def serve(supervisor: Supervisor) -> None:
    """Run the session and its web side until the session has ended and pages had time to read why."""
    loop = asyncio.get_running_loop()
    stopped = Ending(reason="The desktop was stopped.", cause="stop", linger_s=0)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, supervisor.end, stopped)

    spec = supervisor.spec
    relay = Relay(
        session_id=spec.session_id,
        vnc_socket=StatePaths.of(spec.state_dir).session(spec.session_id).vnc_socket,
        name=spec.server_name or spec.machine.name,
        on_input=supervisor.clocks.note_input,
    )
    supervisor.count_viewers = lambda: relay.viewers
    supervisor.dismiss_viewers = lambda reason: relay.close_all(
        CloseCode.ASLEEP if supervisor.state in ("suspending", "suspended") else CloseCode.ENDED, reason
    )
    address = urlparse(os.environ["JUPYTERHUB_SERVICE_URL"])
    app = make_app(supervisor, relay, prefix=os.environ["JUPYTERHUB_SERVICE_PREFIX"])
    server = httpserver.HTTPServer(app, ssl_options=_ssl_context(), max_body_size=_MAX_BODY_BYTES)
    try:
        if descriptor := os.environ.pop(LISTEN_VARIABLE, ""):
            # Bound by the hub, so that nobody else could take the port and be told our token.
            listener = socket.socket(fileno=int(descriptor))
            listener.setblocking(False)
            server.add_socket(listener)
        else:
            server.listen(address.port or 80, address.hostname or "127.0.0.1")
    except OSError as exc:
        supervisor.end(Ending(reason=f"Port {address.port} cannot be opened: {exc.strerror}.", failed=True))
    await supervisor.run()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(supervisor.linger_s):
            await supervisor.released.wait()
    server.stop()


def _ssl_context() -> ssl.SSLContext | None:
    """The hub's internal TLS, where it is switched on: both sides show a certificate."""
    key, certificate, authority = (
        os.environ.get(f"JUPYTERHUB_SSL_{name}") for name in ("KEYFILE", "CERTFILE", "CLIENT_CA")
    )
    if not key:
        return None
    context: ssl.SSLContext = make_ssl_context(
        key, certificate, cafile=authority, purpose=ssl.Purpose.CLIENT_AUTH
    )
    return context
