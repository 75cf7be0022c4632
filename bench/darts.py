"""qemuspawner beside DARTS itself, the same guests on both, in turns, in one network namespace.

    as root: QEMUSPAWNER_TEST_IMAGES=STATE/images python bench/darts.py [--root FOLDER] [--rounds N] ...

DARTS is Debian 12's package (darts_site.py), installed into FOLDER by mmdebstrap where it is not there. A
start is from the POST of the filled-in form to the first frame that comes through the websocket of the page's
link; ours goes by the hub's form and proxy, its pages and their logins. A desktop is usable when its terminal
is drawn and a key changes the picture. Guests have one CPU and 1 GiB. Prints Markdown.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import aiohttp
import guests
import hubs
import live
from bootable import make_bootable
from darts_site import Darts, RefusedError, install, processes_of, running_darts
from figures import record, show_spread
from processes import pss_mib
from vnc_client import WebVncClient
from yarl import URL

from qemuspawner import scopes
from qemuspawner.qemu.host import find_qemu, kvm_works

USERS = 8
VIEWERS = 8
PAINTER, DESKTOP = "painter1", "desktop1"
_DISKS = {PAINTER: "painter.raw", DESKTOP: "desktop.qcow2"}
# So much of the demo machine's picture has these colours (blue, green, red) once its terminal is there.
_DRAWN = {bytes((124, 93, 44)): 0.2, bytes((51, 41, 31)): 0.2}
_SAMPLED = 97  # every so many pixels
_KEY = ord("x")
_SETTLE_S = 5
_PATIENCE_S = 20
_DESKTOP_S = 400
_TOML = """
name = "{name}"
shutdown = "1 s"
{more}
[image]
file = "{file}"
format = "{format}"
[cpus]
default = 1
[memory]
default = "1 GiB"
offered = ["1 GiB"]
[lifetime]
default = "1 h"
offered = ["1 h"]
"""

View = contextlib.AbstractAsyncContextManager[WebVncClient]
# Starts a machine for a user, by its form, and is in view of it.
Start = Callable[[str, str], View]


@dataclass(frozen=True, kw_only=True)
class Ours:
    """Our hub, and everybody logged in at it, with the form open."""

    hub: live.LiveHub
    people: dict[str, hubs.Person]

    @contextlib.asynccontextmanager
    async def start(self, user: str, machine: str) -> AsyncIterator[WebVncClient]:
        person = self.people[user]
        form = self.hub.url / "hub/spawn"
        answer = await person.request(
            "POST",
            form.with_query(_xsrf=person.xsrf(form)),
            data={"machine": machine},
            allow_redirects=False,
        )
        assert answer.status == 302, answer.text
        try:
            await self._wait_until_ready(person)
            async with self.view(person, self.hub.url / f"user/{user}/") as viewer:
                yield viewer
        finally:
            await self.hub.stop_server(user)

    async def _wait_until_ready(self, person: hubs.Person) -> None:
        """As the hub's page does, which then goes to the desktop."""
        headers = {"Authorization": f"token {self.hub.token}", "Accept": "text/event-stream"}
        progress = self.hub.url / f"hub/api/users/{person.name}/server/progress"
        async with person.http.get(progress, headers=headers, timeout=None) as events:
            async for line in events.content:
                if line.startswith(b"data:"):
                    event = json.loads(line.removeprefix(b"data:"))
                    assert not event.get("failed"), event
                    if event.get("ready"):
                        return

    @contextlib.asynccontextmanager
    async def view(self, person: hubs.Person, desktop: URL) -> AsyncIterator[WebVncClient]:
        """The page with its logins, its ticket, and the websocket."""
        await self.hub.open_session(person, desktop)
        headers = {"X-XSRFToken": person.xsrf(desktop)}
        answer = await person.request("POST", desktop / "api/ticket", headers=headers)
        ticket = json.loads(answer.text)["ticket"]
        socket = await person.http.ws_connect(
            desktop / "vnc",
            protocols=("binary", f"qs.ticket.{ticket}"),
            headers={"Origin": str(desktop.origin())},
            max_msg_size=0,
        )
        async with WebVncClient(socket) as viewer:
            yield viewer


