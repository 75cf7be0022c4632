"""Which desktops ran: a record of each, from its start to its end. It stays when nothing else does.

Who runs now is not asked here: that JupyterHub knows.
"""

import functools
import json
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from msgspec import structs
from sqlalchemy import bindparam, case, delete, func, or_, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Mapped, mapped_column
from traitlets import Integer, Unicode, Union
from traitlets.config import LoggingConfigurable

from qemuspawner.hub.records import Base, Records
from qemuspawner.paths import StatePaths
from qemuspawner.spec import ChosenProposal, Gpus, SessionSpec, Usage
from qemuspawner.texts import Text, pack, unpack

# A hub that is killed does not know to the second until when its desktops ran.
_SEEN_EVERY_S = 60
# What is usual is the middle of so many, where there were that many at least.
_USUAL_OF = 20
_LEAST_FOR_USUAL = 3
# Some of those: its host may have been too busy.
_LOST_AFTER_S = 5 * _SEEN_EVERY_S
_MAX_WHY = 1000
_MAX_TEXT = 8000
_MAX_SERVERS = 1000

# How a run ended: for good, asleep, by a failure; "lost": its session has not told.
Outcome = Literal["ended", "asleep", "failed", "lost"]

log = logging.getLogger(__name__)


class Run(Base):
    """One run of a desktop. Moments are Unix seconds."""

    __tablename__ = "runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    session_id: Mapped[str] = mapped_column(index=True)
    user: Mapped[str] = mapped_column(index=True)
    server: Mapped[str]
    machine: Mapped[str]  # its id
    machine_name: Mapped[str]
    cpus: Mapped[int]
    memory_mib: Mapped[int]
    gpus: Mapped[int] = mapped_column(default=0, server_default="0")
    gpu_model: Mapped[str] = mapped_column(default="", server_default="")
    node: Mapped[str]  # the host
    proposal: Mapped[str] = mapped_column(default="", server_default="")  # its id; "" where it is on none
    proposal_title: Mapped[str] = mapped_column(default="", server_default="")
    way: Mapped[str] = mapped_column(default="")  # cold, restored or woken
    started: Mapped[float] = mapped_column(index=True)
    ready: Mapped[float | None]  # None: no desktop was seen yet
    seen: Mapped[float]  # when it was known to run
    ended: Mapped[float | None] = mapped_column(index=True)
    end: Mapped[str] = mapped_column(default="")  # why, in a sentence; "" where nobody knows
    end_text: Mapped[str | None]  # what that was made from, JSON
    outcome: Mapped[str] = mapped_column(default="", server_default="")  # an Outcome; "" while it runs
    # What it used, as spec.Usage says it; None where its session has not told.
    span_s: Mapped[int | None]
    active_s: Mapped[int | None]
    cpu_mean: Mapped[float | None]
    cpu_p95: Mapped[float | None]
    cpu_peak: Mapped[float | None]
    written_mib: Mapped[int | None]
    memory_peak_mib: Mapped[int | None]
    memory_by: Mapped[str | None]
    gpu_percent: Mapped[int | None]

    @property
    def why(self) -> str:
        """`end`, to be said in any language."""
        return unpack(json.loads(self.end_text)) if self.end_text else self.end

    @property
    def promised_gpus(self) -> Gpus | None:
        return Gpus(count=self.gpus, model=self.gpu_model) if self.gpus else None

    @property
    def usage(self) -> Usage | None:
        if self.span_s is None:
            return None
        return Usage(
            span_s=self.span_s,
            active_s=self.active_s or 0,
            cpu_mean=self.cpu_mean or 0,
            cpu_p95=self.cpu_p95 or 0,
            cpu_peak=self.cpu_peak or 0,
            written_mib=self.written_mib or 0,
            memory_mib=self.memory_peak_mib,
            memory_by=self.memory_by or "",  # type: ignore[arg-type]
            gpu_percent=self.gpu_percent,
        )


def begin_run(records: Records, spec: SessionSpec, *, node: str) -> int:
    """A desktop starts; the number of its run. One that its session left open ended when it was seen last."""
    now = time.time()
    with records.session() as session:
        session.execute(
            update(Run)
            .where(Run.session_id == spec.session_id, Run.ended.is_(None))
            .values(ended=Run.seen, outcome="lost")
        )
        run = Run(
            session_id=spec.session_id,
            user=spec.user,
            server=spec.server_name,
            machine=spec.machine.id,
            machine_name=spec.machine.name,
            cpus=spec.cpus,
            memory_mib=spec.memory_mib,
            gpus=spec.gpus.count if spec.gpus else 0,
            gpu_model=spec.gpus.model if spec.gpus else "",
            node=node,
            proposal=spec.proposal.id if spec.proposal else "",
            proposal_title=spec.proposal.title if spec.proposal else "",
            started=now,
            seen=now,
        )
        session.add(run)
        session.flush()
        return run.id


