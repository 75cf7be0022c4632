"""Admission: whether a desktop is within the quotas and fits on its host; else why not, and when it will."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from qemuspawner.errors import QemuSpawnerError
from qemuspawner.hub.admission.capacity import HostCapacity, needed_mib
from qemuspawner.hub.admission.promises import Need, find_free_at
from qemuspawner.hub.admission.quotas import Row
from qemuspawner.hub.form.fields import quote, show
from qemuspawner.spec import Gpus
from qemuspawner.texts import Text, join_sentences
from qemuspawner.units import render_mib, render_seconds


@dataclass(frozen=True, kw_only=True)
class Shortage:
    """Why a desktop cannot start now."""

    reason: str  # "quota" or "capacity"
    field: str  # the option that would have to be another one
    message: str
    hint: str
    free_at: float | None = None  # Unix seconds; None where nobody knows, or never

    @property
    def text(self) -> str:
        return join_sentences(self.message, self.hint)


class ShortageError(QemuSpawnerError):
    """A desktop cannot start now."""

    def __init__(self, shortage: Shortage) -> None:
        super().__init__(shortage.message, hint=shortage.hint)
        self.shortage = shortage


@dataclass(frozen=True, kw_only=True)
class Admission:
    """Quotas and a host at one moment: to be asked as often as a form has choices."""

    rows: tuple[Row, ...] = ()
    host: HostCapacity | None = None  # None: where there is room this hub does not decide

    def find_shortage(self, need: Need) -> Shortage | None:
        """What a desktop that needs so much lacks; None where it can start."""
        shortages = (_exceed(row, need) for row in self.rows)
        found = next((shortage for shortage in shortages if shortage is not None), None)
        return _lack(self.host, need) if found is None and self.host is not None else found

    def choose_gpus(self, need: Need) -> Gpus | None:
        """Those of one model that a desktop gets which may have any: of the model that has the most free."""
        if need.gpus is None or need.gpus.model or self.host is None:
            return need.gpus
        units = self.host.gpus
        return Gpus(model=max(sorted(units), key=lambda model: units[model].free), count=need.gpus.count)


def _exceed(row: Row, need: Need) -> Shortage | None:
    """Why a desktop that needs so much would be beyond a quota."""
    kind = row.kind
    if kind.amount is None:
        counts = need.gpus is not None or kind.name != "gpu_hours"
        # How long it will last nobody knows: it may start while anything is left.
        return used_up(row) if counts and row.available <= 0 else None
    asked = kind.amount(need)
    if asked == 0 or row.used + asked <= row.limit:
        return None
    quota, owner, used = quote(kind.label), _owner(row), _used(row)
    free_at = row.free_at(asked)
    return Shortage(
        reason="quota",
        field=kind.field,
        message=Text(
            "Quota {quota} of {owner}: {used}; 1 more was asked for.", quota=quota, owner=owner, used=used
        )
        if asked == 1
        else Text(
            "Quota {quota} of {owner}: {used}; {asked} more were asked for.",
            quota=quota,
            owner=owner,
            used=used,
            asked=kind.render(asked),
        ),
        hint=join_sentences(
            Text("It is used by {users}.", users=row.used_by) if row.used_by else "",
            _when(free_at) or Text("Ask for less, or the administrator for more."),
        ),
        free_at=free_at,
    )


def used_up(row: Row) -> Shortage:
    """Nothing is left of a quota."""
    hints = {
        "disk": Text("Delete some of them on the hub's home page, or wake one of them."),
        "cpu_hours": Text("What was used longer ago does not count; more the administrator can give."),
        "gpu_hours": Text("Start it without a GPU, or ask the administrator for more."),
    }
    quota, owner, used = quote(row.kind.label), _owner(row), _used(row)
    return Shortage(
        reason="quota",
        field=row.kind.field,
        message=Text(
            "Quota {quota} of {owner}: {used} within {window}.",
            quota=quota,
            owner=owner,
            used=used,
            window=render_seconds(row.window_s),
        )
        if row.kind.is_hours
        else Text("Quota {quota} of {owner}: {used}.", quota=quota, owner=owner, used=used),
        hint=hints[row.kind.name],
    )


def _owner(row: Row) -> Text:
    return Text("the group {group}", group=show(row.group)) if row.group else show(row.user)


def _used(row: Row) -> Text:
    render = row.kind.render
    return Text("{used} of {limit} are used", used=render(row.used), limit=render(row.limit))


def _lack(host: HostCapacity, need: Need) -> Shortage | None:
    """Why a desktop that needs so much does not fit on a host."""
    memory, needed = host.memory_mib, needed_mib(need.memory_mib)
    if needed > memory.free:
        return _missing(
            host,
            "memory",
            Text(
                "This host has {free} of memory free; the desktop needs {needed}.",
                free=render_mib(memory.free),
                needed=render_mib(needed),
            )
            if needed <= memory.total
            else Text(
                "This host has {total} of memory for desktops in all; the desktop needs {needed}.",
                total=render_mib(memory.total),
                needed=render_mib(needed),
            ),
            missing=needed - memory.free,
            amount=lambda one: needed_mib(one.memory_mib),
        )
    cpus = host.cpus
    if cpus is not None and need.cpus > cpus.free:
        return _missing(
            host,
            "cpus",
            Text(
                "This host has {free} CPUs free; the desktop needs {needed}.",
                free=cpus.free,
                needed=need.cpus,
            )
            if need.cpus <= cpus.total
            else Text(
                "This host has {total} CPUs for desktops; the desktop needs {needed}.",
                total=cpus.total,
                needed=need.cpus,
            ),
            missing=need.cpus - cpus.free,
            amount=lambda one: one.cpus,
        )
    return _lack_gpus(host, need.gpus) if need.gpus is not None else None


def _lack_gpus(host: HostCapacity, need: Gpus) -> Shortage | None:
    units = {model: one for model, one in host.gpus.items() if need.model in ("", model)}
    if any(need.count <= one.free for one in units.values()):
        return None
    if need.model and need.model in units:
        one = units[need.model]
        message = Text(
            "This host has {free} of {total} GPUs {model} free; the desktop needs {needed}.",
            free=one.free,
            total=one.total,
            model=show(need.model),
            needed=need.count,
        )
    elif need.model:
        message = Text(
            "This host does not have {needed} GPUs {model} free.", needed=need.count, model=show(need.model)
        )
    else:
        message = Text("This host does not have {needed} GPUs of one model free.", needed=need.count)
    found = [
        _missing_gpus(host, model, message, missing=need.count - one.free) for model, one in units.items()
    ]
    nothing = Shortage(
        reason="capacity", field="gpu", message=message, hint=Text("Choose another one, or none.")
    )
    return min(found or [nothing], key=lambda shortage: shortage.free_at or float("inf"))


def _missing_gpus(host: HostCapacity, model: str, message: str, *, missing: float) -> Shortage:
    def amount(promise: Need) -> int:
        return promise.gpu_count if promise.gpus is not None and promise.gpus.model == model else 0

    return _missing(host, "gpu", message, missing=missing, amount=amount)


def _missing(
    host: HostCapacity, field: str, message: str, *, missing: float, amount: Callable[[Need], float]
) -> Shortage:
    free_at = find_free_at(host.promises, missing=missing, amount=amount)
    return Shortage(
        reason="capacity",
        field=field,
        message=message,
        hint=_when(free_at) or Text("Choose less."),
        free_at=free_at,
    )


def _when(free_at: float | None) -> str:
    if free_at is None:
        return ""
    left = render_seconds(60 * max(1, math.ceil((free_at - time.time()) / 60)))
    return Text(
        "Unless desktops are extended, enough is free in {left}; choose less, or try again then.", left=left
    )