@dataclass(frozen=True, kw_only=True)
class Theirs:
    darts: Darts
    http: aiohttp.ClientSession

    @contextlib.asynccontextmanager
    async def start(self, user: str, machine: str) -> AsyncIterator[WebVncClient]:
        started = await self.darts.start(self.http, user, _DISKS[machine])
        try:
            async with self.view(started.websocket) as viewer:
                yield viewer
        finally:
            await self.darts.stop(self.http, started)

    @contextlib.asynccontextmanager
    async def view(self, url: str) -> AsyncIterator[WebVncClient]:
        """Connected again and again, where its page says that it failed, as a person would by its button."""
        async with contextlib.AsyncExitStack() as stack, asyncio.timeout(None) as given_up:
            given_up.reschedule(asyncio.get_running_loop().time() + _PATIENCE_S)
            while True:
                socket = await self.http.ws_connect(url, protocols=("binary",), max_msg_size=0)
                with contextlib.suppress(asyncio.IncompleteReadError):
                    viewer = await stack.enter_async_context(WebVncClient(socket))
                    break
                await asyncio.sleep(0.1)
            given_up.reschedule(None)
            yield viewer


# Starts


async def time_frame(start: Start, user: str) -> float:
    """Seconds from the POST to the first frame of the guest that paints at once."""
    begun = time.monotonic()
    async with start(user, PAINTER) as viewer:
        await viewer.frame()
        return time.monotonic() - begun


async def time_desktop(start: Start, user: str) -> tuple[float, float]:
    """Seconds from the POST to the first frame, and until the desktop is usable."""
    begun = time.monotonic()
    async with start(user, DESKTOP) as viewer, asyncio.timeout(_DESKTOP_S):
        picture = await viewer.frame()
        framed = time.monotonic()
        while not is_drawn(picture):
            picture = await viewer.next_frame()
        await viewer.press_and_wait(_KEY)
        return framed - begun, time.monotonic() - begun


def is_drawn(picture: bytes) -> bool:
    pixels = range(0, len(picture), 4 * _SAMPLED)
    seen = Counter(picture[at : at + 3] for at in pixels)
    return all(seen[colour] >= part * len(pixels) for colour, part in _DRAWN.items())


# Eight at once


async def own_desktops(start: Start) -> tuple[int, list[float]]:
    """How many of all users, who start at one moment, get a desktop of their own; and when, in seconds."""
    begun = time.monotonic()
    times: list[float] = []
    async with contextlib.AsyncExitStack() as stack:

        async def begin(user: str) -> WebVncClient | None:
            # No link in the page, or one that leads nowhere.
            with contextlib.suppress(RefusedError, aiohttp.ClientError, TimeoutError):
                viewer = await stack.enter_async_context(start(user, PAINTER))
                await viewer.frame()
                times.append(time.monotonic() - begun)
                return viewer
            return None

        found = await asyncio.gather(*(begin(f"user{number}") for number in range(USERS)))
        viewers = [viewer for viewer in found if viewer is not None]
        # Where one's key paints another's screen both look at one desktop.
        desktops = set()
        for viewer in viewers:
            before = [await colour(one) for one in viewers]
            await viewer.press_and_wait(_KEY)
            while await colour(viewer) == before[viewers.index(viewer)]:
                await asyncio.sleep(0.05)
            after = [await colour(one) for one in viewers]
            desktops.add(tuple(a != b for a, b in zip(before, after, strict=True)))
        return len(desktops), times


async def colour(viewer: WebVncClient) -> bytes:
    return (await viewer.frame())[:3]


# Memory


def helpers_of_theirs(root: Path) -> float:
    """MiB of all its processes but QEMU."""
    return sum(pss_mib(pid) for pid, words in processes_of(root).items() if "qemu-system" not in words[0])


def helpers_of_ours(root: Path) -> float:
    """MiB of all else in this PID namespace but QEMU, with what this benchmark's Python shares with it."""
    theirs, own = processes_of(root), os.getpid()
    found = pss_mib(own, "Pss_File")
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in {*theirs, own}:
            with contextlib.suppress(OSError):
                if not (entry / "exe").readlink().name.startswith("qemu-system"):
                    found += pss_mib(int(entry.name))
    return found


