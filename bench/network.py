"""What the walls of a guest's network add to a start: seconds and memory, beside the jail alone.

    python bench/network.py [--rounds N]

The same jail with nothing behind the card (`none`) and with pasta and rules (`internet`), interleaved, each
until a program inside runs. Memory is PSS of what stays beside QEMU. Prints Markdown.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from figures import record
from processes import find_descendants, pss_mib

from qemuspawner.network import Network
from qemuspawner.qemu.jail import in_jail, tie_to_parent
from qemuspawner.qemu.network import Outside, plan_network

WORK_DIR = Path("/usr/lib")


def jailed(program: str, *arguments: str, outside: Outside | None) -> list[str]:
    path = shutil.which(program)
    assert path is not None
    command = in_jail([path, *arguments], work_dir=WORK_DIR, files=(), kvm=False, outside=outside)
    return tie_to_parent(command, parent_pid=os.getpid())


def start_ms(outside: Outside | None) -> float:
    """Until a program inside says what time it is: nobody waits for the end of it all."""
    begun = time.time_ns()
    done = subprocess.run(jailed("date", "+%s%N", outside=outside), check=True, capture_output=True)
    return (int(done.stdout) - begun) / 1e6


def beside_mib(outside: Outside | None) -> float:
    """PSS of all that is started, after a second in which it has settled."""
    with subprocess.Popen(jailed("sleep", "60", outside=outside)) as process:
        time.sleep(1)
        size = sum(map(pss_mib, {process.pid, *find_descendants(process.pid)}))
        process.kill()
    return size


def shown(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f}..{max(values):.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description="What a guest's network adds to a start.")
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    begun = time.perf_counter()
    outside = plan_network(Network(mode="internet"))
    planned_ms = (time.perf_counter() - begun) * 1000
    start_ms(None)
    start_ms(outside)
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(rounds):
        times[False].append(start_ms(None))
        times[True].append(start_ms(outside))
    added = [more - less for less, more in zip(times[False], times[True], strict=True)]
    print("| measure | none | internet | added |")
    print("| --- | --- | --- | --- |")
    print(f"| jail up, ms | {shown(times[False])} | {shown(times[True])} | {shown(added)} |")
    print(f"| decided before, ms | | {planned_ms:.1f} | |")
    record("jail with a network, up", "ms", times[True], peers={"without a network": times[False]})
    without, with_walls = beside_mib(None), beside_mib(outside)
    print(f"| walls beside QEMU, MiB PSS | {without:.1f} | {with_walls:.1f} | {with_walls - without:.1f} |")
    record("walls beside QEMU", "MiB PSS", [with_walls], peers={"without a network": [without]})


if __name__ == "__main__":
    main()
