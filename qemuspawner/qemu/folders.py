"""Folders of the host for a guest: found before the start, and bound into the jail of who serves them.

A path is followed without symbolic links, so whoever owns a part of it can lead nowhere else; and it is
handed on as a descriptor, so nobody can put another folder in its place between the look and the start.
"""

import errno
import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from qemuspawner.errors import HostError
from qemuspawner.spec import Folder
from qemuspawner.texts import Text

# A file server that is silent for so long is away.
_TIMEOUT_S = 5
_HOW = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, kw_only=True)
class Ids:
    """Who the guest's user is, in numbers: what the session's account owns is theirs in the guest."""

    uid: int
    gid: int


@dataclass(frozen=True, kw_only=True)
class OpenFolder:
    """A folder that is there, and that this account may use as it is to be used."""

    folder: Folder
    descriptor: int


def open_folder(folder: Folder, *, state_root: Path) -> OpenFolder:
    """Open a folder of the host; the caller closes it.

    Raises:
        HostError: It cannot be had, and why.
    """
    if not folder.path:
        raise _cannot(folder, Text("there is none for this user"))
    path, state = Path(folder.path), state_root.resolve()
    if path == state or path in state.parents or state in path.parents:
        # Everybody's desktops lie there.
        raise _cannot(folder, Text("it would contain files of the desktops themselves"))
    # The server of a network's folder may be silent for ever; then only a thread waits for it.
    answer: queue.SimpleQueue[int | OSError] = queue.SimpleQueue()
    threading.Thread(target=_answer, args=(folder, answer), daemon=True).start()
    try:
        found = answer.get(timeout=_TIMEOUT_S)
    except queue.Empty:
        raise _cannot(folder, Text("its file server does not answer")) from None
    if isinstance(found, OSError):
        raise _cannot(folder, _explain(found)) from found
    return OpenFolder(folder=folder, descriptor=found)


def _answer(folder: Folder, answer: "queue.SimpleQueue[int | OSError]") -> None:
    try:
        answer.put(_open(folder))
    except OSError as exc:
        answer.put(exc)


def _open(folder: Folder) -> int:
    descriptor = os.open("/", _HOW)
    try:
        for part in Path(folder.path).parts[1:]:
            below = os.open(part, _HOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        needed = os.R_OK | os.X_OK | (0 if folder.read_only else os.W_OK)
        if not os.access(f"/proc/self/fd/{descriptor}", needed, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _explain(exc: OSError) -> str:
    match exc.errno:
        case errno.ENOENT:
            return Text("it is missing on this host")
        case errno.EACCES | errno.EPERM:
            return Text("the account of the desktop has no right to it")
        case errno.ENOTDIR | errno.ELOOP:
            return Text("it is no folder, or its path has a symbolic link")
    return str(exc.strerror)


def _cannot(folder: Folder, why: str) -> HostError:
    return HostError(
        Text("The folder '{name}' cannot be had: {why}.", name=folder.name, why=why),
        hint=Text("Tell the administrator."),
    )


def bind_folders(opened: Sequence[OpenFolder], ids: Ids) -> list[str]:
    """Bubblewrap's options that show the folders at `folder_place`, and this account as the guest's user."""
    options = [*("--unshare-user", "--uid", str(ids.uid), "--gid", str(ids.gid))]
    for number, one in enumerate(opened):
        how = "--ro-bind-fd" if one.folder.read_only else "--bind-fd"
        options += [how, str(one.descriptor), folder_place(number)]
    return options


def folder_place(number: int) -> str:
    """Where a jail shows the folder of this number."""
    return f"/folders/{number}"


@cache
def check_binding() -> None:
    """Raises HostError where this host's bubblewrap cannot show a folder by its descriptor."""
    program, words = shutil.which("bwrap"), ""
    if program is not None:
        told = subprocess.run(
            [program, "--help"], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=10
        )
        words = told.stdout + told.stderr
    if "--bind-fd" not in words:
        raise HostError(
            Text("This host's bubblewrap is too old to show a desktop folders of the host."),
            hint=Text("The administrator installs one that knows '--bind-fd'."),
        )
