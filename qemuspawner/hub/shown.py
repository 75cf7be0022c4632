"""What is kept of desktops as the hub's pages show it: text and pictures, no moments and no paths."""

import base64
import time
from dataclasses import dataclass

from qemuspawner.hub.kept import Kept, load_picture
from qemuspawner.paths import StatePaths
from qemuspawner.saved import Saved
from qemuspawner.units import render_mib, render_seconds

# Said with more weight from then on.
_EXPIRES_SOON_S = 2 * 86400
# A page with many pictures has to load all the same.
_MAX_PICTURES_BYTES = 4 * 1024 * 1024
# Of a desktop's checkpoints, the newest.
_MAX_PICTURED = 4
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
    picture: str  # a data: URI, or ""
    is_lost: bool  # the memory is gone, the disk is kept
    problem: str


@dataclass(frozen=True, kw_only=True)
class ShownDesktop:
    """What is kept of one server."""

    session_id: str
    server_name: str
    suspended: Shown | None
    checkpoints: list[Shown]
    is_active: bool = False

    @property
    def sleeps(self) -> bool:
        return self.suspended is not None and not self.is_active

    @property
    def wakes_by_itself(self) -> bool:
        """Whether opening its link is enough: nothing is lost by it, and it has not failed before."""
        return self.suspended is not None and not self.suspended.is_lost and not self.suspended.problem


@dataclass(frozen=True, kw_only=True)
class ShownDesktops:
    """All of a user's."""

    desktops: list[ShownDesktop]
    used: str
    quota: str  # "" where there is no limit
    is_full: bool


class Pictures:
    """The pictures of one page, as long as they are not too much."""

    def __init__(self, state: StatePaths) -> None:
        self._state = state
        self._left = _MAX_PICTURES_BYTES

    def find(self, session_id: str, saved: Saved) -> str:
        picture = load_picture(self._state.session(session_id), saved.name)
        if not picture or len(picture) > self._left:
            return ""
        self._left -= len(picture)
        return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def show_kept(kept: Kept, pictures: Pictures, *, is_active: bool = False) -> ShownDesktop:
    """It reads pictures, so not on an event loop."""
    suspended = show_saved(kept.session_id, kept.suspended, pictures) if kept.suspended else None
    return ShownDesktop(
        session_id=kept.session_id,
        server_name=kept.server_name,
        suspended=suspended,
        checkpoints=[
            show_saved(kept.session_id, saved, pictures if number < _MAX_PICTURED else None)
            for number, saved in enumerate(kept.checkpoints)
        ],
        is_active=is_active,
    )


def show_saved(session_id: str, saved: Saved, pictures: Pictures | None) -> Shown:
    spec = saved.spec
    now = time.time()
    left_s = saved.expires - now
    return Shown(
        name=saved.name,
        title=saved.title,
        automatic=saved.automatic,
        machine=spec.machine.name if spec else "",
        resources=f"{spec.cpus} CPU{'s' * (spec.cpus != 1)}, {render_mib(spec.memory_mib)}" if spec else "",
        age=_render(now - saved.saved_at),
        expires_in=_render(left_s) if saved.expires else "",
        expires_soon=bool(saved.expires) and left_s < _EXPIRES_SOON_S,
        disk=render_mib(max(1, saved.size_bytes >> 20)),
        picture=pictures.find(session_id, saved) if pictures else "",
        is_lost=saved.memory == "lost",
        problem=saved.problem,
    )


def _render(duration_s: float) -> str:
    """As exact as is of interest: nobody counts the seconds of a day."""
    bounded_s = min(max(duration_s, 0), _LONGEST_S)
    exact_s = 3600 if bounded_s >= 86400 else 60 if bounded_s >= 60 else 1
    return render_seconds(bounded_s // exact_s * exact_s)
