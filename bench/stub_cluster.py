"""A Slurm and the sessions of all its jobs in one small process, so that a hub can have a thousand.

    python stub_cluster.py FOLDER

Its commands (COMMANDS) answer with what lies in FOLDER; a job runs at once. Its session tells the hub its
port, and says that its desktop is there.
"""

import asyncio
import contextlib
import itertools
import os
import random
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

from qemuspawner.batch import read_document
from qemuspawner.spec import SPEC_VARIABLE, SessionSpec, SessionStatus, Step

# As session/people/people.py and session/people/activity.py do.
_OWNER_EVERY_S = 20
_ACTIVITY_EVERY_S = 60
_LONG_POLL_S = 10
# Where a file of this name lies in the folder, each desktop is looked at by its owner.
LOOKED_AT = "looked-at"
_STEPS = tuple(Step(at=0.1 * n, text=f"Step {n} of a start, in some words") for n in range(10))

COMMANDS = """\
#!/bin/sh
# Slurm's commands as the hub calls them: the first argument is which.
case "$1" in
  sh) exec "$@";;
  squeue) case "$*" in *%k*) exec cat {folder}/tagged;; *%P*) exit 0;; *) exec cat {folder}/jobs;; esac;;
  sinfo) echo 'n1|desktop*|idle|0/64/0/64|900000|0|(null)|gpu:0|127.0.0.1|infinite|';;
  sbatch) for each; do case "$each" in --comment=*) comment="$each";; esac; done
    exec curl --silent --fail --unix-socket {folder}/socket --data-binary @- "http://stub/?$comment";;
  scancel) for each; do job="$each"; done
    exec curl --silent --fail --unix-socket {folder}/socket --request DELETE "http://stub/$job";;
esac
"""


@dataclass(kw_only=True)
class Session:
    """One stub session, from its job's document."""

    number: str
    comment: str
    spec: SessionSpec
    environment: dict[str, str]
    began: float

    def status(self) -> bytes:
        return SessionStatus(
            session_id=self.spec.session_id,
            state="running",
            steps=_STEPS,
            progress=100,
            machine=self.spec.machine.name,
            cpus=self.spec.cpus,
            memory_mib=self.spec.memory_mib,
            now=time.time(),
            started=self.began,
            deadline=self.began + self.spec.lifetime_s,
            way="restored",
            version=1,
        ).to_json()


class Cluster:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.looked_at = folder / LOOKED_AT
        self._numbers = itertools.count(1)
        self._jobs: dict[str, Session] = {}
        self._by_path: dict[str, Session] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def serve(self) -> None:
        self._write()
        control = web.Application(client_max_size=1 << 20)
        control.router.add_post("/", self._submit)
        control.router.add_delete("/{job}", self._cancel)
        desktops = web.Application()
        desktops.router.add_get("/{path:.*}", self._answer)
        runners = [web.AppRunner(app, access_log=None) for app in (control, desktops)]
        for runner in runners:
            await runner.setup()
        site = web.TCPSite(runners[1], "127.0.0.1", 0, backlog=1024)
        await site.start()
        self._port = runners[1].addresses[0][1]
        self._http = ClientSession(connector=TCPConnector(limit=64), timeout=ClientTimeout(total=60))
        await web.UnixSite(runners[0], str(self._folder / "socket")).start()
        await asyncio.Event().wait()

    async def _submit(self, request: web.Request) -> web.Response:
        # "exec 3<PATH && rm ...": its session reads that, and nobody after it.
        document = Path(shlex.split(await request.text())[2].removeprefix("3<"))
        environment = dict(read_document(os.open(document, os.O_RDONLY)).environment)
        document.unlink()
        session = Session(
            number=str(next(self._numbers)),
            comment=request.query_string.removeprefix("--comment="),
            spec=SessionSpec.from_json(environment[SPEC_VARIABLE]),
            environment=environment,
            began=time.time(),
        )
        self._jobs[session.number] = session
        self._by_path[urlparse(environment["JUPYTERHUB_SERVICE_URL"]).path] = session
        self._write()
        self._tasks[session.number] = asyncio.create_task(self._live(session))
        return web.Response(text=f"{session.number}\n")

    async def _cancel(self, request: web.Request) -> web.Response:
        session = self._jobs.pop(request.match_info["job"], None)
        if session is not None:
            self._tasks.pop(session.number).cancel()
            self._write()
        return web.Response()

    async def _live(self, session: Session) -> None:
        user = session.spec.user
        await self._ask(
            session, "POST", f"users/{user}/desktops/{session.spec.server_name}/port", {"port": self._port}
        )
        # Not all in the same second.
        await asyncio.sleep(_OWNER_EVERY_S * random.random())
        for turn in itertools.count():
            if self.looked_at.exists():
                if turn % (_ACTIVITY_EVERY_S // _OWNER_EVERY_S) == 0:
                    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                    body = {"last_activity": at, "servers": {session.spec.server_name: {"last_activity": at}}}
                    await self._ask(session, "POST", f"users/{user}/activity", body)
                await self._ask(session, "GET", "user")
            await asyncio.sleep(_OWNER_EVERY_S)

    async def _ask(self, session: Session, method: str, path: str, body: object = None) -> None:
        url = f"{session.environment['JUPYTERHUB_API_URL']}/{path}"
        headers = {"Authorization": f"token {session.environment['JUPYTERHUB_API_TOKEN']}"}
        # A hub that is restarted is asked again later.
        with contextlib.suppress(OSError, TimeoutError):
            async with self._http.request(method, url, headers=headers, json=body) as response:
                await response.read()
                if response.status >= 400:
                    print(f"{method} {url}: {response.status}", file=sys.stderr)

    async def _answer(self, request: web.Request) -> web.Response:
        path = request.path
        prefix = path[: path.index("/api") + 1] if "/api" in path else path
        session = self._by_path.get(prefix)
        if session is None:
            return web.Response(status=404)
        if not path.endswith("status"):
            return web.json_response({})
        if request.query.get("after") == "1":
            await asyncio.sleep(_LONG_POLL_S)
        return web.Response(body=session.status(), content_type="application/json")

    def _write(self) -> None:
        end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 36000))
        jobs = "".join(f"{number}|RUNNING|n1|None|{end}|{end}\n" for number in self._jobs)
        tagged = "".join(f"{number}|{session.comment}\n" for number, session in self._jobs.items())
        for name, text in (("jobs", jobs), ("tagged", tagged)):
            draft = self._folder / f"{name}.new"
            draft.write_text(text)
            draft.rename(self._folder / name)


if __name__ == "__main__":
    asyncio.run(Cluster(Path(sys.argv[1])).serve())
