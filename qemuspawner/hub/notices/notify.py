"""Tell the site what happens to desktops, by a hook that is called beside the hub's work, not in its way."""

import asyncio
import inspect
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

from jupyterhub.utils import url_escape_path, url_path_join
from traitlets import Callable as CallableTrait
from traitlets import Integer, TraitError, Unicode, Union, validate
from traitlets.config import LoggingConfigurable
from traitlets.utils.importstring import import_item

from qemuspawner.hub.notices.no_mail import wants_mail
from qemuspawner.hub.notices.readings import find_reading, note_reading
from qemuspawner.hub.records import Records
from qemuspawner.hub.runs.advice import Advice
from qemuspawner.hub.runs.runs import KeepsRuns, Outcome, Run
from qemuspawner.spec import SessionEnd
from qemuspawner.texts import Text

# A hook has so long; one that is not async goes on in its thread, of which there are few.
_TIMEOUT_S = 30
_THREADS = 4
# More are not kept waiting: a site whose mail server is down wants a log, no queue.
_MAX_WAITING = 500
# The hub has one, wherever it is asked for.
_SETTING = "qemuspawner_notifier"

Kind = Literal["started", "ends-soon", "ended", "asleep", "failed", "more-time-asked"]

_NO_REASON = Text("Why it has ended, the hub was not told.")

_OUTCOMES: dict[str, Outcome] = {"ended": "ended", "suspended": "asleep", "failed": "failed"}


@dataclass(frozen=True, kw_only=True)
class Event:
    """What happened to a desktop. All texts may be anything: users, guests and machines name them."""

    kind: Kind
    user: str  # whose desktop it is
    server: str  # "" is the default one
    machine: str  # its name for people
    at: float  # Unix seconds
    url: str  # of the desktop; without scheme and host where JupyterHub.public_url is not set
    reason: str = ""  # why it ended or failed, or why more time is asked for
    started: float = 0  # Unix seconds; 0: not known
    left_s: int = 0  # "ends-soon": until its end
    sleeps: bool = False  # "ends-soon": it will be asleep then, and not be deleted
    asked: bool = False  # somebody asked for this end: they know
    by: str = ""  # "more-time-asked": who asks
    asked_s: int = 0  # "more-time-asked": for so long
    advice: Advice | None = None  # "ended": for the next start; None where too little is known
    advice_url: str = ""  # a link to the form that is filled in so; "" where there is nothing to choose
    email: str = ""  # the user's, where the hub's authenticator knows it
    wants_mail: bool = True  # the user has not said no to mails
    language: str = ""  # the tag of what the user read last on the hub's pages; "": not known


Hook = Callable[[Event], Any]


