"""QemuSpawnerMixin: what every spawner of sessions does, wherever it starts their processes."""

import asyncio
import contextlib
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from jupyterhub import orm
from jupyterhub.scopes import has_scope, scope_definitions
from jupyterhub.spawner import SpawnException
from jupyterhub.utils import make_ssl_context, url_escape_path, url_path_join
from msgspec import structs
from sqlalchemy import inspect
from traitlets import Bool, Enum, Integer, List, TraitError, Unicode, Union, default, observe, validate
from traitlets.config import LoggingConfigurable

from qemuspawner import paths, scopes
from qemuspawner.errors import OptionsError, QemuSpawnerError
from qemuspawner.hub import metrics, routes  # noqa: F401 - for what it adds to the hub
from qemuspawner.hub.admission.admission import Admission, ShortageError
from qemuspawner.hub.admission.claims import ClaimsCapacity
from qemuspawner.hub.admission.drains import DrainedError, HeedsDrains
from qemuspawner.hub.desktops.cards import ShowsCards
from qemuspawner.hub.desktops.kept import Kept, Sweeper, delete_all, delete_kept, list_kept, load_kept
from qemuspawner.hub.desktops.shown import ShownDesktop, show_kept, show_saved
from qemuspawner.hub.folders import FolderTraits
from qemuspawner.hub.form import form
from qemuspawner.hub.form.choices import describe_obstacles
from qemuspawner.hub.form.favourites import list_favourites
from qemuspawner.hub.form.fields import quote
from qemuspawner.hub.form.options import (
    FIELDS,
    ONCE,
    Options,
    RefusedOptionsError,
    allowed_machines,
    check_options,
    without_once,
)
from qemuspawner.hub.form.settings import expand_setting, list_settings
from qemuspawner.hub.form.terms import TermsTraits
from qemuspawner.hub.languages import speak_languages
from qemuspawner.hub.limits import Limits, LimitTraits
from qemuspawner.hub.notices.announcements import HeedsAnnouncements, UnreadError
from qemuspawner.hub.notices.notify import Notifies
from qemuspawner.hub.policies import PolicyTraits
from qemuspawner.hub.proposals.mine import MyProposals
from qemuspawner.hub.proposals.traits import ProposalTraits
from qemuspawner.hub.refusals import Refuses, is_asking
from qemuspawner.hub.runs.advice import Advice, give_advice
from qemuspawner.hub.runs.upkeep import keep_up
from qemuspawner.hub.sessions.accounts import AccountTraits
from qemuspawner.hub.sessions.activity import trust_sessions
from qemuspawner.hub.sessions.follow import Progress, ask_session, follow_session
from qemuspawner.hub.sessions.known import Known
from qemuspawner.hub.sessions.warmer import Missing, warmer
from qemuspawner.machine import Allow, Machine
from qemuspawner.machines.catalogue import Catalogue, load_all_machines
from qemuspawner.machines.templates import find_template_obstacle
from qemuspawner.saved import used_mib
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
)
# One environment variable is at most 128 KiB on Linux, with its name.
_MAX_SPEC_KIB = 120
# Shorter is a mistake: such as hours that were meant, and taken for seconds.
_LEAST_S = 60
# A token that the hub makes for requests of its own; it is used for half of that.
_OWN_TOKEN_S = 600


class _LaunchLinkError(Exception):
    """A link with options shows them in the form, and starts nothing."""

    # Without a message JupyterHub shows the form as if nothing had happened.
    jupyterhub_message = ""


