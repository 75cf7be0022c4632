"""How fast a folder of the host is in the demo machine, by virtiofs and by 9p, beside the host itself.

    python bench/folders.py --rounds 5

The same shell commands write and read one large file and many small ones: on the host, and in the guest as
its user, with the guest's caches dropped before each. The host's own cache is warm everywhere. The guest's
own disk stands beside them, as it shows what the guest itself costs. QEMUSPAWNER_TEST_IMAGES is a folder with
the image of the demo machine.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import hubs
import vms
from figures import record

from qemuspawner.machines.catalogue import load_machine
from qemuspawner.paths import EXAMPLE_MACHINES
from qemuspawner.qemu.agent import GuestAgent
from qemuspawner.spec import Folder

LARGE_MIB, SMALL = 128, 500
SETTLE_S = 20  # the desktop of a guest that has just booted
_LOOP = f"for ((i = 0; i < {SMALL}; i++)); do"
# The unit of each, how much of it is done, and by what. bash has a clock and does small files by itself.
MEASURES = {
    "large file written, MiB/s": (LARGE_MIB, f"dd if=/dev/zero of=large bs=1M count={LARGE_MIB} conv=fsync"),
    "large file read, MiB/s": (LARGE_MIB, "dd if=large of=/dev/null bs=1M"),
    "small files written, 1/s": (SMALL, f'{_LOOP} echo "$i some words" > small-$i; done'),
    "small files read, 1/s": (SMALL, f"{_LOOP} read -r line < small-$i; done"),
    "small files listed, 1/s": (SMALL, "ls -l"),
    "small files deleted, 1/s": (SMALL, "rm small-*"),
}
_TIMED = 'cd "$1" && a=$EPOCHREALTIME && {{ {}; }} > /dev/null 2>&1 && echo "$a $EPOCHREALTIME"'


def command(measure: str, place: str) -> list[str]:
    return ["bash", "-c", _TIMED.format(MEASURES[measure][1]), "bash", place]


def rate(measure: str, words: str) -> float:
    begin, end = map(float, words.split())
    return MEASURES[measure][0] / (end - begin)


def on_host(folder: Path) -> list[float]:
    found = []
    for measure in MEASURES:
        told = subprocess.run(command(measure, str(folder)), capture_output=True, text=True, check=True)
        found.append(rate(measure, told.stdout))
    return found


async def in_guest(state: Path, folder: Path, *, by: str, rounds: int) -> dict[str, list[list[float]]]:
    """What is measured in the folder, and on the guest's own disk."""
    machine = load_machine(EXAMPLE_MACHINES / "debian-desktop", Path(os.environ["QEMUSPAWNER_TEST_IMAGES"]))
    shared = Folder(name="bench", path=str(folder), mount="/mnt/bench", read_only=False)
    spec = vms.make_spec(state, machine, memory_mib=1024, folders=(shared,), server_name=by)
    async with vms.running_guest(spec) as (guest, _):
        assert guest.agent is not None
        assert await guest.agent.wait_until_ready(timeout_s=240)
        await guest.folders.attach(guest.agent)
        assert guest.folders.statuses[0].way == by, guest.folders.statuses
        await asyncio.sleep(SETTLE_S)
        own = f"own disk, beside {by}"
        measured: dict[str, list[list[float]]] = {by: [], own: []}
        for _ in range(rounds):
            for name, place in ((by, "/mnt/bench"), (own, "/var/tmp")):
                measured[name].append([await measure_in(guest.agent, measure, place) for measure in MEASURES])
        return measured


async def measure_in(agent: GuestAgent, measure: str, place: str) -> float:
    """As the guest's user, with nothing in the guest's caches."""
    await agent.run("sh", "-c", "sync; echo 3 > /proc/sys/vm/drop_caches", timeout_s=120)
    become = ("setpriv", "--reuid=1000", "--regid=1000", "--init-groups")
    code, words = await agent.run(*become, *command(measure, place), timeout_s=300)
    assert not code, words
    return rate(measure, words)


def spread(values: list[float]) -> str:
    told = [
        f"{value:.0f}" if value >= 100 else f"{value:.3g}"
        for value in (statistics.median(values), min(values), max(values))
    ]
    return f"{told[0]} ({told[1]}..{told[2]})"


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with hubs.state_folder() as state, hubs.state_folder() as folder:
        found = {"host": [on_host(folder) for _ in range(arguments.rounds)]}
        found |= await in_guest(state, folder, by="virtiofs", rounds=arguments.rounds)
        with mock.patch("qemuspawner.qemu.virtiofs._PLACES", ()):
            found |= await in_guest(state, folder, by="9p", rounds=arguments.rounds)
    print("| measure |", " | ".join(found), "| virtiofs : host | 9p : host |")
    print("|---" * (len(found) + 3) + "|")
    for number, measure in enumerate(MEASURES):
        values = {name: [one[number] for one in rounds] for name, rounds in found.items()}
        host = statistics.median(values["host"])
        name, unit = measure.rsplit(", ", 1)
        for way in ("virtiofs", "9p"):
            beside = {"host": values["host"], "own disk of the guest": values[f"own disk, beside {way}"]}
            record(f"{way}: {name}", unit, values[way], more_is_better=True, peers=beside)
        ratios = [f"{statistics.median(values[way]) / host:.3f}" for way in ("virtiofs", "9p")]
        print(f"| {measure} |", " | ".join(map(spread, values.values())), "|", " | ".join(ratios), "|")


if __name__ == "__main__":
    asyncio.run(main())
