"""QemuBatchSpawner: what sessions that are jobs have in common, whichever engine runs the jobs."""

import asyncio
import contextlib
import hashlib
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from jupyterhub.spawner import SpawnException
from traitlets import Integer, default

from qemuspawner.batch import JobDocument, write_document
from qemuspawner.errors import HostError
from qemuspawner.hub.batch import port_api  # noqa: F401 - for its route, and the one that it takes out
from qemuspawner.hub.batch.engine import BatchError, Engine, Job
from qemuspawner.hub.batch.queue import JobQueue, queue_of
from qemuspawner.hub.batch.reaper import ListOwners, begin_reaping
from qemuspawner.hub.batch.script import make_script
from qemuspawner.hub.mixin import QemuSpawnerMixin
from qemuspawner.hub.sessions import account
from qemuspawner.hub.sessions.follow import desktop_answers
from qemuspawner.internal_tls import VARIABLES
from qemuspawner.spec import SessionSpec
from qemuspawner.texts import Text
from qemuspawner.units import render_seconds

# How old an answer of the engine's may be for who waits for a start or an end, and for who only looks in.
WAITING_S = 1.0
_LOOKING_S = 15.0
# Between two questions that are asked one after the other.
_BREATH_S = 0.1
# From the job's start until its session has told its port.
_PORT_S = 60
# From an orderly stop until the job is cancelled: the guest shuts down, or its memory is written.
_STOP_S = 300
_CANCEL_S = 30


