"""What a hub of many desktops costs: memory, polling, starts, lists, and its way back after a restart.

    python bench/hub.py [--sessions 100 300 1000] [--watched S]

The hub is real, and so is its proxy; its desktops are jobs of a Slurm whose commands and sessions are stubs
in one process (stub_cluster.py). Those that are looked at tell and ask the hub what a session does whose
owner has it open. Milliseconds are CPU time but for answers. Prints Markdown.
"""

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import hubs
import stub_cluster
from figures import record
from hub_process import HubProcess, running_hub_process
from processes import pss_mib
from slurm import cpu_s

# At once; JupyterHub's own concurrent_spawn_limit is 100.
_STARTS = 20
_START_S = 300
_SETTLE_S = 20
# Within that each stub session has seen that it is looked at.
_ALL_ASK_S = 20
_HELD = "held"
_COLUMNS = (
    *("hub, MiB PSS", "a start, ms", "quiet, part of a core", "looked at, the same", "an answer, ms"),
    *("longest step, ms", "all for staff, ms", "a scrape, ms", "a restart, ms"),
)

_CONFIG = """
from pathlib import Path
import hubs
from qemuspawner.hub.slurm.spawner import QemuSlurmSpawner
c.merge(hubs.hub_config(Path({state!r}), Path({machines!r})))
c.JupyterHub.spawner_class = QemuSlurmSpawner
c.JupyterHub.authenticate_prometheus = False
c.JupyterHub.log_level = "ERROR"
c.QemuSlurmSpawner.update({{name: value for name, value in c.QemuSpawner.items() if name != "run_as"}})
c.QemuSlurmSpawner.slurm_prefix = [{commands!r}]

# The most CPU time that one step of the loop takes: as long nobody else is served, however busy this host is.
import asyncio.events, signal, time
run, most = asyncio.events.Handle._run, [0.0]
def run_timed(handle):
    begun = time.thread_time()
    run(handle)
    most[0] = max(most[0], time.thread_time() - begun)
def tell(*_):
    Path({held!r}).write_text(str(most[0]))
    most[0] = 0.0
asyncio.events.Handle._run = run_timed
signal.signal(signal.SIGRTMIN, tell)
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Of one number of desktops; `_ms` are CPU time of the hub."""

    sessions: int
    start_ms: float  # each
    pss_mib: float
    quiet: float  # part of a core
    busy: float  # the same while each is looked at
    answer_ms: float  # wall clock, the median while busy
    held_ms: float  # the longest step of the loop while busy
    list_ms: float  # all of them for staff
    scrape_ms: float
    restart_ms: float


