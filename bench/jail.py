"""What the walls around QEMU cost a start, and how soon a full host says no.

    python bench/jail.py [--rounds N] [--only jail|refusals]

All in one run on one machine: the painter guest started with the jail and without, interleaved, from QEMU's
command to the display's answer; the memory of what stands around QEMU; ten starts at once through a hub on a
host that has room for five. Prints Markdown.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "hub"))

import guests
import hubs
import vms
from figures import record
from jupyterhub.tests.mocking import MockHub
from session import children, pss_mib
from traitlets.config import Config

from qemuspawner.hub.admission.capacity import find_memory_mib
from qemuspawner.qemu.host import find_qemu
from qemuspawner.qemu.jail import check_jail
from qemuspawner.session.vm.guest import Guest
from qemuspawner.session.vm.prepare import choose, prepare, start_vm
from qemuspawner.spec import SESSION_OVERHEAD_MIB, SessionSpec

ROOM_FOR, ASKED = 5, 10


async def time_start(spec: SessionSpec) -> tuple[float, float, float]:
    """Milliseconds from QEMU's command to QMP's answer and to the display's; MiB of the walls."""
    (Path(spec.state_dir) / "sessions").mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        prepared = prepare(spec, stack, lambda _text, _progress: None)
        # Once more, with the clock: the host's checks before it are the session's, not QEMU's.
        prepared.started.process.kill()
        prepared.started.process.wait()
        _, plan = choose(spec, prepared.paths, prepared.host)
        begun = time.monotonic()
        started = start_vm(prepared.spec, prepared.paths, prepared.host, plan, stack, lambda *_: None)
        guest = Guest(started, prepared.paths, spec.machine, log=vms.LOG)
        try:
            await guest.connect()
            answered = time.monotonic()
            await guest.wait_for_display()
            shown = time.monotonic()
            return (answered - begun) * 1000, (shown - begun) * 1000, walls_mib(started.process.pid, guest)
        finally:
            await guest.stop()


def walls_mib(outermost: int, guest: Guest) -> float:
    """The memory of all processes around QEMU, shared pages counted by shares."""
    processes = {outermost, *children(outermost)} - {guest.qemu.pid}
    return sum(map(pss_mib, processes))


async def measure_jail(rounds: int) -> None:
    check_jail()
    with tempfile.TemporaryDirectory(prefix="qs-") as folder:
        disk = guests.make_disk(Path(folder) / "disk", "qcow2")
        machine = vms.make_machine(image={"file": str(disk), "format": "qcow2"})
        times: dict[bool, list[tuple[float, float, float]]] = {True: [], False: []}
        for _ in range(rounds):
            for jail in (True, False):
                times[jail].append(await time_start(vms.make_spec(Path(folder), machine, jail=jail)))
    print("| measure | with the jail | without | difference | limit |\n|---|---|---|---|---|")
    for column, name, limit in (
        (0, "command to QMP's answer and the walls seen, ms", None),
        (1, "command to the display's answer, ms", 100),
        (2, "processes around QEMU, MiB PSS", 25),
    ):
        inside, outside = ([one[column] for one in times[jail]] for jail in (True, False))
        difference = statistics.median(inside) - statistics.median(outside)
        print(f"| {name} | {spread(inside)} | {spread(outside)} | {difference:.1f} | {limit or ''} |")
        what, unit = name.rsplit(", ", 1)
        record(f"with the jail: {what}", unit, inside, peers={"without": outside})
        record(f"what the jail adds: {what}", unit, [difference], limit=limit)
    print()


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f}..{max(values):.1f})"


async def measure_refusals(rounds: int) -> None:
    """Ten starts at once, as often as `rounds`; each answer's seconds."""
    one_mib = 128 + SESSION_OVERHEAD_MIB
    command = [sys.executable, "-I", "-S", str(Path(hubs.__file__).parent / "hub/quick_standin.py")]
    started, refused, worked = [], [], []
    with hubs.state_folder() as state:
        hubs.add_machine(state / "machines", state, "mini")
        reserve = find_memory_mib() - ROOM_FOR * one_mib - 100
        config = hubs.hub_config(state, state / "machines", cmd=command, memory_reserve=reserve)
        async with hubs.running_hub(start_hub, config, state=state, machines=state / "machines") as hub:
            people = [await hub.log_in(f"user{number}") for number in range(ASKED)]
            for _ in range(rounds):
                before = time.process_time()
                answers = await asyncio.gather(*(ask(hub, person) for person in people))
                worked.append(time.process_time() - before)
                good = [
                    person for person, (status, _, _) in zip(people, answers, strict=True) if status < 300
                ]
                assert len(good) == ROOM_FOR
                started += [seconds for status, seconds, _ in answers if status < 300]
                refused += [seconds for status, seconds, _ in answers if status == 409]
                assert all(f"needs {one_mib} MiB" in text for status, _, text in answers if status == 409)
                for person in good:
                    await hub.wait_until_ready(person.name)
                    await hub.stop(person)
                    await hub.wait_until_stopped(person.name)
    print("| of ten starts at once, with room for five | answers | seconds | limit |\n|---|---|---|---|")
    print(f"| started | {len(started)} | {spread_s(started)} | |")
    print(f"| refused with the numbers | {len(refused)} | {spread_s(refused)} | 1 |")
    record(f"{ASKED} starts at once, room for {ROOM_FOR}: a refusal's answer", "s", refused, limit=1)
    print(f"| CPU of hub and clients for all ten | {len(worked)} | {spread_s(worked)} | |")


async def start_hub(config: Config) -> MockHub:
    """As pytest-jupyterhub's fixture does."""
    MockHub.clear_instance()
    app = MockHub.instance(config=config)
    await app.initialize()
    await app.start()
    return app


def spread_s(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}..{max(values):.2f})"


async def ask(hub: hubs.Hub, person: hubs.Person) -> tuple[int, float, str]:
    begun = time.monotonic()
    answer = await hub.start(person, {"machine": "mini"})
    text = json.loads(answer.text)["message"] if answer.status == 409 else ""
    return answer.status, time.monotonic() - begun, text


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", choices=("jail", "refusals"))
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    print(f"QEMU {find_qemu().build}\n")
    if arguments.only != "refusals":
        await measure_jail(arguments.rounds)
    if arguments.only != "jail":
        await measure_refusals(max(1, arguments.rounds // 5))


if __name__ == "__main__":
    asyncio.run(main())
