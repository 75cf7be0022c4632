"""QemuSpawnerMixin: what every spawner of sessions does, wherever it starts their processes."""

import asyncio
import contextlib
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from jupyterhub import orm
from jupyterhub.spawner import SpawnException
from jupyterhub.utils import make_ssl_context, url_escape_path, url_path_join
from msgspec import structs
from sqlalchemy import inspect
from traitlets import Bool, Enum, Integer, List, TraitError, Unicode, Union, default, validate
from traitlets.config import LoggingConfigurable

from qemuspawner import paths
from qemuspawner.errors import QemuSpawnerError
from qemuspawner.hub import form
from qemuspawner.hub.follow import Progress, follow_session
from qemuspawner.hub.options import (
    MIN_LIFETIME_S,
    Limits,
    Options,
    RefusedOptionsError,
    allowed_machines,
    check_options,
)
from qemuspawner.machine import Allow, Machine
from qemuspawner.machines.catalogue import Catalogue, load_catalogue
from qemuspawner.spec import SPEC_VARIABLE, SessionSpec, SessionStatus
from qemuspawner.units import parse_seconds, render_seconds

if TYPE_CHECKING:
    from jupyterhub.spawner import Spawner as _Below
else:
    # traitlets ignores, without a word, the defaults of a mixin that is a plain class.
    _Below = LoggingConfigurable

# The hub gives up at start_timeout; a little sooner we can still say why.
_GIVE_UP_BEFORE_S = 2
# What the admin page shows of a server, and what a restarted hub has to know.
_SESSION_KEYS = ("session_id", "machine", "node", "starting")
# One environment variable is at most 128 KiB on Linux, with its name.
_MAX_SPEC_KIB = 120


class _LaunchLinkError(Exception):
    """A link with options shows them in the form, and starts nothing."""

    # Without a message JupyterHub shows the form as if nothing had happened.
    jupyterhub_message = ""