@dataclass(kw_only=True)
class Bench:
    hub: HubProcess
    folder: Path
    started: int = 0

    async def watch(self, seconds: float) -> tuple[float, float]:
        """The part of a core that the hub and its commands take, and how long it takes to answer, ms."""
        answers = []
        before, begun = cpu_s(self.hub.pid), time.monotonic()
        while time.monotonic() < begun + seconds:
            asked = time.monotonic()
            await self.hub.ask("GET", "/health")
            answers.append(1000 * (time.monotonic() - asked))
            await asyncio.sleep(0.1)
        spent = (cpu_s(self.hub.pid) - before) / (time.monotonic() - begun)
        return spent, statistics.median(answers)

    async def held_ms(self) -> float:
        """The longest step since this was asked last."""
        held = self.folder / _HELD
        held.unlink(missing_ok=True)
        os.kill(self.hub.pid, signal.SIGRTMIN)
        while not (held.exists() and held.read_text()):
            await asyncio.sleep(0.05)
        return 1000 * float(held.read_text())

    async def cost_ms(self, path: str) -> float:
        """CPU of an answer."""
        before = cpu_s(self.hub.pid)
        await self.hub.ask("GET", path)
        return 1000 * (cpu_s(self.hub.pid) - before)

    async def start_up_to(self, sessions: int) -> float:
        """CPU seconds of the hub for each that was started."""
        before, first = cpu_s(self.hub.pid), self.started
        turn = asyncio.Semaphore(_STARTS)

        async def start(number: int) -> None:
            async with turn:
                await self.hub.ask("POST", f"/users/user{number}")
                await self.hub.ask("POST", f"/users/user{number}/server")
                async with asyncio.timeout(_START_S):
                    while not (await self.server(number))["ready"]:
                        await asyncio.sleep(0.2)

        await asyncio.gather(*(start(number) for number in range(first, sessions)))
        self.started = sessions
        return (cpu_s(self.hub.pid) - before) / (sessions - first)

    async def server(self, number: int) -> dict[str, object]:
        user = await self.hub.ask("GET", f"/users/user{number}?include_stopped_servers")
        server: dict[str, object] = user["servers"].get("", {"ready": False})
        return server

    async def measure(self, sessions: int, watched_s: float) -> Row:
        start_cpu_s = await self.start_up_to(sessions)
        await asyncio.sleep(_SETTLE_S)
        quiet, _ = await self.watch(watched_s)
        looked_at = self.folder / stub_cluster.LOOKED_AT
        looked_at.touch()
        await asyncio.sleep(_ALL_ASK_S)
        await self.held_ms()
        busy, answer_ms = await self.watch(watched_s)
        held_ms = await self.held_ms()
        looked_at.unlink()
        await asyncio.sleep(_ALL_ASK_S)
        return Row(
            sessions=sessions,
            start_ms=1000 * start_cpu_s,
            pss_mib=pss_mib(self.hub.pid),
            quiet=quiet,
            busy=busy,
            answer_ms=answer_ms,
            held_ms=held_ms,
            list_ms=await self.cost_ms("/desktops"),
            scrape_ms=await self.cost_ms("/../metrics"),
            restart_ms=await self.restart_ms(),
        )

    async def restart_ms(self) -> float:
        """CPU from the start of a hub that was killed until it knows that all desktops run."""
        self.hub.kill()
        await self.hub.start()
        while not (await self.server(self.started - 1))["ready"]:
            await asyncio.sleep(0.2)
        return 1000 * cpu_s(self.hub.pid)


async def main(counts: list[int], watched_s: float) -> None:
    with hubs.state_folder() as state, tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        hubs.add_machine(folder / "machines", state, "mini")
        commands = folder / "slurm"
        commands.write_text(stub_cluster.COMMANDS.format(folder=folder))
        commands.chmod(0o755)
        stub = subprocess.Popen([sys.executable, stub_cluster.__file__, str(folder)])
        try:
            while not (folder / "socket").exists():
                assert stub.poll() is None
                await asyncio.sleep(0.1)
            merged = _CONFIG.format(
                state=str(state),
                machines=str(folder / "machines"),
                commands=str(commands),
                held=str(folder / _HELD),
            )
            async with running_hub_process(folder, merged, path=sys.path, state=state) as hub:
                bench = Bench(hub=hub, folder=folder)
                try:
                    rows = [await bench.measure(count, watched_s) for count in counts]
                finally:
                    # With its proxy, which would go on.
                    os.killpg(hub.pid, signal.SIGKILL)
        finally:
            stub.kill()
            stub.wait()
    for row in rows:
        for name, unit, value in (
            ("memory of the hub", "MiB PSS", row.pss_mib),
            ("a start", "ms of CPU", row.start_ms),
            ("quiet", "part of a core", row.quiet),
            ("looked at", "part of a core", row.busy),
            ("an answer", "ms", row.answer_ms),
            ("the longest step", "ms of CPU", row.held_ms),
            ("all of them for staff", "ms of CPU", row.list_ms),
            ("a scrape of metrics", "ms of CPU", row.scrape_ms),
            ("back after a restart", "ms of CPU", row.restart_ms),
        ):
            record(f"{row.sessions} desktops: {name}", unit, [value])
    print("| desktops | " + " | ".join(_COLUMNS) + " |")
    print("|---" * (len(_COLUMNS) + 1) + "|")
    for row in rows:
        print(
            f"| {row.sessions} | {row.pss_mib:.0f} | {row.start_ms:.0f} | {row.quiet:.3f} | {row.busy:.3f}"
            f" | {row.answer_ms:.1f} | {row.held_ms:.0f} | {row.list_ms:.0f} | {row.scrape_ms:.0f}"
            f" | {row.restart_ms:.0f} |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--watched", type=float, default=40, metavar="S")
    asked = parser.parse_args()
    asyncio.run(main(asked.sessions, asked.watched))
