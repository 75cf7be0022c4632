"""The memories of templates, loaded once for all sessions that are forked from here."""

import contextlib
import logging
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from qemuspawner.errors import VmError
from qemuspawner.forking import WantedTemplates
from qemuspawner.machines.templates import find_templates
from qemuspawner.paths import SavedPaths, StatePaths
from qemuspawner.qemu.memory import load_memory
from qemuspawner.saved import Saved, load_saved
from qemuspawner.units import render_mib

log = logging.getLogger(__name__)

# Each takes what its guest used; sessions that run keep their own mapping of those that are closed here.
_MAX_LOADED = 8
# All together, of the host's memory.
_MAX_SHARE = 1 / 4


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """What templates replace each other in: of all of a kind only the newest can still be wanted."""

    folder: Path  # of all templates
    machine_id: str
    cpus: int
    memory_mib: int
    accelerator: str  # two hubs that share the folder may differ in it


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    root: Path
    descriptor: int
    digest: str
    size_bytes: int  # what it took when it was loaded

    @property
    def has_grown(self) -> bool:
        """Whether sessions have filled its holes: a QEMU that saves a clone reads all of its memory."""
        return self.size_now > self.size_bytes * 1.25 + (64 << 20)

    @property
    def size_now(self) -> int:
        return _size_bytes(self.descriptor)


class Memories:
    """Sealed memories of the newest templates."""

    def __init__(self) -> None:
        self._loaded: dict[_Kind, _Loaded] = {}  # the least recently used first

    def find(self, wanted: WantedTemplates) -> dict[str, int]:
        """Descriptors of all that may fit, by the memory's digest; they stay this object's.

        Which one does fit only the session can tell; by the digest, as a template of the same name may have
        taken the place of one that was loaded. What cannot be loaded is left out.
        """
        self._forget_changed()
        state = StatePaths.of(wanted.state_dir)
        candidates = (saved for saved in find_templates(state) if _may_fit(saved, wanted))
        found: dict[_Kind, _Loaded] = {}
        for kind, saved in _newest(state.templates, candidates).items():
            root = state.templates / saved.name
            try:
                found[kind] = self._get(kind, root, saved, needed=found)
            except VmError as exc:
                log.warning("%s cannot be loaded: %s", root, exc.text)
                continue
            # Templates that nobody uses are deleted, by this.
            with contextlib.suppress(OSError):
                os.utime(root)
        return {loaded.digest: loaded.descriptor for loaded in found.values()}

    def _get(self, kind: _Kind, root: Path, saved: Saved, *, needed: Collection[_Kind]) -> _Loaded:
        loaded = self._loaded.get(kind)
        if loaded is not None and (loaded.root, loaded.digest) != (root, _digest(saved)):
            self._forget(kind)
            loaded = None
        if loaded is None:
            self._make_room(_size_on_disk(root), needed=needed)
            loaded = _load(root, saved)
        # To the end of the queue.
        self._loaded.pop(kind, None)
        self._loaded[kind] = loaded
        return loaded

    def _make_room(self, size_bytes: int, *, needed: Collection[_Kind]) -> None:
        """Close the least recently used, but nothing that is `needed`.

        Raises:
            VmError: It would be more than all may take; each session then loads its own copy.
        """
        allowed = int(_host_bytes() * _MAX_SHARE)
        spare = [kind for kind in self._loaded if kind not in needed]
        while len(self._loaded) >= _MAX_LOADED or self._size_bytes() + size_bytes > allowed:
            if not spare or size_bytes > allowed:
                raise VmError(f"Memories of templates may take {render_mib(allowed >> 20)} altogether.")
            self._forget(spare.pop(0))

    def _size_bytes(self) -> int:
        return sum(loaded.size_now for loaded in self._loaded.values())

    def _forget_changed(self) -> None:
        for kind, loaded in list(self._loaded.items()):
            saved = load_saved(loaded.root)
            if saved is None or _digest(saved) != loaded.digest or loaded.has_grown:
                self._forget(kind)

    def _forget(self, kind: _Kind) -> None:
        os.close(self._loaded.pop(kind).descriptor)


def _may_fit(saved: Saved, wanted: WantedTemplates) -> bool:
    fits = (saved.machine_id, saved.fingerprint.cpus, saved.fingerprint.memory_mib)
    asked = (wanted.machine_id, wanted.cpus, wanted.memory_mib)
    return saved.memory == "mapped" and fits == asked


def _newest(folder: Path, templates: Iterable[Saved]) -> dict[_Kind, Saved]:
    """The newest of each kind."""
    found: dict[_Kind, Saved] = {}
    for saved in sorted(templates, key=lambda saved: saved.saved_at):
        fits = saved.fingerprint
        kind = _Kind(
            folder=folder,
            machine_id=saved.machine_id,
            cpus=fits.cpus,
            memory_mib=fits.memory_mib,
            accelerator=fits.accelerator,
        )
        found[kind] = saved
    return found


def _load(root: Path, saved: Saved) -> _Loaded:
    digest = _digest(saved)
    descriptor = load_memory(SavedPaths(root=root).memory, digest=digest)
    return _Loaded(root=root, descriptor=descriptor, digest=digest, size_bytes=_size_bytes(descriptor))


def _digest(saved: Saved) -> str:
    """Of the memory; "", which no memory has, where the manifest does not name it."""
    file = saved.files.get(SavedPaths(root=Path()).memory.name)
    return file.digest if file else ""


def _size_bytes(descriptor: int) -> int:
    return os.fstat(descriptor).st_blocks * 512


def _size_on_disk(root: Path) -> int:
    """What the memory will take: it is as sparse there. 0 where it is missing, which loading it will say."""
    try:
        return SavedPaths(root=root).memory.lstat().st_blocks * 512
    except OSError:
        return 0


def _host_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
