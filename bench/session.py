"""What a session costs beside its guest: time from the form to the desktop, and memory.

    QEMUSPAWNER_TEST_IMAGES=STATE/images python bench/session.py [--rounds N] [--sessions N]

Interleaved in one run: the same machine started bare (our own preparation and QEMU, no hub or web side) until
its desktop answers, and by the form of a real hub behind a real proxy until the hub says that it is ready.
The difference is the spawn's overhead. Then PSS of everything a session runs beside QEMU. Prints Markdown.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import hubs
import live
from figures import record
from processes import find_descendants, pss_mib

from qemuspawner.locks import find_holder
from qemuspawner.machines.catalogue import load_machine
from qemuspawner.paths import StatePaths, session_id
from qemuspawner.qemu.agent import GuestAgent
from qemuspawner.qemu.process import QemuProcess
from qemuspawner.qemu.vnc import wait_for_display
from qemuspawner.session.vm.prepare import prepare
from qemuspawner.spec import SessionSpec

USER = "demo"


async def start_bare(hub: live.LiveHub, machine_id: str, memory_mib: int) -> float:
    """Seconds from nothing to a desktop that answers, without hub and web side."""
    folders = [hub.state / "machines", live.PROJECT / "machines"]
    folder = next(folder / machine_id for folder in folders if (folder / machine_id).is_dir())
    machine = load_machine(folder, hub.state / "images")
    with tempfile.TemporaryDirectory() as state, contextlib.ExitStack() as stack:
        (Path(state) / "sessions").mkdir()
        begun = time.monotonic()
        spec = SessionSpec(
            session_id=session_id("bare", ""), user="bare", server_name="", state_dir=state, machine=machine,
            cpus=machine.cpus.default, memory_mib=memory_mib, lifetime_s=3600, max_lifetime_s=3600,
            accelerator="auto", allow_tcg=True,
        )  # fmt: skip
        prepared = prepare(spec, stack, lambda _text, _progress: None)
        log = logging.LoggerAdapter(logging.getLogger("bench"))
        qemu = QemuProcess(prepared.started.process, prepared.paths, log=log)
        try:
            await qemu.connect(timeout_s=60)
            await qemu.execute("cont")  # it waits until the walls around it were looked at
            await wait_for_display(prepared.paths.vnc_socket, timeout_s=60)
            if machine.agent:
                agent = GuestAgent(prepared.paths.agent_socket)
                assert await agent.wait_until_ready(timeout_s=300)
                agent.close()
            return time.monotonic() - begun
        finally:
            await qemu.stop()


async def start_by_form(hub: live.LiveHub, person: hubs.Person, machine_id: str, memory_mib: int) -> float:
    """Seconds from the POST of the form to the hub's word that the server is ready."""
    form = hub.url / "hub/spawn"
    await person.request("GET", form)
    begun = time.monotonic()
    answer = await person.request(
        "POST",
        form.with_query(_xsrf=person.xsrf(form)),
        data={"machine": machine_id, "memory": str(memory_mib)},
        allow_redirects=False,
    )
    assert answer.status == 302, answer.text
    headers = {"Authorization": f"token {hub.token}", "Accept": "text/event-stream"}
    progress = hub.url / f"hub/api/users/{USER}/server/progress"
    async with person.http.get(progress, headers=headers, timeout=None) as events:
        async for line in events.content:
            if line.startswith(b"data:"):
                event = json.loads(line.removeprefix(b"data:"))
                assert not event.get("failed"), event
                if event.get("ready"):
                    break
    taken = time.monotonic() - begun
    await hub.stop_server(USER)
    return taken


def memory_of(hub: live.LiveHub, names: list[str]) -> tuple[float, float]:
    """PSS in MiB of the supervisors with their fork server, and of the walls between them and QEMU."""
    walls = 0.0
    processes = set()
    for name in names:
        pid = find_holder(StatePaths(root=hub.state).session(session_id(USER, name)).lock)
        assert pid is not None
        processes |= {pid, *fork_server_of(pid)}
        for child in find_descendants(pid):
            if not os.path.realpath(f"/proc/{child}/exe").startswith("/usr/bin/qemu-system"):
                walls += pss_mib(child)
    return sum(map(pss_mib, processes)), walls


def fork_server_of(pid: int) -> list[int]:
    """The process that the supervisor was forked from, which has the same command line."""
    parent = int(Path(f"/proc/{pid}/status").read_text().partition("\nPPid:")[2].split()[0])
    words = [Path(f"/proc/{process}/cmdline").read_bytes() for process in (pid, parent)]
    return [parent] if words[0] == words[1] else []


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}..{max(values):.2f})"


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--desktop-rounds", type=int, default=2)
    parser.add_argument("--sessions", type=int, default=10)
    arguments = parser.parse_args()
    async with live.live_hub(named_servers=arguments.sessions) as hub, hub.person(USER) as person:
        print("| machine | by the form, s | bare, s | overhead, s | form : bare |")
        print("| --- | --- | --- | --- | --- |")
        for machine_id, memory_mib, rounds in (
            ("painter", 64, arguments.rounds),
            ("debian-desktop", 1024, arguments.desktop_rounds),
        ):
            bare, form = [], []
            for _ in range(rounds):
                bare.append(await start_bare(hub, machine_id, memory_mib))
                form.append(await start_by_form(hub, person, machine_id, memory_mib))
            overhead = [one - other for one, other in zip(form, bare, strict=True)]
            ratio = statistics.median(form) / statistics.median(bare)
            record(f"{machine_id}: by the form, until it is ready", "s", form, peers={"bare": bare})
            # Where boots differ by seconds they say no more of this than that it is small beside a boot.
            limit = 1.5 if machine_id == "painter" else None
            record(f"{machine_id}: of it the spawn's own", "s", overhead, limit=limit)
            print(f"| {machine_id} | {spread(form)} | {spread(bare)} | {spread(overhead)} | {ratio:.2f} |")
        print()
        print("| sessions | supervisors, MiB PSS | walls, MiB PSS | a session, MiB PSS |")
        print("| --- | --- | --- | --- |")
        names: list[str] = []
        for count in sorted({1, arguments.sessions}):
            while len(names) < count:
                names.append(f"s{len(names)}")
                await hub.start_server(USER, names[-1], machine="painter")
            await asyncio.sleep(5)
            supervisors, walls = memory_of(hub, names)
            each = (supervisors + walls) / count
            print(f"| {count} | {supervisors:.0f} | {walls:.1f} | {each:.1f} |")
            record(f"beside QEMU, of {count} sessions each", "MiB PSS", [each])


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(main())