class QemuSpawnerMixin(
    Refuses,
    PolicyTraits,
    ProposalTraits,
    LimitTraits,
    TermsTraits,
    FolderTraits,
    AccountTraits,
    Notifies,
    ClaimsCapacity,
    HeedsDrains,
    HeedsAnnouncements,
    ShowsCards,
    _Below,  # type: ignore[misc]
):
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
    templates = Bool(
        True, help="Whether desktops start from a template of their machine and size, where there is one."
    ).tag(config=True)
    warm_missing = Bool(
        False,
        help="""Whether the hub makes a template of what had to boot cold.

        In the background and one at a time; it needs memory and CPUs of the host, beside the desktops.
        """,
    ).tag(config=True)
    templates_disk = Union(
        [Integer(), Unicode()],
        default_value=20 * 1024,
        help="""How much of the disk such templates may take: MiB, or text like "20 GiB"; 0: no limit.""",
    ).tag(config=True)
    suspend_on = List(
        Enum(["idle", "lifetime", "stop"]),
        default_value=["idle", "lifetime", "stop"],
        help="""What puts a desktop to sleep instead of ending it.

        "idle": nobody used it; "lifetime": its time is over; "stop": it is stopped on the hub.
        """,
    ).tag(config=True)
    keep_for = Union(
        [Integer(), Unicode()],
        default_value=14 * 86400,
        help="""How long sleeping desktops and checkpoints are kept: seconds, or "14 d"; 0: for ever.""",
    ).tag(config=True)
    saved_quota = Union(
        [Integer(), Unicode()],
        default_value=20 * 1024,
        help="""What a user's sleeping desktops and checkpoints may take: MiB, or "20 GiB"; 0: no limit.

        "disk" in `quotas` says something else for some.
        Beyond it no new desktop starts and no checkpoint is made. Putting a desktop to sleep always works.
        """,
    ).tag(config=True)
    checkpoint_every = Union(
        [Integer(), Unicode()],
        default_value=0,
        help="""How often a desktop makes a checkpoint by itself: seconds, or text like "1 h"; 0: never.""",
    ).tag(config=True)
    max_image = Union(
        [Integer(), Unicode()],
        default_value=256 * 1024,
        help="""How large an image may be that an administrator adds on the hub: MiB, or "64 GiB".""",
    ).tag(config=True)
    max_checkpoints = Integer(10, min=0, help="How many checkpoints a desktop may have.").tag(config=True)

    # Logged once for the whole hub, not at each form.
    _logged_problems: ClassVar[set[str]] = set()
    _sweeper: ClassVar[Sweeper] = Sweeper()

    _options: Options | None = None
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

    # Options

    @default("options_form")
    def _default_options_form(self) -> Callable[["QemuSpawnerMixin"], Awaitable[str]]:
        return QemuSpawnerMixin._render_form

    @default("options_from_form")
    def _default_options_from_form(self) -> Callable[[Mapping[str, list[Any]]], dict[str, object]]:
        return self._options_from_form

    @default("apply_user_options")
    def _default_apply_user_options(
        self,
    ) -> Callable[["QemuSpawnerMixin", Mapping[str, object]], Awaitable[None]]:
        return QemuSpawnerMixin._apply_options

    async def options_from_query(self, query: Mapping[str, list[Any]]) -> dict[str, object]:
        """A link with `opt-` parameters fills in the form: were it a start, any site could cause one."""
        options, problems = form.unpack_link(query)
        try:
            options = dict(expand_setting(self.records, options, user=self.user.name))
            self._check(options, await self.my_proposals())
        except RefusedOptionsError as exc:
            problems.update(exc.problems)
        self._entry = form.Entry(options=options, problems=problems, from_link=True, server_name=self.name)
        raise _LaunchLinkError

    def _options_from_form(self, data: Mapping[str, list[Any]]) -> dict[str, object]:
        options = form.unpack_form(data)
        self._entry = form.Entry(options=options, server_name=self.name)
        return options

    @observe("handler")
    def _forget_what_was_for_one_start(self, change: Mapping[str, Any]) -> None:
        """Options can be stored without a start; JupyterHub notes a request here before it reads them."""
        if change["new"] is None or self.orm_spawner is None:
            return
        self.note_reader(change["new"])
        stored = self.orm_spawner.user_options or {}
        if not stored.keys().isdisjoint(ONCE):
            self._store_options(without_once(stored))

    async def _apply_options(self, user_options: Mapping[str, object]) -> None:
        """Check the options of this start, wherever they came from.

        JupyterHub has stored them already: refused ones are taken back, or the next start would use them.
        """
        self._options = None
        asked_for = user_options
        try:
            user_options = expand_setting(self.records, user_options, user=self.user.name)
            goes_on = "branch" in user_options or bool(self._find_kept(self.name))
            proposals = await self.proposals_for_start(user_options, goes_on=goes_on)
            options = self._check(user_options, proposals)
            self._check_permission(options, user_options)
            self._check_terms(user_options.get("terms"))
            self.plan_invitation(options, proposals)
        except RefusedOptionsError as exc:
            self._note_problems(asked_for, exc.problems)
            self._store_options({})
            raise self.refusal(exc, reason="options") from None
        self._store_options(options.stored())
        try:
            self.check_acknowledged()
            self.check_drained()
            if not options.goes_on:
                # What is deleted first takes no place.
                await self.check_disk(but=self.session_id if options.sleeping == "discard" else "")
            self._options = self.claim(options)
        except UnreadError as exc:
            raise self.refusal(exc, reason="announcement", status_code=403) from None
        except DrainedError as exc:
            raise self.refusal(exc, reason="drain", status_code=503) from None
        except ShortageError as exc:
            shortage = exc.shortage
            self._note_problems(asked_for, {shortage.field: exc.text})
            raise self.refusal(exc, reason=shortage.reason, status_code=409) from None
        except QemuSpawnerError as exc:
            raise self.refusal(exc, reason="quota", status_code=500) from None

    def _note_problems(self, user_options: Mapping[str, object], problems: Mapping[str, str]) -> None:
        """Have the form show them, where these options were typed into it."""
        if self._entry is not None and self._entry.options == user_options:
            self._entry = replace(self._entry, problems=problems)

    def _check_permission(self, options: Options, user_options: Mapping[str, object]) -> None:
        """Who may start a server may neither delete nor copy what is kept by that alone.

        Raises:
            RefusedOptionsError: Whoever asked for this start may not have that done.
        """
        if options.sleeping == "discard" and not self._is_permitted("delete:servers"):
            raise RefusedOptionsError(
                {
                    "sleeping": Text(
                        "The option 'sleeping' is 'discard'; you may start this desktop, but not delete what "
                        "is kept of it."
                    )
                }
            )
        source, _, _ = str(user_options.get("branch", "")).rpartition("/")
        if options.branch and not self._is_permitted("access:servers", source):
            raise RefusedOptionsError(
                {"branch": Text("The option 'branch' names a checkpoint of a desktop that you may not open.")}
            )

    def _check_terms(self, given: object) -> None:
        """Have the user's own start accept the terms; nobody else can do that for them, and need not.

        Raises:
            RefusedOptionsError: They are still to be accepted.
        """
        asking = getattr(self.handler, "current_user", None)
        if asking is not None and asking.name != self.user.name:
            return
        if problem := self.find_terms_problem(given):
            raise RefusedOptionsError({"terms": problem})
        if given is not None:
            self.accept_terms()

    def _is_permitted(self, scope: str, server_name: str | None = None) -> bool:
        """Whether the request that is noted here has this scope for a server; this one, by default."""
        name = self.name if server_name is None else server_name
        # Without a request JupyterHub itself is at work.
        return self.handler is None or bool(self.handler.has_scope(f"{scope}!server={self.user.name}/{name}"))

    def _check(self, user_options: Mapping[str, object], proposals: MyProposals) -> Options:
        return check_options(
            user_options,
            machines=self._my_machines(self._catalogue()),
            limits=self._limits,
            kept=self._find_kept(self.name),
            find_kept=self._find_kept,
            proposals=proposals,
        )

    async def check_setting(self, given: Mapping[str, object]) -> dict[str, object]:
        """Options as they are saved under a name, from a form's fields or a program's.

        Raises:
            RefusedOptionsError: They cannot be accepted as they are now.
        """
        options = form.unpack_form({name: [value] for name, value in given.items()})
        checked = check_options(
            without_once(options),
            machines=self._my_machines(self._catalogue()),
            limits=self._limits,
            startable=False,
            proposals=await self.my_proposals(),
        )
        stored = checked.stored()
        return {name: stored[name] for name in FIELDS if name in stored}

    def note_about(self, about: Mapping[str, object]) -> None:
        """The running desktop got another name or other notes, which its session has accepted."""
        told = {name: about[name] for name in ("name", "notes") if name in about}
        self._store_options({**self.user_options, **told})

    def _store_options(self, options: dict[str, object]) -> None:
        self.user_options = self.orm_spawner.user_options = options
        self._database.commit()

    async def _render_form(self) -> str:
        catalogue = self._catalogue()
        entry = self._entry or form.Entry(options=without_once(self.user_options))
        self._entry = None
        self._sweeper.sweep(self._state_paths)
        # After an error the form is the default server's, whichever was asked for.
        asked_for = self.name if is_asking(self.handler) else entry.server_name
        kept = self._find_kept(self.name if asked_for is None else asked_for)
        if entry.server_name not in (None, kept.server_name):
            entry = replace(entry, options=without_once(entry.options))
        branch = None if kept.suspended else self._find_branch(entry)
        return form.render_form(
            entry,
            user=self.user.name,
            language=self.form_language,
            machines=self._my_machines(catalogue),
            limits=self._limits,
            favourites=self._noted(lambda: list_favourites(self.records, user=self.user.name, kind="machine"))
            or (),
            settings=self._noted(lambda: list_settings(self.records, user=self.user.name)) or (),
            terms=form.Terms(version=self.terms_version, text=self.terms)
            if self._noted(lambda: self.has_open_terms)
            else None,
            kept=kept,
            desktop=show_kept(kept, self.pictures),
            branch=branch,
            suspend_on=self.suspend_on,
            keep_s=self.keep_for,
            now=self._look_for_form(),
            quotas=await self.describe_quotas(),
            proposals=await self.shown_proposals(entry.options),
            advice=self.find_advice(server_name=kept.server_name).get(kept.server_name),
            catalogue_problems=map(str, catalogue.problems) if self.user.admin else (),
        )

    def find_obstacles(self) -> dict[str, str]:
        """Each choice of the form, and what stands against its start now."""
        machines = self._my_machines(self._catalogue())
        return dict(describe_obstacles(machines, self._limits, self._look_for_form()))

    def _look_for_form(self) -> Admission:
        try:
            return self.look()
        except QemuSpawnerError:
            # The administrator's quotas cannot be read, which a start says.
            return form.ROOM

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
        catalogue = load_all_machines(self._state_paths, self.machine_folders)
        for problem in catalogue.problems:
            if str(problem) not in self._logged_problems:
                self._logged_problems.add(str(problem))
                self.log.warning("Not offered: %s", problem)
        return catalogue

    def _my_machines(self, catalogue: Catalogue) -> dict[str, Machine]:
        groups = {group.name for group in self.user.groups}
        return allowed_machines(
            catalogue.machines, user=self.user.name, groups=groups, is_admin=self.user.admin
        )

    @property
    def machine_folders(self) -> list[Path]:
        """Those of the trait `machines`."""
        return [Path(folder).absolute() for folder in self.machines]

    @property
    def host_command(self) -> list[str]:
        """The administrator's command, with this hub's folders."""
        program = Path(sys.executable).with_name("qemuspawner")
        folders = [f"--machines={folder}" for folder in self.machine_folders]
        return [str(program), f"--state={self.state_dir}", *folders]

    @property
    def _limits(self) -> Limits:
        groups = {group.name for group in self.user.groups}
        return self.find_limits(
            user=self.user.name,
            groups=groups,
            admin=self.user.admin,
            gpus=self.find_gpu_models(),
            sudo=self.find_sudo(groups=groups),
        )

    # What is kept while the desktop does not run; the hub's templates call some of these

    def _find_kept(self, server_name: str) -> Kept:
        """What is kept of a server of this user, and is not running."""
        return load_kept(self._state_paths, user=self.user.name, server_name=server_name)

    def _find_branch(self, entry: form.Entry) -> form.Branch | None:
        """The checkpoint that the form is about; its link or what was typed says it."""
        option = entry.options.get("branch")
        if not isinstance(option, str):
            return None
        server_name, _, name = option.rpartition("/")
        kept = self._find_kept(server_name)
        saved = kept.find_checkpoint(name)
        if saved is None or saved.spec is None or not self._is_permitted("access:servers", server_name):
            return None
        shown = show_saved(kept.session_id, saved, self.pictures)
        return form.Branch(option=option, server_name=server_name, spec=saved.spec, shown=shown)

    def sleeping_desktop(self, scopes: Collection[str]) -> ShownDesktop | None:
        """What sleeps here, for the page of a server that is not running; for somebody with these scopes.

        JupyterHub shows that page also to who has access to another one of the user's servers.
        """
        if not self._is_within("access:servers", scopes):
            return None
        kept = self._find_kept(self.name)
        if not kept.suspended:
            return None
        # The page shows no checkpoints.
        return show_kept(replace(kept, checkpoints=()), self.pictures)

    def may_be_started_by(self, scopes: Collection[str]) -> bool:
        """Whether somebody with these scopes may start this server on the hub's pages."""
        return self._is_within("servers", scopes)

    def may_be_shared_by(self, granted: Collection[str]) -> bool:
        """Whether somebody with these scopes may share this server, as either role, on the hub's pages."""
        wanted = ("shares", "access:servers", scopes.VIEW, scopes.CONTROL)
        return all(self._is_within(scope, granted) for scope in wanted)

    def _is_within(self, scope: str, scopes: Collection[str]) -> bool:
        wanted = f"{scope}!server={self.user.name}/{self.name}"
        return bool(has_scope(wanted, set(scopes), db=self._database))

    async def describe_saved(self) -> dict[str, object]:
        """The same for scripts."""
        kept, used = await asyncio.to_thread(self._find_all_kept)
        return {
            "saved": [
                {
                    "session_id": one.session_id,
                    "server": one.server_name,
                    "name": saved.name,
                    "kind": saved.kind,
                    "title": saved.title,
                    "machine": saved.machine_id,
                    "saved_at": saved.saved_at,
                    "expires": saved.expires,
                    "size_bytes": saved.size_bytes,
                    "memory": saved.memory,
                    "problem": saved.problem,
                }
                for one in kept
                for saved in one.saved
            ],
            "used_mib": used,
            "quota_mib": self.disk_quota_mib,
        }

    async def delete_saved(self, session_id: str, name: str = "") -> bool | None:
        """Delete what is kept of one of this user's sessions; False where it runs, None where nothing is."""
        kept, _ = await asyncio.to_thread(self._find_all_kept)
        names = {saved.name for one in kept if one.session_id == session_id for saved in one.saved}
        if not names or (name and name not in names):
            return None
        self.log.info("%s: deleting %s of %s", session_id, name or "all that is kept", self.user.name)
        return await asyncio.to_thread(delete_kept, self._state_paths.session(session_id), name=name)

    async def delete_forever(self) -> None:
        """JupyterHub deletes this server, or its user."""
        deleted = await asyncio.to_thread(delete_kept, self._state_paths.session(self.session_id))
        left = [] if deleted or not self._find_kept(self.name) else [self.session_id]
        if not self.name:
            # The default server goes with its user only, and with them what forgotten servers left.
            left = await asyncio.to_thread(delete_all, self._state_paths, self.user.name)
        for one in left:
            self.log.warning("%s: what is kept cannot be deleted; does it run?", one)

    def _find_all_kept(self) -> tuple[list[Kept], int]:
        state, user = self._state_paths, self.user.name
        return list_kept(state, user), used_mib(state, user)

    async def desktop_cards(self, *, ask: bool = False) -> dict[str, Any]:
        self._sweeper.sweep(self._state_paths)
        found = await super().desktop_cards(ask=ask)
        advice = self.find_advice()
        for card in found["cards"]:
            # What goes on from something kept has the size of that.
            given = advice.get(card["server"]) if card["state"] == "off" else None
            card["advice"] = given.described() if given else None
        return found

    def find_advice(self, *, server_name: str | None = None) -> dict[str, Advice]:
        """For the user's servers, or this one, by name: from what they used when they ran last."""
        runs = self.find_last_uses(server=server_name)
        machines = self._my_machines(self._catalogue()) if runs else {}
        found = {
            name: give_advice(
                run.usage, cpus=run.cpus, memory_mib=run.memory_mib, machine=machines.get(run.machine)
            )
            for name, run in runs.items()
            if run.usage is not None
        }
        return {name: advice for name, advice in found.items() if advice is not None}

    # The session's specification

    @property
    def session_id(self) -> str:
        return paths.session_id(self.user.name, self.name)

    @property
    def known(self) -> Known:
        """What the hub knows of the session, without asking it; empty where none was started."""
        return Known.of(self._session)

    @property
    def _state_paths(self) -> paths.StatePaths:
        return paths.StatePaths.of(self.state_dir)

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
        spec = SessionSpec(
            session_id=self.session_id,
            user=self.user.name,
            server_name=self.name,
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
            network=self._limits.networks.of(options.machine),
            proposal=options.proposal,
            folders=self.make_folders(options),
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

    @property
    def _database(self) -> Any:
        """The hub's session of SQLAlchemy; `Spawner.db` is deprecated."""
        return inspect(self.orm_spawner).session

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
            self._warm_up()

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

    def _warm_up(self) -> None:
        """Have a template made of what has just booted cold, where that is wanted and possible."""
        options = self._options
        if not self.warm_missing or not self.templates or options is None or options.goes_on:
            return
        machine = options.machine
        if find_template_obstacle(machine):
            return
        missing = Missing(machine_id=machine.id, cpus=options.cpus, memory_mib=options.memory_mib)
        warmer().request(missing, [*self._warm_command, *missing.arguments, *self._warm_arguments()])

    @property
    def _warm_command(self) -> list[str]:
        return [*self.host_command, "warm"]

    def _warm_arguments(self) -> list[str]:
        arguments = ["--nice", "--accelerator", self.accelerator]
        if self.templates_disk:
            arguments += ["--max-disk", str(self.templates_disk)]
        if not self.jail:
            arguments.append("--no-jail")
        arguments.append("--allow-tcg" if self.allow_tcg else "--no-allow-tcg")
        return arguments

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
        token: str = person.new_api_token(note="The hub itself", expires_in=_OWN_TOKEN_S, scopes=[scope])
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
        note = f"Server at {url_path_join(self.user.base_url, url_escape_path(self.name), '/')}"
        kept = orm.APIToken.find(database, but) if but else None
        for token in database.query(orm.APIToken).filter_by(user_id=self.user.id, note=note):
            if token is not kept:
                database.delete(token)
        database.commit()
