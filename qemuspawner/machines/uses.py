"""Who needs a machine: desktops that run, and what is kept of others."""

import contextlib
import functools
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qemuspawner.errors import SessionError
from qemuspawner.locks import find_holder
from qemuspawner.machines.templates import find_templates
from qemuspawner.paths import SessionPaths, StatePaths
from qemuspawner.saved import list_saved
from qemuspawner.spec import SessionSpec
from qemuspawner.texts import Text

_MAX_SPEC_BYTES = 1 << 20
_MAX_NAMED = 5


@dataclass(kw_only=True)
class Uses:
    """Of one machine: its desktops as "alice" or "alice/desk", and the names of its templates."""

    running: list[str]
    asleep: list[str]
    checkpoints: list[str]
    templates: list[str]

    def sentence(self) -> str:
        """Whose work would be lost with the machine; "" where it is nobody's. Templates are nobody's."""
        said = []
        if self.running:
            said.append(Text("running: {names}", names=_list_some(self.running)))
        if self.asleep:
            said.append(Text("asleep: {names}", names=_list_some(self.asleep)))
        if self.checkpoints:
            said.append(Text("with checkpoints: {names}", names=_list_some(self.checkpoints)))
        return (
            functools.reduce(lambda some, one: Text("{some}; {one}", some=some, one=one), said)
            if said
            else ""
        )


def _list_some(names: Sequence[str]) -> str:
    some, others = ", ".join(names[:_MAX_NAMED]), len(names) - _MAX_NAMED
    return Text("{names} and {count} others", names=some, count=others) if others > 0 else some


def find_uses(
    state: StatePaths, *, find_owner: Callable[[SessionPaths], int | None] | None = None
) -> dict[str, Uses]:
    """By the machine's id, as far as this account may look.

    `find_owner` says whose session it is; the hub has its own, as it locks some itself.
    """
    uses: dict[str, Uses] = {}

    def of(machine_id: str) -> Uses:
        return uses.setdefault(machine_id, Uses(running=[], asleep=[], checkpoints=[], templates=[]))

    for root in session_folders(state.sessions):
        paths = SessionPaths(root=root)
        holder = find_owner(paths) if find_owner is not None else find_holder(paths.lock)
        if holder is not None:
            # ValueError: a file's name, which anybody may have written, may hold a NUL.
            with contextlib.suppress(OSError, SessionError, ValueError):
                spec, _ = load_spec(paths.spec)
                of(spec.machine.id).running.append(_name(spec))
        for saved in list_saved(paths.saved):
            if saved.spec is None:
                continue
            one = of(saved.spec.machine.id)
            names = one.asleep if saved.kind == "suspended" else one.checkpoints
            # What runs may still have the copy that it woke from.
            if _name(saved.spec) not in names:
                names.append(_name(saved.spec))
    for template in find_templates(state):
        of(template.machine_id).templates.append(template.name)
    return uses


def load_spec(path: Path) -> tuple[SessionSpec, float]:
    """A session's specification, and when it was written; its folder is another account's than ours.

    Raises:
        OSError, SessionError, ValueError: It cannot be read or understood.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        content = file.read(_MAX_SPEC_BYTES) if stat.S_ISREG(status.st_mode) else b""
    return SessionSpec.from_json(content), status.st_mtime


def session_folders(sessions: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(entry for entry in sessions.iterdir() if not entry.name.startswith("."))
    return []


def _name(spec: SessionSpec) -> str:
    return f"{spec.user}/{spec.server_name}" if spec.server_name else spec.user
