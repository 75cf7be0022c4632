"""R6: many starts at once on a host with room for a few: so many start, and all others are told why not."""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import hubs
import live
import pytest
from fake_qemu import FakeQemu
from proofs import Proof
from yarl import URL

from qemuspawner.hub.admission.capacity import find_memory_mib, needed_mib
from qemuspawner.hub.admission.promises import list_promises
from qemuspawner.locks import find_holder
from qemuspawner.paths import StatePaths, session_id
from qemuspawner.units import render_mib

Start = Callable[..., Awaitable[hubs.Hub]]

READY_AT_ONCE = Path(__file__).parent.parent / "hub" / "quick_standin.py"
# Left over when the host is full: less than a desktop needs.
REST_MIB = 100
LIMIT_S = 1.0


def reserve_mib(*, room: int, guest_mib: int) -> int:
    """What a host keeps that has room for so many desktops."""
    return find_memory_mib() - room * needed_mib(guest_mib) - REST_MIB


def sentence(guest_mib: int) -> str:
    """Who is refused reads what there is and what was needed."""
    needed = render_mib(needed_mib(guest_mib))
    return f"This host has {render_mib(REST_MIB)} of memory free; the desktop needs {needed}."


@contextlib.asynccontextmanager
async def watching_promises(hub: hubs.Hub) -> AsyncIterator[list[int]]:
    """How much was promised to desktops at every moment within, MiB, in the end."""
    seen_mib: list[int] = []

    async def watch() -> None:
        # Whatever the hub does it does between two steps of its one loop.
        while True:
            seen_mib.append(sum(needed_mib(one.memory_mib) for one in list_promises(hub.app.users)))
            await asyncio.sleep(0)

    watcher = asyncio.create_task(watch())
    yield seen_mib
    watcher.cancel()


@pytest.mark.goal("R6")
async def test_a_full_host_is_never_promised_again(proof: Proof, start_hub: Start) -> None:
    people_count, room, guest_mib = 100, 10, 128
    hub = await start_hub(
        cmd=[sys.executable, "-I", "-S", str(READY_AT_ONCE)],
        memory_reserve=reserve_mib(room=room, guest_mib=guest_mib),
        cpu_overcommit=0,
    )
    people = [await hub.with_token(f"user{number}") for number in range(people_count)]
    rounds = proof.rounds(short=1, full=20)
    started, refused, most_mib = [], [], 0

    for number in range(rounds):
        # The first to ask is not always the same one.
        people = people[7 * number :] + people[: 7 * number]
        async with watching_promises(hub) as seen_mib:
            answers = await asyncio.gather(*(hub.start(person, {"machine": "mini"}) for person in people))
        most_mib = max(most_mib, *seen_mib)
        winners = [one for one, answer in zip(people, answers, strict=True) if answer.status in (201, 202)]
        started.append(len(winners))
        refused += [json.loads(answer.text)["message"] for answer in answers if answer.status == 409]
        for person in winners:
            await hub.wait_until_ready(person.name)
            await hub.stop(person)
            await hub.wait_until_stopped(person.name)

    limit_mib = room * needed_mib(guest_mib)
    proof.note(
        done=f"{rounds} times {people_count} starts at once on a host with room for {room}",
        found=f"{min(started)} to {max(started)} started, {len(refused)} refused; "
        f"at most {most_mib} MiB were promised at once",
        limit=f"{room} start each time, all others are refused; at most {limit_mib} MiB",
    )
    assert started == [room] * rounds
    assert len(refused) == rounds * (people_count - room)
    assert all(text.startswith(sentence(guest_mib)) for text in refused)
    assert most_mib == limit_mib


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What somebody was told who asked for a desktop."""

    owner: str
    server: str
    is_refused: bool
    text: str
    took_s: float


def form_url(hub: live.LiveHub, person: hubs.Person, server: str) -> URL:
    return hub.pages / "spawn" / person.name / server


async def ask_by_form(hub: live.LiveHub, person: hubs.Person, server: str) -> Reply:
    url = form_url(hub, person, server)
    form = aiohttp.FormData({"machine": "painter"}, default_to_multipart=True)
    begun = time.monotonic()
    answer = await person.request(
        "POST", url.with_query(_xsrf=person.xsrf(hub.pages)), data=form, allow_redirects=False
    )
    return _reply(person, server, answer, begun)


async def ask_by_api(hub: live.LiveHub, person: hubs.Person, server: str) -> Reply:
    url = hub.pages / "api/users" / person.name / "servers" / server
    begun = time.monotonic()
    answer = await person.request("POST", url, json={"user_options": {"machine": "painter"}})
    return _reply(person, server, answer, begun)


def _reply(person: hubs.Person, server: str, answer: hubs.Answer, begun: float) -> Reply:
    assert answer.status in (201, 202, 302, 409), answer.text
    return Reply(
        owner=person.name,
        server=server,
        is_refused=answer.status == 409,
        text=answer.text,
        took_s=time.monotonic() - begun,
    )


@pytest.mark.goal("R6")
async def test_who_finds_the_host_full_is_told_at_once(proof: Proof, fake_qemu: FakeQemu) -> None:
    """The whole product: half of them press Start on a form that they have opened, half are programs."""
    starts, room = proof.rounds(short=20, full=100), proof.rounds(short=2, full=10)
    more = f"""
c.QemuSpawner.memory_reserve = {reserve_mib(room=room, guest_mib=64)}
c.QemuSpawner.cpu_overcommit = 0
"""
    async with live.live_hub(more=more, named_servers=starts) as hub, contextlib.AsyncExitStack() as stack:
        people = []
        for name in live.USERS:
            browser = await stack.enter_async_context(hub.person(name))
            program = await stack.enter_async_context(hub.person(name, token=await hub.new_token(name)))
            people.append((browser, program))
        asks = []
        for number in range(starts):
            browser, program = people[number % len(people)]
            if number % 2:
                form = await browser.request("GET", form_url(hub, browser, f"s{number}"))
                assert form.status == 200
                asks.append(ask_by_form(hub, browser, f"s{number}"))
            else:
                asks.append(ask_by_api(hub, program, f"s{number}"))

        replies = await asyncio.gather(*asks)

        refused = [reply for reply in replies if reply.is_refused]
        winners = [reply for reply in replies if not reply.is_refused]
        for reply in winners:
            await wait_for_desktop(hub, reply)
        await asyncio.gather(*(hub.stop_server(reply.owner, reply.server) for reply in winners))
    slowest_s = max(reply.took_s for reply in refused)
    proof.note(
        done=f"{starts} starts at once through the proxy, half by the form, on a host with room for {room}",
        found=f"{len(winners)} desktops; {len(refused)} refused with the figures, the slowest of them after "
        f"{slowest_s:.2f} s",
        limit=f"{room} desktops, all others are refused within {LIMIT_S:g} s",
    )
    assert len(winners) == room
    assert all(sentence(64) in reply.text for reply in refused)
    assert slowest_s <= proof.within(LIMIT_S)


async def wait_for_desktop(hub: live.LiveHub, reply: Reply) -> None:
    async with asyncio.timeout(120):
        while not (await hub.servers(reply.owner))[reply.server]["ready"]:
            await asyncio.sleep(0.2)
    assert find_holder(StatePaths(root=hub.state).session(session_id(reply.owner, reply.server)).lock)
