"""QemuSpawnerMixin: what every spawner of sessions does, wherever it starts their processes."""

import asyncio
import contextlib
import ssl
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyterhub import orm
from jupyterhub.scopes import scope_definitions
from jupyterhub.spawner import SpawnException
from jupyterhub.utils import make_ssl_context, url_escape_path, url_path_join
from msgspec import structs
from traitlets import Bool, Enum, Integer, TraitError, Unicode, Union, default, validate
from traitlets.config import LoggingConfigurable

from qemuspawner import scopes
from qemuspawner.errors import OptionsError, QemuSpawnerError
from qemuspawner.hub import metrics, routes, scrubbing  # noqa: F401 - for what they add to the hub
from qemuspawner.hub.folders import FolderTraits
from qemuspawner.hub.form.asks import AsksOptions
from qemuspawner.hub.form.fields import quote
from qemuspawner.hub.languages import speak_languages
from qemuspawner.hub.notices.notify import Notifies
from qemuspawner.hub.policies import PolicyTraits
from qemuspawner.hub.remote_folders import RemoteFolderTraits
from qemuspawner.hub.runs.upkeep import keep_up
from qemuspawner.hub.sessions.accounts import AccountTraits
from qemuspawner.hub.sessions.activity import trust_sessions
from qemuspawner.hub.sessions.follow import Progress, ask_session, follow_session
from qemuspawner.hub.sessions.known import Known
from qemuspawner.hub.sessions.warms import WarmsUp
from qemuspawner.machine import Allow
from qemuspawner.spec import SPEC_VARIABLE, SessionSpec, SessionStatus
from qemuspawner.texts import Text
from qemuspawner.units import parse_mib, parse_seconds, render_seconds

if TYPE_CHECKING:
    from jupyterhub.spawner import Spawner as _Below
else:
    # traitlets ignores, without a word, the defaults of a mixin that is a plain class.
    _Below = LoggingConfigurable

# The hub gives up at start_timeout; a little sooner we can still say why.
_GIVE_UP_BEFORE_S = 2
# What the admin page shows of a server, and what a restarted hub has to know.
_SESSION_KEYS = (
    "session_id",
    "machine",
    "cpus",
    "memory_mib",
    "node",
    "run",
    "token",
    "proposal",
    "invited",
    "starting",
    "where",
)
# One environment variable is at most 128 KiB on Linux, with its name.
_MAX_SPEC_KIB = 120
# Shorter is a mistake: such as hours that were meant, and taken for seconds.
_LEAST_S = 60
# A token that the hub makes for requests of its own; it is used for half of that.
_OWN_TOKEN_S = 600


