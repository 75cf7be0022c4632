"""All desktops of a user as the hub's home page shows them, each a card whatever its state.

Spans instead of moments: a page's clock need not agree with the hub's. No path of the host is in it.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from jupyterhub.utils import url_escape_path, url_path_join
from traitlets.config import LoggingConfigurable

from qemuspawner.hub.desktops.kept import Kept, list_kept
from qemuspawner.hub.desktops.shown import Pictures
from qemuspawner.hub.runs.runs import LastRun, last_runs
from qemuspawner.hub.sessions.running import describe_running
from qemuspawner.paths import StatePaths, session_id
from qemuspawner.saved import Saved, used_mib
from qemuspawner.spec import ChosenProposal, SessionSpec
from qemuspawner.units import render_mib, render_size

# A clock that was set back, or a manifest that lies, is no reason for a page to fail.
_LONGEST_S = 100 * 365 * 86400
# What is open comes first.
_ORDER = ("running", "starting", "stopping", "asleep", "off")


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What files and records say of a user's desktops."""

    kept: Mapping[str, Kept]
    used_mib: int
    runs: Mapping[str, LastRun]  # by session


class ShowsCards(LoggingConfigurable):
    """Part of `QemuSpawnerMixin`: the cards of its user's desktops."""

    user: Any
    hub: Any
    orm_spawner: Any
    disk_quota_mib: Any
    records: Any
    state_dir: Any

    async def desktop_cards(self, *, ask: bool = False) -> dict[str, Any]:
        """The cards; with `ask` also what the sessions that run say, who may be slow to answer."""
        user = self.user
        found = await asyncio.to_thread(self._find)
        running, silent = {}, 0
        if ask:
            described = await describe_running(list(user.spawners.values()))
            running = {desktop["server"]: desktop for desktop in described["desktops"]}
            silent = described["silent"]
        names = {"", *user.orm_spawners, *found.kept}
        cards = [self._card(name, found, running.get(name)) for name in names]
        cards.sort(key=lambda card: (_ORDER.index(card["state"]), card["server"]))
        return {
            "cards": cards,
            "silent": silent,
            "used": render_mib(found.used_mib) if found.kept else "",
            "quota": render_mib(self.disk_quota_mib) if self.disk_quota_mib else "",
            "is_full": 0 < self.disk_quota_mib <= found.used_mib,
        }

    @property
    def pictures(self) -> Pictures:
        return Pictures(base_url=self.hub.base_url, escaped_user=self.user.escaped_name)

    @property
    def elapsed_s(self) -> int:
        """Since JupyterHub began with this start."""
        return _since(_unix(self.orm_spawner.started)) or 0

    def _find(self) -> _Found:
        """In a thread: it reads files, and not the hub's database."""
        state, user = StatePaths.of(self.state_dir), self.user.name
        return _Found(
            kept={kept.server_name: kept for kept in list_kept(state, user)},
            used_mib=used_mib(state, user),
            runs=last_runs(self.records, user),
        )

    def _card(self, name: str, found: _Found, running: dict[str, Any] | None) -> dict[str, Any]:
        user = self.user
        server = user.orm_spawners.get(name)
        spawner = user.spawners.get(name)
        options = _as_dict(server.user_options if server is not None else None)
        kept = found.kept.get(name)
        suspended = kept.suspended if kept else None
        run = found.runs.get(session_id(user.name, name))
        state = _state_of(spawner, suspended)
        if state == "running" and run is not None and run.ended is not None:
            # Its session has said goodbye, and the hub looks for its process every few seconds only.
            state, running = "stopping", None
        # JupyterHub's own name for a server is its name in URLs, where nobody gave it another one.
        title = _text(options.get("name")) or _text(server.display_name if server is not None else None)
        spec = suspended.spec if suspended else None
        return {
            "server": name,
            "title": title if title != name else "",
            "notes": _text(options.get("notes")),
            "state": state,
            "is_known": server is not None,
            "is_paused": spawner is not None and bool(spawner.active and spawner.is_paused),
            "is_ready": spawner is not None and bool(spawner.ready),
            "can_repeat": bool(options.get("machine")),
            "url": url_path_join(user.url, url_escape_path(name), "/"),
            "form_url": url_path_join(
                self.hub.base_url, "spawn", user.escaped_name, url_escape_path(name)
            ).rstrip("/"),
            "machine": (spec.machine.name if spec else "") or (run.machine_name if run else ""),
            "resources": _render_size(spec or run),
            "proposal": _proposal_of(spawner, spec or run, options),
            "created_s": _since(run.first_started if run else None),
            "used_s": _since(_unix(server.last_activity if server is not None else None)),
            "end": _describe_end(run) if state in ("asleep", "off") else None,
            "running": running,
            "session": kept.session_id if kept else "",
            "suspended": self._describe(kept, suspended) if kept and suspended else None,
            "checkpoints": [self._describe(kept, one) for one in kept.checkpoints] if kept else [],
        }

    def _describe(self, kept: Kept, saved: Saved) -> dict[str, object]:
        return {
            "name": saved.name,
            "title": saved.title,
            "automatic": saved.automatic,
            "machine": saved.spec.machine.name if saved.spec else "",
            "machine_id": saved.machine_id,
            "resources": _render_size(saved.spec),
            "proposal": _describe_proposal(saved.spec.proposal) if saved.spec else None,
            "disk": render_mib(max(1, saved.size_bytes >> 20)),
            "saved_s": _since(saved.saved_at),
            "expires_s": _bounded(saved.expires - time.time()) if saved.expires else None,
            "is_lost": saved.memory == "lost",
            "problem": saved.problem,
            "picture": self.pictures.find(kept.session_id, saved),
        }


