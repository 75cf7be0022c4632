"""What a user asks for: the form shown, and what comes back from it, a link or the REST API checked."""

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from traitlets import default, observe

from qemuspawner.errors import QemuSpawnerError
from qemuspawner.hub.admission.admission import Admission, ShortageError
from qemuspawner.hub.admission.claims import ClaimsCapacity
from qemuspawner.hub.admission.drains import DrainedError, HeedsDrains
from qemuspawner.hub.admission.gate import ChecksFirst
from qemuspawner.hub.desktops.keeps import KeepsDesktops
from qemuspawner.hub.desktops.shown import show_kept, show_saved
from qemuspawner.hub.form import form
from qemuspawner.hub.form.choices import describe_obstacles
from qemuspawner.hub.form.favourites import list_favourites
from qemuspawner.hub.form.options import (
    FIELDS,
    ONCE,
    Options,
    RefusedOptionsError,
    check_options,
    without_once,
)
from qemuspawner.hub.form.partition_view import find_size, show_fits, show_partitions
from qemuspawner.hub.form.settings import expand_setting, list_settings
from qemuspawner.hub.form.terms import TermsTraits
from qemuspawner.hub.limits import Limits, LimitTraits
from qemuspawner.hub.notices.announcements import HeedsAnnouncements, UnreadError
from qemuspawner.hub.proposals.mine import MyProposals
from qemuspawner.hub.proposals.traits import ProposalTraits
from qemuspawner.hub.refusals import Refuses, is_asking
from qemuspawner.texts import Text

# For a place's answer: of a start, and of who only looks at a page.
_PATIENCE_S = 30
_GLANCE_S = 2


class _LaunchLinkError(Exception):
    """A link with options shows them in the form, and starts nothing."""

    # Without a message JupyterHub shows the form as if nothing had happened.
    jupyterhub_message = ""


class AsksOptions(
    Refuses,
    ProposalTraits,
    LimitTraits,
    TermsTraits,
    ClaimsCapacity,
    ChecksFirst,
    HeedsDrains,
    HeedsAnnouncements,
    KeepsDesktops,
):
    """Part of `QemuSpawnerMixin`: the options of a start, from being asked for to being claimed."""

    handler: Any
    user_options: Any
    apply_user_options: Any

    _options: Options | None = None

    @default("options_form")
    def _default_options_form(self) -> Callable[["AsksOptions"], Awaitable[str]]:
        return AsksOptions._render_form

    @default("options_from_form")
    def _default_options_from_form(self) -> Callable[[Mapping[str, list[Any]]], dict[str, object]]:
        return self._options_from_form

    @default("apply_user_options")
    def _default_apply_user_options(
        self,
    ) -> Callable[["AsksOptions", Mapping[str, object]], Awaitable[None]]:
        return AsksOptions._apply_options

    async def options_from_query(self, query: Mapping[str, list[Any]]) -> dict[str, object]:
        """A link with `opt-` parameters fills in the form: were it a start, any site could cause one."""
        options, problems = form.unpack_link(query)
        await self.look_around()
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
        """JupyterHub comes to a start, whose options it has stored."""
        checked = self.take_claim()
        if checked is None:
            await self.check_options(user_options)
            checked = self.user_options
        self._store_options(checked)

    @property
    def can_check_first(self) -> bool:
        # A function of the administrator's may change the options.
        return super().can_check_first and self.apply_user_options is AsksOptions._apply_options

    async def check_options(self, user_options: Mapping[str, object]) -> None:
        """Check the options of this start, wherever they came from; what they come to is `user_options` then.

        Nothing is stored here: a host that is full has to refuse many at once. Those that can never be
        accepted are taken back where they are stored already, or the next start would use them.
        """
        self._options = None
        asked_for = user_options
        try:
            await self.ask_place(most_s=_PATIENCE_S)
        except QemuSpawnerError as exc:
            raise self.refusal(exc, reason="host", status_code=503) from None
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
            if asked_for and self.orm_spawner.user_options == asked_for:
                self._store_options({})
            raise self.refusal(exc, reason="options") from None
        self.user_options = options.stored()
        try:
            with self.records.one_read():
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
        await self.look_around()
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

    def _store_options(self, options: Mapping[str, object]) -> None:
        self.user_options = self.orm_spawner.user_options = options
        self._database.commit()

    async def _render_form(self) -> str:
        await self.look_around()
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
        quotas = await self.describe_quotas()
        proposals = await self.shown_proposals(entry.options)
        with self.records.one_read():
            return form.render_form(
                entry,
                user=self.user.name,
                language=self.form_language,
                machines=self._my_machines(catalogue),
                limits=self._limits,
                favourites=self._noted(
                    lambda: list_favourites(self.records, user=self.user.name, kind="machine")
                )
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
                quotas=quotas,
                proposals=proposals,
                advice=self.find_advice(server_name=kept.server_name).get(kept.server_name),
                catalogue_problems=map(str, catalogue.problems) if self.user.admin else (),
            )

    async def look_around(self) -> None:
        """Have what is told of the place be as new as somebody may wait for who only looks at a page."""
        with contextlib.suppress(QemuSpawnerError):
            await self.ask_place(most_s=_GLANCE_S)

    def find_obstacles(self) -> dict[str, str]:
        """Each choice of the form, and what stands against its start now."""
        machines = self._my_machines(self._catalogue())
        return dict(describe_obstacles(machines, self._limits, self._look_for_form()))

    def describe_partitions(self, fields: Mapping[str, list[Any]], *, server_name: str) -> dict[str, object]:
        """Each partition of a cluster and each choice of the form, as it would do with these fields of it."""
        asked = form.unpack_form(fields)
        machines, limits = self._my_machines(self._catalogue()), self._limits
        options = find_size(
            asked,
            machines=machines,
            limits=limits,
            kept=self._find_kept(server_name),
            find_kept=self._find_kept,
        )
        return {
            "partitions": [] if options is None else show_partitions(limits, options, asked=asked),
            "choices": show_fits(machines.values(), limits, asked=asked),
        }

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

    @property
    def _limits(self) -> Limits:
        groups = {group.name for group in self.user.groups}
        return self.find_limits(
            user=self.user.name,
            groups=groups,
            admin=self.user.admin,
            gpus=self.find_gpu_models(),
            sudo=self.find_sudo(groups=groups),
            partitions=self.find_partitions(),
            reservations=self.find_reservations(),
        )

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
