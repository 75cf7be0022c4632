"""R1: whenever a supervisor is killed, what worked for it ends, and the next sweep deletes the rest."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import guests
import network_world
import pytest
import vms
from fake_qemu import FakeQemu
from forked import COMMAND, ForkedSession, fork_session
from processes import find_marked
from proofs import Proof
from sessions import PROGRAM, account

from qemuspawner.hub.sessions.forkserver import ForkServer
from qemuspawner.machine import Image, Machine
from qemuspawner.network import Network
from qemuspawner.paths import StatePaths
from qemuspawner.saved import find_suspended

GONE_S = 2
AT_ONCE = 4
# After how long they are looked for, each time anew while there are any.
LOOKS_S = (0.1, 0.3, 0.6, 1, 1.5)
# At which moment the supervisor is killed, with how long that takes here at most.
MOMENTS_S = {"start": 0.6, "run": 0.3, "stop": 1.5, "suspend": 1.0}


@dataclass(frozen=True, kw_only=True)
class Chain:
    """What works for a session beside its supervisor; every `share`th of a hundred sessions has it."""

    name: str
    share: int
    is_real: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)  # of its machine
    spec: Mapping[str, Any] = field(default_factory=dict)


CHAINS = (
    Chain(name="fake QEMU", share=70),
    Chain(name="with pasta", share=12, spec={"network": Network(mode="allow", allow=("198.51.100.1",))}),
    Chain(name="with swtpm", share=8, more={"tpm": True, "firmware": "uefi"}),
    Chain(name="real QEMU", share=10, is_real=True),
)


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ForkServer]:
    """On a host with a network, as pasta needs one."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    server = ForkServer(COMMAND)
    with network_world.world(tmp_path) as around, around.on_host():
        yield server
        await server.close()


class Killer:
    """Starts sessions and kills their supervisors."""

    def __init__(self, server: ForkServer, state: StatePaths, *, gone_s: float) -> None:
        self._server, self._state = server, state
        self._fake = FakeQemu(state.root / "fake")
        self._disk = guests.make_disk(state.root / "painter")
        self.kills: Counter[str] = Counter()
        self._looks_s = (*LOOKS_S, gone_s)
        self.left: list[str] = []  # what was still there at the last look
        self.slowest_s = 0.0

    async def kill_some(self, count: int) -> None:
        numbers = iter(range(count))
        chances = random.Random(1)
        plans = [
            (
                chances.choices(CHAINS, [chain.share for chain in CHAINS])[0],
                moment := chances.choice(tuple(MOMENTS_S)),
                chances.uniform(0, MOMENTS_S[moment]),
            )
            for _ in range(count)
        ]

        async def work() -> None:
            for number in numbers:
                await self._kill_one(number, *plans[number])

        async with asyncio.TaskGroup() as workers:
            for _ in range(AT_ONCE):
                workers.create_task(work())

    async def _kill_one(self, number: int, chain: Chain, moment: str, after_s: float) -> None:
        machine = Machine(
            name="Painter", image=Image(file=str(self._disk), format="raw"), shutdown=1, **chain.more
        )
        spec = vms.make_spec(
            self._state.root,
            machine,
            server_name=f"{number}",
            suspend_on=("stop",) if moment == "suspend" else (),
            **chain.spec,
        )
        # In the environment of all that has one, and in the command lines of those that have none.
        mark = str(self._state.session(spec.session_id).root)
        path = f"{os.environ['PATH'] if chain.is_real else self._fake.path}:{mark}"
        session = await fork_session(self._server, self._state, spec, path=path)
        if moment != "start":
            await session.wait_until_ready()
        if moment in ("stop", "suspend"):
            session.process.signal(signal.SIGTERM)
        await asyncio.sleep(after_s)
        session.process.signal(signal.SIGKILL)
        self.kills[f"{moment}, {chain.name}"] += 1
        await self._note_left(session, mark, f"{number} ({moment} + {after_s:.3f} s, {chain.name})")

    async def _note_left(self, session: ForkedSession, mark: str, what: str) -> None:
        killed = time.monotonic()
        for look_s in self._looks_s:
            await asyncio.sleep(max(0, killed + look_s - time.monotonic()))
            left = await asyncio.to_thread(find_marked, mark)
            if not left:
                self.slowest_s = max(self.slowest_s, look_s)
                return
        self.left.append(f"{what}: {left}")


@pytest.mark.goal("R1")
@pytest.mark.timeout(3600)
async def test_nothing_outlives_a_killed_supervisor(
    proof: Proof, server: ForkServer, state: StatePaths
) -> None:
    killer = Killer(server, state, gone_s=proof.within(GONE_S))

    await killer.kill_some(proof.rounds(short=24, full=1000))
    before = folders(state)
    sweep(state)
    after = folders(state)

    by_moment = Counter[str]()
    for name, count in killer.kills.items():
        by_moment[name.partition(",")[0]] += count
    proof.note(
        done=f"{killer.kills.total()} supervisors killed at random moments"
        f" ({', '.join(f'{moment}: {count}' for moment, count in sorted(by_moment.items()))};"
        f" {', '.join(f'{chain.name}: {count_of(killer.kills, chain)}' for chain in CHAINS)})",
        found=f"{len(killer.left)} had processes left after {GONE_S} s (all gone at the look after"
        f" {killer.slowest_s} s); {len(before)} folders, {len(after)} after the sweep",
        limit=f"0 processes after {GONE_S} s, 0 folders after the sweep",
    )
    assert killer.left == []
    assert after == []


def count_of(kills: Counter[str], chain: Chain) -> int:
    return sum(count for name, count in kills.items() if name.endswith(f", {chain.name}"))


def folders(state: StatePaths) -> list[str]:
    """What runs have left of themselves; a desktop that fell asleep whole is no rest."""
    found = []
    for root in state.sessions.glob("[!.]*"):
        names = {entry.name for entry in root.iterdir()}
        whole = names == {"lock", "saved"} and find_suspended(state.session(root.name)) is not None
        if not whole or len(list((root / "saved").iterdir())) != 1:
            found.append(f"{root.name}: {sorted(str(path.relative_to(root)) for path in root.rglob('*'))}")
    return found


def sweep(state: StatePaths) -> None:
    """As each session does it at its start."""
    uid, gid = account()
    subprocess.run(
        [sys.executable, "-c", PROGRAM, "--sweep", str(state.root)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)},
        user=uid, group=gid, extra_groups=[], check=True, cwd="/",
    )  # fmt: skip
