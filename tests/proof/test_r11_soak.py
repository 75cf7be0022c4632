"""R11: desktops that are looked at, left, stopped and started again leave nothing behind that grows."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import hubs
import live
import pytest
from fake_qemu import FakeQemu
from processes import count_descriptors, resident_mib
from proofs import Proof
from rfb_client import RfbClient
from yarl import URL

from qemuspawner.locks import find_holder
from qemuspawner.paths import StatePaths, session_id

# A desktop's user and server.
Desktop = tuple[str, str]

# Everybody comes back as often; a quarter of the time is for what processes load and cache once.
ROUND_S = 10.0
LIMIT = 0.05


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a process is."""

    descriptors: int
    resident_mib: float

    @classmethod
    def of(cls, pid: int) -> "Size":
        return cls(descriptors=count_descriptors(pid), resident_mib=resident_mib(pid))

    def __str__(self) -> str:
        return f"{self.descriptors} descriptors and {self.resident_mib:.1f} MiB"

    def growth(self, before: "Size") -> float:
        """By what part the one of both has grown that has grown more."""
        return max(self.descriptors / before.descriptors - 1, self.resident_mib / before.resident_mib - 1)


class Soak:
    """A hub with desktops that run, and somebody at each of them."""

    def __init__(self, hub: live.LiveHub, people: dict[str, hubs.Person]) -> None:
        self._hub = hub
        self._people = people
        self._state = StatePaths(root=hub.state)
        self._urls: dict[Desktop, URL] = {}

    @property
    def desktops(self) -> list[Desktop]:
        return list(self._urls)

    async def start(self, *desktops: Desktop) -> None:
        for user, name in desktops:
            self._urls[user, name] = await self._hub.start_server(user, name, machine="painter")

    async def stop(self, *desktops: Desktop) -> None:
        await asyncio.gather(*(self._hub.stop_server(*desktop) for desktop in desktops))

    async def look_at_all(self) -> None:
        """Everybody connects anew, sees the screen and leaves."""
        await asyncio.gather(*(self._look(desktop) for desktop in self.desktops))

    async def _look(self, desktop: Desktop) -> None:
        async with RfbClient(self._people[desktop[0]], self._urls[desktop]) as client:
            await client.pixel(0, 0)

    def measure(self, desktops: list[Desktop]) -> dict[str, Size]:
        """The hub, its fork server, and the supervisors of these desktops."""
        pids = {"the hub": self._hub.pid}
        for desktop in desktops:
            pid = find_holder(self._state.session(session_id(*desktop)).lock)
            assert pid is not None
            pids[f"the supervisor of {desktop[1]}"] = pid
        status = Path(f"/proc/{pid}/status").read_text()
        pids["the fork server"] = int(status.partition("\nPPid:")[2].split()[0])
        return {name: Size.of(pid) for name, pid in pids.items()}

    def find_files(self) -> set[Path]:
        return {path for path in self._hub.state.rglob("*") if not path.is_dir()}


@contextlib.asynccontextmanager
async def soaking() -> AsyncIterator[Soak]:
    more = "c.QemuSpawner.cpu_overcommit = 0"
    async with live.live_hub(named_servers=4, more=more) as hub, contextlib.AsyncExitStack() as stack:
        people = {}
        for user in live.USERS:
            token = await hub.new_token(user)
            people[user] = await stack.enter_async_context(hub.person(user, token=token))
        yield Soak(hub, people)


@pytest.mark.goal("R11")
async def test_nothing_grows_while_desktops_come_and_go(proof: Proof, fake_qemu: FakeQemu) -> None:
    count, rounds = proof.rounds(short=4, full=20), proof.rounds(short=6, full=60)
    desktops = [(live.USERS[number % len(live.USERS)], f"s{number}") for number in range(count)]
    # These stay, and are measured; the others come and go.
    stay, go = desktops[: count // 2], desktops[count // 2 :]
    chance = random.Random(11)

    async with soaking() as soak:
        # What is made once is there then.
        await soak.start(desktops[0])
        await soak.stop(desktops[0])
        files = soak.find_files()
        await soak.start(*desktops)
        for number in range(rounds):
            begun = time.monotonic()
            await soak.look_at_all()
            desktop = chance.choice(go)
            await soak.stop(desktop)
            await soak.start(desktop)
            if number == rounds // 4:
                before = soak.measure(stay)
            if proof.full:
                await asyncio.sleep(max(0, begun + ROUND_S - time.monotonic()))
        after = soak.measure(stay)
        await soak.stop(*desktops)
        left = soak.find_files() - files

    growth = {name: after[name].growth(before[name]) for name in before}
    most = max(growth, key=lambda name: growth[name])
    proof.note(
        done=f"{count} desktops, all looked at anew every {ROUND_S:g} s, {rounds} times, and one of them "
        "stopped and started",
        found=f"{most} grew most, from {before[most]} to {after[most]}, {100 * growth[most]:.1f} %; "
        f"{len(left)} files left",
        limit=f"{100 * LIMIT:g} % more descriptors or resident memory of a process that stays, 0 files",
    )
    assert left == set()
    assert growth[most] <= LIMIT