def note_ready(records: Records, run_id: int, *, way: str) -> None:
    """Its desktop is there."""
    now = time.time()
    with records.session() as session:
        session.execute(update(Run).where(Run.id == run_id).values(ready=now, seen=now, way=way))


def note_seen(records: Records, seen: Mapping[int, float]) -> None:
    """When each of these runs was known to run, by its number."""
    change = update(Run).where(Run.id == bindparam("run")).values(seen=bindparam("at"))
    with records.session() as session:
        # Not as rows of the session: one that was deleted meanwhile is no mistake.
        session.connection().execute(change, [{"run": run_id, "at": at} for run_id, at in seen.items()])


def end_run(records: Records, run_id: int, *, outcome: Outcome, why: str = "") -> Run | None:
    """It has ended; the first reason counts. The run, or None where it had ended already."""
    now = time.time()
    with records.session() as session:
        run = session.get(Run, run_id)
        if run is None or run.ended is not None:
            return None
        run.ended = run.seen = now
        run.outcome, run.end = outcome, why[:_MAX_WHY]
        text = json.dumps(pack(why)) if isinstance(why, Text) else ""
        run.end_text = text if 0 < len(text) <= _MAX_TEXT else None
        return run


def note_usage(records: Records, run_id: int, usage: Usage) -> None:
    """What it has used, as its session says."""
    values = structs.asdict(usage)
    values["memory_peak_mib"] = values.pop("memory_mib")
    with records.session() as session:
        session.execute(update(Run).where(Run.id == run_id).values(**values))


def end_lost_runs(records: Records, running: Collection[int]) -> int:
    """End what no hub knows to run any more, when it was seen last; how many there were.

    `running` are the numbers of the runs that go on. What was seen just now may be about to be one of them.
    """
    with records.session() as session:
        old = select(Run.id).where(Run.ended.is_(None), Run.seen < time.time() - _LOST_AFTER_S)
        lost = [run_id for run_id in session.scalars(old) if run_id not in running]
        for run_id in lost:
            session.execute(update(Run).where(Run.id == run_id).values(ended=Run.seen, outcome="lost"))
    return len(lost)


def delete_old_runs(records: Records, *, keep_s: int) -> int:
    """Delete what ended longer ago than `keep_s` seconds; how many there were."""
    with records.session() as session:
        done = session.execute(delete(Run).where(Run.ended < time.time() - keep_s))
    return int(done.rowcount)  # type: ignore[attr-defined]


def find_run(records: Records, run_id: int) -> Run | None:
    with records.session() as session:
        return session.get(Run, run_id)


def find_last_uses(records: Records, user: str, *, server: str | None = None) -> dict[str, Run]:
    """The newest run of each of a user's servers, or of this one, of which it is known what it used."""
    known = select(func.max(Run.id)).where(Run.user == user, Run.span_s.is_not(None), Run.ended.is_not(None))
    if server is not None:
        known = known.where(Run.server == server)
    newest = select(Run).where(Run.id.in_(known.group_by(Run.server))).order_by(Run.id.desc())
    with records.session() as session:
        return {run.server: run for run in session.scalars(newest.limit(_MAX_SERVERS))}


@dataclass(frozen=True, kw_only=True)
class Hours:
    """What desktops have used: CPUs or GPUs, each times the hours that it was theirs."""

    cpu: float = 0
    gpu: float = 0


def sum_hours(records: Records, *, users: Collection[str] | None, window_s: float) -> Hours:
    """What the desktops of `users` (None: everybody's) have used in the last `window_s` seconds.

    What runs counts up to now. A run whose end nobody has noted counts until it was seen last.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: The records cannot be read.
    """
    now = time.time()
    begin = now - window_s
    # It is looked at now and then; who was not seen for longer does not run any more.
    still_seen = case((Run.seen > now - 3 * _SEEN_EVERY_S, now), else_=Run.seen)
    end = func.coalesce(Run.ended, still_seen)
    lasted_s = func.max(func.min(end, now) - func.max(Run.started, begin), 0.0)
    query = select(func.sum(Run.cpus * lasted_s), func.sum(Run.gpus * lasted_s)).where(
        or_(Run.ended.is_(None), Run.ended > begin)
    )
    if users is not None:
        query = query.where(Run.user.in_(users))
    with records.session() as session:
        cpu_s, gpu_s = session.execute(query).one()
    return Hours(cpu=(cpu_s or 0) / 3600, gpu=(gpu_s or 0) / 3600)


