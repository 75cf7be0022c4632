"""A desktop that is given less memory than it wants: it ends, says so, and no other one does."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import guests
import hubs
import pytest
from memory_group import memory_group
from processes import find_qemu
from proofs import Proof
from rfb_client import RfbClient
from sqlalchemy import select

from qemuspawner.hub.records import Records
from qemuspawner.hub.runs.runs import Run
from qemuspawner.paths import StatePaths, session_id

pytestmark = [pytest.mark.goal("R5"), pytest.mark.timeout(3600)]

# On top of what it has when it runs; its guest takes 496 MiB.
LIMIT_MIB = 64
MACHINE = """
name = "Eater"
shutdown = "1 s"
[image]
file = "disk.raw"
format = "raw"
[cpus]
default = 1
[memory]
default = "512 MiB"
"""


@pytest.fixture
def machines_dir(state_dir: Path, tmp_path: Path) -> Path:
    """The machine "eater", whose guest takes all of its memory when a key is pressed."""
    hubs.add_machine(tmp_path / "machines", state_dir, "eater")
    (tmp_path / "machines/eater/machine.toml").write_text(MACHINE)
    disk = state_dir / "images/eater/disk.raw"
    disk.unlink()
    guests.make_disk(disk, sector=guests.boot_sector(guests.EATER))
    return tmp_path / "machines"


class Desktop:
    """One of alice's, with a viewer."""

    def __init__(self, hub: hubs.Hub, alice: hubs.Person, name: str) -> None:
        self.name = name
        self._hub = hub
        self._alice = alice
        self.paths = StatePaths(root=hub.state_dir).session(session_id("alice", name))
        self._visit = contextlib.AsyncExitStack()

    async def start(self) -> None:
        await self._hub.start(self._alice, {"machine": "eater"}, server_name=self.name)
        self._url = await self._hub.wait_until_ready("alice", server_name=self.name)
        self.supervisor = self._hub.spawner("alice", self.name).pid
        self.qemu = find_qemu(self.paths)
        self.viewer = await self._visit.enter_async_context(RfbClient(self._alice, self._url))

    async def is_as_it_was(self) -> bool:
        """Its processes are the same, and who looks at it still does."""
        await asyncio.wait_for(self.viewer.pixel(0, 0), 20)
        spawner = self._hub.spawner("alice", self.name)
        return spawner.active and spawner.pid == self.supervisor and find_qemu(self.paths) == self.qemu

    async def eat(self, put: Callable[[int], None]) -> str:
        """Have the guest take more than the group has; what its page says when the desktop has ended."""
        assert self.qemu is not None
        put(self.qemu)
        async with asyncio.timeout(60):
            while find_qemu(self.paths):
                with contextlib.suppress(ConnectionError):
                    # The firmware may still be at work, and takes none then.
                    await self.viewer.press(ord("a"))
                await asyncio.sleep(0.2)
            while (status := await self._status())["state"] != "failed":
                await asyncio.sleep(0.05)
        await self._visit.aclose()
        await self._hub.wait_until_stopped("alice", server_name=self.name)
        return str(status["message"])

    async def _status(self) -> dict[str, Any]:
        answer = await self._alice.request("GET", self._url / "api/status")
        assert answer.status == 200, answer.text
        return dict(json.loads(answer.text))


def last_end(hub: hubs.Hub, name: str) -> str:
    """What the hub has noted of its newest run."""
    with Records(StatePaths(root=hub.state_dir)).session() as session:
        runs = select(Run).where(Run.server == name).order_by(Run.id.desc())
        run = session.scalars(runs).first()
        assert run is not None
        return f"{run.outcome}: {run.end}"


async def test_of_many_desktops_the_one_without_memory_ends_alone_and_says_so(
    proof: Proof, start_hub: Callable[..., Awaitable[hubs.Hub]]
) -> None:
    count, rounds = proof.rounds(short=3, full=10), proof.rounds(short=1, full=20)
    hub = await start_hub(poll_interval=1, cpu_overcommit=0)
    alice = await hub.with_token("alice")
    random = Random(5)
    told = untouched = 0
    with memory_group(mib=LIMIT_MIB) as put:
        desktops = [Desktop(hub, alice, f"desk{n}") for n in range(count)]
        try:
            for desktop in desktops:
                await desktop.start()
            for _ in range(rounds):
                hungry = random.choice(desktops)
                said = await hungry.eat(put)
                told += all("ran out of memory" in words for words in (said, last_end(hub, hungry.name)))
                others = [desktop for desktop in desktops if desktop is not hungry]
                untouched += sum([await desktop.is_as_it_was() for desktop in others])
                await hungry.start()
        finally:
            for desktop in desktops:
                await hub.stop(alice, server_name=desktop.name)
                await hub.wait_until_stopped("alice", server_name=desktop.name)

    proof.note(
        done=f"{rounds} times one of {count} desktops of a hub wanted more memory than its cgroup has",
        found=f"{told} times its page and the hub said that it was for want of memory; "
        f"{untouched} of {rounds * (count - 1)} looks at the others found the same processes and picture",
        limit="all of both",
    )
    assert told == rounds
    assert untouched == rounds * (count - 1)
