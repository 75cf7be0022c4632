"""What stays of a user's desktops while they do not run: how long, how much, and for whom."""

import asyncio
from collections.abc import Collection
from dataclasses import replace
from typing import Any, ClassVar

from jupyterhub.scopes import has_scope
from sqlalchemy import inspect
from traitlets import Enum, Integer, List, Unicode, Union

from qemuspawner import paths, scopes
from qemuspawner.hub.admission.deletions import being_deleted
from qemuspawner.hub.catalogue.offers import OffersMachines
from qemuspawner.hub.desktops.cards import ShowsCards
from qemuspawner.hub.desktops.kept import Kept, Sweeper, delete_all, delete_kept, list_kept, load_kept
from qemuspawner.hub.desktops.shown import ShownDesktop, show_kept
from qemuspawner.hub.runs.advice import Advice, give_advice
from qemuspawner.hub.runs.runs import KeepsRuns
from qemuspawner.saved import used_mib


class KeepsDesktops(ShowsCards, OffersMachines, KeepsRuns):
    """Part of `QemuSpawnerMixin`: what is kept of its user's desktops. The hub's templates call some."""

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
    max_checkpoints = Integer(10, min=0, help="How many checkpoints a desktop may have.").tag(config=True)

    name: Any
    orm_spawner: Any

    _sweeper: ClassVar[Sweeper] = Sweeper()

    @property
    def session_id(self) -> str:
        return paths.session_id(self.user.name, self.name)

    @property
    def _database(self) -> Any:
        """The hub's session of SQLAlchemy; `Spawner.db` is deprecated."""
        return inspect(self.orm_spawner).session

    def _find_kept(self, server_name: str) -> Kept:
        """What is kept of a server of this user, and is not running."""
        return load_kept(self._state_paths, user=self.user.name, server_name=server_name)

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
        with being_deleted(self.user.name, self.name):
            await self._delete_all_kept()

    async def _delete_all_kept(self) -> None:
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
        catalogue = self._catalogue().machines if any(card["suspended"] for card in found["cards"]) else {}
        for card in found["cards"]:
            if card["suspended"]:
                machine = catalogue.get(card["suspended"]["machine_id"])
                card["suspended"]["can_download"] = machine is not None and machine.download
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
                run.usage,
                cpus=run.cpus,
                memory_mib=run.memory_mib,
                gpus=run.promised_gpus,
                machine=machines.get(run.machine),
            )
            for name, run in runs.items()
            if run.usage is not None
        }
        return {name: advice for name, advice in found.items() if advice is not None}
