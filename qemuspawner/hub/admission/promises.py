"""What desktops were promised when they started, for as long as they are there.

Kept by each server's spawner, in the state that JupyterHub stores: a hub that is restarted knows it too, and
nothing else has to be kept in step. What a desktop really uses may be less, and nobody else gets the rest.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from traitlets.config import LoggingConfigurable

from qemuspawner.spec import Gpus, SessionStatus

if TYPE_CHECKING:
    from jupyterhub.spawner import Spawner as _Below
else:
    _Below = LoggingConfigurable

_STATE_KEY = "promise"


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """What a desktop needs of its host and of the quotas."""

    cpus: int
    memory_mib: int  # the guest's own
    gpus: Gpus | None = None

    @property
    def gpu_count(self) -> int:
        return self.gpus.count if self.gpus else 0


class Promise(Need, frozen=True, kw_only=True):
    """What a desktop was promised, until it ends or falls asleep: Unix seconds by the hub's clock."""

    user: str
    server: str
    until: float
    where: str = ""  # of the hub's places; "" where it has one


class KeepsPromise(_Below):  # type: ignore[misc]
    """Part of `QemuSpawnerMixin`: what this server's desktop was promised, from its start to its end."""

    _promise: Promise | None = None
    # For a start that JupyterHub has yet to begin with.
    _claimed: Promise | None = None

    @property
    def promise(self) -> Promise | None:
        """None where nothing of this server runs, starts or stops."""
        # In this order: all servers are looked at for each start, and few of them have any.
        return self._claimed or (self._promise if self._promise is not None and self.active else None)

    def note_deadline(self, status: SessionStatus) -> None:
        """Its session has said until when it lasts; people extend it."""
        if self._promise is not None and status.deadline:
            # By our own clock: the session's host may have another.
            until = time.time() + status.deadline - status.now
            self._promise = msgspec.structs.replace(self._promise, until=until)

    def get_state(self) -> dict[str, object]:
        kept = {} if self._promise is None else {_STATE_KEY: msgspec.to_builtins(self._promise)}
        return {**super().get_state(), **kept}

    def load_state(self, state: Mapping[str, object]) -> None:
        super().load_state(state)
        self._promise = msgspec.convert(state[_STATE_KEY], Promise) if _STATE_KEY in state else None

    def clear_state(self) -> None:
        super().clear_state()
        self._promise = None


def list_promises(users: Mapping[Any, Any], kind: type[KeepsPromise] = KeepsPromise) -> list[Promise]:
    """What was promised to the servers of `users` (JupyterHub's table) with spawners of this kind."""
    spawners = [spawner for user in list(users.values()) for spawner in list(user.spawners.values())]
    found = [spawner.promise for spawner in spawners if isinstance(spawner, kind)]
    return [promise for promise in found if promise is not None]


def find_free_at(
    promises: Iterable[Promise], *, missing: float, amount: Callable[[Promise], float]
) -> float | None:
    """When so much will have come free at the latest; None where that is more than they hold.

    `amount` says how much of it a promise holds. A desktop may end sooner, and may also be extended.
    """
    for promise in sorted(promises, key=lambda promise: promise.until):
        missing -= amount(promise)
        if missing <= 0:
            return promise.until
    return None
