"""What a run left behind whose host was lost: its disk, kept by whoever comes to its directory next."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from msgspec import structs

from qemuspawner.errors import VmError
from qemuspawner.paths import SavedPaths, SessionPaths
from qemuspawner.qemu.saving import collect_disks, copy_from_qemu, size_only
from qemuspawner.qemu.tpm import STATE_FILE
from qemuspawner.saved import (
    Fingerprint,
    Saved,
    delete_saved,
    disk_usage,
    list_saved,
    load_saved,
    write_manifest,
)
from qemuspawner.spec import SessionSpec

log = logging.getLogger(__name__)


def note_left(paths: SessionPaths, spec: SessionSpec, fingerprint: Fingerprint) -> None:
    """Say what the disk in the run's directory is, for the case that nobody lives to say it later.

    Raises:
        OSError: Such as a full disk.
    """
    left = Saved(
        kind="suspended",
        name="",
        saved_at=time.time(),
        fingerprint=fingerprint,
        memory="lost",
        layers=0,
        files={},
        size_bytes=0,
        machine_id=spec.machine.id,
        spec=structs.replace(spec, sleeping="wake", branch=""),
    )
    write_manifest(paths.root, left)


def keep_left(paths: SessionPaths) -> None:
    """Keep the disk of a run that has said so and is gone; the caller has the directory."""
    left = load_saved(paths.root)
    if left is None or left.spec is None:
        return
    disks = _find_disks(paths)
    asleep = (saved for saved in list_saved(paths.saved) if saved.kind == "suspended")
    if not disks or any(saved.saved_at > left.saved_at for saved in asleep):
        # It had fallen asleep, and was lost on its way out.
        return
    now = time.time()
    folder = SavedPaths(root=paths.saved / f"{time.time_ns() // 1_000_000:x}")
    try:
        folder.root.mkdir(mode=0o700, parents=True)
        *frozen, written = disks
        files = collect_disks(folder, frozen, paths.firmware_vars, paths.tpm / STATE_FILE)
        # A copy: the host that is taken for lost may have this one open, and may write what it had begun.
        top = folder.layer(len(frozen))
        copy_from_qemu(written, top)
        files[top.name] = size_only(top)
        saved = structs.replace(
            left,
            name=folder.root.name,
            saved_at=now,
            expires=now + left.spec.keep_s if left.spec.keep_s else 0,
            layers=len(disks),
            files=files,
            size_bytes=disk_usage(folder.root),
        )
        write_manifest(folder.root, saved)
    except (OSError, VmError) as exc:
        log.warning("Session %s: the disk that was left cannot be kept: %s", paths.root.name, exc)
        delete_saved(folder.root)


def _find_disks(paths: SessionPaths) -> Sequence[Path]:
    """Every qcow2 above the base image, the one that was written to last."""
    disks: list[Path] = []
    while True:
        name = paths.overlay(len(disks)).name
        found = [folder / name for folder in (paths.layers, paths.vm) if (folder / name).exists()]
        if not found:
            return disks
        disks.append(found[0])
