"""QemuSlurmSpawner: sessions as jobs of a Slurm cluster, on whichever node has room."""

import asyncio
import contextlib
import hashlib
import ipaddress
import os
import pwd
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchspawner import SlurmSpawner
from jupyterhub.spawner import SpawnException
from traitlets import Integer, List, Unicode, default

from qemuspawner.batch import JobDocument
from qemuspawner.errors import HostError
from qemuspawner.hub.admission.capacity import HostCapacity
from qemuspawner.hub.admission.partitions import OfferedPartition, OfferedReservation
from qemuspawner.hub.mixin import QemuSpawnerMixin
from qemuspawner.hub.sessions import account
from qemuspawner.hub.sessions.follow import desktop_answers
from qemuspawner.hub.slurm import port_api  # noqa: F401 - for its route, and the one that it takes out
from qemuspawner.hub.slurm.commands import Slurm, SlurmError, tag
from qemuspawner.hub.slurm.jobs import Job, describe_end, describe_place, describe_wait
from qemuspawner.hub.slurm.offers import JobOwner, OffersCluster, count_gpus, find_unix_groups
from qemuspawner.hub.slurm.owners import Owners
from qemuspawner.hub.slurm.queue import Queue, queue_of
from qemuspawner.hub.slurm.reaper import begin_reaping
from qemuspawner.hub.slurm.script import make_arguments, make_script
from qemuspawner.hub.slurm.shared import SharesStorage
from qemuspawner.hub.slurm.warming import WarmsOnNodes
from qemuspawner.internal_tls import VARIABLES
from qemuspawner.spec import SessionSpec
from qemuspawner.texts import Text
from qemuspawner.units import render_seconds

# How old an answer of Slurm's may be for who waits for a start or an end, and for who only looks in.
_WAITING_S = 1.0
_LOOKING_S = 15.0
# Of who watches their place in the queue.
_PLACE_S = 5.0
# Between two questions that are asked one after the other.
_BREATH_S = 0.1
_NODES_S = 10.0
# What is older is not told as if it were so now.
_CURRENT_S = 60.0
# From the job's start until its session has told its port.
_PORT_S = 60
# From an orderly stop until the job is cancelled: the guest shuts down, or its memory is written.
_STOP_S = 300
_CANCEL_S = 30


