"""A session that is a job of a batch system: it is given its environment, takes a port, and tells the hub."""

import json
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from urllib.parse import quote

from qemuspawner.batch import read_document
from qemuspawner.errors import SessionError
from qemuspawner.internal_tls import find_client_ssl_context
from qemuspawner.spec import LISTEN_VARIABLE, SessionSpec

_TIMEOUT_S = 10
# A hub that is restarted is back within this.
_KEEP_TRYING_S = 120


def become_job(descriptor: int) -> None:
    """Take on the environment that lies on `descriptor`, listen on a free port, and tell the hub which.

    Raises:
        SessionError: The hub does not want this session, or is not there.
        msgspec.DecodeError: There is no such document.
    """
    document = read_document(descriptor)
    os.environ.update(document.environment)
    os.environ.update(_write_files(document.files))
    # Bound first and told then: nobody else on the node can have it in between.
    listener = socket.create_server(("", 0), family=socket.AF_INET, backlog=128)
    os.environ[LISTEN_VARIABLE] = str(listener.fileno())
    _tell(listener.getsockname()[1])
    listener.detach()


def _write_files(files: Mapping[str, str]) -> dict[str, str]:
    """Files in memory, whose paths are this process's own; the paths by the files' names.

    On a disk they would outlive a session that is killed.
    """
    return {name: f"/proc/self/fd/{_keep_in_memory(name, text)}" for name, text in files.items()}


def _keep_in_memory(name: str, text: str) -> int:
    """A descriptor that stays open; programs that are started do not have it."""
    descriptor = os.memfd_create(name)
    with os.fdopen(descriptor, "w", closefd=False) as file:
        file.write(text)
    return descriptor


def _tell(port: int) -> None:
    spec = SessionSpec.from_environment()
    path = "/".join(
        quote(part, safe="") for part in ("users", spec.user, "desktops", spec.server_name, "port")
    )
    request = urllib.request.Request(  # noqa: S310 - the hub's own
        f"{os.environ['JUPYTERHUB_API_URL']}/{path}",
        data=json.dumps({"port": port}).encode(),
        headers={
            "Authorization": f"token {os.environ['JUPYTERHUB_API_TOKEN']}",
            "Content-Type": "application/json",
        },
    )
    context = find_client_ssl_context()
    give_up_at = time.monotonic() + _KEEP_TRYING_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=context):  # noqa: S310
                return
        except urllib.error.HTTPError as exc:
            if exc.code < 500:
                raise SessionError(f"The hub does not want this session: {exc.code} {exc.reason}.") from exc
            why: OSError = exc
        except OSError as exc:
            why = exc
        if time.monotonic() > give_up_at:
            raise SessionError(f"The hub was not told of the session's port: {why}.") from why
        time.sleep(1)
