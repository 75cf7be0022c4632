"""The GPUs of a session: taken at its start, each by a lock that lasts as long as its process.

A hub says which ones may be taken; which of them are free only their locks tell, whatever was killed when.
"""

import contextlib
import errno
import fcntl
import logging
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from qemuspawner.errors import SessionError
from qemuspawner.gpus import find_gpus
from qemuspawner.mediated import find_devices, make_device, remove_device
from qemuspawner.spec import SessionSpec
from qemuspawner.texts import Text
from qemuspawner.vfio import Passed, allow_locking, describe_passed, find_lack_of_rights, find_obstacles

log = logging.getLogger(__name__)

_SYSFS, _DEV = Path("/sys"), Path("/dev")
# A QEMU that was killed gives its device back within so long.
_GIVE_BACK_S = 5


def take_gpus(
    spec: SessionSpec,
    folder: Path,
    stack: contextlib.ExitStack,
    *,
    sysfs: Path = _SYSFS,
    dev: Path = _DEV,
) -> tuple[Passed, ...]:
    """Take what `spec` was promised, until `stack` is closed; the locks lie in `folder`.

    Raises:
        SessionError: Not as many are free, or may be used by this account; the log has the reasons.
    """
    if spec.gpus is None:
        return ()
    folder.mkdir(mode=0o700, exist_ok=True)
    _remove_orphans(folder, sysfs)
    taken: list[Passed] = []
    # What is not needed is given back before anybody is told.
    with contextlib.ExitStack() as held:
        for device in spec.gpu_devices:
            if len(taken) < spec.gpus.count:
                passed = held.enter_context(_take(device, folder, sysfs, dev))
                taken += [passed] if passed is not None else []
        if len(taken) < spec.gpus.count:
            raise SessionError(
                Text(
                    "The desktop was promised a GPU ({gpus}), and this host has none free that it can have.",
                    gpus=spec.gpus,
                ),
                hint=Text("Try again, or tell the administrator: 'qemuspawner gpu check' has the reason."),
            )
        if obstacle := allow_locking(spec.memory_mib):
            log.error("Session %s: %s %s", spec.session_id, obstacle.text, obstacle.hint)
            raise SessionError(
                Text("This host does not let a desktop with a GPU keep its memory in place."),
                hint=Text("Choose less memory, or tell the administrator; the log has the bound."),
            )
        stack.enter_context(held.pop_all())
    log.info("Session %s has %s.", spec.session_id, ", ".join(passed.name for passed in taken))
    return tuple(taken)


@contextlib.contextmanager
def _take(device: str, folder: Path, sysfs: Path, dev: Path) -> Iterator[Passed | None]:
    """One GPU, or a part of one; None where it is another's or cannot be had."""
    is_part = "/" in device
    taking = _take_part if is_part else _take_whole
    with taking(device, folder, sysfs, dev) as passed:
        if passed is not None and (why := _why_not_open(passed.node, is_new=is_part)):
            log.warning("The GPU %s cannot be taken: %s", passed.name, why)
            passed = None
        yield passed


@contextlib.contextmanager
def _take_whole(address: str, folder: Path, sysfs: Path, dev: Path) -> Iterator[Passed | None]:
    with _locked(folder / address) as is_ours:
        yield _find_whole(address, sysfs, dev) if is_ours else None


def _find_whole(address: str, sysfs: Path, dev: Path) -> Passed | None:
    """A GPU as it is now, whatever the hub has seen of it."""
    gpu = next((gpu for gpu in find_gpus(sysfs) if gpu.address == address), None)
    reasons = [each.text for each in find_obstacles(gpu, dev=dev)] if gpu else ["It is not there any more."]
    if gpu is not None and not reasons:
        with contextlib.suppress(OSError):
            return describe_passed(gpu, sysfs=sysfs, dev=dev)
    log.warning("The GPU %s cannot be taken: %s", address, " ".join(reasons))
    return None


@contextlib.contextmanager
def _take_part(device: str, folder: Path, sysfs: Path, dev: Path) -> Iterator[Passed | None]:
    """A mediated device of our own, gone at the end."""
    name = str(uuid.uuid4())
    # Locked before it is there: a session that is killed in between leaves nothing that nobody knows.
    with _locked(folder / name), contextlib.ExitStack() as stack:
        stack.callback(_remove, folder, name, sysfs)
        try:
            passed = make_device(device, name, sysfs=sysfs, dev=dev)
        except OSError as exc:
            log.warning("No device of the type %s can be made: %s", device, exc)
            passed = None
        yield passed


def _remove(folder: Path, name: str, sysfs: Path) -> None:
    if name in find_devices(sysfs):
        try:
            remove_device(name, sysfs=sysfs)
        except OSError as exc:
            log.warning("The mediated device %s cannot be removed: %s", name, exc)
            return
    (folder / name).unlink(missing_ok=True)


def _remove_orphans(folder: Path, sysfs: Path) -> None:
    """Remove the mediated devices of sessions that were killed: nobody holds their locks."""
    for name in find_devices(sysfs):
        # One without a lock of ours is the administrator's.
        if (folder / name).exists():
            with _locked(folder / name) as is_ours:
                if is_ours:
                    _remove(folder, name, sysfs)


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[bool]:
    """Whether the lock is ours until the end.

    By flock, which needs no right to write: sessions of several accounts meet at one file.
    """
    try:
        descriptor = _open(file)
    except OSError as exc:
        log.warning("The lock %s cannot be opened: %s", file, exc.strerror)
        yield False
        return
    try:
        yield _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(file: Path) -> int:
    """Made only where it is missing: kernels refuse to make what is another's in a shared folder."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    while True:
        with contextlib.suppress(FileNotFoundError):
            return os.open(file, flags)
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(file, flags | os.O_CREAT | os.O_EXCL, 0o444)
            os.fchmod(descriptor, 0o444)
            return descriptor


def _why_not_open(node: Path, *, is_new: bool) -> str:
    """Open a group's device node once, as QEMU will: the kernel has the last word on who has it.

    One that `is_new` udev gives to our account only now.
    """
    passing = {errno.EBUSY, *((errno.EACCES, errno.ENOENT) if is_new else ())}
    deadline = time.monotonic() + _GIVE_BACK_S
    while True:
        try:
            os.close(os.open(node, os.O_RDWR | os.O_CLOEXEC))
            return ""
        except OSError as exc:
            lacking = [obstacle.text for obstacle in find_lack_of_rights([node])]
            if exc.errno not in passing or time.monotonic() > deadline:
                return " ".join(lacking) or f"{node}: {exc.strerror}."
        time.sleep(0.1)
