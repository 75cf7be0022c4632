"""A session's hold on its directory where other hosts see it too: a file that it writes to every few seconds.

Shared storage gives the lock of a host that is cut off to others, while QEMU runs on there. So who holds a
lease and has not written to it for `lease_s` stands still (see session/host/holding.py), and who wants the
directory looks on until nothing was written for longer than that. Each counts by its own clock alone. A
holder that was late goes on by renaming the file, and who takes over deletes it: one of the two comes first,
and the other finds no file.
"""

import contextlib
import os
import platform
import secrets
import time
from pathlib import Path

import msgspec

from qemuspawner.errors import SessionError
from qemuspawner.texts import Text

_PREFIX = "lease-"
# Made by who waits for the directory, for its holder to see.
_WANTED = "wanted"
_LOOK_EVERY_S = 0.5
# How long one of an unknown length may be, at most; the hub's trait `lease` is bounded by that.
_UNKNOWN_S = 180.0
# So long nobody is late who will ever be back, however wrong a host's clock is.
_FORGOTTEN_S = 3600.0


class LeaseLostError(Exception):
    """Another start has taken the session's directory over."""


class _Host(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    boot: str  # names may be alike, and a host that has booted anew runs nothing of before

    @classmethod
    def own(cls) -> "_Host":
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return cls(name=platform.node(), boot=boot)


class _Content(msgspec.Struct, frozen=True, kw_only=True):
    host: _Host
    lease_s: float
    count: int


def now_s() -> float:
    """Seconds by a clock that goes on while the host sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """Its holder's end. What it does waits for the storage, for as long as that hangs."""

    def __init__(self, root: Path, *, lease_s: float) -> None:
        self.lease_s = lease_s
        self._root = root
        self._path = _new_path(root)
        self._host = _Host.own()
        self._count = 0

    def take(self) -> None:
        """Raises OSError where the storage does not take it."""
        with contextlib.suppress(FileNotFoundError):
            (self._root / _WANTED).unlink()
        self._write(os.O_CREAT | os.O_EXCL)

    def renew(self) -> None:
        """Write to it in time.

        Raises:
            LeaseLostError: It was taken from us.
            OSError: The storage does not take it.
        """
        try:
            self._write(0)
        except FileNotFoundError as exc:
            raise LeaseLostError from exc

    def resume(self) -> None:
        """Go on with it though it was not written to in time; raises as `renew` does."""
        path = _new_path(self._root)
        try:
            self._path.rename(path)
        except FileNotFoundError as exc:
            raise LeaseLostError from exc
        self._path = path
        self.renew()

    def is_wanted(self) -> bool:
        """Whether somebody waits for the directory."""
        return (self._root / _WANTED).exists()

    def release(self) -> bool:
        """Give it up; False where another has it by now, and the directory with it."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        return True

    def _write(self, flags: int) -> None:
        content = _Content(host=self._host, lease_s=self.lease_s, count=self._count)
        self._count += 1
        descriptor = os.open(self._path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)
        try:
            # The numbers only grow, so nothing of a former content is left behind it.
            os.pwrite(descriptor, msgspec.json.encode(content), 0)
            os.fsync(descriptor)
        finally:
            # On NFS this may be what fails.
            os.close(descriptor)


def _new_path(root: Path) -> Path:
    return root / f"{_PREFIX}{secrets.token_hex(8)}"


# Who wants the directory


def find_host(root: Path) -> str:
    """Which other host has the session's directory, or had it when it was lost; "" for none."""
    found = [content.host for path in root.glob(f"{_PREFIX}*") if (content := _read(path)) is not None]
    own = _Host.own()
    return next((host.name for host in found if host != own), "")


def ask_for(root: Path) -> None:
    """Have its holder end, as soon as it reads that."""
    with contextlib.suppress(FileNotFoundError):
        (root / _WANTED).touch(mode=0o600)


def take_over(root: Path, *, patience_s: float) -> None:
    """Wait until no other host's session uses the directory, and see to it that none ever does again.

    The caller has the directory's lock, so one of this host is dead.

    Raises:
        SessionError: One lives on, and gives nothing up within `patience_s`.
    """
    give_up_at = now_s() + patience_s
    own = _Host.own()
    while (path := next(root.glob(f"{_PREFIX}*"), None)) is not None:
        content = _read(path)
        if content is None or content.host != own:
            ask_for(root)
            if not _watch(path, until=give_up_at):
                raise still_held(content.host.name if content is not None else "?")
        # Whoever comes back after this finds no lease, also where it has given itself another just now.
        path.unlink(missing_ok=True)


def is_forgotten(root: Path) -> bool:
    """Whether no other host has a lease, or has written to one within the hour, by the clocks of both.

    Raises:
        OSError: It has just been given up.
    """
    oldest = time.time() - _FORGOTTEN_S
    return not find_host(root) or all(path.stat().st_mtime < oldest for path in root.glob(f"{_PREFIX}*"))


def revoke(root: Path) -> None:
    """See to it that nobody goes on who has forgotten the directory, should they come back."""
    for path in root.glob(f"{_PREFIX}*"):
        path.unlink(missing_ok=True)


def still_held(host: str) -> SessionError:
    return SessionError(
        Text("This desktop still runs on the node {host}, and is not given back.", host=host[:60]),
        hint=Text("Try again later, or tell the administrator which node it is."),
    )


def _watch(path: Path, *, until: float) -> bool:
    """Look on until the lease at `path` has lapsed or is gone; False where it is written to until `until`."""
    seen, since = _read(path), now_s()
    while True:
        if seen is None and not path.exists():
            return True
        # Its holder notices a little late, and what it had begun is done a little later.
        lease_s = seen.lease_s if seen is not None else _UNKNOWN_S
        if now_s() - since > lease_s * 1.25 + 1:
            return True
        if now_s() > until:
            return False
        time.sleep(_LOOK_EVERY_S)
        if (found := _read(path)) != seen:
            seen, since = found, now_s()


def _read(path: Path) -> _Content | None:
    """None where it is gone, or is being written."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Content)
    except (OSError, msgspec.DecodeError):
        return None
