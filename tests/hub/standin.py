"""Stands in for qemuspawner-session where a test is about the hub: no guest, and faults on demand.

QEMUSPAWNER_STANDIN says what it does: "ready" (the default), "slow" and then ready, "fail", "exit" without
a word, "hang" while booting, or "deaf", which is ready and listens to no polite signal.
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import ssl
import sys
import time
from pathlib import Path
from urllib.parse import urlparse

from jupyterhub.utils import make_ssl_context
from tornado import httpserver, web

from qemuspawner.locks import try_lock
from qemuspawner.paths import StatePaths
from qemuspawner.spec import SPEC_VARIABLE, SessionSpec, SessionStatus, State, Step

PLAN = os.environ.get("QEMUSPAWNER_STANDIN", "ready")
READY_AFTER_S = {"slow": 3.0, "hang": 3600.0}.get(PLAN, 0.3)
BEGAN = time.time()
VERSIONS: list[State] = ["booting", "running", "failed"]


def state() -> State:
    if time.time() < BEGAN + READY_AFTER_S:
        return "booting"
    return "failed" if PLAN == "fail" else "running"


class Probe(web.RequestHandler):
    def get(self) -> None:
        self.set_status(200 if state() == "running" else 503)


class Status(web.RequestHandler):
    async def get(self) -> None:
        if self.request.headers.get("Authorization") != f"token {os.environ['JUPYTERHUB_API_TOKEN']}":
            raise web.HTTPError(403)
        began_at = state()
        if self.get_query_argument("after", "") == str(VERSIONS.index(began_at)):
            # As a session does: the answer comes with the news, or after a while.
            for _ in range(100):
                if state() != began_at:
                    break
                await asyncio.sleep(0.1)
        steps = [Step(at=0.1, text="The <b>machine</b> boots")]
        if state() == "running":
            steps.append(Step(at=READY_AFTER_S, text="The desktop is ready"))
        failed = state() == "failed"
        status = SessionStatus(
            session_id=SPEC.session_id,
            state=state(),
            message="The host's disk is <full>." if failed else "",
            hint="Come back later." if failed else "",
            steps=tuple(steps),
            progress=100 if state() == "running" else 50,
            now=time.time(),
            started=BEGAN,
            deadline=BEGAN + SPEC.lifetime_s,
            way="cold",
            version=VERSIONS.index(state()),
        )
        self.write(json.loads(status.to_json()))


class Environment(web.RequestHandler):
    """What the test wants to know about this process."""

    def get(self) -> None:
        self.write(
            {"uid": os.getuid(), "groups": os.getgroups(), "cwd": str(Path.cwd()), "env": dict(os.environ)}
        )


async def main() -> None:
    paths = StatePaths.of(SPEC.state_dir).session(SPEC.session_id)
    paths.root.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(paths.lock, os.O_RDWR | os.O_CREAT, 0o600)
    assert try_lock(lock)
    if PLAN == "exit":
        shutil.rmtree(paths.root)
        sys.exit(3)

    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        action = (lambda: None) if PLAN == "deaf" else stopped.set
        asyncio.get_running_loop().add_signal_handler(number, action)
    service = urlparse(os.environ["JUPYTERHUB_SERVICE_URL"])
    prefix = service.path
    app = web.Application(
        [(f"{prefix}api", Probe), (f"{prefix}api/status", Status), (f"{prefix}environment", Environment)]
    )
    key, cert, ca = (
        os.environ.get(f"JUPYTERHUB_SSL_{name}") for name in ("KEYFILE", "CERTFILE", "CLIENT_CA")
    )
    tls = make_ssl_context(key, cert, cafile=ca, purpose=ssl.Purpose.CLIENT_AUTH)  # None without a key
    server = httpserver.HTTPServer(app, ssl_options=tls)
    server.add_socket(socket.socket(fileno=int(os.environ["QEMUSPAWNER_LISTEN_FD"])))
    await stopped.wait()
    shutil.rmtree(paths.root)


SPEC = SessionSpec.from_json(os.environ[SPEC_VARIABLE])
asyncio.run(main())