@dataclass(frozen=True, kw_only=True)
class LastRun:
    """The newest run of a session, and since when there are any."""

    machine_name: str
    cpus: int
    memory_mib: int
    ready: float | None
    ended: float | None
    end: str
    outcome: str  # an Outcome; "" while it runs
    first_started: float
    proposal: ChosenProposal | None


def last_runs(records: Records, user: str) -> dict[str, LastRun]:
    """Of each of the user's sessions, by its id; none where the records cannot be read."""
    newest = (
        select(func.max(Run.id).label("id"), func.min(Run.started).label("first_started"))
        .where(Run.user == user)
        .group_by(Run.session_id)
        .subquery()
    )
    try:
        with records.session() as session:
            rows = session.execute(
                select(Run, newest.c.first_started).join(newest, Run.id == newest.c.id)
            ).all()
    except (SQLAlchemyError, OSError):
        log.exception("The hub's records cannot be read")
        return {}
    return {
        run.session_id: LastRun(
            machine_name=run.machine_name,
            cpus=run.cpus,
            memory_mib=run.memory_mib,
            ready=run.ready,
            ended=run.ended,
            end=run.why,
            outcome=run.outcome,
            first_started=first_started,
            proposal=ChosenProposal(id=run.proposal, title=run.proposal_title) if run.proposal else None,
        )
        for run, first_started in rows
    }


def usual_start_s(records: Records, machine: str, way: str) -> float | None:
    """How long this machine usually takes to come up in this way; None where too few did to say."""
    took = (
        select(Run.ready - Run.started)
        .where(Run.machine == machine, Run.way == way, Run.ready.is_not(None))
        .order_by(Run.id.desc())
        .limit(_USUAL_OF)
    )
    with records.session() as session:
        seconds = [one for one in session.scalars(took) if one is not None]
    return median(seconds) if len(seconds) >= _LEAST_FOR_USUAL else None


class KeepsRuns(LoggingConfigurable):
    """Part of `QemuSpawnerMixin`: writes down when this server's desktop ran.

    A desktop does not fail for a record that cannot be written.
    """

    keep_runs = Union(
        [Integer(), Unicode()],
        default_value=730 * 86400,
        help="""How long the hub keeps its record of a desktop that ran: seconds, or "730 d"; 0: for ever.""",
    ).tag(config=True)

    # The spawner's
    state_dir: Any
    user: Any
    _run_id: int = 0  # 0: none is open
    run_seen_at: float = 0  # Unix seconds; noted with all others, once a minute

    @property
    def run_id(self) -> int:
        """The number of the run that goes on; 0: none does."""
        return self._run_id

    @property
    def records(self) -> Records:
        return records_of(self.state_dir)

    def begin_run(self, spec: SessionSpec, *, node: str) -> None:
        self._run_id = self._noted(lambda: begin_run(self.records, spec, node=node)) or 0
        self.run_seen_at = 0

    def note_run_ready(self, *, way: str) -> None:
        if self._run_id:
            self._noted(lambda: note_ready(self.records, self._run_id, way=way))

    def note_run_seen(self) -> None:
        self.run_seen_at = time.time()

    def usual_start_s(self, machine: str, way: str) -> float | None:
        usual: float | None = self._noted(lambda: usual_start_s(self.records, machine, way))
        return usual

    def end_run(self, *, outcome: Outcome, why: str = "") -> Run | None:
        """The run that has ended now; None where it had before, or none was open."""
        if not self._run_id:
            return None
        run: Run | None = self._noted(lambda: end_run(self.records, self._run_id, outcome=outcome, why=why))
        self._run_id = 0
        return run

    def find_run(self) -> Run | None:
        """The run that goes on."""
        if not self._run_id:
            return None
        run: Run | None = self._noted(lambda: find_run(self.records, self._run_id))
        return run

    def note_run_usage(self, usage: Usage) -> None:
        if self._run_id:
            self._noted(lambda: note_usage(self.records, self._run_id, usage))

    def find_last_uses(self, *, server: str | None = None) -> dict[str, Run]:
        return self._noted(lambda: find_last_uses(self.records, self.user.name, server=server)) or {}

    def _noted(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except (SQLAlchemyError, OSError):
            self.log.exception("The hub's records cannot be written")
            return None


@functools.cache
def records_of(state_dir: str) -> Records:
    """The records of the hub with this state folder."""
    return Records(StatePaths.of(state_dir))
