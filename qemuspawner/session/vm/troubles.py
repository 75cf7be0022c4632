"""What is wrong with a desktop at this moment, and what can be done; the worst of it is shown."""

from collections.abc import Callable
from dataclasses import dataclass

from qemuspawner.errors import SessionError
from qemuspawner.spec import Act, Trouble, TroubleKind
from qemuspawner.texts import Text

# What stops the machine comes before what only may.
_WORST_FIRST: tuple[TroubleKind, ...] = (
    *("no-storage", "disk-limit", "disk-full", "disk-error", "crashed", "silent"),
)
DISK: tuple[TroubleKind, ...] = ("disk-limit", "disk-full", "disk-error")


@dataclass(frozen=True, kw_only=True)
class Noted:
    """One of them."""

    trouble: Trouble
    message: str
    hint: str = ""


class Troubles:
    """Those that there are; `changed` is called whenever others are."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._noted: dict[TroubleKind, Noted] = {}

    @property
    def worst(self) -> Noted | None:
        return next((self._noted[kind] for kind in _WORST_FIRST if kind in self._noted), None)

    def note(self, kind: TroubleKind, message: str, hint: str = "", *, acts: tuple[Act, ...] = ()) -> None:
        noted = Noted(trouble=Trouble(kind=kind, acts=acts), message=message, hint=hint)
        if self._noted.get(kind) != noted:
            self._noted[kind] = noted
            self._changed()

    def clear(self, *kinds: TroubleKind) -> None:
        """They are over, or might be; without `kinds` all."""
        gone = [kind for kind in kinds or _WORST_FIRST if self._noted.pop(kind, None) is not None]
        if gone:
            self._changed()

    def check_act(self, act: Act) -> None:
        """Raise SessionError where that is not what can be done now."""
        if self.worst is None or act not in self.worst.trouble.acts:
            raise SessionError(Text("There is nothing that this would help against now."))
