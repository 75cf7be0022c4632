"""What is kept of desktops as the hub's pages show it: text and pictures, no moments and no paths."""

import time
from dataclasses import dataclass

from jupyterhub.utils import url_path_join

from qemuspawner.hub.desktops.kept import Kept
from qemuspawner.saved import Saved
from qemuspawner.units import render_mib, render_seconds, render_size

# Said with more weight from then on.
_EXPIRES_SOON_S = 2 * 86400
# A clock that was set back, or a manifest that lies, is no reason for a page to fail.
_LONGEST_S = 100 * 365 * 86400


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A suspended desktop, or a checkpoint."""

    name: str
    title: str
    automatic: bool
    machine: str
    resources: str  # "2 CPUs, 4 GiB"
    age: str  # "3 h 10 min"
    expires_in: str  # "" where it never does
    expires_soon: bool
    disk: str
    picture: str  # its URL
    is_lost: bool  # the memory is gone, the disk is kept
    problem: str


@dataclass(frozen=True, kw_only=True)
class ShownDesktop:
    """What is kept of one server."""

    session_id: str
    server_name: str
    suspended: Shown | None
    checkpoints: list[Shown]

    @property
    def wakes_by_itself(self) -> bool:
        """Whether opening its link is enough: nothing is lost by it, and it has not failed before."""
        return self.suspended is not None and not self.suspended.is_lost and not self.suspended.problem


class Pictures:
    """Where the pictures of a user's saved VMs are, for a page to load those that are in view."""

    def __init__(self, *, base_url: str, escaped_user: str) -> None:
        self._url = url_path_join(base_url, "api/users", escaped_user, "saved")

    def find(self, session_id: str, saved: Saved) -> str:
        return f"{self._url}/{session_id}/{saved.name}/picture"


def show_kept(kept: Kept, pictures: Pictures) -> ShownDesktop:
    """What the form and the page of a desktop that is not running show of it."""
    suspended = show_saved(kept.session_id, kept.suspended, pictures) if kept.suspended else None
    return ShownDesktop(
        session_id=kept.session_id,
        server_name=kept.server_name,
        suspended=suspended,
        checkpoints=[show_saved(kept.session_id, saved, pictures) for saved in kept.checkpoints],
    )


def show_saved(session_id: str, saved: Saved, pictures: Pictures) -> Shown:
    spec = saved.spec
    now = time.time()
    left_s = saved.expires - now
    return Shown(
        name=saved.name,
        title=saved.title,
        automatic=saved.automatic,
        machine=spec.machine.name if spec else "",
        resources=render_size(cpus=spec.cpus, memory_mib=spec.memory_mib) if spec else "",
        age=_render(now - saved.saved_at),
        expires_in=_render(left_s) if saved.expires else "",
        expires_soon=bool(saved.expires) and left_s < _EXPIRES_SOON_S,
        disk=render_mib(max(1, saved.size_bytes >> 20)),
        picture=pictures.find(session_id, saved),
        is_lost=saved.memory == "lost",
        problem=saved.problem,
    )


def _render(duration_s: float) -> str:
    """As exact as is of interest: nobody counts the seconds of a day."""
    bounded_s = min(max(duration_s, 0), _LONGEST_S)
    exact_s = 3600 if bounded_s >= 86400 else 60 if bounded_s >= 60 else 1
    return render_seconds(bounded_s // exact_s * exact_s)
