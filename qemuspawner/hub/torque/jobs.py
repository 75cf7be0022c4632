"""Jobs as Torque's `qstat -x` lists them."""

from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from qemuspawner.hub.batch.answers import read_xml
from qemuspawner.hub.batch.engine import Phase
from qemuspawner.texts import Text

# Of `man qstat`. What is suspended goes on later; what is exiting still has its processes.
_PHASES: Mapping[str, Phase] = {
    "Q": "pending",
    "H": "pending",
    "W": "pending",
    "T": "pending",
    "R": "running",
    "S": "running",
    "E": "running",
    "C": "over",
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job at one moment."""

    id: str
    name: str
    owner: str
    state: str  # Torque's letter
    node: str  # "" while it waits
    exit_status: str  # "" until it is over

    @property
    def phase(self) -> Phase:
        return _PHASES.get(self.state, "unknown")

    @property
    def is_paused(self) -> bool:
        return self.state == "S"

    @property
    def never_runs(self) -> bool:
        # Torque refuses what it never can run.
        return False

    @property
    def wait(self) -> Text:
        match self.state:
            case "H":
                return Text("The job is held: an administrator of the cluster has to release it")
            case "W":
                return Text("Waiting for the time at which the job may begin")
        return Text("Waiting for free CPUs and memory on the cluster")

    @property
    def ending(self) -> Text:
        return Text("The desktop's job ended on the cluster ({state}).", state=self.exit_status or self.state)


def parse_jobs(listed: str) -> dict[str, Job]:
    """What `qstat -x` prints, by job id; nothing at all where there is no job.

    Raises:
        ValueError: Not such a list.
    """
    if not listed.strip():
        return {}
    root = read_xml(listed)
    if root.tag != "Data":
        raise ValueError(f"the list of jobs is a <{root.tag[:40]}>")
    jobs = [_read_job(element) for element in root.iter("Job")]
    return {job.id: job for job in jobs}


def _read_job(element: Element) -> Job:
    number = element.findtext("Job_Id", "")
    if not number:
        raise ValueError("a job has no number")
    return Job(
        id=number,
        name=element.findtext("Job_Name", ""),
        owner=element.findtext("Job_Owner", "").partition("@")[0],
        state=element.findtext("job_state", ""),
        # "n1/0+n1/1" or "n1/0-1": each CPU, all on one host.
        node=element.findtext("exec_host", "").partition("/")[0],
        exit_status=element.findtext("exit_status", ""),
    )
