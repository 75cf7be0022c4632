"""Starts that race for the last of something, through a real hub: never two winners, never none."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import hubs
import pytest

from qemuspawner.hub.spawner import QemuSpawner

Start = Callable[..., Awaitable[hubs.Hub]]
# Of what is scarce by the host and of what is by a quota: the same lock holds both.
ROUNDS, QUOTA_ROUNDS = 50, 15


class GpuSpawner(QemuSpawner):
    """Of sessions that pass GPUs on."""

    can_pass_gpus = True


@pytest.fixture
def gpu_machine(machines_dir: Any, state_dir: Any) -> str:
    hubs.add_machine(machines_dir, state_dir, "gpu", more='\n[gpu]\nneed = "optional"\n')
    return "gpu"


async def race(
    hub: hubs.Hub, options: dict[str, object], *starts: tuple[hubs.Person, str], rounds: int
) -> list[str]:
    """Start servers of people at once, so many times; all who were refused, with the sentence."""
    refused = []
    for number in range(rounds):
        # The first to ask is not always the same one.
        order = starts if number % 2 else starts[::-1]
        answers = await asyncio.gather(
            *(hub.start(person, options, server_name=server) for person, server in order)
        )
        winners = [one for one, answer in zip(order, answers, strict=True) if answer.status in (201, 202)]
        assert len(winners) == 1, [answer.text for answer in answers]
        refused += [json.loads(answer.text)["message"] for answer in answers if answer.status == 409]
        for person, server in winners:
            await hub.wait_until_ready(person.name, server_name=server)
            await hub.stop(person, server_name=server)
            await hub.wait_until_stopped(person.name, server_name=server)
    assert len(refused) == rounds * (len(starts) - 1)
    return refused


async def test_two_users_race_for_the_last_gpu(quick_hub: Start, gpu_machine: str) -> None:
    hub = await quick_hub(jupyterhub={"spawner_class": GpuSpawner}, gpu_units={"A100": 1})
    alice, bob = [await hub.log_in(name) for name in ("alice", "bob")]

    racers = (alice, "desk"), (bob, "desk")
    refused = await race(hub, {"machine": gpu_machine, "gpu": "A100"}, *racers, rounds=ROUNDS)

    assert all(
        text.startswith("This host has 0 of 1 GPUs 'A100' free; the desktop needs 1.") for text in refused
    )


async def test_two_members_race_for_the_last_cpu_of_their_group(quick_hub: Start) -> None:
    hub = await quick_hub(quotas={"groups": {"beamline": {"cpus": 2}}})
    alice, bob = [await hub.log_in(name) for name in ("alice", "bob")]
    for name in ("alice", "bob"):
        hub.user(name, groups=("beamline",))
    await hub.start(alice, {"machine": "mini", "cpus": 1}, server_name="first")

    racers = (alice, "desk"), (bob, "desk")
    refused = await race(hub, {"machine": "mini", "cpus": 1}, *racers, rounds=QUOTA_ROUNDS)

    sentence = "Quota 'CPUs' of the group 'beamline': 2 of 2 are used; 1 more was asked for."
    assert all(text.startswith(sentence) for text in refused)


async def test_servers_of_one_user_race_for_the_last_one_allowed(quick_hub: Start) -> None:
    hub = await quick_hub(quotas={"user": {"sessions": 1}})
    alice = await hub.log_in("alice")

    racers = [(alice, name) for name in ("a", "b", "c")]
    refused = await race(hub, {"machine": "mini"}, *racers, rounds=QUOTA_ROUNDS)

    sentence = "Quota 'Desktops' of 'alice': 1 of 1 are used; 1 more was asked for."
    assert all(text.startswith(sentence) for text in refused)
