"""What `sbatch` is given: arguments for what Slurm decides by."""

from qemuspawner.batch import SPARE_S, job_memory_mib
from qemuspawner.hub.slurm.words import write_duration

# Before that limit the session is told, and has this long to end or to be saved.
_NOTICE_S = 300


def make_arguments(
    *,
    session_id: str,
    comment: str,
    cpus: int,
    memory_mib: int,
    lifetime_s: int,
    partition: str,
    reservation: str = "",
    account: str = "",
    gres: str = "",
    log: str,
) -> list[str]:
    """Of values that were checked; each is an argument of its own, and no shell sees it."""
    wanted = {"partition": partition, "reservation": reservation, "account": account, "gres": gres}
    return [
        f"--job-name=desktop-{session_id}",
        f"--comment={comment}",
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={cpus}",
        f"--mem={job_memory_mib(memory_mib)}M",
        f"--time={write_duration(lifetime_s + SPARE_S)}",
        # A second start of a desktop that somebody may be using elsewhere would be worse than none.
        "--no-requeue",
        # The hub's environment has secrets, and Slurm stores what it is given.
        "--export=NONE",
        f"--signal=B:USR1@{_NOTICE_S}",
        "--chdir=/",
        f"--output={log}",
        *(f"--{name}={value}" for name, value in wanted.items() if value),
    ]