class QemuBatchSpawner(QemuSpawnerMixin):
    """Sessions are jobs; the class below it in the class order is batchspawner's for the engine.

    batchspawner's own ways of asking are not used: they build shell commands out of what a user sends,
    take every error for the end of a job, and ask once for each session.
    """

    queue_timeout = Integer(
        1800, min=1, help="How many seconds a desktop may wait in the queue before its start is given up."
    ).tag(config=True)

    job_id: str
    api_token: str
    _submitted_at = float("-inf")
    _port: asyncio.Future[int] | None = None
    _resumes_start = False
    # The name of a file in `jobs/` that its job may not have taken yet.
    _document = ""

    # What an engine is

    @property
    def _engine(self) -> Engine:
        """The commands of this engine."""
        raise NotImplementedError

    @property
    def _jobs_user(self) -> str:
        """The account that owns this user's jobs, as the engine knows it. Raises HostError."""
        raise NotImplementedError

    @property
    def _jobs_are_users(self) -> bool:
        """Whether each user's jobs are an account's of their own."""
        return False

    async def _submit(self, spec: SessionSpec, script: str) -> str:
        """Submit the session's job; its id. Raises BatchError."""
        raise NotImplementedError

    def _make_owners_list(self) -> ListOwners:
        """What the hub's reaper asks each time, long after this spawner."""
        owners = [(self._jobs_user, self._engine)]

        async def list_owners() -> list[tuple[str, Engine]]:
            return owners

        return list_owners

    def _prepare_folders(self) -> None:
        """Make what of the session's folders has to be there before its job. Raises HostError."""
        try:
            account.prepare_jobs(self._state_paths, self._jobs_user, shared=self._jobs_are_users)
        except (OSError, KeyError) as exc:
            # Of an account that only nodes know, or on storage where this host's root is nobody, it is the
            # administrator's to make.
            self.log.warning("%s is not made here: %s", self._state_paths.jobs, exc)

    @property
    def _queue(self) -> JobQueue:
        return queue_of(self._engine, self._jobs_user)

    async def _find_address(self, node: str) -> str:
        """Where the hub reaches a node. Raises BatchError where the engine does not tell."""
        return node

    async def _say_place(self, job: Job) -> None:
        """Tell who waits how far it is, where the engine knows. Raises BatchError where it does not tell."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Without a user it is only asked for its traits.
        if self.user is not None and "db" in self.user.settings:
            begin_reaping(
                self._make_owners_list(),
                hub=self._hub_id,
                settings=self.user.settings,
                log=self.log,
            )

    @default("start_timeout")
    def _default_start_timeout(self) -> int:
        return int(self.queue_timeout) + 600

    @default("poll_interval")
    def _default_poll_interval(self) -> int:
        return 15

    # batchspawner asks the host's accounts for these, and a hub's users need none.

    @default("req_homedir")
    def _default_req_homedir(self) -> str:
        return ""

    def user_env(self, env: dict[str, str]) -> dict[str, str]:
        return env

    # State

    def get_state(self) -> dict[str, object]:
        return {**super().get_state(), **({"document": self._document} if self._document else {})}

    def load_state(self, state: Mapping[str, object]) -> None:
        super().load_state(state)
        self._resumes_start = "starting" in state
        self._document = str(state.get("document", ""))

    def clear_state(self) -> None:
        super().clear_state()
        self._resumes_start = False
        self._document = ""
        self.is_paused = False

    # Start

    async def start(self) -> tuple[str, int]:
        self.delete_server_tokens(but=self.api_token)
        spec = self.make_spec()
        self.begin_session(spec, node="")
        try:
            await asyncio.to_thread(self._prepare_folders)
            await self._end_forgotten(spec.session_id)
            script = make_script(self.cmd, await self._store_document())
            # Before it is submitted: a session may be quicker than the answer with its job's id.
            with self._expecting_port():
                self.job_id = await self._submit(spec, script)
                # From now on a list without it is one from which it is gone.
                self._submitted_at = time.monotonic()
                self.save_state()
                await self._reach_session()
        except (BatchError, HostError) as exc:
            raise self.failure(
                exc.message, exc.hint or Text("Try again; if it happens again, tell the administrator.")
            ) from exc
        await self.follow_start()
        return self.server.ip, self.server.port

    @contextlib.contextmanager
    def _expecting_port(self) -> Iterator[None]:
        """Let the job's session tell its port."""
        self._port = asyncio.get_running_loop().create_future()
        try:
            yield
        finally:
            self._port = None

    async def _reach_session(self) -> None:
        """Wait until the job has a node and its session, which is expected to tell it, a port there.

        Raises:
            SpawnException: It never will.
            BatchError: The engine has not said where the node is.
        """
        node = await self._wait_for_node()
        self.server.ip, self.server.port = await self._find_address(node), await self._wait_for_port()
        self.server.proto = "https" if self.internal_ssl else "http"
        self._session["node"] = node
        # The session has it.
        self._document = ""
        self.save_state()

    @property
    def _hub_id(self) -> str:
        """Several hubs may have jobs of one account."""
        return hashlib.sha256(f"{self.hub.api_url} {self.state_dir}".encode()).hexdigest()[:12]

    async def _end_forgotten(self, session_id: str) -> None:
        """End a former job of this server: a hub that was killed may not have noted that it submitted one."""
        tagged = await self._engine.list_tagged(user=self._jobs_user, hub=self._hub_id)
        for job_id in (number for number, session in tagged.items() if session == session_id):
            self.log.warning("%s: its former job %s is ended", session_id, job_id)
            self.job_id, self._submitted_at = job_id, time.monotonic()
            await self.stop()
        self.job_id = ""

    def _make_document(self) -> JobDocument:
        environment = self.get_env()
        # The nodes need not see the hub's files.
        files = {name: Path(environment.pop(name)).read_text() for name in VARIABLES if name in environment}
        return JobDocument(environment=environment, files=files)

    async def _store_document(self) -> PurePath:
        """Lay down what the session is to know, by a name that nobody guesses. Raises BatchError."""
        # Noted first: a hub that is killed meanwhile takes it back when it is there again.
        self._document = secrets.token_hex(16)
        self.save_state()
        path = self._state_paths.jobs / self._document
        await self._engine.store(path, write_document(self._make_document()))
        return path

    async def _withdraw_document(self) -> None:
        """Take back what no job has taken, nor will."""
        if not self._document:
            return
        try:
            await self._engine.remove(self._state_paths.jobs / self._document)
        except (BatchError, HostError) as exc:
            self.log.warning("%s: its job's file %s stays: %s", self.session_id, self._document, exc.text)
        self._document = ""

    async def _wait_for_node(self) -> str:
        """Wait until the job runs; the name of its node. A port that is told ends the wait: it runs."""
        assert self._port is not None
        said = ""
        give_up_at = time.monotonic() + self.queue_timeout
        while True:
            job = None
            with contextlib.suppress(BatchError):
                # While the engine does not answer, the job waits on.
                job = await self._find_job(0 if self._port.done() else WAITING_S)
                if job is None:
                    raise self.failure(Text("The desktop's job is gone from the queue."), Text("Try again."))
            if job is not None:
                if job.phase == "over" or job.never_runs:
                    await self._cancel()
                    raise self.failure(job.ending, Text("Ask for less, or tell the administrator."))
                if job.phase == "running":
                    return job.node
                wait = job.wait
                if wait != said:
                    self._progress.say(said := wait)
                with contextlib.suppress(BatchError):
                    await self._say_place(job)
            if time.monotonic() > give_up_at:
                await self._cancel()
                raise self.failure(
                    Text(
                        "The cluster had no place for the desktop within {time}.",
                        time=render_seconds(self.queue_timeout),
                    ),
                    Text("Ask for less, or try again later."),
                )
            await asyncio.sleep(_BREATH_S)
            await asyncio.wait({self._port}, timeout=WAITING_S)

    async def _wait_for_port(self) -> int:
        """Wait until the job's session has told its port, or the job is over."""
        assert self._port is not None
        give_up_at = time.monotonic() + _PORT_S
        while time.monotonic() < give_up_at:
            done, _ = await asyncio.wait({self._port}, timeout=WAITING_S)
            if done:
                return self._port.result()
            with contextlib.suppress(BatchError):
                job = await self._find_job(WAITING_S)
                if job is None or job.phase == "over":
                    raise self.failure(
                        job.ending if job else Text("The desktop's job ended before its session began."),
                        Text("The job's log on the cluster has the reason."),
                    )
        raise self.failure(
            Text("The desktop's job runs, but its session said nothing for {s} s.", s=_PORT_S),
            Text("The administrator looks whether nodes reach the hub."),
        )

    def note_port(self, port: int) -> bool:
        """The job's session listens there; False where nobody waits for that."""
        if self._port is None or self._port.done():
            return False
        self._port.set_result(port)
        return True

    # Poll and stop

    async def _find_job(self, max_age_s: float) -> Job | None:
        return await self._queue.find_job(self.job_id, max_age_s=max_age_s, since=self._submitted_at)

    async def query_job_status(self) -> Any:
        from batchspawner.batchspawner import JobStatus

        if not self.job_id:
            await self._withdraw_document()
            return JobStatus.NOTFOUND
        try:
            job = await self._find_job(WAITING_S if self.pending else _LOOKING_S)
        except BatchError as exc:
            self.log.warning("%s: %s", self.session_id, exc.text)
            return JobStatus.UNKNOWN
        self.is_paused = job is not None and job.is_paused
        if job is None or job.phase == "over":
            if job is not None:
                # Unless the session itself has said why.
                self.end_run(outcome="lost", why=job.ending)
            await self._withdraw_document()
            return JobStatus.NOTFOUND
        return {"pending": JobStatus.PENDING, "running": JobStatus.RUNNING}.get(job.phase, JobStatus.UNKNOWN)

    async def poll(self) -> int | None:
        # JupyterHub's own clears the token with the state, and then cannot revoke it.
        token = self.api_token
        try:
            status: int | None = await super().poll()
            if status is None and self._resumes_start:
                self._resumes_start = False
                status = await self._resume_start()
            return status
        finally:
            self.api_token = token

    async def _resume_start(self) -> int | None:
        """Go on waiting for what a hub was waiting for that was restarted meanwhile."""
        try:
            if not self._session.get("node"):
                with self._expecting_port():
                    await self._reach_session()
            while not await desktop_answers(self.server.url, ssl_context=self.session_ssl_context):
                job = await self._find_job(WAITING_S)
                if job is None or job.phase == "over":
                    return 1
                await asyncio.sleep(WAITING_S)
        except (SpawnException, BatchError) as exc:
            self.log.warning("%s: its start is not gone on with: %s", self.session_id, exc)
            return 1
        self._session.pop("starting", None)
        self.save_state()
        return None

    async def stop(self, now: bool = False) -> None:
        """End the session in order, then its job; `now` at once."""
        if not self.job_id:
            return
        try:
            job = await self._find_job(WAITING_S)
            if not now and job is not None and job.phase == "running":
                await self._engine.stop(self.job_id)
                await self._wait_until_over(_STOP_S)
            await self._cancel()
            await self._wait_until_over(_CANCEL_S)
            await self._withdraw_document()
        except (BatchError, HostError) as exc:
            raise self.failure(
                exc.message, Text("The desktop may run on; try again when the cluster answers.")
            ) from exc

    async def _cancel(self) -> None:
        await self._engine.cancel(self.job_id)

    async def _wait_until_over(self, most_s: float) -> None:
        give_up_at = time.monotonic() + most_s
        while time.monotonic() < give_up_at:
            job = await self._find_job(WAITING_S)
            if job is None or job.phase == "over":
                return
            await asyncio.sleep(WAITING_S)