class QemuSpawnerMixin(_Below):  # type: ignore[misc]
    """Options, form, specification, progress and tokens.

    The spawner below it in the class order starts, polls and stops the process.
    """

    machines = List(
        Unicode(),
        default_value=[str(paths.EXAMPLE_MACHINES)],
        help="""Folders of machines: each has a folder NAME with machine.toml for every machine.

        Where two folders have a machine of the same name, the first one counts.
        """,
    ).tag(config=True)
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
    max_lifetime = Union(
        [Integer(), Unicode()],
        default_value=0,
        help="""The longest a desktop may last: seconds, or text like "12 h"; 0: as the machine says.""",
    ).tag(config=True)

    # Logged once for the whole hub, not at each form.
    _logged_problems: ClassVar[set[str]] = set()

    _options: Options | None = None
    _session: dict[str, object]
    _progress: Progress

    def __init__(self, **kwargs: Any) -> None:
        self._session = {}
        self._progress = Progress()
        super().__init__(**kwargs)

    @validate("state_dir")
    def _absolute_state_dir(self, proposal: Any) -> str:
        # Sessions have another working directory.
        return str(Path(proposal["value"]).absolute())

    @validate("max_lifetime")
    def _max_lifetime_seconds(self, proposal: Any) -> int:
        try:
            seconds = parse_seconds(proposal["value"])
        except ValueError as exc:
            raise TraitError(f"max_lifetime is {proposal['value']!r}: {exc}.") from None
        if 0 < seconds < MIN_LIFETIME_S:
            raise TraitError(f"max_lifetime is {seconds} s; it is 0, or at least {MIN_LIFETIME_S} s.")
        return seconds

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
        # is added with a warning at each start.
        return ["users:activity!user", "access:servers!server"]

    # Options

    @default("options_form")
    def _default_options_form(self) -> Callable[["QemuSpawnerMixin"], str]:
        return QemuSpawnerMixin._render_form

    @default("options_from_form")
    def _default_options_from_form(self) -> Callable[[Mapping[str, list[Any]]], dict[str, object]]:
        return self._options_from_form

    @default("apply_user_options")
    def _default_apply_user_options(self) -> Callable[["QemuSpawnerMixin", Mapping[str, object]], None]:
        return QemuSpawnerMixin._apply_options

    def options_from_query(self, query: Mapping[str, list[Any]]) -> dict[str, object]:
        """A link with `opt-` parameters fills in the form: were it a start, any site could cause one."""
        options = form.unpack_form(query)
        problems = {}
        try:
            self._check(options)
        except RefusedOptionsError as exc:
            problems = exc.problems
        self._entry = form.Entry(options=options, problems=problems, from_link=True)
        raise _LaunchLinkError

    def _options_from_form(self, data: Mapping[str, list[Any]]) -> dict[str, object]:
        options = form.unpack_form(data)
        self._entry = form.Entry(options=options)
        return options

    def _apply_options(self, user_options: Mapping[str, object]) -> None:
        """Check the options of this start, wherever they came from.

        JupyterHub has stored them already: refused ones are taken back, or the next start would use them.
        """
        self._options = None
        try:
            options = self._check(user_options)
        except RefusedOptionsError as exc:
            if self._entry is not None and self._entry.options == user_options:
                self._entry = replace(self._entry, problems=exc.problems)
            self._store_options({})
            raise refusal(exc, reason="options") from None
        self._options = options
        self._store_options(options.stored())

    def _check(self, user_options: Mapping[str, object]) -> Options:
        return check_options(user_options, machines=self._my_machines(self._catalogue()), limits=self._limits)

    def _store_options(self, options: dict[str, object]) -> None:
        self.user_options = self.orm_spawner.user_options = options
        self._database.commit()

    def _render_form(self) -> str:
        catalogue = self._catalogue()
        entry = self._entry or form.Entry(options=self.user_options)
        self._entry = None
        return form.render_form(
            entry,
            machines=self._my_machines(catalogue),
            limits=self._limits,
            catalogue_problems=map(str, catalogue.problems) if self.user.admin else (),
        )

    @property
    def _entry(self) -> form.Entry | None:
        """What the user typed last, until it is shown again.

        It is kept with the user, since JupyterHub renders the form after an error for the user's default
        server, whichever was asked for.
        """
        return getattr(self.user, "_qemuspawner_entry", None)

    @_entry.setter
    def _entry(self, entry: form.Entry | None) -> None:
        self.user._qemuspawner_entry = entry

    def _catalogue(self) -> Catalogue:
        catalogue = load_catalogue([Path(folder) for folder in self.machines], self._state_paths.images)
        for problem in catalogue.problems:
            if str(problem) not in self._logged_problems:
                self._logged_problems.add(str(problem))
                self.log.warning("Not offered: %s", problem)
        return catalogue

    def _my_machines(self, catalogue: Catalogue) -> dict[str, Machine]:
        groups = {group.name for group in self.user.groups}
        return allowed_machines(catalogue.machines, user=self.user.name, groups=groups)

    @property
    def _limits(self) -> Limits:
        return Limits(lifetime_s=self.max_lifetime or None)

    # The session's specification

    @property
    def session_id(self) -> str:
        return paths.session_id(self.user.name, self.name)

    @property
    def _state_paths(self) -> paths.StatePaths:
        return paths.StatePaths.of(self.state_dir)

    def make_spec(self) -> SessionSpec:
        """What this start asks of its session.

        Raises:
            SpawnException: Nothing has checked the options, or the machine's text is too long.
        """
        options = self._options
        if options is None:
            raise SpawnException(
                "This hub replaces apply_user_options, so nothing has checked the options.",
                reason="options",
                status_code=500,
            )
        spec = SessionSpec(
            session_id=self.session_id,
            user=self.user.name,
            server_name=self.name,
            state_dir=self.state_dir,
            # How its image was built and who may start it is long, and nothing to a session.
            machine=structs.replace(options.machine, build=None, allow=Allow()),
            cpus=options.cpus,
            memory_mib=options.memory_mib,
            lifetime_s=options.lifetime_s,
            max_lifetime_s=options.max_lifetime_s,
            idle_s=int(options.machine.lifetime.idle),
            accelerator=self.accelerator,  # type: ignore[arg-type]
            allow_tcg=self.allow_tcg,
            jail=self.jail,
        )
        if len(spec.to_json().encode()) > _MAX_SPEC_KIB * 1024:
            raise refusal(
                QemuSpawnerError(
                    f"The text of the machine '{spec.machine.id}' is longer than the "
                    f"{_MAX_SPEC_KIB} KiB that can be given to a session.",
                    hint="The administrator shortens its machine.toml.",
                ),
                reason="machine",
                status_code=500,
            )
        return spec

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

    def clear_state(self) -> None:
        super().clear_state()
        self._session = {}
        self._progress.close()
        self._progress = Progress()

    def save_state(self) -> None:
        """Commit the state now: JupyterHub does so only after start(), and may be killed before that."""
        self.orm_spawner.state = self.get_state()
        self._database.commit()

    @property
    def _database(self) -> Any:
        """The hub's session of SQLAlchemy; `Spawner.db` is deprecated."""
        return inspect(self.orm_spawner).session

    # Start

    async def progress(self) -> AsyncIterator[dict[str, object]]:
        async for event in self._progress.events():
            yield event

    async def follow_start(self) -> None:
        """Wait until the session's desktop is there.

        Raises:
            SpawnException: The session failed, or nothing is heard of it for too long.
        """
        try:
            async with asyncio.timeout(max(self.start_timeout - _GIVE_UP_BEFORE_S, 1)):
                status = await self._last_status()
        except TimeoutError:
            raise failure(
                f"The desktop did not appear within {render_seconds(self.start_timeout)}.",
                "Try again; if it happens again, tell the administrator.",
            ) from None
        finally:
            self._progress.close()
        if status is None:
            raise failure("The desktop's process ended without a word.", "The hub's log has the reason.")
        if status.state != "running":
            raise failure(status.message or "The desktop ended before it was ready.", status.hint)
        self._session.pop("starting", None)
        self._entry = None

    async def _last_status(self) -> SessionStatus | None:
        """The first status that decides the start; None where the session ends without one."""

        async def is_alive() -> bool:
            return await self.poll() is None

        async with contextlib.aclosing(
            follow_session(
                self.server.url,
                token=self.api_token,
                ssl_context=self._ssl_context,
                is_alive=is_alive,
            )
        ) as statuses:
            async for status in statuses:
                self._progress.update(status)
                if status.state not in ("preparing", "booting"):
                    return status
        return None

    @property
    def _ssl_context(self) -> ssl.SSLContext | None:
        """How the hub speaks to sessions; None without internal_ssl."""
        if not self.internal_ssl:
            return None
        key, cert, ca = (self.user.settings[f"internal_ssl_{part}"] for part in ("key", "cert", "ca"))
        context: ssl.SSLContext = make_ssl_context(key, cert, cafile=ca)
        return context

    # Tokens

    def run_post_stop_hook(self) -> Any:
        self.delete_server_tokens()
        return super().run_post_stop_hook()

    def delete_server_tokens(self, *, but: str = "") -> None:
        """Delete this server's tokens, also those that JupyterHub forgot when it was restarted."""
        database = self._database
        note = f"Server at {url_path_join(self.user.base_url, url_escape_path(self.name), '/')}"
        kept = orm.APIToken.find(database, but) if but else None
        for token in database.query(orm.APIToken).filter_by(user_id=self.user.id, note=note):
            if token is not kept:
                database.delete(token)
        database.commit()


def failure(message: str, hint: str) -> SpawnException:
    return refusal(QemuSpawnerError(message, hint=hint), reason="session", status_code=500)


def refusal(exc: QemuSpawnerError, *, reason: str, status_code: int = 400) -> SpawnException:
    """An error as JupyterHub shows it to the user and counts it."""
    refusal = SpawnException(exc.text, reason=reason, status_code=status_code)
    # The form and the pending page show this; else they would show the exception's name as well.
    refusal.jupyterhub_message = exc.text
    return refusal