def _state_of(spawner: Any, suspended: Saved | None) -> str:
    if spawner is not None and spawner.active:
        if spawner.pending == "stop":
            return "stopping"
        return "running" if spawner.ready else "starting"
    return "asleep" if suspended else "off"


def _describe_end(run: LastRun | None) -> dict[str, object] | None:
    if run is None or run.ended is None:
        return None
    return {"why": run.end, "failed": run.ready is None, "ago_s": _since(run.ended)}


def _proposal_of(
    spawner: Any, known: SessionSpec | LastRun | None, options: Mapping[str, object]
) -> dict[str, str] | None:
    """The proposal of a desktop that runs, or of the last time that it did: as its session was told."""
    if spawner is not None and spawner.active:
        chosen: dict[str, str] | None = spawner.on_proposal["proposal"]
        return chosen
    if isinstance(known, SessionSpec) or (known is not None and known.proposal is not None):
        return _describe_proposal(known.proposal)
    # It has not run, or on none as far as is written down. What a start would be on has no title here.
    proposal_id = _text(options.get("proposal"))
    return {"id": proposal_id, "title": ""} if proposal_id else None


def _describe_proposal(proposal: ChosenProposal | None) -> dict[str, str] | None:
    return {"id": proposal.id, "title": proposal.title} if proposal else None


def _render_size(size: Any) -> str:
    """As "2 CPUs, 4 GiB"; "" of nothing."""
    return "" if size is None else render_size(cpus=size.cpus, memory_mib=size.memory_mib)


def _unix(moment: datetime | None) -> float | None:
    """JupyterHub's moments are UTC without a zone."""
    return None if moment is None else moment.replace(tzinfo=UTC).timestamp()


def _since(unix: float | None) -> int | None:
    return None if unix is None else _bounded(time.time() - unix)


def _bounded(seconds: float) -> int:
    return round(min(max(seconds, 0), _LONGEST_S))


def _as_dict(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    """Options that JupyterHub stored without a start were checked by nobody."""
    return value[:500] if isinstance(value, str) else ""
