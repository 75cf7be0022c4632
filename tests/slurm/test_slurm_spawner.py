"""Desktops as jobs on a real cluster of three nodes, through the hub."""

import asyncio
import json

import aiohttp
import hubs
import pytest
from slurm_cluster import SlurmCluster

from qemuspawner.hub.batch.engine import tag

# Of a job that only has to be there.
SMALL = ("--time=5", "--output=/dev/null")


def jobs(cluster: SlurmCluster, *states: str) -> list[str]:
    return cluster.run("squeue", "-h", "-o", "%i", "-t", ",".join(states or ("running", "pending"))).split()


async def test_a_desktop_runs_on_a_node_and_ends_with_its_server(
    hub: hubs.Hub, cluster: SlurmCluster
) -> None:
    alice = await hub.with_token("alice")

    answer = await hub.start(alice, {})
    assert answer.status in (201, 202), answer.text
    url = await hub.wait_until_ready("alice")
    status = json.loads((await alice.request("GET", url / "api/status")).text)
    running = cluster.run("squeue", "-h", "-o", "%T %N")

    assert status["state"] == "running"
    assert str(url.host).startswith("198.18.77.1")
    assert running.split()[0] == "RUNNING"

    await hub.stop(alice)
    await hub.wait_until_stopped("alice")
    assert jobs(cluster) == []
    assert hub.session_folders() == []


async def test_why_it_waits_is_said_and_a_waiting_start_can_be_cancelled(
    hub: hubs.Hub, cluster: SlurmCluster
) -> None:
    blockers = [
        cluster.run("sbatch", "--parsable", "--output=/dev/null", "-c4", "-t5", "--wrap", "sleep 300").strip()
        for _ in "1234"  # three run, and one comes first
    ]
    alice = await hub.log_in("alice")
    said: list[str] = []
    try:
        answer = await hub.submit_form(alice)
        assert answer.status == 302, answer.text
        spawner = hub.spawner("alice")
        async with asyncio.timeout(30):
            async for event in spawner.progress():
                said.append(str(event["message"]))
                # The others may still be on their way.
                if said[-1].startswith("Place 2 of 2"):
                    break

        await hub.stop(alice)
        await hub.wait_until_stopped("alice")
        waiting = jobs(cluster, "pending")
    finally:
        cluster.run("scancel", *blockers)

    assert any(text.startswith("Waiting") for text in said)
    assert said[-1].startswith("Place 2 of 2 in the queue")
    assert waiting == blockers[3:]


async def test_a_session_tells_its_port_and_nothing_else(hub: hubs.Hub, cluster: SlurmCluster) -> None:
    """batchspawner's own route would let any user run commands as the hub."""
    alice, eve = await hub.with_token("alice"), await hub.with_token("eve")
    await hub.start(alice, {})
    await hub.wait_until_ready("alice")
    spawner = hub.spawner("alice")
    own = await hub.person("alice", token=spawner.api_token)
    attack = {"exec_prefix": "touch /tmp/owned;", "port": 4444}

    old = await hub.ask(own, "POST", "batchspawner", json=attack)
    answers = {
        "more than a port": await hub.ask(own, "POST", "users/alice/desktops//port", json=attack),
        "no port": await hub.ask(own, "POST", "users/alice/desktops//port", json={"port": "4444"}),
        "a port of the system": await hub.ask(own, "POST", "users/alice/desktops//port", json={"port": 22}),
        "too late": await hub.ask(own, "POST", "users/alice/desktops//port", json={"port": 4444}),
        "the user's own token": await hub.ask(
            alice, "POST", "users/alice/desktops//port", json={"port": 4444}
        ),
        "another user": await hub.ask(eve, "POST", "users/alice/desktops//port", json={"port": 4444}),
    }

    assert old.status == 404
    assert {name: answer.status for name, answer in answers.items()} == {
        "more than a port": 400,
        "no port": 400,
        "a port of the system": 400,
        "too late": 409,
        "the user's own token": 403,
        "another user": 404,
    }
    assert "touch" not in spawner.exec_prefix


async def test_a_job_that_nobody_owns_is_cancelled(hub: hubs.Hub, cluster: SlurmCluster) -> None:
    """Not at once: a job is submitted before it is noted."""
    alice = await hub.with_token("alice")
    await hub.start(alice, {})
    await hub.wait_until_ready("alice")
    spawner = hub.spawner("alice")
    forgotten, foreign = [
        await spawner._slurm.submit([f"--comment={comment}", *SMALL], "#!/bin/sh\nsleep 300\n")
        for comment in (tag(spawner._hub_id, "f" * 20), tag("another-hub", "f" * 20))
    ]
    reaper = spawner.user.settings["qemuspawner_reaper"]
    reaper._timer.stop()  # its rounds are ours now
    reaper._suspects.clear()

    await reaper.tend()
    at_first = jobs(cluster)
    await reaper.tend()
    later = jobs(cluster)
    cluster.run("scancel", foreign)

    assert sorted(at_first) == sorted([spawner.job_id, forgotten, foreign])
    assert sorted(later) == sorted([spawner.job_id, foreign])


async def test_a_start_ends_a_former_job_of_its_server_first(hub: hubs.Hub, cluster: SlurmCluster) -> None:
    """Two jobs would be two desktops on one disk."""
    alice = await hub.with_token("alice")
    spawner = hub.spawner("alice")
    former = await spawner._slurm.submit(
        [f"--comment={tag(spawner._hub_id, spawner.session_id)}", *SMALL],
        "#!/bin/sh\ntrap 'exit 0' INT\nsleep 300 & wait\n",
    )

    await hub.start(alice, {})
    await hub.wait_until_ready("alice")

    assert jobs(cluster) == [hub.spawner("alice").job_id]
    assert former != hub.spawner("alice").job_id


@pytest.mark.parametrize(
    "hub", [{"internal_ssl": True, "trusted_alt_names": ["IP:198.18.77.1"]}], indirect=True, ids=["tls"]
)
async def test_with_internal_tls_nobody_reads_along_between_the_nodes(hub: hubs.Hub) -> None:
    user = hub.user("alice")
    await user.spawn()
    url = user.spawner.server.url

    async with aiohttp.ClientSession() as stranger:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await stranger.get(f"{url}api")
        with pytest.raises(aiohttp.ClientError):
            await stranger.get(f"{url}api", ssl=False)
    status, answer = await hub.spawner("alice").ask_session("GET", "api/status")

    assert url.startswith("https://198.18.77.1")
    assert (status, answer["state"]) == (200, "running")
