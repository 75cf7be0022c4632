"""The traits of proposals, and what a spawner does with them."""

import asyncio
from collections.abc import Mapping
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from traitlets import Bool
from traitlets.config import LoggingConfigurable

from qemuspawner import scopes
from qemuspawner.hub.form.favourites import list_favourites
from qemuspawner.hub.form.options import Options, RefusedOptionsError
from qemuspawner.hub.proposals.invite import Invitation, plan_invitation, send_invitation
from qemuspawner.hub.proposals.known import KnownProposals
from qemuspawner.hub.proposals.mine import NO_PROPOSALS, MyProposals, select_mine
from qemuspawner.hub.proposals.proposal import Asker
from qemuspawner.hub.proposals.shown import ShownProposals, describe_proposals, show_proposals
from qemuspawner.hub.proposals.source import ProposalSource, SourceType
from qemuspawner.texts import Text, pack, unpack

# A page that is slow is worse than one that says what it lacks; a start has more time.
_PAGE_WAIT_S = 1
_START_WAIT_S = 10
# Where the hub keeps what is known for all its users.
_SETTING = "qemuspawner_proposals"
_KIND = "proposal"  # of favourites


class ProposalTraits(LoggingConfigurable):
    """Part of `QemuSpawnerMixin`."""

    proposal_source = SourceType(
        klass=ProposalSource,
        default_value=None,
        allow_none=True,
        help="""Where proposals (experiments) come from: "toml", "groups", "http", or a class of your own.

        None: the hub has none. The source is configured by its class, such as `c.TomlProposals.path`.
        """,
    ).tag(config=True)
    proposal_required = Bool(False, help="Whether a new desktop needs a proposal.").tag(config=True)
    ended_proposals = Bool(
        True, help="Whether a new desktop can be started on a proposal whose last day is over."
    ).tag(config=True)

    user: Any
    handler: Any
    orm_spawner: Any
    records: Any
    _database: Any
    _log_name: Any
    _is_permitted: Any
    _session: dict[str, object]
    _invitation: Invitation | None = None

    async def my_proposals(self, *, wait_s: float = _PAGE_WAIT_S) -> MyProposals:
        """The user's, as far as they are known; the source is waited for no longer than that."""
        if self.proposal_source is None:
            return NO_PROPOSALS
        asker = Asker(
            name=self.user.name, groups={group.name: group.properties or {} for group in self.user.groups}
        )
        answer = await self._known_proposals.ask(asker, wait_s=wait_s)
        return select_mine(answer, asker, required=self.proposal_required, ended_allowed=self.ended_proposals)

    @property
    def _known_proposals(self) -> KnownProposals:
        known: KnownProposals | None = self.user.settings.get(_SETTING)
        if known is None or type(known.source) is not self.proposal_source:
            # Not a child of this spawner, which may be gone long before it.
            known = KnownProposals(self.proposal_source(config=self.config, log=self.log))
            self.user.settings[_SETTING] = known
        return known

    async def proposals_for_start(self, user_options: Mapping[str, object], *, goes_on: bool) -> MyProposals:
        """What the check of these options needs; a start that is on no proposal waits for no list of them."""
        if user_options.get("proposal") or self.proposal_required or goes_on:
            return await self.my_proposals(wait_s=_START_WAIT_S)
        return NO_PROPOSALS if self.proposal_source is None else MyProposals()

    # The form, and scripts

    async def shown_proposals(self, user_options: Mapping[str, object]) -> ShownProposals | None:
        """The form's picker; None where the hub has no proposals."""
        mine = await self.my_proposals()
        if not mine.is_offered:
            return None
        return show_proposals(
            mine,
            await self._favourite_proposals(),
            user_options=user_options,
            user=self.user.name,
            may_invite=self._may_invite(),
            is_admin=self.user.admin,
        )

    async def describe_proposals(self) -> dict[str, Any]:
        """The same for scripts."""
        mine = await self.my_proposals()
        return {
            "proposals": describe_proposals(mine, await self._favourite_proposals()),
            "note": mine.note,
            "required": mine.required,
        }

    async def _favourite_proposals(self) -> frozenset[str]:
        try:
            return await asyncio.to_thread(self._list_favourites)
        except (SQLAlchemyError, OSError):
            self.log.exception("The hub's records cannot be read")
            return frozenset()

    def _list_favourites(self) -> frozenset[str]:
        return frozenset(list_favourites(self.records, user=self.user.name, kind=_KIND))

    # Invitations

    def plan_invitation(self, options: Options, mine: MyProposals) -> None:
        """Note whom this start invites, which its request may.

        Raises:
            RefusedOptionsError: Whoever asked for this start may not share the desktop.
        """
        self._invitation = None
        if not options.invite:
            return
        if not self._may_invite():
            raise RefusedOptionsError(
                {"invite": f"The option 'invite' is '{options.invite}', and you may not share this desktop."}
            )
        assert options.proposal is not None
        self._invitation = plan_invitation(
            self._database,
            mine.by_id[options.proposal.id],
            owner=self.user.name,
            role=options.invite,
            may_share_with=self._may_name,
        )

    def invite_members(self) -> list[str]:
        """Share the desktop that has just started, and say in sentences with whom and with whom not."""
        invitation, self._invitation = self._invitation, None
        if invitation is None:
            return []
        try:
            said = send_invitation(self._database, self.orm_spawner, invitation)
        except SQLAlchemyError:
            # The desktop is there, and fails for nothing else.
            self.log.exception("%s: the members of its proposal cannot be invited", self._log_name)
            self._database.rollback()
            said = [Text("The members of the proposal could not be invited; share the desktop on this page.")]
        self._session["invited"] = pack(said)
        return said

    def _may_invite(self) -> bool:
        wanted = ("shares", "access:servers", scopes.VIEW, scopes.CONTROL)
        return all(self._is_permitted(scope) for scope in wanted)

    def _may_name(self, user_name: str) -> bool:
        """Whether the request that is noted with this spawner may learn of that user."""
        # Without a request JupyterHub itself is at work.
        return self.handler is None or bool(self.handler.has_scope(f"read:users:name!user={user_name}"))

    @property
    def on_proposal(self) -> dict[str, object]:
        """The proposal of the desktop that runs, and who was invited, for lists of desktops."""
        invited: Any = self._session.get("invited", [])
        return {
            "proposal": self._session.get("proposal"),
            "invited": [unpack(sentence) for sentence in invited],
        }