class QemuSpawnerMixin(
    AsksOptions,
    PolicyTraits,
    FolderTraits,
    RemoteFolderTraits,
    AccountTraits,
    Notifies,
    WarmsUp,
    _Below,  # type: ignore[misc]
):
    """Options, form, specification, progress and tokens.

    The spawner below it in the class order starts, polls and stops the process.
    """

    state_dir = Unicode(
        "/var/lib/qemuspawner",
        help="""The host's state folder: images/ of the machines, and sessions/ while they run.

        A short path: sockets of a session lie in it, and their paths end at 107 bytes.
        """,
    ).tag(config=True)
    accelerator = Enum(
        ["auto", "kvm", "tcg"],
        default_value="auto",
        help="""How QEMU runs guests: "kvm", "tcg" (emulation), or "auto" for KVM where it works.""",
    ).tag(config=True)
    allow_tcg = Bool(
        False,
        help="""Whether guests may run by emulation (TCG) where KVM does not work.

        It is slow, and QEMU's authors call only KVM a boundary that holds against a hostile guest.
        """,
    ).tag(config=True)
    jail = Bool(
        True,
        help="""Whether QEMU runs in namespaces of its own, where it sees its own files and no network.""",
    ).tag(config=True)
    max_image = Union(
        [Integer(), Unicode()],
        default_value=256 * 1024,
        help="""How large an image may be that an administrator adds on the hub: MiB, or "64 GiB".""",
    ).tag(config=True)

    # Whether what runs the session makes it stand still, as far as the hub has seen.
    is_paused = False
    _session: dict[str, object]
    _progress: Progress
    _made_token: tuple[str, float] = ("", float("-inf"))  # until when, by time.monotonic

    def __init__(self, **kwargs: Any) -> None:
        self._session = {}
        self._progress = Progress()
        super().__init__(**kwargs)
        # Without a user it is only asked for its traits.
        if self.user is not None and "proxy" in self.user.settings:
            trust_sessions(self.user.settings["proxy"])
            metrics.DESKTOPS.watch(self.user.settings)
            keep_up(self)
        if self.user is not None and "jinja2_env" in self.user.settings:
            speak_languages(self.user.settings)

    @validate("state_dir")
    def _absolute_state_dir(self, proposal: Any) -> str:
        # Sessions have another working directory.
        return str(Path(proposal["value"]).absolute())

    @validate("keep_for", "checkpoint_every", "keep_runs", "notify_before")
    def _as_seconds(self, proposal: Any) -> int:
        name = proposal["trait"].name
        try:
            seconds = parse_seconds(proposal["value"])
        except ValueError as exc:
            raise TraitError(f"{name} is {proposal['value']!r}: {exc}.") from None
        if 0 < seconds < _LEAST_S:
            raise TraitError(f"{name} is {seconds} s; it is 0, or at least {_LEAST_S} s.")
        return seconds

    @validate("saved_quota", "templates_disk", "max_image")
    def _as_mib(self, proposal: Any) -> int:
        try:
            return parse_mib(proposal["value"])
        except ValueError as exc:
            raise TraitError(f"{proposal['trait'].name} is {proposal['value']!r}: {exc}.") from None

    # Defaults of JupyterHub's own settings

    @default("cmd")
    def _default_cmd(self) -> list[str]:
        return [str(Path(sys.executable).with_name("qemuspawner-session"))]

    @default("start_timeout")
    def _default_start_timeout(self) -> int:
        # A cold guest under emulation.
        return 600

    @default("http_timeout")
    def _default_http_timeout(self) -> int:
        return 60

    @default("poll_interval")
    def _default_poll_interval(self) -> int:
        # Guests power themselves off; looking for a process costs nothing.
        return 5

    @default("server_token_scopes")
    def _default_server_token_scopes(self) -> list[str]:
        # The hub asks the session for its status with it. Activity is JupyterHub's own demand: left out, it
        # is added with a warning at each start. The others are for sharing: whoever hands on a scope has it.
        return [
            "users:activity!user",
            "access:servers!server",
            "shares!server",
            "read:users:name",
            "read:groups:name",
            # A hub that was not told of them starts no server whose token should have them.
            *(f"{scope}!server" for scope in (scopes.VIEW, scopes.CONTROL) if scope in scope_definitions),
        ]

    # The session's specification

    @property
    def known(self) -> Known:
        """What the hub knows of the session, without asking it; empty where none was started."""
        return Known.of(self._session)

    def make_spec(self) -> SessionSpec:
        """What this start asks of its session.

        Raises:
            SpawnException: Nothing has checked the options, the user has no account for guests, or the
                machine's text is too long.
        """
        options = self._options
        if options is None:
            raise SpawnException(
                Text("This hub replaces apply_user_options, so nothing has checked the options."),
                reason="options",
                status_code=500,
            )
        groups = {group.name for group in self.user.groups}
        try:
            account = self.find_account()
        except OptionsError as exc:
            raise self.refusal(exc, reason="account", status_code=500) from exc
        network = self._limits.networks.of(options.machine)
        spec = SessionSpec(
            session_id=self.session_id,
            user=self.user.name,
            server_name=self.name,
            started_by=self._find_asking(),
            state_dir=self.state_dir,
            # How its image was made, what it has and who may start it is long, and nothing to a session.
            machine=structs.replace(
                options.machine,
                build=None,
                allow=Allow(),
                software=(),
                presets=(),
                image=structs.replace(options.machine.image, url=""),
            ),
            cpus=options.cpus,
            memory_mib=options.memory_mib,
            gpus=options.gpus,
            gpu_devices=self.find_gpu_devices(options.gpus),
            where=options.where,
            lifetime_s=options.lifetime_s,
            max_lifetime_s=options.max_lifetime_s,
            idle_s=int(options.machine.lifetime.idle),
            accelerator=self.accelerator,  # type: ignore[arg-type]
            allow_tcg=self.allow_tcg,
            jail=self.jail,
            templates=self.templates,
            name=options.name,
            notes=options.notes,
            keyboard=options.keyboard,
            resolution=options.resolution,
            script=options.script,
            sleeping=options.sleeping,
            branch=options.branch,
            suspend_on=tuple(self.suspend_on),
            disk_limit_mib=self.disk_limit,
            max_disk_limit_mib=self.max_disk_limit,
            keep_s=self.keep_for,
            quota_mib=self.disk_quota_mib,
            checkpoint_every_s=self.checkpoint_every,
            max_checkpoints=self.max_checkpoints,
            policy=self.make_policy(),
            network=network,
            proposal=options.proposal,
            folders=self.make_folders(options),
            remote_folders=self.make_remote_folders(options, network),
            account=account,
            sudo=self.find_sudo(groups=groups),
            gifts=self.find_gifts(groups=groups),
        )
        if len(spec.to_json().encode()) > _MAX_SPEC_KIB * 1024:
            raise self.refusal(
                QemuSpawnerError(
                    Text(
                        "The text of the machine {machine} is longer than the {most} KiB that can be given "
                        "to a session.",
                        machine=quote(spec.machine.id),
                        most=_MAX_SPEC_KIB,
                    ),
                    hint=Text("The administrator shortens its machine.toml."),
                ),
                reason="machine",
                status_code=500,
            )
        return spec

    def _find_asking(self) -> str:
        """Whose request JupyterHub answers with this start, as sessions call them; "" where there is none."""
        person = getattr(self.handler, "current_user", None)
        if person is None:
            return ""
        # A service may have a user's name.
        return f"service {person.name}" if isinstance(person, orm.Service) else str(person.name)

    def get_env(self) -> dict[str, str]:
        env: dict[str, str] = super().get_env()
        env[SPEC_VARIABLE] = self.make_spec().to_json()
        return env

    # State

    def get_state(self) -> dict[str, object]:
        return {**super().get_state(), **self._session}

    def load_state(self, state: Mapping[str, object]) -> None:
        super().load_state(state)
        self._session = {key: state[key] for key in _SESSION_KEYS if key in state}
        self._run_id = state.get("run", 0)  # type: ignore[assignment]

    def clear_state(self) -> None:
        super().clear_state()
        self._session = {}
        self._progress.close()
        self._progress = Progress()

    def save_state(self) -> None:
        """Commit the state now: JupyterHub does so only after start(), and may be killed before that."""
        self.orm_spawner.state = self.get_state()
        self._database.commit()

    # Start

    def begin_session(self, spec: SessionSpec, *, node: str) -> None:
        """Note that a session starts on a host, where a hub that is killed finds it again."""
        self.begin_run(spec, node=node)
        self._session = {
            "session_id": spec.session_id,
            "machine": spec.machine.id,
            "cpus": spec.cpus,
            "memory_mib": spec.memory_mib,
            "node": node,
            "run": self._run_id,
            "proposal": {"id": spec.proposal.id, "title": spec.proposal.title} if spec.proposal else None,
            "token": getattr(orm.APIToken.find(self._database, self.api_token), "id", 0),
            "starting": True,
            "where": spec.where,
        }

    async def poll(self) -> int | None:
        status: int | None = await super().poll()
        if status is None:
            self.note_run_seen()
        return status

    async def progress(self) -> AsyncIterator[dict[str, object]]:
        async for event in self._progress.events():
            yield event

    async def follow_start(self) -> None:
        """Wait until the session's desktop is there.

        Raises:
            SpawnException: The session failed, or nothing is heard of it for too long.
        """
        try:
            status = await self._wait_for_desktop()
            for sentence in self.invite_members():
                self._progress.say(sentence)
        except SpawnException as exc:
            self.end_run(outcome="failed", why=exc.message)
            raise
        finally:
            self._progress.close()
        self._session.pop("starting", None)
        self._entry = None
        self.note_run_ready(way=status.way)
        self.note_deadline(status)
        metrics.STARTS.labels(status.way).observe(max(status.now - status.started, 0))
        if status.way == "cold":
            self._warm_up(self._options)

    async def _wait_for_desktop(self) -> SessionStatus:
        try:
            async with asyncio.timeout(max(self.start_timeout - _GIVE_UP_BEFORE_S, 1)):
                status = await self._last_status()
        except TimeoutError:
            raise self.failure(
                Text("The desktop did not appear within {span}.", span=render_seconds(self.start_timeout)),
                Text("Try again; if it happens again, tell the administrator."),
            ) from None
        if status is None:
            raise self.failure(
                Text("The desktop's process ended without a word."), Text("The hub's log has the reason.")
            )
        if status.state != "running":
            raise self.failure(status.message or Text("The desktop ended before it was ready."), status.hint)
        return status

    async def _last_status(self) -> SessionStatus | None:
        """The first status that decides the start; None where the session ends without one."""

        async def is_alive() -> bool:
            return await self.poll() is None

        async with contextlib.aclosing(
            follow_session(
                self.server.url,
                token=self.api_token,
                ssl_context=self.session_ssl_context,
                is_alive=is_alive,
            )
        ) as statuses:
            async for status in statuses:
                self._progress.update(status)
                if status.way and not self._progress.knows_usual:
                    machine = str(self._session["machine"])
                    self._progress.note_usual(self.usual_start_s(machine, status.way))
                if status.state not in ("preparing", "booting"):
                    return status
        return None

    @property
    def session_ssl_context(self) -> ssl.SSLContext | None:
        """How the hub speaks to sessions; None without internal_ssl."""
        if not self.internal_ssl:
            return None
        key, cert, ca = (self.user.settings[f"internal_ssl_{part}"] for part in ("key", "cert", "ca"))
        context: ssl.SSLContext = make_ssl_context(key, cert, cafile=ca)
        return context

    @property
    def session_url(self) -> str:
        """Where its session can be asked, also while it boots; "" where there is none."""
        # Before it has begun, the hub's own row names a port that may be anybody's.
        return str(self.server.url) if self._session and self.server is not None else ""

    async def ask_session(
        self, method: str, path: str, body: object = None, *, language: str = "en"
    ) -> tuple[int, dict[str, Any]]:
        """A route of the running session, asked as its owner; see `follow.ask_session`."""
        return await ask_session(
            method,
            url_path_join(self.server.url, path),
            body,
            token=self.session_token,
            ssl_context=self.session_ssl_context,
            language=language,
        )

    @property
    def session_token(self) -> str:
        """A token with which the hub is taken for the owner by the running session."""
        if self.api_token:
            return str(self.api_token)
        # A hub that was restarted has lost the server's token; its pages ask often.
        token, until = self._made_token
        if time.monotonic() > until:
            token = self.new_token_for(self.user)
            self._made_token = token, time.monotonic() + _OWN_TOKEN_S / 2
        return token

    def new_token_for(self, person: Any) -> str:
        """A short-lived token for requests to the session in the name of `person`, a user or a service.

        Raises:
            ValueError: They have no access to this server.
        """
        scope = f"access:servers!server={self.user.name}/{self.name}"
        token: str = person.new_api_token(note=self._own_note, expires_in=_OWN_TOKEN_S, scopes=[scope])
        return token

    # Tokens

    def run_post_stop_hook(self) -> Any:
        self.delete_server_tokens()
        # Unless its session has said why.
        self.end_run(outcome="lost")
        return super().run_post_stop_hook()

    def is_session_token(self, token: Any) -> bool:
        """Whether this token of the hub's database is the one that the running session was given."""
        return token is not None and token.id == self._session.get("token")

    def delete_server_tokens(self, *, but: str = "") -> None:
        """Delete this server's tokens, also those that JupyterHub forgot when it was restarted."""
        database = self._database
        notes = (f"Server at {self._path}", self._own_note)
        kept = orm.APIToken.find(database, but) if but else None
        found = database.query(orm.APIToken).filter_by(user_id=self.user.id)
        for token in found.filter(orm.APIToken.note.in_(notes)):
            if token is not kept:
                database.delete(token)
        database.commit()
        self._made_token = "", float("-inf")

    @property
    def _own_note(self) -> str:
        return f"The hub itself, for {self._path}"

    @property
    def _path(self) -> str:
        """Of its URL."""
        return str(url_path_join(self.user.base_url, url_escape_path(self.name), "/"))
