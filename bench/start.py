"""How a desktop comes up: restored, cold, woken; and what each further one costs.

    QEMUSPAWNER_TEST_IMAGES=STATE/images python bench/start.py [--rounds N] [--cold N] [--sleeps N]

All in one run on one machine, the demo desktop with 2 CPUs and 2 GiB: restores from its template interleaved
with cold boots; suspends and wakes with a guest that writes all the time; copies asked for at one moment
through a real hub; memory of further sessions, restored and cold. Prints Markdown.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import live
import vms
import writing_guest
from figures import record
from processes import list_programs, pss_mib
from vnc_client import VncClient

from qemuspawner.locks import find_holder
from qemuspawner.machine import Machine
from qemuspawner.machines.catalogue import load_machine
from qemuspawner.paths import EXAMPLE_MACHINES, SavedPaths, StatePaths, session_id
from qemuspawner.qemu.memory import load_memory
from qemuspawner.saved import list_saved
from qemuspawner.session.vm.guest import Guest
from qemuspawner.session.vm.prepare import choose, prepare, start_vm
from qemuspawner.spec import SessionSpec

CPUS, MEMORY_MIB = 2, 2048
MACHINE = "debian-desktop"


def load_demo(images: Path) -> Machine:
    return load_machine(EXAMPLE_MACHINES / MACHINE, images)


def warm(state: Path) -> float:
    """Make the template; seconds."""
    begun = time.monotonic()
    run_command(state, "warm", MACHINE, "--cpus", str(CPUS), "--memory", f"{MEMORY_MIB} MiB")
    return time.monotonic() - begun


def run_command(state: Path, *words: str) -> None:
    program = Path(sys.executable).with_name("qemuspawner")
    subprocess.run([program, "--state", state, *words], check=True, stdout=sys.stderr)


def tell(name: str, seconds: list[float], *, limit: float | None = None) -> None:
    spread = f" ({min(seconds):.2f}..{max(seconds):.2f})" if len(seconds) > 1 else ""
    shown = "" if limit is None else f"{limit:g}"
    print(f"| {name} | {statistics.median(seconds):.2f}{spread} | {len(seconds)} | {shown} |")
    record(name, "s", seconds, limit=limit)


# One at a time


async def time_start(spec: SessionSpec, memories: Mapping[str, int]) -> tuple[float, float, float]:
    """Seconds from QEMU's start to the first frame, to a key's answer, and to the agent's."""
    with contextlib.ExitStack() as stack:
        prepared = prepare(spec, stack, lambda _text, _progress: None, memories=memories)
        # Once more, with the clock: the host's checks before it are the session's, not QEMU's.
        prepared.started.process.kill()
        prepared.started.process.wait()
        _, plan = choose(spec, prepared.paths, prepared.host)
        begun = time.monotonic()
        started = start_vm(
            prepared.spec, prepared.paths, prepared.host, plan, stack, lambda *_: None, memories=memories
        )
        guest = Guest(started, prepared.paths, spec.machine, log=vms.LOG)
        try:
            await guest.connect()
            if not plan.restores:
                assert guest.agent is not None
                assert await guest.agent.wait_until_ready(timeout_s=300)
            async with VncClient(prepared.paths.vnc_socket) as vnc:
                await vnc.frame()
                framed = time.monotonic()
                await vnc.press_and_wait(ord("x"))
                answered = time.monotonic()
            assert guest.agent is not None
            assert await guest.agent.wait_until_ready(timeout_s=60)
            return framed - begun, answered - begun, time.monotonic() - begun
        finally:
            await guest.stop()


