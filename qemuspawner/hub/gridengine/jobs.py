"""Jobs as `qstat -xml` lists them."""

from dataclasses import dataclass
from xml.etree.ElementTree import Element

from qemuspawner.hub.batch.answers import read_xml
from qemuspawner.hub.batch.engine import Phase
from qemuspawner.texts import Text


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job at one moment; jobs that are over are not listed."""

    id: str
    name: str
    state: str  # Grid Engine's letters, of `man qstat`
    node: str  # "" while it waits

    @property
    def phase(self) -> Phase:
        # While it is transferred ("t") it has its node. Suspended ("s", "S", "T") it goes on later; marked
        # for deletion ("d") it is there until it is not.
        if not self.state.isalpha():
            return "unknown"
        return "running" if self.node else "pending"

    @property
    def is_paused(self) -> bool:
        # By somebody, by its queue, or by a threshold of its queue.
        return self.phase == "running" and not {"s", "S", "T"}.isdisjoint(self.state)

    @property
    def never_runs(self) -> bool:
        """It was tried and failed ("E"): somebody has to look."""
        return self.phase == "pending" and "E" in self.state

    @property
    def wait(self) -> Text:
        if "h" in self.state:
            return Text("The job is held: an administrator of the cluster has to release it")
        return Text("Waiting for free CPUs and memory on the cluster")

    @property
    def ending(self) -> Text:
        if self.never_runs:
            return Text("The cluster could not start the desktop's job ({reason}).", reason=self.state)
        return Text("The desktop's job ended on the cluster ({state}).", state=self.state)


def parse_jobs(listed: str) -> dict[str, Job]:
    """What `qstat -xml` prints, by job id.

    Raises:
        ValueError: Not such a list.
    """
    root = read_xml(listed)
    if root.tag != "job_info":
        raise ValueError(f"the list of jobs is a <{root.tag[:40]}>")
    jobs = [_read_job(element) for element in root.iter("job_list")]
    return {job.id: job for job in jobs}


def _read_job(element: Element) -> Job:
    number = element.findtext("JB_job_number", "")
    if not number.isdecimal():
        raise ValueError(f"a job has the number {number[:40]!r}")
    _, _, node = element.findtext("queue_name", "").rpartition("@")
    return Job(
        id=number,
        # Else it is cut to 10 characters.
        name=element.findtext("full_job_name", "") or element.findtext("JB_name", ""),
        state=element.findtext("state", ""),
        node=node,
    )
