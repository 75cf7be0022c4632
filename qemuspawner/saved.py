"""What is known of a saved VM: the manifest in its folder, and what else lies there.

A template, a suspended session and a checkpoint are the same thing, a VM saved with its memory; the hub reads
their manifests, sessions and the administrator's command write them.
"""

import contextlib
import logging
import os
import shutil
import stat
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from qemuspawner.machine import decode_unit, encode_unit
from qemuspawner.paths import SavedPaths, SessionPaths, StatePaths
from qemuspawner.spec import ScriptRun, SessionSpec
from qemuspawner.texts import Sentence, Text, pack, unpack

log = logging.getLogger(__name__)

# Counts up when folders of older versions cannot be used any more.
FORMAT = 2

_MAX_MANIFEST_BYTES = 1024 * 1024


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a saved VM depends on; with any difference it cannot be restored."""

    format: int = FORMAT
    qemu: str  # its version, with the distribution's part
    accelerator: str
    cpu: str  # QEMU's CPU model; with KVM also what the host's own is
    machine: str  # digest of what the guest sees of QEMU's command line
    image: str  # the base image's identity
    cpus: int
    memory_mib: int

    def differences(self, now: "Fingerprint") -> list[str]:
        """What has changed since, each as half a sentence."""
        found: list[str] = []
        if self.format != now.format:
            found.append(Text("it was saved by another version of qemuspawner"))
        if self.qemu != now.qemu:
            found.append(Text("QEMU was {before} and is {now}", before=self.qemu, now=now.qemu))
        if self.accelerator != now.accelerator:
            found.append(
                Text(
                    "it ran with {before} and would with {now}", before=self.accelerator, now=now.accelerator
                )
            )
        if self.cpu != now.cpu:
            found.append(Text("the host's processor is another one"))
        if self.image != now.image:
            found.append(Text("the machine's image has changed"))
        if (self.cpus, self.memory_mib) != (now.cpus, now.memory_mib):
            found.append(Text("its size is another one"))
        if self.machine != now.machine:
            found.append(Text("the machine's definition has changed"))
        return found


class FileDigest(msgspec.Struct, frozen=True, kw_only=True):
    """A file that must not have changed."""

    size_bytes: int
    digest: str  # sha256:<hex> of its content; "" where only the size is compared


class FirstSteps(msgspec.Struct, frozen=True, kw_only=True):
    """How far a desktop is with what is done once in it; `session.first_start` has the order of the steps."""

    done: int = 0  # so many have come to an end
    pid: int | None = None  # in the guest, of what the next one runs there
    script: ScriptRun | None = None  # how the user's script does; None: there is none, or not yet


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """`saved.json`."""

    kind: Literal["template", "suspended", "checkpoint"]
    name: str  # the folder's
    title: str = ""  # a checkpoint's, in the user's words
    automatic: bool = False  # a checkpoint that the clock made
    saved_at: float  # Unix seconds
    expires: float = 0  # Unix seconds; 0: never
    fingerprint: Fingerprint
    memory: Literal["mapped", "streamed", "lost"]  # in a file of its own, within the state, or not at all
    layers: int  # frozen disks above the base image
    files: dict[str, FileDigest]
    size_bytes: int  # what the folder takes on the disk
    boot_s: float = 0  # what starting from it spares: how long a cold boot took
    machine_id: str = ""
    spec: SessionSpec | None = None  # a session's own, to start it again
    first_steps: FirstSteps | None = None  # of a session, when it was saved
    problem: Sentence = ""  # why it could not be restored the last time

    def to_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self, enc_hook=_encode))


def _encode(value: object) -> object:
    return pack(value) if isinstance(value, Text) else encode_unit(value)


def _decode(kind: type, value: Any) -> Any:
    return unpack(value) if kind is Text else decode_unit(kind, value)


def load_saved(folder: Path) -> Saved | None:
    """What lies in `folder`; None where it is a draft or cannot be read."""
    try:
        content = _read_regular(SavedPaths(root=folder).manifest)
        return msgspec.json.decode(content, type=Saved, dec_hook=_decode)
    except OSError:
        return None
    # The folder may be another account's, who writes what they like: RecursionError is for a deep nesting.
    except (ValueError, RecursionError) as exc:
        log.warning("%s cannot be read: %s", folder, exc)
        return None


def _read_regular(path: Path) -> bytes:
    """A file in a folder that may be another account's: no link is followed, no pipe waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return b""
        return file.read(_MAX_MANIFEST_BYTES)


