"""The fork server: a process that has imported what every session needs, and becomes a session by fork().

A session started by itself imports for most of a second, and keeps what it imported for itself alone.
The server does nothing beside, so that it has one thread and no event loop when it forks. It ends with the
hub, whose end of the connection closes then; sessions are in sessions of their own and stay.
"""

import contextlib
import encodings.unicode_escape  # noqa: F401 - each session would import it only when it runs
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NoReturn

import tornado.platform.asyncio  # noqa: F401 - each session would import it only when it runs

import qemuspawner.session.app  # noqa: F401 - with all that it imports
from qemuspawner.forking import ForkAnswer, ForkRequest, Identity, read_environment, receive, send
from qemuspawner.session import run_session
from qemuspawner.session.host.memories import Memories
from qemuspawner.spec import LISTEN_VARIABLE

# Where the extra `fast` is installed; as above.
with contextlib.suppress(ImportError):
    import uvloop  # noqa: F401

log = logging.getLogger(__name__)


def serve(descriptor: int) -> None:
    """Answer requests on the inherited socket `descriptor` until the hub closes its end."""
    # A collection would write to every page of what is there now; so none looks at it any more.
    gc.collect()
    gc.freeze()
    # Dead sessions leave no zombies; each resets this for itself, as it waits for its own children.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    memories = Memories()
    with socket.socket(fileno=descriptor) as control, contextlib.suppress(ConnectionError):
        while True:
            try:
                received = receive(control, ForkRequest, descriptors=2)
            except ValueError as exc:
                send(control, ForkAnswer(error=f"The request cannot be read: {exc}."))
                continue
            if received is None:
                return
            request, descriptors = received
            answer = _answer(request, descriptors, control, memories)
            for number in descriptors:
                os.close(number)
            send(control, answer)


def _answer(
    request: ForkRequest, descriptors: list[int], control: socket.socket, memories: Memories
) -> ForkAnswer:
    """Fork; only the server returns."""
    mapped = memories.find(request.templates) if request.templates else {}
    environment, listener = descriptors
    try:
        pid = os.fork()
    except OSError as exc:
        return ForkAnswer(error=f"No process can be made: {exc.strerror}.")
    if pid == 0:
        control.close()
        _become_session(request.identity, environment=environment, listener=listener, memories=mapped)
    return ForkAnswer(pid=pid)


def _become_session(
    identity: Identity | None, *, environment: int, listener: int, memories: Mapping[str, int]
) -> NoReturn:
    """Run a session in this child, and end the process: nothing of the server may run in it."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _close_all_but({0, 1, 2, environment, listener, *memories.values()})
        if identity is not None:
            _take_on(identity)
        # Nothing of what the hub's user asked for has been looked at before this.
        os.environ.clear()
        os.environ.update(read_environment(environment))
        os.environ[LISTEN_VARIABLE] = str(listener)
        code = run_session(memories)
    except SystemExit as exc:  # SIGTERM
        code = exc.code if isinstance(exc.code, int) else 1
    except BaseException:
        log.exception("The session's process failed.")
    finally:
        with contextlib.suppress(OSError, ValueError):
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _take_on(identity: Identity) -> None:
    """Give up the hub's rights for good; raises where that fails, and then the session must not run."""
    gids, uids = (identity.gid,) * 3, (identity.uid,) * 3
    os.setgroups(identity.groups)
    os.setresgid(*gids)
    os.setresuid(*uids)
    # -1 would have changed nothing.
    if (os.getresgid(), os.getresuid()) != (gids, uids):
        raise PermissionError(f"The account {identity.uid} could not be taken on.")


def _close_all_but(kept: Collection[int]) -> None:
    for entry in list(Path("/proc/self/fd").iterdir()):
        if int(entry.name) not in kept:
            # The one that lists the directory is closed already.
            with contextlib.suppress(OSError):
                os.close(int(entry.name))