async def measure_theirs(theirs: Theirs, root: Path) -> list[float]:
    """MiB without a desktop, with one and nobody looking, then with one more viewer each."""
    await asyncio.sleep(_SETTLE_S)
    found = [helpers_of_theirs(root)]
    started = await theirs.darts.start(theirs.http, "user0", _DISKS[PAINTER])
    async with contextlib.AsyncExitStack() as stack:
        for number in range(VIEWERS + 1):
            if number:
                viewer = await stack.enter_async_context(theirs.view(started.websocket))
                await viewer.frame()
            await asyncio.sleep(_SETTLE_S)
            found.append(helpers_of_theirs(root))
    await theirs.darts.stop(theirs.http, started)
    return found


async def measure_ours(ours: Ours, root: Path) -> list[float]:
    """The same; the viewers are its owner and people with whom it is shared."""
    hub, owner = ours.hub, ours.people["user0"]
    await asyncio.sleep(_SETTLE_S)
    found = [helpers_of_ours(root)]
    desktop = await hub.start_server(owner.name, machine=PAINTER)
    shares = hub.url / f"hub/api/shares/{owner.name}/"
    here = f"!server={owner.name}/"
    headers = {"Authorization": f"token {await hub.new_token(owner.name)}"}
    async with contextlib.AsyncExitStack() as stack:
        for number in range(VIEWERS + 1):
            if number:
                person = ours.people[f"user{number - 1}"]
                if person is not owner:
                    wanted = {"user": person.name, "scopes": ["access:servers" + here, scopes.VIEW + here]}
                    answer = await owner.request("POST", shares, json=wanted, headers=headers)
                    assert answer.status == 200, answer.text
                viewer = await stack.enter_async_context(ours.view(person, desktop))
                await viewer.frame()
            await asyncio.sleep(_SETTLE_S)
            found.append(helpers_of_ours(root))
    await hub.stop_server(owner.name)
    return found


# Both


def add_machines(hub: live.LiveHub, disks: Path) -> None:
    """The guests, of the very disks that DARTS has."""
    for name, more in ((PAINTER, ""), (DESKTOP, "agent = true")):
        hubs.add_machine(hub.state / "machines", hub.state, name)
        disk = disks / _DISKS[name]
        toml = _TOML.format(name=name, file=disk.name, format=disk.suffix[1:], more=more)
        (hub.state / "machines" / name / "machine.toml").write_text(toml)
        (hub.state / "images" / name / disk.name).hardlink_to(disk)


def warm(hub: live.LiveHub) -> None:
    program = Path(sys.executable).with_name("qemuspawner")
    command = [program, "--state", hub.state, "--machines", hub.state / "machines", "warm", DESKTOP]
    subprocess.run([*command, "--cpus", "1", "--memory", "1 GiB"], check=True, stdout=sys.stderr)


async def log_in(hub: live.LiveHub, stack: contextlib.AsyncExitStack) -> dict[str, hubs.Person]:
    names = [f"user{number}" for number in range(USERS)]
    people = {name: await stack.enter_async_context(hub.person(name)) for name in names}
    for person in people.values():
        await person.request("GET", hub.url / "hub/spawn")
    return people


async def in_turns(rounds: int, *measures: Callable[[], Awaitable[float]]) -> list[list[float]]:
    found: list[list[float]] = [[] for _ in measures]
    for _ in range(rounds):
        for values, measure in zip(found, measures, strict=True):
            values.append(await measure())
    return found


async def compare(arguments: argparse.Namespace, root: Path, disks: Path, work: Path) -> None:
    kvm = kvm_works(find_qemu(), work)
    more = f"c.Authenticator.allowed_users = {{*{live.USERS!r}, *{[f'user{n}' for n in range(USERS)]!r}}}\n"
    async with contextlib.AsyncExitStack() as stack:
        hub = await stack.enter_async_context(live.live_hub(more=more))
        add_machines(hub, disks)
        ours = Ours(hub=hub, people=await log_in(hub, stack))
        http = await stack.enter_async_context(hubs.browser())
        with running_darts(root, disks, work, kvm=kvm) as darts:
            theirs = Theirs(darts=darts, http=http)
            await compare_frames(ours, theirs, arguments.rounds)
            await compare_memory(ours, theirs, root)
            await compare_desktops(ours, theirs, arguments.desktop_rounds)
        own: dict[str, list[int]] = {"ours": [], "DARTS": []}
        last: list[float] = []
        for _ in range(arguments.bursts):
            # Each with a DARTS that has just started: such a round leaves things behind in it.
            with running_darts(root, disks, work, kvm=kvm) as darts:
                count, _ = await own_desktops(Theirs(darts=darts, http=http).start)
                own["DARTS"].append(count)
            count, times = await own_desktops(ours.start)
            own["ours"].append(count)
            last.append(max(times))
    tell(
        f"{USERS} users at once: who get a desktop of their own", "users", own["ours"],
        peers={"DARTS": own["DARTS"]}, more_is_better=True, limit=USERS,
    )  # fmt: skip
    tell(f"{USERS} users at once: the last one's first frame", "s", last)


