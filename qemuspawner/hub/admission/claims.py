"""What a start needs, claimed: the quotas and the host are looked at and the promise is made in one go.

Between the look and the promise nothing else of the hub runs: there is no `await`, and the hub has one thread
for it. So no two starts get what is there for one.
"""

import asyncio
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import traitlets
from sqlalchemy.exc import SQLAlchemyError
from traitlets import Dict, TraitError, Union, validate

from qemuspawner.errors import QemuSpawnerError
from qemuspawner.hub.admission.admission import Admission, ShortageError, used_up
from qemuspawner.hub.admission.capacity import HostCapacity
from qemuspawner.hub.admission.partitions import OfferedPartition, OfferedReservation
from qemuspawner.hub.admission.promises import KeepsPromise, Need, Promise, list_promises
from qemuspawner.hub.admission.quotas import KINDS, Kind, Quotas, Row, ShownRow, parse_quotas, show_row
from qemuspawner.hub.form.options import Options
from qemuspawner.hub.runs.runs import Hours, records_of, sum_hours
from qemuspawner.paths import StatePaths
from qemuspawner.saved import used_mib_by_user
from qemuspawner.spec import Gpus
from qemuspawner.texts import Text


@dataclass(frozen=True, kw_only=True)
class _Scope:
    """Whose desktops a quota counts: one user's, or a group's."""

    group: str  # "" for the user
    members: Collection[str]
    limits: Mapping[str, float]
    window_s: int


