"""The web side of a session: the application, its server, and how both end."""

import asyncio
import contextlib
import logging
import os
import socket
from typing import Any
from urllib.parse import urlparse

from tornado import httpserver, web

from qemuspawner.internal_tls import find_ssl_context
from qemuspawner.paths import STATIC, StatePaths
from qemuspawner.session.ending import report_end
from qemuspawner.session.life.life import Ending
from qemuspawner.session.life.supervisor import Supervisor
from qemuspawner.session.people.access import Tickets
from qemuspawner.session.people.activity import report_activity
from qemuspawner.session.people.audit import Audit
from qemuspawner.session.people.hub import Hub
from qemuspawner.session.people.logins import Logins
from qemuspawner.session.people.people import People
from qemuspawner.session.people.shares import Shares
from qemuspawner.session.screen.agents import Agents
from qemuspawner.session.screen.rates import Rates
from qemuspawner.session.screen.relay import Relay, Viewer
from qemuspawner.session.screen.rfb import Forward
from qemuspawner.session.screen.sound import Sound
from qemuspawner.session.screen.thumbnails import Thumbnails
from qemuspawner.session.screen.visitors import CloseCode
from qemuspawner.session.stopping import NOTICE, StopSignal
from qemuspawner.session.web.files import Files
from qemuspawner.session.web.routes import ROUTES, NotFoundHandler, ProbeHandler, StaticHandler
from qemuspawner.spec import LISTEN_VARIABLE
from qemuspawner.texts import Text

log = logging.getLogger(__name__)

_MAX_BODY_BYTES = 64 * 1024
# Of each person: a program that looks after everything that it does is not slowed down.
_SCREENSHOTS_PER_S = 5.0
_BURST_SCREENSHOTS = 20


def make_app(
    supervisor: Supervisor, relay: Relay, sound: Sound, people: People, *, audit: Audit, prefix: str
) -> web.Application:
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
        sound=sound,
        files=Files(supervisor),
        thumbnails=Thumbnails(supervisor.screenshot),
        screenshots=Rates(per_s=_SCREENSHOTS_PER_S, burst=_BURST_SCREENSHOTS),
        tickets=Tickets(),
        people=people,
        agents=Agents(
            StatePaths.of(supervisor.spec.state_dir).session(supervisor.spec.session_id).vnc_socket
        ),
        audit=audit,
        prefix=prefix,
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


async def serve(supervisor: Supervisor, stop_signal: StopSignal) -> None:
    """Run the session and its web side until the session has ended and pages had time to read why."""
    loop = asyncio.get_running_loop()
    stop = Ending(reason=Text("The desktop was stopped."), cause="stop", linger_s=0)
    notice = Ending(
        reason=Text("The desktop's time on the cluster is over, or the cluster needs its place."),
        cause="lifetime",
    )
    stop_signal.hand_to(
        lambda number: loop.call_soon_threadsafe(supervisor.end, notice if number == NOTICE else stop)
    )

    spec = supervisor.spec
    state = StatePaths.of(spec.state_dir)
    audit = Audit(state.audit, spec)
    audit.note("started", by=spec.started_by, proposal=spec.proposal.id if spec.proposal else "")
    hub = Hub.from_environment()
    shares = Shares(hub, owner=spec.user, server_name=spec.server_name)
    people = People(spec, shares, Logins.instance(), audit=audit)

    def note_forward(viewer: Viewer, forward: Forward) -> None:
        if forward.by_person:
            supervisor.clocks.note_input()
        people.note_forward(viewer, forward)

    vnc_socket = state.session(spec.session_id).vnc_socket
    relay = Relay(
        session_id=spec.session_id,
        vnc_socket=vnc_socket,
        name=spec.server_name or spec.machine.name,
        on_forward=note_forward,
    )
    sound = Sound(session_id=spec.session_id, vnc_socket=vnc_socket)
    supervisor.count_viewers = lambda: relay.viewers

    async def dismiss_viewers(reason: str) -> None:
        sleeps = supervisor.state in ("suspending", "suspended")
        code = CloseCode.ASLEEP if sleeps else CloseCode.ENDED
        await asyncio.gather(relay.close_all(code, reason), sound.close_all(code, reason))

    supervisor.dismiss_viewers = dismiss_viewers
    address = urlparse(os.environ["JUPYTERHUB_SERVICE_URL"])
    prefix = os.environ["JUPYTERHUB_SERVICE_PREFIX"]
    app = make_app(supervisor, relay, sound, people, audit=audit, prefix=prefix)
    server = httpserver.HTTPServer(app, ssl_options=find_ssl_context(), max_body_size=_MAX_BODY_BYTES)
    try:
        if descriptor := os.environ.pop(LISTEN_VARIABLE, ""):
            # Bound by the hub, so that nobody else could take the port and be told our token.
            listener = socket.socket(fileno=int(descriptor))
            listener.setblocking(False)
            server.add_socket(listener)
        else:
            server.listen(address.port or 80, address.hostname or "127.0.0.1")
    except OSError as exc:
        supervisor.end(
            Ending(
                reason=Text(
                    "Port {port} cannot be opened: {strerror}.", port=address.port, strerror=exc.strerror
                ),
                failed=True,
            )
        )
    watching = asyncio.create_task(people.watch())
    reporting = asyncio.create_task(report_activity(supervisor.clocks, spec, hub))
    await supervisor.run()
    reporting.cancel()
    end = supervisor.end_report()
    audit.note(end.state, by=supervisor.ended_by, cause=end.cause, why=supervisor.status().message)
    await report_end(end, spec, hub)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(supervisor.linger_s):
            await supervisor.released.wait()
    watching.cancel()
    server.stop()
    if client := app.settings.get("port_client"):
        await client.close()
    stop_signal.ignore()
