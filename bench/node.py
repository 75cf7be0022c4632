"""A fresh desktop of the demo machine on a node of a cluster: what it takes beside what Slurm takes.

    QEMUSPAWNER_TEST_IMAGES=STATE/images python bench/node.py [--rounds N]

As root; a real cluster of three nodes on this machine, the demo machine with 1 CPU and 1 GiB. The first
desktop on a node fetches image and template from shared storage into the node's own; later ones find them.
"Without Slurm" is less what `sbatch` takes until a job runs, in turns with the desktops. Prints Markdown.
"""

import argparse
import asyncio
import os
import re
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import warming
from hub_process import HubProcess
from slurm import spread, time_desktop, time_job
from slurm_cluster import SlurmCluster, running_cluster
from slurm_hubs import running_slurm_hub

_READY = re.compile(r"The desktop is ready \(after ([0-9.]+) s\)")
_RESTORED = "The machine is restored from its template"
_OPTIONS = {"machine": warming.DEMO, "cpus": warming.DEMO_CPUS, "memory": "1 GiB"}
_MACHINES = Path(__file__).parent.parent / "machines"


def read_log(folder: Path) -> float:
    """Seconds from the session's first step on the node until the newest desktop was ready."""
    log = max(folder.glob("*.log"), key=lambda path: path.stat().st_mtime).read_text()
    assert _RESTORED in log, log
    found = _READY.search(log)
    assert found is not None, log
    return float(found[1])


async def measure(hub: HubProcess, cluster: SlurmCluster, state: Path, rounds: int) -> None:
    cache = state / "local"
    firsts, inside_first, later, inside, jobs = [], [], [], [], []
    for _ in range(rounds):
        for copies in cache.glob("[0-9]*/"):
            shutil.rmtree(copies)
        firsts.append(await time_desktop(hub, _OPTIONS))
        inside_first.append(read_log(cache))
        jobs.append(await time_job(cluster, state))
        later.append(await time_desktop(hub, _OPTIONS))
        inside.append(read_log(cache))
    job = statistics.median(jobs)
    print("| measure | seconds |\n|---|---|")
    print(f"| `sbatch` until a job runs | {spread(jobs)} |")
    print(f"| the first desktop on a node: request until it is there | {spread(firsts)} |")
    print(f"| of that from the session's first step | {spread(inside_first)} |")
    print(f"| a later one: request until it is there | {spread(later)} |")
    print(f"| the same without Slurm | {spread([one - job for one in later])} |")
    print(f"| of that from the session's first step | {spread(inside)} |")


async def main(rounds: int) -> None:
    with running_cluster() as cluster, warming.demo_state() as state, tempfile.TemporaryDirectory() as work:
        os.environ["SLURM_CONF"] = str(cluster.config)
        local = state / "local"
        local.mkdir()
        local.chmod(0o1777)
        traits = {"image_cache": str(local), "slurm_log": f"{local}/%j.log"}
        async with running_slurm_hub(Path(work), state, _MACHINES, cluster, **traits) as hub:
            await measure(hub, cluster, state, rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    asyncio.run(main(parser.parse_args().rounds))
