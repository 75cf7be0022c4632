"""R3: a hub that is restarted, politely or not, leaves desktops and whoever looks at them alone."""

import asyncio
import contextlib
import random
from collections import Counter

import guests
import live
import pytest
from processes import find_qemus
from proofs import Proof
from rfb_client import RfbClient

from qemuspawner.locks import find_holder
from qemuspawner.paths import StatePaths, session_id

# A desktop's user and server.
Desktop = tuple[str, str]

# How the hub ends, one way after the other.
ENDS = ("killed", "stopped", "killed while it starts", "stopped")
# It has imported its program, read its database, found its desktops and listens before this.
START_S = 6.0
# Of desktops, on however small a host.
ANY_NUMBER = "c.QemuSpawner.cpu_overcommit = 0"


def find_processes(hub: live.LiveHub, desktop: Desktop) -> tuple[int | None, list[int]]:
    """A desktop's supervisor, and all its QEMUs."""
    paths = StatePaths(root=hub.state).session(session_id(*desktop))
    return find_holder(paths.lock), find_qemus(paths)


async def find_ready(hub: live.LiveHub) -> set[Desktop]:
    """The desktops that the hub believes to run."""
    return {
        (user, name)
        for user in live.USERS
        for name, server in (await hub.servers(user)).items()
        if server["ready"]
    }


async def count_tokens(hub: live.LiveHub) -> Counter[tuple[str, str]]:
    """How many tokens each user has for what."""
    found: Counter[tuple[str, str]] = Counter()
    for user in live.USERS:
        _, model = await hub.ask("GET", f"users/{user}/tokens")
        found.update((user, token["note"]) for token in model["api_tokens"])
    return found


async def draws(client: RfbClient, colour: tuple[int, int, int]) -> bool:
    """Whether the socket is open, and shows the whole screen in this colour before long."""
    with contextlib.suppress(TimeoutError, TypeError, ConnectionError):
        async with asyncio.timeout(30):
            while await client.pixel(0, 0) != colour:
                await asyncio.sleep(0.1)
        return True
    return False


async def end(hub: live.LiveHub, how: str, chance: random.Random) -> None:
    if how == "stopped":
        hub.terminate()
        return
    hub.kill()
    if how == "killed while it starts":
        hub.launch()
        await asyncio.sleep(chance.uniform(0, START_S))
        hub.kill()


@pytest.mark.goal("R3")
async def test_desktops_and_their_viewers_outlive_the_hub(proof: Proof) -> None:
    restarts, count = proof.rounds(short=2, full=50), proof.rounds(short=2, full=10)
    desktops = [(live.USERS[number % len(live.USERS)], f"s{number}") for number in range(count)]
    chance = random.Random(3)
    open_sockets = adopted = 0
    colour, other = guests.GREEN, guests.RED

    async with (
        live.live_hub(named_servers=count, more=ANY_NUMBER) as hub,
        contextlib.AsyncExitStack() as stack,
    ):
        clients = []
        for user, name in desktops:
            person = await stack.enter_async_context(hub.person(user, token=await hub.new_token(user)))
            url = await hub.start_server(user, name, machine="painter")
            clients.append(await stack.enter_async_context(RfbClient(person, url)))
        assert all([await draws(client, colour) for client in clients])
        processes = [find_processes(hub, desktop) for desktop in desktops]
        tokens, routes = await count_tokens(hub), (await hub.routes()).keys()

        for number in range(restarts):
            colour, other = other, colour
            await end(hub, ENDS[number % len(ENDS)], chance)
            for client in clients:
                await client.press(ord("x"))
            open_sockets += [await draws(client, colour) for client in clients].count(True)
            await hub.start()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(60):
                    while await find_ready(hub) != set(desktops):
                        await asyncio.sleep(0.5)
            adopted += len(await find_ready(hub) & set(desktops))
        after = [find_processes(hub, desktop) for desktop in desktops]
        tokens_after, routes_after = await count_tokens(hub), (await hub.routes()).keys()
        open_sockets_after = [await draws(client, colour) for client in clients].count(True)

    doubled = sum((tokens_after - tokens).values())
    lost = sum(one != other for one, other in zip(processes, after, strict=True))
    proof.note(
        done=f"{restarts} restarts, every second one by SIGKILL and some of these while the hub starts, with "
        f"{count} desktops and an open socket each",
        found=f"{lost} desktops lost, {count - open_sockets_after} sockets closed, {adopted} of "
        f"{restarts * count} times adopted, {doubled} tokens more than before",
        limit="0 lost, 0 closed, all adopted, 0 tokens more",
    )
    assert after == processes
    assert open_sockets == adopted == restarts * count
    assert open_sockets_after == count
    assert tokens_after == tokens
    assert routes_after == routes
