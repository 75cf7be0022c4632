"""Run the benchmarks one after the other, keep every value, and write one table and its plots.

    QEMUSPAWNER_TEST_IMAGES=STATE/images python -m bench [--only NAMES] [--quick]

Each is a process of its own, which records its figures (figures.py) in bench/results/NAME.jsonl; the first
line there says when, where and how it ran. The table bench/TABLE.md and the plots in docs/explanation are of
all results that there are: those that do not run now stay as they were. --quick has fewer rounds, to try it.
"""

import argparse
import contextlib
import datetime
import fcntl
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from figures import RESULTS, Figure, read
from plots import write_plots
from table import write_table

from qemuspawner.qemu.host import find_qemu, kvm_works

BENCH = Path(__file__).parent
RAW = BENCH / "results"
TABLE = BENCH / "TABLE.md"
PLOTS = BENCH.parent / "docs" / "explanation"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One benchmark: what it is about, and its command, in full and quick."""

    title: str
    command: str
    quick: str


PARTS: Mapping[str, Part] = {
    "darts": Part(
        title="Beside DARTS",
        command="darts.py",
        quick="darts.py --rounds 2 --desktop-rounds 1 --bursts 1",
    ),
    "start": Part(
        title="How a desktop comes up, sleeps and wakes; its memory",
        command="start.py --cold 3",
        quick="start.py --rounds 2 --cold 1 --sleeps 2 --copies 3",
    ),
    "click": Part(
        title="From the click to the picture",
        command="click.py",
        quick="click.py --rounds 2",
    ),
    "relay": Part(
        title="The relay beside websockify",
        command="relay.py",
        quick="relay.py --rounds 2",
    ),
    "screen": Part(
        title="Up to the canvas, and the page",
        command="screen.py",
        quick="screen.py --rounds 1",
    ),
    "sound": Part(
        title="Sound",
        command="sound.py",
        quick="sound.py --seconds 5",
    ),
    "sharing": Part(
        title="A share that is changed",
        command="sharing.py",
        quick="sharing.py --rounds 2",
    ),
    "session": Part(
        title="What a session costs beside its guest",
        command="session.py",
        quick="session.py --rounds 2 --desktop-rounds 1 --sessions 2",
    ),
    "jail": Part(
        title="The walls around QEMU",
        command="jail.py",
        quick="jail.py --rounds 5",
    ),
    "network": Part(
        title="The walls of a guest's network",
        command="network.py",
        quick="network.py --rounds 5",
    ),
    "folders": Part(
        title="Folders of the host in the guest",
        command="folders.py",
        quick="folders.py --rounds 1",
    ),
    "slurm": Part(
        title="Desktops as jobs of Slurm",
        command="slurm.py",
        quick="slurm.py --rounds 1 --pending 5",
    ),
    "hub": Part(
        title="The hub, by the number of its desktops",
        command="hub.py",
        quick="hub.py --sessions 20 --watched 5",
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--darts-root", metavar="FOLDER", help="where DARTS is, or is to be, installed")
    arguments = parser.parse_args()
    RAW.mkdir(exist_ok=True)
    failed = []
    with alone():
        for name in arguments.only:
            part = PARTS[name]
            command = part.quick if arguments.quick else part.command
            folders = ["--root", arguments.darts_root] if name == "darts" and arguments.darts_root else []
            print(f"\n==> {part.title}: {command}", flush=True)
            form = "quick" if arguments.quick else "full"
            if not run(command, folders, RAW / f"{name}.jsonl", form=form):
                failed.append(name)
    write_results()
    missed = [
        f"{name}: {figure.name}"
        for name, _, figures in results()
        for figure in figures
        if figure.is_met() is False
    ]
    print(f"\nThe table is {TABLE}.")
    for line in missed:
        print(f"missed: {line}")
    for name in failed:
        print(f"failed: {name}; what the table says of it is of an earlier run.", file=sys.stderr)
    return 1 if failed else 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One run at a time: two would measure each other."""
    lock = os.open(RAW, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def run(command: str, folders: list[str], result: Path, *, form: str) -> bool:
    """Run it; what it recorded takes the place of the former result if it ends well.

    Where things lie, the words in `folders`, is not of interest later.
    """
    script, *words = shlex.split(command)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        recorded = Path(folder) / "figures"
        environ = os.environ | {RESULTS: str(recorded)}
        done = subprocess.run([sys.executable, BENCH / script, *words, *folders], env=environ)
        if done.returncode or not recorded.exists():
            return False
        facts = {
            "command": f"bench/{command}",
            "form": form,
            "when": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "where": where(),
            "load before": f"{load:.1f}",
        }
        result.write_text(json.dumps(facts) + "\n" + recorded.read_text())
    return True


def where() -> str:
    """The machine and its system, in words."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    with tempfile.TemporaryDirectory() as folder:
        accelerator = "KVM" if kvm_works(find_qemu(), Path(folder)) else "TCG"
    return (
        f"{os.cpu_count()} CPUs ({platform.machine()}), {memory_gib:.0f} GiB, Linux "
        f"{platform.release().split('-')[0]}, Python {platform.python_version()}, guests by {accelerator}"
    )


def results() -> Iterator[tuple[str, dict[str, str], list[Figure]]]:
    """Name, facts and figures of each part that has run, in the order of the parts."""
    for name in PARTS:
        path = RAW / f"{name}.jsonl"
        if path.exists():
            yield name, *read(path)


def write_results() -> None:
    """The table, and the plots."""
    found = [(name, PARTS[name].title, facts, figures) for name, facts, figures in results()]
    write_table(TABLE, [(title, facts, figures) for _, title, facts, figures in found])
    write_plots(PLOTS, {name: figures for name, _, _, figures in found})


if __name__ == "__main__":
    sys.exit(main())
