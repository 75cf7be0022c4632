"""What every route of a session has: JupyterHub's login, a role that it asks for, errors as JSON."""

import functools
import json
import logging
import math
from asyncio import Future
from typing import Any, ClassVar
from urllib.parse import urlparse

import msgspec
from jupyterhub import __version__ as jupyterhub_version
from jupyterhub.services.auth import HubOAuthenticated
from tornado import web

from qemuspawner.errors import QemuSpawnerError, SessionError, VmError
from qemuspawner.given_texts import is_writable
from qemuspawner.languages import Language, choose_language
from qemuspawner.policy import Role
from qemuspawner.session.life.supervisor import Supervisor
from qemuspawner.session.people.access import Person, Tickets
from qemuspawner.session.people.audit import Audit
from qemuspawner.session.people.logins import Login, Logins
from qemuspawner.session.people.people import People
from qemuspawner.session.screen.websocket import offered_ticket
from qemuspawner.texts import Text, pack

log = logging.getLogger(__name__)

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


class Refusal(web.HTTPError):
    """What a person may not do, in a sentence for them; other HTTPErrors are for who writes programs."""

    def __init__(self, status_code: int, text: Text) -> None:
        super().__init__(status_code, str(text))
        self.text = text


class TooFast(web.HTTPError):
    """429 for a program, with the whole seconds to wait also in `Retry-After`."""

    def __init__(self, message: str, *, wait_s: float) -> None:
        self.wait_s = math.ceil(wait_s)
        super().__init__(429, f"{message} Try again in {self.wait_s} s.")


class Handler(HubOAuthenticated, web.RequestHandler):  # type: ignore[misc]
    """A route of the session. `least` is the role it asks for."""

    hub_auth_class = Logins
    least: ClassVar[Role] = "view"
    # Whether it tells itself that the owner is away: a websocket says it with a close code of its own.
    tells_of_absence: ClassVar[bool] = False
    person: Person

    @functools.cached_property
    def language(self) -> Language:
        """What this request's person reads."""
        return choose_language(self.request)

    @property
    def people(self) -> People:
        people: People = self.settings["people"]
        return people

    @property
    def supervisor(self) -> Supervisor:
        supervisor: Supervisor = self.settings["supervisor"]
        return supervisor

    def audit(self, event: str, **facts: object) -> None:
        """Note in the audit log what this request's person did."""
        audit: Audit = self.settings["audit"]
        audit.note(event, by=self.person.name, role=self.person.role, **facts)

    async def prepare(self) -> None:
        # A token in a URL ends up in logs and histories.
        if "token" in self.request.query_arguments:
            raise web.HTTPError(403, "A token belongs into the Authorization header, not into the URL.")
        # Fills the cache that `current_user` reads; on its own that would block the event loop.
        await self.hub_auth.get_user(self, sync=False)
        model = self.current_user
        if model is None:
            self.on_unknown_person()
            return
        person = await self._find_person(model)
        if person is None:
            # It may have been shared with them since the hub was asked.
            model = await self.hub_auth.find(self.login, fresh_s=0)
            person = model and await self._find_person(model)
        if person is None:
            raise Refusal(403, Text("This desktop is not shared with you."))
        self.person = person
        if not self.person.may(self.least):
            raise Refusal(
                403,
                Text(
                    "This needs the role '{needed}'; yours is '{role}'.",
                    needed=self.least,
                    role=self.person.role,
                ),
            )
        if self.least != "waiting" and not self.tells_of_absence:
            self.check_owner_is_here()

    def check_owner_is_here(self) -> None:
        """Raise Refusal 403 where this person may not be at the desktop while its owner is away."""
        if refusal := self.people.refuse_screen(self.person):
            raise Refusal(403, refusal[1])

    async def _find_person(self, model: dict[str, Any]) -> Person | None:
        has_access = self.hub_auth.lets_in(model)
        return await self.people.find(model, has_access=has_access, is_browser=self.is_browser)

    def on_unknown_person(self) -> None:
        raise Refusal(403, Text("You are not logged in, or this desktop is not shared with you."))

    def check_hub_user(self, model: dict[str, Any]) -> dict[str, Any]:
        """Whoever the hub knows: what they may here is our `people`'s to say, who know of group shares."""
        return model

    @property
    def is_browser(self) -> bool:
        """Whether the request came by our own login's cookie, not with a token."""
        return not getattr(self, "_token_authenticated", False)

    @property
    def login(self) -> Login:
        login: Login = self.hub_auth.login_of(self)
        return login

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

    def finish(self, chunk: str | bytes | dict[str, Any] | None = None) -> "Future[None]":
        """What is answered in JSON, in the language of who asked; with `?texts` to be said later."""
        said = pack(chunk) if "texts" in self.request.query_arguments else self.language.say(chunk)
        return super().finish(said)

    def write_error(self, status_code: int, **kwargs: Any) -> None:  # noqa: ARG002
        message, hint = self._reason or Text("The request failed."), ""
        match kwargs.get("exc_info", (None, None, None))[1]:
            case QemuSpawnerError() as exc:
                message, hint = exc.message, exc.hint
            case Refusal() as exc:
                message = exc.text
            case web.HTTPError() as exc:
                message = exc.get_message() or message
                if isinstance(exc, TooFast):
                    self.set_header("Retry-After", str(exc.wait_s))
        self.finish({"message": message, "hint": hint})

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """As Tornado does, but without the query: secrets have been sent there."""
        what = f"{self.request.method} {self.request.path}"
        match value:
            case QemuSpawnerError():
                pass
            case web.HTTPError():
                if value.log_message:
                    log.warning("%s: %s", what, value)
            case _:
                log.error("%s: uncaught exception", what, exc_info=(typ, value, tb))

    def check_opener(self) -> None:
        """Raise HTTPError 403 unless this request may open a websocket.

        With a cookie it needs a ticket, offered as a second subprotocol, and our own Origin; with an
        Authorization header neither, since no other site can forge that.
        """
        if not self.is_browser:
            return
        origin = self.request.headers.get("Origin", "")
        allowed = {self.request.host.lower(), *self.settings["public_hosts"]}
        if urlparse(origin).netloc.lower() not in allowed:
            raise Refusal(403, Text("The desktop opens only from its own page."))
        tickets: Tickets = self.settings["tickets"]
        ticket = offered_ticket(self.request)
        if ticket is None or not tickets.redeem(ticket, self.person):
            raise web.HTTPError(403, "The websocket's ticket is missing, used or too old.")

    def body(self) -> dict[str, Any]:
        """The request's JSON object; {} where it has no body."""
        try:
            value = json.loads(self.request.body or b"{}")
        # Brackets within brackets, a thousand deep, are not JSON for Python either.
        except (ValueError, RecursionError) as exc:
            raise web.HTTPError(400, "The request's body is not JSON.") from exc
        if not isinstance(value, dict):
            raise web.HTTPError(400, "The request's body is not a JSON object.")
        if not is_writable(value):
            raise web.HTTPError(400, "The request's body has characters that are none.")
        return value

    def write_status(self) -> None:
        self.finish(self.status())

    def status(self) -> dict[str, Any]:
        return describe_status(self.supervisor, self.person)


def describe_status(supervisor: Supervisor, person: Person) -> dict[str, Any]:
    """The status as somebody may read it: who waits to be let in learns only that there is a desktop."""
    you = {"name": person.name, "role": person.role, "staff": person.is_staff}
    if not person.may("view"):
        return {"state": supervisor.state, "you": you}
    status: dict[str, Any] = msgspec.to_builtins(supervisor.status(), builtin_types=(Text,))
    return status | {"you": you}
