"""Saved VMs written down, for tests of the hub that only shows and deletes them."""

import os
import pwd
import time
from pathlib import Path
from typing import Any

import hubs
from msgspec import structs

from qemuspawner.machine import Image, Machine
from qemuspawner.paths import SavedPaths, SessionPaths, StatePaths, session_id
from qemuspawner.saved import Fingerprint, Saved, write_manifest
from qemuspawner.spec import ChosenProposal, SessionSpec

PICTURE = b"\x89PNG\r\n\x1a\n" + b"picture"

FINGERPRINT = Fingerprint(
    qemu="7.2", accelerator="tcg", cpu="max", machine="", image="", cpus=1, memory_mib=128
)


def paths_of(state: Path, user: str, server: str = "") -> SessionPaths:
    return StatePaths(root=state).session(session_id(user, server))


def keep(
    hub: hubs.Hub,
    user: str,
    server: str = "",
    *,
    name: str = "19a0000000",
    kind: str = "suspended",
    machine: dict[str, Any] | None = None,
    size: int = 1,
    proposal: ChosenProposal | None = None,
    **more: Any,
) -> SavedPaths:
    """Put a saved VM there as a session would have left it, with `size` MiB on the disk."""
    paths = paths_of(hub.state_dir, user, server)
    folder = SavedPaths(root=paths.saved / name)
    folder.root.mkdir(parents=True)
    paths.root.chmod(0o700)
    paths.lock.touch(0o600)
    folder.picture.write_bytes(PICTURE)
    folder.state.write_bytes(os.urandom(size << 20))
    image = Image(file=str(hub.state_dir / "images/mini/disk.raw"), format="raw")
    spec = SessionSpec(
        session_id=paths.root.name,
        user=user,
        server_name=server,
        state_dir=str(hub.state_dir),
        machine=Machine(**{"id": "mini", "name": "Mini", "image": image, **(machine or {})}),
        cpus=1,
        memory_mib=128,
        lifetime_s=1800,
        max_lifetime_s=3600,
        proposal=proposal,
    )
    saved = Saved(
        kind=kind,  # type: ignore[arg-type]
        name=name,
        saved_at=time.time() - 7200,
        expires=time.time() + 10 * 86400,
        fingerprint=FINGERPRINT,
        memory="streamed",
        layers=1,
        files={},
        size_bytes=size << 20,
        machine_id="mini",
        spec=spec,
    )
    write_manifest(folder.root, structs.replace(saved, **more))
    for path in (paths.root.parent, paths.root, paths.saved, folder.root, *folder.root.iterdir(), paths.lock):
        give(path)
    paths.root.parent.chmod(0o711)
    return folder


def give(path: Path) -> None:
    """To the sessions' account."""
    if account := hubs.sessions_account():
        owner = pwd.getpwnam(account)
        os.chown(path, owner.pw_uid, owner.pw_gid)