async def compare_frames(ours: Ours, theirs: Theirs, rounds: int) -> None:
    # One that does not count: caches, and DARTS starts the daemon of its displays.
    await in_turns(1, lambda: time_frame(theirs.start, "user0"), lambda: time_frame(ours.start, "user0"))
    other, own = await in_turns(
        rounds, lambda: time_frame(theirs.start, "user0"), lambda: time_frame(ours.start, "user0")
    )
    tell("POST to the first frame", "s", own, peers={"DARTS": other}, times_better=5)


async def compare_memory(ours: Ours, theirs: Theirs, root: Path) -> None:
    other = await measure_theirs(theirs, root)
    own = await measure_ours(ours, root)
    tell("helpers, no desktop", "MiB PSS", own[:1], peers={"DARTS": other[:1]})
    tell("helpers, one desktop and nobody looking", "MiB PSS", own[1:2], peers={"DARTS": other[1:2]})
    tell(f"helpers, {VIEWERS} looking at it", "MiB PSS", own[-1:], peers={"DARTS": other[-1:]})
    added = [[more - less for less, more in itertools.pairwise(found[1:])] for found in (own, other)]
    tell("helpers, a further viewer", "MiB PSS", added[0], peers={"DARTS": added[1]})


async def compare_desktops(ours: Ours, theirs: Theirs, rounds: int) -> None:
    cold = [await time_desktop(ours.start, "user0")]
    warm(ours.hub)
    await time_desktop(ours.start, "user0")  # loads the template's memory, as once a day
    other, own = [], []
    for _ in range(rounds):
        other.append(await time_desktop(theirs.start, "user0"))
        own.append(await time_desktop(ours.start, "user0"))
    for column, name, times_better in ((0, "first frame", 5), (1, "usable", 15)):
        tell(
            f"a desktop, POST to {name}", "s", [one[column] for one in own],
            peers={"DARTS": [one[column] for one in other]}, times_better=times_better,
        )  # fmt: skip
    tell(
        "the same without a template: POST to usable", "s", [one[1] for one in cold],
        peers={"DARTS": [one[1] for one in other]},
    )  # fmt: skip


def tell(name: str, unit: str, values: list[float] | list[int], **more: object) -> None:
    record(name, unit, values, **more)  # type: ignore[arg-type]
    up = not more.get("more_is_better")
    peers = more.get("peers") or {}
    beside = "".join(show_spread(theirs, up=False) for theirs in peers.values())  # type: ignore[attr-defined]
    print(f"| {name}, {unit} | {show_spread(values, up=up)} | {beside} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path("/var/lib/qemuspawner/darts"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--desktop-rounds", type=int, default=3)
    parser.add_argument("--bursts", type=int, default=3)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    if arguments.inside:
        logging.basicConfig(level=logging.ERROR)
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        print("| measure | qemuspawner | DARTS |\n|---|---|---|", flush=True)
        asyncio.run(compare(arguments, root, arguments.inside / "disks", arguments.inside))
        return
    version = install(root)
    print(f"DARTS: qemu-web-desktop {version}\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="qs-") as folder:
        work = Path(folder)
        work.chmod(0o711)
        disks = work / "disks"
        disks.mkdir(mode=0o755)
        guests.make_disk(disks / _DISKS[PAINTER])
        raw = work / "desktop.raw"
        make_bootable(Path(os.environ["QEMUSPAWNER_TEST_IMAGES"]) / "debian-desktop", raw, work)
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, disks / _DISKS[DESKTOP]], check=True)
        raw.unlink()
        # Whatever happens in there, no process, mount or port of it is left.
        around = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        subprocess.run([*around, sys.executable, *sys.argv, "--inside", work], check=True)


if __name__ == "__main__":
    main()