class ClaimsCapacity(KeepsPromise):
    """Part of `QemuSpawnerMixin`: quotas, and the claim of what a start needs."""

    quotas = Union(
        [Dict(), traitlets.Callable()],
        help="""What users and groups may have, as tables of limits; or a function that is given the spawner.

        {"user": {"sessions": 3, "cpus": 8, "memory": "32 GiB", "gpus": 1, "disk": "20 GiB", "cpu_hours": 200,
        "gpu_hours": 20}} is for each user; "users" and "each_in_group" have such a table for each name, and
        "groups" one for what a group's members have together. "window" says for how long hours count.
        """,
    ).tag(config=True)

    state_dir: Any  # the spawner's traits
    saved_quota: Any

    @validate("quotas")
    def _quotas_that_can_be_read(self, proposal: Any) -> Any:
        if not callable(proposal["value"]):
            try:
                parse_quotas(proposal["value"])
            except ValueError as exc:
                raise TraitError(str(exc)) from None
        return proposal["value"]

    # What a spawner for some place knows of it

    def count_host(self) -> HostCapacity | None:
        """The host that a start would be on; None where something else decides what fits where."""
        return None

    async def capacity(self) -> list[HostCapacity]:
        """All hosts that desktops can start on, at most 10 s old."""
        return []

    async def ask_place(self, *, most_s: float) -> None:
        """Have what the next ones tell be up to date, which are asked often, if that takes no longer.

        Raises:
            QemuSpawnerError: Nothing is known of the place at all.
        """

    def find_partitions(self) -> tuple[OfferedPartition, ...] | None:
        """What of a cluster this user may choose from; None where there is none, or it never answered."""
        return None

    def find_reservations(self) -> tuple[OfferedReservation, ...]:
        return ()

    def find_gpu_models(self) -> dict[str, int]:
        """The most GPUs of each model that one desktop can have; none unless guests really get them."""
        return {}

    def find_gpu_devices(self, gpus: Gpus | None) -> tuple[str, ...]:  # noqa: ARG002 - of those that know
        """What a session may take for what it was promised; none where its host decides."""
        return ()

    # A start

    def look(self) -> Admission:
        """Quotas and host as they are now.

        Raises:
            QemuSpawnerError: The administrator's quotas cannot be read.
        """
        return Admission(rows=tuple(self._count_now()), host=self.count_host())

    def claim(self, options: Options) -> Options:
        """Promise this server's desktop what it needs; its options with the GPUs that it gets.

        Raises:
            ShortageError: It is not there, and nothing was promised.
            QemuSpawnerError: The administrator's quotas cannot be read.
        """
        now = self.look()
        need = Need(cpus=options.cpus, memory_mib=options.memory_mib, gpus=options.gpus)
        shortage = now.find_shortage(need)
        if shortage is not None:
            raise ShortageError(shortage)
        gpus = now.choose_gpus(need)
        self._promise = Promise(
            user=self.user.name,
            server=self.name,
            cpus=need.cpus,
            memory_mib=need.memory_mib,
            gpus=gpus,
            until=time.time() + options.lifetime_s,
        )
        return replace(options, gpus=gpus)

    async def check_disk(self, *, but: str = "") -> None:
        """Raises ShortageError where too much is kept for a new desktop; the session `but` does not count."""
        for row in await self._count_disk(but=but):
            if row.available <= 0:
                raise ShortageError(used_up(row))

    # What pages and programs are told

    async def count_quotas(self) -> list[Row]:
        """Every quota of this user and of their groups, the user's own first."""
        kinds = [kind.name for kind in KINDS]
        rows = [*self._count_now(), *await self._count_disk()]
        return sorted(rows, key=lambda row: (row.group, kinds.index(row.kind.name)))

    async def describe_quotas(self) -> list[ShownRow]:
        """The same for the hub's pages, which show none where they cannot be read."""
        try:
            return [show_row(row) for row in await self.count_quotas()]
        except QemuSpawnerError:
            return []

    @property
    def disk_quota_mib(self) -> int:
        """What this user's sleeping desktops and checkpoints may take; 0: no limit."""
        groups = [group.name for group in self.user.groups]
        try:
            return int(self.read_quotas().of_user(self.user.name, groups).get("disk", 0))
        except QemuSpawnerError:
            # Pages show it, and it refuses no start: those are refused already.
            return int(self.saved_quota)

    def read_quotas(self) -> Quotas:
        """Raises QemuSpawnerError where the administrator's function fails."""
        try:
            quotas = parse_quotas(self.quotas(self) if callable(self.quotas) else self.quotas)
        except Exception as exc:
            self.log.exception("The quotas cannot be read")
            raise QemuSpawnerError(
                Text("The quotas of this hub cannot be read."),
                hint=Text("Tell the administrator; the hub's log has the reason."),
            ) from exc
        return replace(quotas, user={"disk": self.saved_quota or None, **quotas.user})

    def _scopes(self) -> list[_Scope]:
        quotas = self.read_quotas()
        members = {group.name: {user.name for user in group.users} for group in self.user.groups}
        name, window_s = self.user.name, quotas.window_s
        own = _Scope(group="", members={name}, limits=quotas.of_user(name, members), window_s=window_s)
        return [
            own,
            *(
                _Scope(group=group, members=members[group], limits=limits, window_s=window_s)
                for group, limits in quotas.of_groups(members).items()
            ),
        ]

    def _count_now(self) -> list[Row]:
        """All quotas but the disk's, which takes time to look at."""
        promises = list_promises(self.user.settings["users"])
        rows = []
        for scope in self._scopes():
            held = tuple(promise for promise in promises if promise.user in scope.members)
            kinds = [kind for kind in KINDS if kind.name in scope.limits and kind.name != "disk"]
            hours = self._sum_hours(scope) if any(kind.is_hours for kind in kinds) else Hours()
            used_hours = {"cpu_hours": hours.cpu, "gpu_hours": hours.gpu}
            rows += [
                self._row(scope, kind, used=sum(map(kind.amount, held)), promises=held)
                if kind.amount is not None
                else self._row(scope, kind, used=used_hours[kind.name])
                for kind in kinds
            ]
        return rows

    def _sum_hours(self, scope: _Scope) -> Hours:
        try:
            return sum_hours(records_of(self.state_dir), users=scope.members, window_s=scope.window_s)
        except (SQLAlchemyError, OSError):
            # Desktops start also where nothing can be written down of them.
            self.log.exception("The hub's records cannot be read; quotas of hours do not count")
            return Hours()

    async def _count_disk(self, *, but: str = "") -> list[Row]:
        scopes = [scope for scope in self._scopes() if "disk" in scope.limits]
        if not scopes:
            return []
        (kind,) = (kind for kind in KINDS if kind.name == "disk")
        users = {member for scope in scopes for member in scope.members}
        used = await asyncio.to_thread(used_mib_by_user, StatePaths.of(self.state_dir), users, but=but)
        return [
            self._row(scope, kind, used=sum(used.get(member, 0) for member in scope.members))
            for scope in scopes
        ]

    def _row(self, scope: _Scope, kind: Kind, *, used: float, promises: tuple[Promise, ...] = ()) -> Row:
        return Row(
            kind=kind,
            user=self.user.name,
            group=scope.group,
            limit=scope.limits[kind.name],
            used=used,
            window_s=scope.window_s,
            promises=promises,
        )
