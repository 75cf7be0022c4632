"""A guest runs only behind all its walls: they are looked at around the process, not in a command line."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import guests
import network_world
import pytest
import vms
from msgspec import structs
from network_world import World
from proofs import Proof
from sessions import Session

from qemuspawner.errors import VmError
from qemuspawner.network import Network
from qemuspawner.qemu import command
from qemuspawner.qemu.process import QemuProcess
from qemuspawner.qemu.walls import ALWAYS, JAIL, MEANINGS
from qemuspawner.session.vm import prepare
from qemuspawner.spec import SessionSpec

pytestmark = pytest.mark.goal("S10")

TESTS = Path(__file__).parents[1]

# What the kernel is to say of a QEMU.
PROMISED = {
    "Seccomp": "2",
    "NoNewPrivs": "1",
    **dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapAmb"), "0000000000000000"),
}
AT_ONCE = 4

Words = list[str]


@pytest.fixture
def spec(tmp_path: Path) -> SessionSpec:
    disk = guests.make_disk(tmp_path / "disk")
    return vms.make_spec(tmp_path, vms.make_machine(image={"file": str(disk), "format": "raw"}))


@pytest.fixture
def around(tmp_path: Path) -> Iterator[World]:
    with network_world.world(tmp_path) as around:
        yield around


async def test_every_wall_stands_around_a_desktop(spec: SessionSpec) -> None:
    """Whoever's account it is, be it root's."""
    async with vms.running_guest(spec) as (guest, _):
        assert set(guest.walls) == {*ALWAYS, *JAIL} == set(MEANINGS)


def test_every_desktop_runs_behind_its_walls(
    start: Callable[..., Session], around: World, proof: Proof
) -> None:
    """As processes of the sessions' account, with a network and without."""
    starts = proof.rounds(short=2, full=100)
    seen: Counter[bool] = Counter()
    with around.on_host():
        for first in range(0, starts, AT_ONCE):
            sessions = [
                start(
                    str(number),
                    network=Network(mode="allow", allow=("198.51.100.1",)) if number % 2 else Network(),
                )
                for number in range(first, min(first + AT_ONCE, starts))
            ]
            for session in sessions:
                session.wait_until_ready()
                seen[read_status(session.qemu_pid).items() >= PROMISED.items()] += 1
            for session in sessions:
                session.process.terminate()
                session.process.wait()
    proof.note(
        done=f"{starts} starts, half of them with a network; /proc says of each QEMU what it may",
        found=f"{seen[True]} of {starts} with Seccomp 2, NoNewPrivs 1 and no capability",
        limit=f"{starts} of {starts}",
    )
    assert seen == {True: starts}


def read_status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def without(*words: str) -> Callable[[Words], Words]:
    return lambda command: [word for word in command if word not in words]


def without_step(words: str) -> Callable[[Words], Words]:
    """A step of the shell that becomes QEMU."""
    return lambda command: [word.replace(f"{words} && ", "") for word in command]


def without_bubblewrap(command: Words) -> Words:
    first = command.index("bwrap")
    return command[:first] + command[command.index("--", first) + 1 :]


# Of a guest of 64 MiB with one CPU.
MEMORY_BOUND = f"ulimit -d {(64 + 8 + 1536) << 10}"

# The walls that are missing, and how they came to be lost. "privileges" is a wall of three, as QEMU's filter
# and bubblewrap each build it.
LOST: dict[Sequence[str], Callable[[Words], Words]] = {
    ("core",): without_step("ulimit -c 0"),
    ("oom",): without_step("echo 500 > /proc/self/oom_score_adj"),
    ("memory",): without_step(MEMORY_BOUND),
    ("capabilities",): without("--cap-drop", "ALL"),
    ("processes",): without("--unshare-pid", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"),
    ("network",): without("--unshare-net"),
    ("ipc",): without("--unshare-ipc"),
    ("users",): without("--map-current-user"),
    ("capabilities", "files", "network", "ipc"): without_bubblewrap,
}


async def test_a_guest_behind_fewer_walls_never_runs(
    spec: SessionSpec, tmp_path: Path, proof: Proof, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words that build a wall are lost, as by a mistake of ours; QEMU starts all the same."""
    tie, execute = prepare.tie_to_parent, QemuProcess.execute
    ran: list[str] = []

    async def note(qemu: QemuProcess, name: str, **arguments: object) -> object:
        ran.append(name)
        return await execute(qemu, name, **arguments)

    monkeypatch.setattr(QemuProcess, "execute", note)
    refused: dict[Sequence[str], str] = {}
    for missing, lose in LOST.items():

        def tie_without(command: Sequence[str], lose: Callable[[Words], Words] = lose, **more: Any) -> Words:
            whole = tie(command, **more)
            less = lose(whole)
            assert less != whole
            return less

        with monkeypatch.context() as lost:
            lost.setattr(prepare, "tie_to_parent", tie_without)
            refused[missing] = await try_to_run(spec)
    monkeypatch.setattr(command, "SANDBOX", "off")
    refused["seccomp",] = await try_to_run(spec)
    refused["seccomp", "privileges"] = await try_to_run(structs.replace(spec, jail=False))

    let_in = sum(not message for message in refused.values())
    proof.note(
        done=f"{len(refused)} starts of a QEMU that lacks a wall, each of {len(MEANINGS)} once at least",
        found=f"{len(refused) - let_in} refused, {let_in} guests ran",
        limit="all refused",
    )
    assert refused == {
        missing: f"QEMU runs without walls that it must have: {', '.join(missing)}." for missing in refused
    }
    assert {wall for missing in refused for wall in missing} == set(MEANINGS)
    # To run is what QEMU is told last; it begins standing still.
    assert "cont" not in ran


async def try_to_run(spec: SessionSpec) -> str:
    """What it is refused with; "" where its guest ran."""
    try:
        async with vms.running_guest(spec):
            return ""
    except VmError as exc:
        return exc.message


# Tests of what is said and done without a jail; all others of the suite have theirs inside one.
WITHOUT_JAIL = {
    "hub/test_warmer.py",
    "proof/test_s10_walls.py",
    "qemu/test_walls.py",
    "session/test_folders.py",
    "session/test_gpu_start.py",
    "session/test_guest_network.py",
    "session/test_guest_ports.py",
    "slurm/test_slurm_gpus.py",
}


def test_the_suite_runs_with_the_jail_on() -> None:
    switched_off = re.compile(r"""\bjail["']?\s*[=:]\s*False""")

    found = {
        str(path.relative_to(TESTS)) for path in TESTS.rglob("*.py") if switched_off.search(path.read_text())
    }

    assert found == WITHOUT_JAIL