class Notifier:
    """Calls the hook of one hub."""

    def __init__(self, hook: Hook, records: Records, *, log: Any) -> None:
        self._hook = hook
        self._records = records
        self._log = log
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="qemuspawner-notify")
        self._tasks: set[asyncio.Task[None]] = set()
        self._newest: dict[tuple[str, str], asyncio.Task[None]] = {}  # of each desktop

    def tell(self, user: Any, event: Event) -> None:
        """Soon, and of one desktop in this order; `user` is JupyterHub's."""
        if len(self._tasks) >= _MAX_WAITING:
            self._log.warning("Nobody is told of %s: %d others wait.", _show(event), _MAX_WAITING)
            return
        desktop = (event.user, event.server)
        task = asyncio.create_task(self._tell(user, event, after=self._newest.get(desktop)))
        self._tasks.add(task)
        self._newest[desktop] = task

        def forget(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if self._newest.get(desktop) is task:
                del self._newest[desktop]

        task.add_done_callback(forget)

    async def _tell(self, user: Any, event: Event, *, after: asyncio.Task[None] | None) -> None:
        if after is not None:
            await asyncio.wait([after])
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                wants = await asyncio.to_thread(wants_mail, self._records, event.user)
                language = await asyncio.to_thread(find_reading, self._records, event.user)
                email = find_email(await user.get_auth_state())
                event = replace(event, wants_mail=wants, email=email, language=language)
                call = self._hook if inspect.isfunction(self._hook) else type(self._hook).__call__
                if inspect.iscoroutinefunction(call):
                    await self._hook(event)
                    return
                loop = asyncio.get_running_loop()
                answer = await loop.run_in_executor(self._threads, self._hook, event)
                if inspect.isawaitable(answer):
                    await answer
        except TimeoutError:
            self._log.warning("The hook `notify` took longer than %d s at %s", _TIMEOUT_S, _show(event))
        except Exception:
            # Whatever a site's hook does, the hub goes on.
            self._log.exception("The hook `notify` failed at %s", _show(event))


class Notifies(KeepsRuns):
    """Part of `QemuSpawnerMixin`: tells the hook `notify` what becomes of this server's desktop."""

    notify = Union(
        [Unicode(), CallableTrait()],
        default_value="",
        help="""Called with an Event (qemuspawner.hub.notices.notify) of each start, end, failure and warning.

        A function, async or not, or the dotted name of one or of a class that makes one, such as
        "qemuspawner.hub.notices.mail.Mailer". It has 30 s, and nobody waits for it. Empty: nobody is told.
        """,
    ).tag(config=True)
    notify_before = Union(
        [Integer(), Unicode()],
        default_value=15 * 60,
        help="""How long before a desktop's lifetime ends this is told: seconds, or "15 min"; 0: never.""",
    ).tag(config=True)

    # The spawner's
    name: Any
    active: Any
    hub: Any
    find_advice: Any
    _told_of_end = False
    _told_of_request: tuple[object, ...] = ()
    _reading = ""

    def note_reading(self, language: str) -> None:
        """A page of the hub is made for the user in the language of this tag."""
        if self.notify and language != self._reading:
            self._reading = language
            self._noted(lambda: note_reading(self.records, self.user.name, language))

    @validate("notify")
    def _find_hook(self, proposal: Any) -> Any:
        if isinstance(proposal["value"], str) and proposal["value"]:
            try:
                import_item(proposal["value"])
            except ImportError as exc:
                raise TraitError(
                    f"notify is {proposal['value']!r}, which cannot be imported: {exc}"
                ) from None
        return proposal["value"]

    def note_end(self, end: SessionEnd) -> None:
        """The session tells that it is over."""
        if end.usage is not None:
            self.note_run_usage(end.usage)
        self.end_run(outcome=_OUTCOMES[end.state], why=end.message, cause=end.cause)

    def note_run_ready(self, *, way: str) -> None:
        super().note_run_ready(way=way)
        self._told_of_end, self._told_of_request = False, ()
        if self.notify and (run := self.find_run()):
            self._tell("started", run)

    def end_run(self, *, outcome: Outcome, why: str = "", cause: str = "") -> Run | None:
        run = super().end_run(outcome=outcome, why=why)
        if run is None:
            return None
        if outcome == "lost":
            self._tell("ended", run, reason=_NO_REASON)
        else:
            asked = outcome != "failed" and cause in ("", "stop")
            self._tell(outcome, run, reason=why, asked=asked, **self._advise(run))
        return run

    def _advise(self, run: Run) -> dict[str, object]:
        """What an event says of the next start, after a run that has ended for good."""
        if not self.notify or run.outcome != "ended" or run.usage is None:
            return {}
        advice: Advice | None = self.find_advice(server_name=self.name).get(self.name)
        if advice is None or not advice.preset:
            return {"advice": advice}
        form = url_path_join(self.hub.base_url, "spawn", self.user.escaped_name, url_escape_path(self.name))
        return {"advice": advice, "advice_url": self._public_url(f"{form.rstrip('/')}?{advice.query}")}

    def note_time_left(self, desktop: dict[str, Any]) -> None:
        """What `running.describe_running` says of this desktop; each warning comes once."""
        left_s = desktop["left_s"]
        if not self.notify_before or left_s > self.notify_before:
            self._told_of_end = False
        elif not self._told_of_end and (run := self.find_run()):
            self._told_of_end = True
            self._tell("ends-soon", run, left_s=left_s, sleeps=desktop["sleeps"])
        extension = desktop["extension"]
        if extension is None or extension["answer"]:
            self._told_of_request = ()
            return
        request = (extension["by"], extension["seconds"], extension["reason"])
        if request != self._told_of_request and (run := self.find_run()):
            self._told_of_request = request
            by, seconds, reason = request
            self._tell("more-time-asked", run, by=by, asked_s=seconds, reason=reason)

    def _tell(self, kind: Kind, run: Run, **facts: Any) -> None:
        if not self.notify:
            return
        notifier = self.user.settings.get(_SETTING)
        if notifier is None:
            notifier = Notifier(_make_hook(self.notify, self), self.records, log=self.log)
            self.user.settings[_SETTING] = notifier
        url = self._public_url(url_path_join(self.user.url, url_escape_path(self.name), "/"))
        event = Event(
            kind=kind,
            user=self.user.name,
            server=self.name,
            machine=run.machine_name,
            at=time.time(),
            started=run.started,
            url=url,
            **facts,
        )
        notifier.tell(self.user, event)

    def _public_url(self, path: str) -> str:
        """As people open it, where JupyterHub.public_url is set."""
        public = self.user.settings.get("public_url")
        return f"{public.scheme}://{public.netloc}{path}" if public else path


def find_email(auth_state: object) -> str:
    """The address in what the hub's authenticator keeps of a user; OAuthenticator has it one level below."""
    if not isinstance(auth_state, dict):
        return ""
    for facts in (auth_state, auth_state.get("oauth_user")):
        if isinstance(facts, dict) and isinstance(facts.get("email"), str):
            return str(facts["email"])
    return ""


def _make_hook(notify: str | Hook, parent: LoggingConfigurable) -> Hook:
    hook: Any = import_item(notify) if isinstance(notify, str) else notify
    if inspect.isclass(hook):
        has_traits = issubclass(hook, LoggingConfigurable)
        keywords: dict[str, Any] = {"config": parent.config, "log": parent.log} if has_traits else {}
        hook = hook(**keywords)
    made: Hook = hook
    return made


def _show(event: Event) -> str:
    return f"'{event.kind}' of {event.user!r}, server {event.server!r}"