async def measure_starts(state: Path, machine: Machine, rounds: int, cold: int) -> None:
    template = list_saved(StatePaths(root=state).templates)[0]
    folder = SavedPaths(root=StatePaths(root=state).templates / template.name)
    begun = time.monotonic()
    memory = load_memory(folder.memory, digest=template.files[folder.memory.name].digest)
    loaded = time.monotonic() - begun
    restored, booted = [], []
    for number in range(rounds):
        spec = vms.make_spec(state, machine, cpus=CPUS, memory_mib=MEMORY_MIB)
        restored.append(await time_start(spec, {template.files[folder.memory.name].digest: memory}))
        if number < cold:
            booted.append(await time_start(vms.make_spec(
                state, machine, cpus=CPUS, memory_mib=MEMORY_MIB, templates=False), {}))  # fmt: skip
    os.close(memory)
    print("| start | seconds | rounds | limit |\n|---|---|---|---|")
    for name, limit, column in (
        ("first frame", 0.25, 0),
        ("key answered", 0.6, 1),
        ("agent answers", None, 2),
    ):
        tell(f"restored: {name}", [times[column] for times in restored], limit=limit)
    tell("cold: desktop's first frame", [times[0] for times in booted])
    ratio = statistics.median(times[0] for times in booted) / statistics.median(
        times[0] for times in restored
    )
    print(f"| cold : restored, to the desktop's frame | {ratio:.0f} | | 40 |")
    record("cold : restored, to the desktop's frame", "times", [ratio], more_is_better=True, limit=40)
    tell("template's memory into the fork server, once", [loaded])
    print()


async def measure_sleep(state: Path, machine: Machine, rounds: int) -> None:
    spec = vms.make_spec(state, machine, cpus=CPUS, memory_mib=MEMORY_MIB)
    suspends, wakes, answers = [], [], []
    verdict = words = ""
    for number in range(rounds + 1):
        begun = time.monotonic()
        async with vms.running_guest(spec) as (guest, prepared):
            async with VncClient(prepared.paths.vnc_socket) as vnc:
                await vnc.frame()
                framed = time.monotonic() - begun
            assert guest.agent is not None
            assert await guest.agent.wait_until_ready(timeout_s=300)
            if number == 0:
                await guest.agent.run("/bin/sh", "-c", writing_guest.WRITE)
            else:
                wakes.append(framed)
                answers.append(time.monotonic() - begun)
            if number == rounds:
                _, words = await guest.agent.run("/bin/sh", "-c", writing_guest.CHECK)
                await guest.shut_down()
                verdict = await asyncio.to_thread(writing_guest.fsck, guest, Path(spec.state_dir))
                break
            await asyncio.sleep(1)
            begun = time.monotonic()
            await vms.suspend(guest, prepared)
            suspends.append(time.monotonic() - begun)
    print(f"| sleep, {MEMORY_MIB} MiB | seconds | rounds | limit |\n|---|---|---|---|")
    tell("suspend", suspends, limit=3)
    tell("woken: first frame", wakes, limit=1.5)
    tell("woken: agent answers", answers)
    print(f"\nAfter {rounds} rounds with a writing guest: {words.strip()}; fsck: {verdict}\n")


# Through the hub


async def start_at_once(hub: live.LiveHub, count: int, *, look: bool) -> list[tuple[float, float]]:
    """Seconds until the hub says ready, and until a key is answered, where somebody types one."""
    begun = time.monotonic()

    async def start(name: str) -> tuple[float, float]:
        # Answered when it is ready; asking again and again would be work for the hub.
        status, _ = await hub.ask(
            "POST", f"users/demo/servers/{name}", json={"user_options": {"machine": MACHINE}}
        )
        assert status == 201, status
        ready = time.monotonic() - begun
        if look:
            paths = StatePaths(root=hub.state).session(session_id("demo", name))
            async with VncClient(paths.vnc_socket) as vnc:
                await vnc.frame()
                await vnc.press_and_wait(ord("x"))
        return ready, time.monotonic() - begun

    return list(await asyncio.gather(*(start(f"copy{number}") for number in range(count))))


async def stop_all(hub: live.LiveHub, count: int) -> None:
    for number in range(count):
        await hub.stop_server("demo", f"copy{number}")


