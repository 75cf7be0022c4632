"""What Slurm costs a desktop, and a queue of desktops the hub; a real cluster of three nodes on this machine.

    python bench/slurm.py [--rounds N] [--pending N]

As root. A desktop is the tests' painter, a guest that paints at once; in turns with it, a job that only
makes a file. Then as many starts as `--pending` wait in the queue behind jobs that fill the cluster. Prints
Markdown.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import hubs
from figures import record
from hub_process import HubProcess
from slurm_cluster import NODES, SlurmCluster, running_cluster
from slurm_hubs import prepare_state, running_slurm_hub

_WATCHED_S = 20


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}..{max(values):.2f})"


async def time_job(cluster: SlurmCluster, folder: Path) -> float:
    """Seconds from `sbatch` until a job has done its first thing."""
    made = folder / f"made-{time.monotonic_ns()}"
    begun = time.monotonic()
    cluster.run("sbatch", "--parsable", "--output=/dev/null", "--wrap", f"touch {made}")
    while not made.exists():
        await asyncio.sleep(0.01)
    return time.monotonic() - begun


async def time_desktop(hub: HubProcess, options: object = None) -> float:
    """Seconds from the request until the desktop is there."""
    begun = time.monotonic()
    await hub.ask("POST", "/users/alice/server", json=options)
    await hub.wait_for_server("ready", True)
    took = time.monotonic() - begun
    await hub.ask("DELETE", "/users/alice/server")
    await hub.wait_for_server("stopped", True)
    return took


def cpu_s(pid: int) -> float:
    """What a process and its children that have ended have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


async def watch(hub: HubProcess) -> tuple[float, list[float]]:
    """The part of a core that the hub takes, and how long it takes to answer, for a while."""
    answers = []
    before, begun = cpu_s(hub.pid), time.monotonic()
    while time.monotonic() < begun + _WATCHED_S:
        asked = time.monotonic()
        await hub.ask("GET", "/health")
        answers.append(1000 * (time.monotonic() - asked))
        await asyncio.sleep(0.2)
    return (cpu_s(hub.pid) - before) / (time.monotonic() - begun), answers


async def main(rounds: int, pending: int) -> None:
    with running_cluster() as cluster, hubs.state_folder() as state, tempfile.TemporaryDirectory() as work:
        os.environ["SLURM_CONF"] = str(cluster.config)
        folder = Path(work)
        hubs.add_machine(folder / "machines", state, "mini")
        prepare_state(state)
        async with running_slurm_hub(folder, state, folder / "machines", cluster) as hub:
            names = [f"user{number}" for number in range(pending)]
            for name in names:
                await hub.ask("POST", f"/users/{name}")
            jobs, desktops = [], []
            for _ in range(rounds):
                jobs.append(await time_job(cluster, folder))
                desktops.append(await time_desktop(hub))
            idle, quick = await watch(hub)
            fill = ("sbatch", "--parsable", "-c4", "-t60", "--output=/dev/null", "--wrap", "sleep 3000")
            blockers = [cluster.run(*fill).strip() for _ in range(NODES)]
            starts = [asyncio.create_task(hub.ask("POST", f"/users/{name}/server")) for name in names]
            await asyncio.wait(starts, timeout=60)
            await asyncio.sleep(5)
            waiting = len(cluster.run("squeue", "-h", "-t", "pending", "-o", "%i").split())
            busy, slow = await watch(hub)
            hub.kill()
            cluster.run("scancel", *blockers)
            cluster.run("scancel", "--user", hubs.sessions_account())
    over = statistics.median(desktops) - statistics.median(jobs)
    pairs = zip(desktops, jobs, strict=True)
    record("a desktop is there, more than a job of `true` takes", "s", [a - b for a, b in pairs], limit=2)
    record(f"{waiting} starts wait: more than none", "part of a core", [busy - idle], limit=0.02)
    later = statistics.median(slow) - statistics.median(quick)
    record(f"{waiting} starts wait: an answer of the hub later", "ms", [later], limit=10)
    print("| measure | | limit |\n|---|---|---|")
    print(f"| `sbatch` until a job runs, s | {spread(jobs)} | |")
    print(f"| request until a desktop is there, s | {spread(desktops)} | |")
    print(f"| more than the job, s | {over:.2f} | 2 |")
    print(f"| hub, no start waiting: part of a core | {idle:.3f} | |")
    print(f"| hub, {waiting} starts waiting: part of a core | {busy:.3f} | 0.02 more |")
    print(f"| an answer of the hub, no start waiting, ms | {spread(quick)} | |")
    print(f"| an answer of the hub, {waiting} starts waiting, ms | {spread(slow)} | 10 more |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--pending", type=int, default=40)
    asked = parser.parse_args()
    asyncio.run(main(asked.rounds, asked.pending))