class QemuSlurmSpawner(SharesStorage, WarmsOnNodes, OffersCluster, QemuSpawnerMixin, SlurmSpawner):  # type: ignore[misc]
    """Sessions are jobs of a Slurm cluster.

    batchspawner's own ways of asking Slurm are not used: they build shell commands out of what a user sends,
    take every error for the end of a job, and ask once for each session.
    """

    slurm_user = Unicode(
        "root",
        help="""The account that owns the jobs, as Slurm knows it; "{username}" for each user's own.""",
    ).tag(config=True)
    slurm_prefix = List(
        Unicode(),
        help="""What goes before Slurm's commands, such as ["runuser", "-u", "qemuspawner", "--"].

        With users' own accounts ["sudo", "-u", "{username}"], and only for commands about their own jobs.
        """,
    ).tag(config=True)
    slurm_log = Unicode(
        "/dev/null", help="""Where jobs write what their sessions say, such as "/var/log/desktops/%j.log"."""
    ).tag(config=True)
    queue_timeout = Integer(
        1800, min=1, help="How many seconds a desktop may wait in the queue before its start is given up."
    ).tag(config=True)

    job_id: str
    api_token: str
    _submitted_at = float("-inf")
    _port: asyncio.Future[int] | None = None
    _resumes_start = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Without a user it is only asked for its traits.
        if self.user is not None and "db" in self.user.settings:
            begin_reaping(
                self._owners,
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

    @default("ssl_alt_names")
    def _default_ssl_alt_names(self) -> Any:
        return QemuSlurmSpawner._list_node_names

    async def _list_node_names(self) -> list[str]:
        """Of the nodes that a session may be on: hub and proxy look whether its certificate has one."""
        try:
            nodes = (await self._queue.cluster(max_age_s=_NODES_S)).nodes_of(self._chosen_partition)
        except (SlurmError, HostError) as exc:
            raise self.failure(exc.message, exc.hint) from exc
        return [
            name for node in nodes for name in (f"DNS:{node.name}", f"{_kind(node.address)}:{node.address}")
        ]

    # batchspawner asks the host's accounts for these, and a hub's users need none.

    @default("req_homedir")
    def _default_req_homedir(self) -> str:
        return ""

    def user_env(self, env: dict[str, str]) -> dict[str, str]:
        return env

    @property
    def _owners(self) -> Owners:
        return Owners(user=self.slurm_user, prefix=tuple(self.slurm_prefix))

    @property
    def _slurm(self) -> Slurm:
        """Raises HostError where the user has no account of their own."""
        return self._owners.slurm_of(self.user.name)

    @property
    def _queue(self) -> Queue:
        return queue_of(*self._owners.watch)

    # What there is to choose from

    @property
    def _job_owner(self) -> JobOwner:
        name = self._owners.name_of(self.user.name)
        return JobOwner(user=name, groups=find_unix_groups(name), account=self.slurm_account)

    async def ask_place(self, *, most_s: float) -> None:
        self._owners.name_of(self.user.name)
        why: SlurmError | None = None
        try:
            async with asyncio.timeout(most_s):
                await self._queue.cluster(max_age_s=_NODES_S)
        except SlurmError as exc:
            why = exc
        except TimeoutError:
            why = SlurmError(Text("The cluster does not answer."), hint=Text("Try again later."))
        if why is not None and self._queue.find_last_cluster() is None:
            raise why

    def find_partitions(self) -> tuple[OfferedPartition, ...] | None:
        cluster = self._queue.find_last_cluster()
        if cluster is None:
            return None
        try:
            owner = self._job_owner
        except HostError:
            # Which a start says.
            return None
        is_current = self._queue.find_last_cluster(max_age_s=_CURRENT_S) is not None
        groups = {group.name for group in self.user.groups}
        return self.offer_partitions(cluster, owner, groups, is_current=is_current)

    def find_reservations(self) -> tuple[OfferedReservation, ...]:
        cluster = self._queue.find_last_cluster()
        if cluster is None:
            return ()
        try:
            owner = self._job_owner
        except HostError:
            return ()
        return self.offer_reservations(cluster, owner, {group.name for group in self.user.groups})

    def find_gpu_models(self) -> dict[str, int]:
        return count_gpus(self.find_partitions() or ()) if self.gpus else {}

    # State

    def load_state(self, state: Mapping[str, object]) -> None:
        super().load_state(state)
        self._resumes_start = "starting" in state

    def clear_state(self) -> None:
        super().clear_state()
        self._resumes_start = False

    # Start

    async def start(self) -> tuple[str, int]:
        self.delete_server_tokens(but=self.api_token)
        spec = self.make_spec()
        self.begin_session(spec, node="")
        try:
            await asyncio.to_thread(self._prepare_folders, spec.session_id)
            await self._end_forgotten(spec.session_id)
            self._submitted_at = time.monotonic()
            self.job_id = await self._submit(spec)
            self.save_state()
            await self._reach_session()
        except (SlurmError, HostError) as exc:
            raise self.failure(
                exc.message, exc.hint or Text("Try again; if it happens again, tell the administrator.")
            ) from exc
        await self.follow_start()
        return self.server.ip, self.server.port

    def _prepare_folders(self, session_id: str) -> None:
        """Make the session's folder its user's own, where others could else make one of that name first.

        Raises:
            HostError: The user has no account of their own.
        """
        if not self._owners.are_users or os.geteuid() != 0:
            return
        owner = pwd.getpwnam(self._owners.name_of(self.user.name))
        try:
            account.prepare_folders(self._state_paths, owner, session_id=session_id, shared=True)
        except OSError as exc:
            # On storage where this host's root is nobody, they are made by the job.
            self.log.warning("%s: its folder is not made here: %s", session_id, exc)

    async def _reach_session(self) -> None:
        """Wait until the job has a node and its session a port there.

        Raises:
            SpawnException: It never will.
            SlurmError: Slurm has not said where the node is.
        """
        self._port = asyncio.get_running_loop().create_future()
        try:
            node = await self._wait_for_node()
            self.server.ip, self.server.port = await self._find_address(node), await self._wait_for_port()
        finally:
            self._port = None
        self.server.proto = "https" if self.internal_ssl else "http"
        self._session["node"] = node
        self.save_state()

    @property
    def _hub_id(self) -> str:
        """Several hubs may have jobs of one account."""
        return hashlib.sha256(f"{self.hub.api_url} {self.state_dir}".encode()).hexdigest()[:12]

    async def _end_forgotten(self, session_id: str) -> None:
        """End a former job of this server: a hub that was killed may not have noted that it submitted one."""
        user = self._owners.name_of(self.user.name)
        tagged = await self._slurm.list_tagged(user=user, hub=self._hub_id)
        for job_id in (number for number, session in tagged.items() if session == session_id):
            self.log.warning("%s: its former job %s is ended", session_id, job_id)
            self.job_id, self._submitted_at = job_id, time.monotonic()
            await self.stop()
        self.job_id = ""

    @property
    def _chosen_partition(self) -> str:
        return self._options.partition if self._options is not None else self.partition

    async def _submit(self, spec: SessionSpec) -> str:
        chosen = self._options.reservation if self._options is not None else ""
        arguments = make_arguments(
            session_id=spec.session_id,
            comment=tag(self._hub_id, spec.session_id),
            cpus=spec.cpus,
            memory_mib=spec.memory_mib,
            lifetime_s=spec.max_lifetime_s,
            partition=self._chosen_partition,
            reservation=chosen or self.reservation,
            account=self.slurm_account,
            gres=self.write_gres(spec.gpus),
            log=self.slurm_log,
        )
        return await self._slurm.submit(arguments, make_script(self.cmd, self._make_document()))

    def _make_document(self) -> JobDocument:
        environment = self.get_env()
        # The nodes need not see the hub's files.
        files = {name: Path(environment.pop(name)).read_text() for name in VARIABLES if name in environment}
        return JobDocument(environment=environment, files=files)

    async def _wait_for_node(self) -> str:
        """Wait until the job runs; the name of its node. A port that is told ends the wait: it runs."""
        assert self._port is not None
        said, stood = "", None
        give_up_at = time.monotonic() + self.queue_timeout
        while True:
            job = None
            with contextlib.suppress(SlurmError):
                # While Slurm does not answer, the job waits on.
                job = await self._find_job(0 if self._port.done() else _WAITING_S)
                if job is None:
                    raise self.failure(Text("The desktop's job is gone from the queue."), Text("Try again."))
            if job is not None:
                if job.phase == "over" or job.never_runs:
                    await self._cancel()
                    raise self.failure(describe_end(job), Text("Ask for less, or tell the administrator."))
                if job.phase == "running":
                    return job.node
                wait = describe_wait(job)
                if wait != said:
                    self._progress.say(said := wait)
                with contextlib.suppress(SlurmError):
                    place = await self._queue.find_place(self.job_id, max_age_s=_PLACE_S)
                    if place is not None and place != stood:
                        stood = place
                        self._progress.say(describe_place(job, place, now=time.time()))
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
            await asyncio.wait({self._port}, timeout=_WAITING_S)

    async def _find_address(self, node: str) -> str:
        cluster = await self._queue.cluster(max_age_s=_NODES_S)
        return cluster.nodes[node].address if node in cluster.nodes else node

    async def _wait_for_port(self) -> int:
        """Wait until the job's session has told its port, or the job is over."""
        assert self._port is not None
        give_up_at = time.monotonic() + _PORT_S
        while time.monotonic() < give_up_at:
            done, _ = await asyncio.wait({self._port}, timeout=_WAITING_S)
            if done:
                return self._port.result()
            with contextlib.suppress(SlurmError):
                job = await self._find_job(_WAITING_S)
                if job is None or job.phase == "over":
                    raise self.failure(
                        describe_end(job)
                        if job
                        else Text("The desktop's job ended before its session began."),
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
            return JobStatus.NOTFOUND
        try:
            job = await self._find_job(_WAITING_S if self.pending else _LOOKING_S)
        except SlurmError as exc:
            self.log.warning("%s: %s", self.session_id, exc.text)
            return JobStatus.UNKNOWN
        if job is None or job.phase == "over":
            if job is not None:
                # Unless the session itself has said why.
                self.end_run(outcome="lost", why=describe_end(job))
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
                await self._reach_session()
            while not await desktop_answers(self.server.url, ssl_context=self.session_ssl_context):
                job = await self._find_job(_WAITING_S)
                if job is None or job.phase == "over":
                    return 1
                await asyncio.sleep(_WAITING_S)
        except (SpawnException, SlurmError) as exc:
            self.log.warning("%s: its start is not gone on with: %s", self.session_id, exc)
            return 1
        self._session.pop("starting", None)
        self.save_state()
        return None

    async def capacity(self) -> list[HostCapacity]:
        try:
            cluster = await self._queue.cluster(max_age_s=_NODES_S)
        except SlurmError as exc:
            self.log.warning("What the cluster has is not known: %s", exc.text)
            return []
        names = dict.fromkeys(name for one in self.list_partitions(cluster) for name in one.nodes)
        nodes = [cluster.nodes[name] for name in names]
        return [self.describe_node(node) for node in nodes if node.in_service]

    async def stop(self, now: bool = False) -> None:
        """End the session in order, then its job; `now` at once."""
        if not self.job_id:
            return
        try:
            job = await self._find_job(_WAITING_S)
            if not now and job is not None and job.phase == "running":
                await self._slurm.stop(self.job_id)
                await self._wait_until_over(_STOP_S)
            await self._cancel()
            await self._wait_until_over(_CANCEL_S)
        except (SlurmError, HostError) as exc:
            raise self.failure(
                exc.message, Text("The desktop may run on; try again when Slurm answers.")
            ) from exc

    async def _cancel(self) -> None:
        await self._slurm.cancel(self.job_id)

    async def _wait_until_over(self, most_s: float) -> None:
        give_up_at = time.monotonic() + most_s
        while time.monotonic() < give_up_at:
            job = await self._find_job(_WAITING_S)
            if job is None or job.phase == "over":
                return
            await asyncio.sleep(_WAITING_S)


def _kind(address: str) -> str:
    """Of a certificate's alternative name."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return "DNS"
    return "IP"
