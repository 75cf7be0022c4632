"""What it costs a hub to watch a queue: Slurm's answers of many lines, read and understood.

    python bench/watcher.py [--jobs 100 1000 10000] [--rounds N]

The answers are what `squeue` prints for as many jobs of one account, a tenth of which run. CPU time is this
process's and its commands', as the hub's would be; Slurm's own is not in it. Prints Markdown.
"""

import argparse
import asyncio
import gc
import os
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from qemuspawner.hub.batch.engine import tag
from qemuspawner.hub.slurm.commands import Slurm

_COMMANDS = """\
#!/bin/sh
case "$*" in
  *%k*) exec cat {folder}/tagged;;
  *%P*) exec cat {folder}/places;;
  *) exec cat {folder}/jobs;;
esac
"""
# How often a hub with desktops asks, in seconds: for the jobs while nobody waits, and while somebody does;
# for places in the queue while somebody waits; for jobs that nobody owns.
_EVERY_S = {"jobs": (15, 1), "places": (None, 5), "tagged": (60, 60)}


def write_answers(folder: Path, jobs: int) -> None:
    moment = "2026-11-28T23:31:06"
    rows = {"jobs": "", "places": "", "tagged": ""}
    for number in range(4_000_000, 4_000_000 + jobs):
        if number % 10:
            rows["jobs"] += f"{number}|PENDING|n/a|Priority|{moment}|N/A\n"
            rows["places"] += f"{number}|desktop\n"
        else:
            rows["jobs"] += f"{number}|RUNNING|node{number % 500}|None|{moment}|{moment}\n"
        rows["tagged"] += f"{number}|{tag('0123456789ab', f'{number:020x}')}\n"
    for name, text in rows.items():
        (folder / name).write_text(text)


def used_s() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


async def measure(ask: Callable[[], Awaitable[object]], rounds: int) -> tuple[float, float, float]:
    """CPU of an answer in ms, the longest that it holds the loop in ms, and what it leaves in memory, KiB."""
    held = []
    for _ in range(rounds):
        stop = asyncio.Event()
        watcher = asyncio.create_task(watch(stop))
        await ask()
        stop.set()
        held.append(await watcher)
    before = used_s()
    for _ in range(rounds):
        await ask()
    cpu_ms = 1000 * (used_s() - before) / rounds
    gc.collect()
    tracemalloc.start()
    kept = await ask()
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return cpu_ms, statistics.median(held), size / 1024


async def watch(stop: asyncio.Event) -> float:
    """The most CPU time, in ms, between two turns of the loop."""
    most, last = 0.0, time.thread_time()
    while not stop.is_set():
        await asyncio.sleep(0)
        now = time.thread_time()
        most, last = max(most, now - last), now
    return 1000 * most


async def main(counts: list[int], rounds: int) -> None:
    print("| answer | jobs | CPU, ms | loop held, ms | kept, KiB | part of a core: nobody waits / somebody |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        commands = folder / "slurm"
        commands.write_text(_COMMANDS.format(folder=folder))
        commands.chmod(0o755)
        slurm = Slurm((str(commands),))
        asks: dict[str, Callable[[], Awaitable[object]]] = {
            "jobs": lambda: slurm.list_jobs(user="svc"),
            "places": slurm.list_places,
            "tagged": lambda: slurm.list_tagged(user="svc", hub="0123456789ab"),
        }
        for count in counts:
            write_answers(folder, count)
            for name, ask in asks.items():
                cpu_ms, held_ms, kept_kib = await measure(ask, rounds)
                parts = [f"{cpu_ms / 1000 / every:.4f}" if every else "0" for every in _EVERY_S[name]]
                spent = f"{cpu_ms:.1f} | {held_ms:.1f} | {kept_kib:.0f}"
                print(f"| {name} | {count} | {spent} | {' / '.join(parts)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--rounds", type=int, default=10)
    asked = parser.parse_args()
    asyncio.run(main(asked.jobs, asked.rounds))