def write_manifest(folder: Path, saved: Saved) -> None:
    """Put the manifest in its place, whole or not at all; with it the folder counts."""
    paths = SavedPaths(root=folder)
    draft = folder / f".{paths.manifest.name}"
    with draft.open("wb") as file:
        file.write(saved.to_json())
        file.flush()
        os.fsync(file.fileno())
    draft.replace(paths.manifest)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def list_saved(folder: Path) -> list[Saved]:
    """All in `folder`, the newest first."""
    try:
        # Drafts of templates have names that begin with a dot.
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError:
        return []
    found = [saved for entry in entries if (saved := load_saved(entry)) is not None]
    return sorted(found, key=lambda saved: saved.saved_at, reverse=True)


def find_suspended(paths: SessionPaths) -> Saved | None:
    """What the session wakes up from."""
    return next((saved for saved in list_saved(paths.saved) if saved.kind == "suspended"), None)


def list_of_user(state: StatePaths, user: str) -> Iterator[tuple[SessionPaths, list[Saved]]]:
    """The user's sessions that have something saved, as far as this account may look."""
    for root in _session_roots(state):
        paths = SessionPaths(root=root)
        mine = [saved for saved in list_saved(paths.saved) if saved.spec and saved.spec.user == user]
        if mine:
            yield paths, mine


def _session_roots(state: StatePaths) -> list[Path]:
    try:
        return [root for root in state.sessions.iterdir() if not root.name.startswith(".")]
    except OSError:
        return []


def used_mib(state: StatePaths, user: str, *, but: str = "") -> int:
    """What the user's saved VMs take on this host's disk, less those of the session `but`."""
    return (
        sum(disk_usage(paths.saved) for paths, _ in list_of_user(state, user) if paths.root.name != but) >> 20
    )


def used_mib_by_user(state: StatePaths, users: Collection[str], *, but: str = "") -> dict[str, int]:
    """The same of each of `users` who has something saved."""
    used: dict[str, int] = {}
    for root in _session_roots(state):
        saved = SessionPaths(root=root).saved
        owners = {one.spec.user for one in list_saved(saved) if one.spec and one.spec.user in users}
        for owner in owners if root.name != but else ():
            used[owner] = used.get(owner, 0) + disk_usage(saved)
    return {owner: size >> 20 for owner, size in used.items()}


def disk_usage(folder: Path) -> int:
    """Bytes on the disk of everything in `folder`, a file with several names counted once."""
    seen: dict[tuple[int, int], int] = {}
    # Not rglob: it fails where a folder is deleted meanwhile.
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with contextlib.suppress(OSError):
                status = Path(root, name).lstat()
                seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


def delete_saved(folder: Path) -> None:
    """Delete one; the manifest first, so that what is left after a crash is a draft."""
    SavedPaths(root=folder).manifest.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def delete_expired(paths: SessionPaths) -> int:
    """Delete what the session kept for long enough, and drafts; how many were deleted.

    Whoever holds the session's lock may call this.
    """
    deleted = 0
    try:
        entries = list(paths.saved.iterdir())
    except OSError:
        return 0
    for entry in entries:
        # What has a manifest that we cannot read is no draft: another version of ours may be able to.
        is_draft = not os.path.lexists(SavedPaths(root=entry).manifest)
        saved = load_saved(entry)
        if is_draft or (saved is not None and 0 < saved.expires < time.time()):
            delete_saved(entry)
            deleted += 1
    return deleted
