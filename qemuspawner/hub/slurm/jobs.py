"""Jobs as `squeue` lists them: how each does, why it waits, and whether it ever will run."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from qemuspawner.hub.batch.engine import Phase
from qemuspawner.hub.slurm.words import parse_moment
from qemuspawner.texts import Text
from qemuspawner.units import render_seconds

# What `squeue` is asked for: Slurm's own words, nothing that somebody may have written into their job.
COLUMNS = "%i|%T|%B|%r|%S|%e"

# Of `man squeue`, JOB STATE CODES. What is suspended goes on later; what is requeued would start anew,
# and jobs of ours never are.
_PHASES: Mapping[str, Phase] = {
    "PENDING": "pending",
    "CONFIGURING": "pending",
    "RESV_DEL_HOLD": "pending",
    "SPECIAL_EXIT": "pending",
    "REQUEUE_FED": "pending",
    "RUNNING": "running",
    "SUSPENDED": "running",
    "STOPPED": "running",
    "SIGNALING": "running",
    "STAGE_OUT": "running",
    "RESIZING": "running",
    # Its processes are being ended.
    "COMPLETING": "running",
    "BOOT_FAIL": "over",
    "CANCELLED": "over",
    "COMPLETED": "over",
    "DEADLINE": "over",
    "FAILED": "over",
    "NODE_FAIL": "over",
    "OUT_OF_MEMORY": "over",
    "PREEMPTED": "over",
    "REQUEUED": "over",
    "REQUEUE_HOLD": "over",
    "REVOKED": "over",
    "TIMEOUT": "over",
}

# A job that waits for one of these waits for ever, or until an administrator changes the cluster.
_NEVER = frozenset(
    (
        "AccountNotAllowed",
        "AssocMaxCpuMinutesPerJobLimit",
        "AssocMaxCpuPerJobLimit",
        "AssocMaxMemPerJob",
        "AssocMaxNodePerJobLimit",
        "AssocMaxWallDurationPerJobLimit",
        "BadConstraints",
        "InvalidAccount",
        "InvalidQOS",
        "PartitionConfig",
        "PartitionNodeLimit",
        "PartitionTimeLimit",
        "QOSMaxCpuPerJobLimit",
        "QOSMaxMemoryPerJob",
        "QOSMaxNodePerJobLimit",
        "QOSMaxWallDurationPerJobLimit",
        "QOSNotAllowed",
    )
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job at one moment; moments are seconds since the epoch, None where Slurm names none."""

    id: str
    state: str  # Slurm's own word
    node: str  # "" while it waits
    reason: str  # why it waits, or why it ended; "" for none
    expected_start: float | None
    end: float | None  # when its time is over

    @property
    def phase(self) -> Phase:
        return _PHASES.get(self.state, "unknown")

    @property
    def is_paused(self) -> bool:
        return self.state in ("SUSPENDED", "STOPPED")

    @property
    def never_runs(self) -> bool:
        return self.phase == "pending" and self.reason in _NEVER

    @property
    def wait(self) -> Text:
        return describe_wait(self)

    @property
    def ending(self) -> Text:
        return describe_end(self)


def parse_jobs(listed: str) -> dict[str, Job]:
    """What `squeue --noheader --format COLUMNS` prints, by job id.

    Raises:
        ValueError: Not such a list. A list that is cut off must not look like one with fewer jobs.
    """
    if listed and not listed.endswith("\n"):
        raise ValueError("the list of jobs is cut off")
    jobs = {}
    for line in listed.splitlines():
        parts = line.split("|")
        if len(parts) != COLUMNS.count("|") + 1:
            raise ValueError(f"the list of jobs has the line {line[:200]!r}")
        number, state, node, reason, start, end = parts
        job = Job(
            id=number,
            state=state,
            node="" if node == "n/a" else node,
            reason="" if reason == "None" else reason,
            expected_start=parse_moment(start),
            end=parse_moment(end),
        )
        jobs[job.id] = job
    return jobs


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a job stands among those that wait for the same partition: 1 is the next."""

    place: int
    of: int


# What `squeue` is asked for, and in which order, to see who comes first.
PLACE_COLUMNS = "%i|%P"
PLACE_ORDER = "-p,i"


def parse_places(listed: str) -> dict[str, Place]:
    """What `squeue --format PLACE_COLUMNS --sort PLACE_ORDER` prints of those that wait, by job id."""
    lines = [line.partition("|") for line in listed.splitlines()]
    waiting = Counter(partition for _, _, partition in lines)
    before: Counter[str] = Counter()
    places = {}
    for number, _, partition in lines:
        before[partition] += 1
        places[number] = Place(place=before[partition], of=waiting[partition])
    return places


def describe_place(job: Job, place: Place, *, now: float) -> Text:
    """How long the wait may be, as far as Slurm says."""
    if job.expected_start is None or job.expected_start <= now:
        return Text("Place {place} of {count} in the queue", place=place.place, count=place.of)
    return Text(
        "Place {place} of {count} in the queue; Slurm expects it to start in {span}",
        place=place.place,
        count=place.of,
        # It looks every few seconds, and is often wrong by minutes.
        span=render_seconds(max(60, round((job.expected_start - now) / 60) * 60)),
    )


def describe_wait(job: Job) -> Text:
    """Why a job waits, for who waits for it."""
    match job.reason:
        case "Resources" | "":
            return Text("Waiting for free CPUs and memory on the cluster")
        case "Priority":
            return Text("Waiting: other jobs come first")
        case "BeginTime":
            return Text("Waiting for the time at which the job may begin")
        case "Reservation":
            return Text("Waiting for the reservation to begin")
        case "JobHeldUser" | "JobHeldAdmin":
            return Text("The job is held: an administrator of the cluster has to release it")
        case reason if reason.startswith("ReqNodeNotAvail"):
            return Text("Waiting: the nodes that are needed are out of service")
        case reason if reason.startswith(("QOS", "Assoc", "MaxCpu", "MaxMem")):
            return Text("Waiting: your share of the cluster is in use ({reason})", reason=reason[:60])
        case reason:
            return Text("Waiting for the cluster ({reason})", reason=reason[:60])


def describe_end(job: Job) -> Text:
    """Why a job is over, or never will run, for who wanted it."""
    if job.never_runs:
        return Text(
            "The cluster can never run this desktop as it was asked for ({reason}).", reason=job.reason
        )
    match job.state:
        case "NODE_FAIL" | "BOOT_FAIL":
            return Text("The cluster lost the node {node} that the desktop ran on.", node=job.node or "?")
        case "OUT_OF_MEMORY":
            return Text("The desktop's job took more memory than it may, and was ended.")
        case "TIMEOUT" | "DEADLINE":
            return Text("The time that the cluster gave the desktop is over.")
        case "PREEMPTED" | "REQUEUED" | "REQUEUE_HOLD":
            return Text("The cluster needed the desktop's place for a job that comes first.")
        case "CANCELLED":
            return Text("The desktop's job was cancelled on the cluster.")
        case state:
            return Text("The desktop's job ended on the cluster ({state}).", state=state[:60])