async def measure_many(hub: live.LiveHub, count: int, cold: int) -> None:
    times = await start_at_once(hub, count, look=True)
    print(f"| {count} at once, through the hub | seconds | sessions | limit |\n|---|---|---|---|")
    tell(f"{count} at once: the hub says ready", [ready for ready, _ in times])
    tell(f"{count} at once: a key is answered", [usable for _, usable in times])
    tell(f"{count} at once: the last one usable", [max(usable for _, usable in times)], limit=5)
    print()
    typed = await read_memory(hub, count)
    await stop_all(hub, count)
    await start_at_once(hub, count, look=False)
    idle = await read_memory(hub, count)
    await stop_all(hub, count)
    run_command(hub.state, "templates", "remove", "--all")
    for number in range(cold):
        await hub.start_server("demo", f"copy{number}", machine=MACHINE)
    booted = await read_memory(hub, cold)
    await stop_all(hub, cold)
    print(
        "| a further session, MiB PSS | supervisor | walls | QEMU | sum | limit |\n|---|---|---|---|---|---|"
    )
    tell_memory(f"restored, idle since, {count} side by side", idle, limit=130)
    tell_memory(f"restored, seen and typed into, {count} side by side", typed)
    tell_memory(f"booted cold, idle since, {cold} side by side", booted)
    print()


async def read_memory(hub: live.LiveHub, count: int) -> list[dict[str, float]]:
    """PSS of everything of each session, once all have settled."""
    await asyncio.sleep(15)
    return [session_pss(hub, f"copy{number}") for number in range(count)]


def tell_memory(name: str, sessions: list[dict[str, float]], *, limit: float | None = None) -> None:
    means = {kind: statistics.mean(one[kind] for one in sessions) for kind in ("supervisor", "walls", "qemu")}
    cells = " | ".join(f"{value:.1f}" for value in (*means.values(), sum(means.values())))
    print(f"| {name} | {cells} | {'' if limit is None else limit} |")
    record(f"a session: {name}", "MiB PSS", [sum(one.values()) for one in sessions], limit=limit)
    beside = [one["supervisor"] + one["walls"] for one in sessions]
    record(f"of it beside QEMU: {name}", "MiB PSS", beside)


def session_pss(hub: live.LiveHub, name: str) -> dict[str, float]:
    paths = StatePaths(root=hub.state).session(session_id("demo", name))
    supervisor = find_holder(paths.lock)
    assert supervisor
    found = {"supervisor": pss_mib(supervisor), "walls": 0.0, "qemu": 0.0}
    for pid, program in list_programs(paths):
        found["qemu" if "qemu-system" in Path(program).name else "walls"] += pss_mib(pid)
    return found


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cold", type=int, default=2)
    parser.add_argument("--sleeps", type=int, default=20)
    parser.add_argument("--copies", type=int, default=10)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    images = Path(os.environ["QEMUSPAWNER_TEST_IMAGES"])
    with tempfile.TemporaryDirectory(prefix="qs-") as folder:
        state = Path(folder)
        state.chmod(0o711)
        (state / "sessions").mkdir()
        (state / "images").mkdir()
        (state / "images" / MACHINE).symlink_to(images / MACHINE)
        made = warm(state)
        machine = load_demo(state / "images")
        print(f"`qemuspawner warm` took {made:.0f} s.\n")
        await measure_starts(state, machine, arguments.rounds, arguments.cold)
        await measure_sleep(state, machine, arguments.sleeps)
    # However few CPUs the host has: what is measured is what they make of it.
    async with live.live_hub(named_servers=30, more="c.QemuSpawner.cpu_overcommit = 0") as hub:
        warm(hub.state)
        # The first one loads the template's memory, as it does once a day.
        await hub.start_server("demo", "first", machine=MACHINE)
        await hub.stop_server("demo", "first")
        await measure_many(hub, arguments.copies, min(3, arguments.copies))


if __name__ == "__main__":
    asyncio.run(main())
