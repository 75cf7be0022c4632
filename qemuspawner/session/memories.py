"""The memories of templates, loaded once for all sessions that are forked from here."""

import contextlib
import itertools
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from qemuspawner.errors import VmError
from qemuspawner.forking import WantedTemplates
from qemuspawner.paths import SavedPaths, StatePaths
from qemuspawner.qemu.memory import load_memory
from qemuspawner.saved import Saved, list_saved, load_saved

log = logging.getLogger(__name__)

# Each takes what its guest used; sessions that run keep their own mapping of those that are closed here.
_MAX_LOADED = 8


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    descriptor: int
    digest: str
    size_bytes: int  # what it took when it was loaded

    @property
    def has_grown(self) -> bool:
        """Whether sessions have filled its holes: a QEMU that saves a clone reads all of its memory."""
        now = _size_bytes(self.descriptor)
        return now > self.size_bytes * 1.25 + (64 << 20)


class Memories:
    """Sealed memories, by the folder of their template."""

    def __init__(self) -> None:
        self._loaded: dict[Path, _Loaded] = {}  # the least recently used first

    def find(self, wanted: WantedTemplates) -> dict[str, int]:
        """Descriptors of all that may fit, by the template's name; they stay this object's.

        Which one does fit only the session can tell. What cannot be loaded is left out.
        """
        self._forget_changed()
        folder = StatePaths.of(wanted.state_dir).templates
        candidates = (saved for saved in list_saved(folder) if _may_fit(saved, wanted))
        found = {}
        for saved in itertools.islice(candidates, _MAX_LOADED):
            root = folder / saved.name
            try:
                found[saved.name] = self._get(root, saved)
            except VmError as exc:
                log.warning("%s cannot be loaded: %s", root, exc.text)
                continue
            # Templates that nobody uses are deleted, by this.
            with contextlib.suppress(OSError):
                os.utime(root)
        return found

    def _get(self, root: Path, saved: Saved) -> int:
        loaded = self._loaded.pop(root, None)
        if loaded is None:
            while len(self._loaded) >= _MAX_LOADED:
                self._forget(next(iter(self._loaded)))
            loaded = _load(root, saved)
        self._loaded[root] = loaded
        return loaded.descriptor

    def _forget_changed(self) -> None:
        for root, loaded in list(self._loaded.items()):
            saved = load_saved(root)
            if saved is None or _digest(saved) != loaded.digest or loaded.has_grown:
                self._forget(root)

    def _forget(self, root: Path) -> None:
        os.close(self._loaded.pop(root).descriptor)


def _may_fit(saved: Saved, wanted: WantedTemplates) -> bool:
    fits = (saved.machine_id, saved.fingerprint.cpus, saved.fingerprint.memory_mib)
    asked = (wanted.machine_id, wanted.cpus, wanted.memory_mib)
    return saved.kind == "template" and saved.memory == "mapped" and fits == asked


def _load(root: Path, saved: Saved) -> _Loaded:
    digest = _digest(saved)
    descriptor = load_memory(SavedPaths(root=root).memory, digest=digest)
    return _Loaded(descriptor=descriptor, digest=digest, size_bytes=_size_bytes(descriptor))


def _digest(saved: Saved) -> str:
    """Of the memory; "", which no memory has, where the manifest does not name it."""
    file = saved.files.get(SavedPaths(root=Path()).memory.name)
    return file.digest if file else ""


def _size_bytes(descriptor: int) -> int:
    return os.fstat(descriptor).st_blocks * 512
