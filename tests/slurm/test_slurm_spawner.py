"""Desktops as jobs on a real cluster of three nodes, through the hub."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import hubs
import pytest
from slurm_cluster import SlurmCluster
from slurm_hubs import prepare_state, slurm_config

from qemuspawner.hub.runs.runs import find_run
from qemuspawner.hub.slurm.commands import SlurmError, tag


@pytest.fixture
async def hub(
    request: pytest.FixtureRequest,
    hub_app: Any,
    cluster: SlurmCluster,
    state_dir: Path,
    machines_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[hubs.Hub]:
    prepare_state(state_dir)
    monkeypatch.setenv("SLURM_CONF", str(cluster.config))
    config = slurm_config(state_dir, machines_dir, cluster)
    config.JupyterHub.update(getattr(request, "param", {}))
    # Else they are written to the working directory.
    config.JupyterHub.internal_certs_location = str(tmp_path / "certificates")
    async with hubs.running_hub(hub_app, config, state=state_dir, machines=machines_dir) as hub:
        yield hub


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
                if "Place" in said[-1]:
                    break

        await hub.stop(alice)
        await hub.wait_until_stopped("alice")
        waiting = jobs(cluster, "pending")
    finally:
        cluster.run("scancel", *blockers)

    assert any(text.startswith("Waiting") for text in said)
    assert said[-1].startswith("Place 2 of 2 in the queue")
    assert waiting == blockers[3:]


async def test_a_job_that_is_cancelled_on_the_cluster_is_gone_from_the_hub(
    hub: hubs.Hub, cluster: SlurmCluster
) -> None:
    alice = await hub.with_token("alice")
    await hub.start(alice, {})
    await hub.wait_until_ready("alice")

    cluster.run("scancel", *jobs(cluster))
    async with asyncio.timeout(60):
        while await hub.spawner("alice").poll() is None:
            await asyncio.sleep(0.5)


async def test_no_answer_from_slurm_is_not_the_end_of_a_desktop(hub: hubs.Hub, cluster: SlurmCluster) -> None:
    """As where munge is down, without which Slurm answers nobody."""
    alice = await hub.with_token("alice")
    await hub.start(alice, {})
    await hub.wait_until_ready("alice")
    spawner = hub.spawner("alice")

    with cluster.munge_is_down():
        with pytest.raises(SlurmError):
            await spawner._queue.find_job(spawner.job_id, max_age_s=0)
        assert await spawner.poll() is None

    assert await spawner.poll() is None
    assert len(jobs(cluster, "running")) == 1


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
    reaper = spawner.user.settings["qemuspawner_slurm_reaper"]
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
        "#!/bin/sh\ntrap 'exit 0' USR1\nsleep 300 & wait\n",
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


async def test_who_had_a_desktop_on_a_node_that_is_lost_reads_so(
    hub: hubs.Hub, cluster: SlurmCluster
) -> None:
    """And nothing starts it anew elsewhere, where two desktops would have one disk."""
    alice = await hub.with_token("alice")
    await hub.start(alice, {})
    await hub.wait_until_ready("alice")
    spawner = hub.spawner("alice")
    job_id, run_id = spawner.job_id, spawner.run_id
    node = cluster.run("squeue", "-h", "-o", "%N").strip()

    cluster.kill(int(node.removeprefix("n")))
    try:
        async with asyncio.timeout(90):
            while await spawner.poll() is None:
                await asyncio.sleep(1)
        state = cluster.run("squeue", "-h", "-t", "all", "-j", job_id, "-o", "%T").strip()
        run = find_run(spawner.records, run_id)
    finally:
        cluster.boot(int(node.removeprefix("n")))
        cluster.wait_until_idle()

    assert state == "NODE_FAIL"
    assert run is not None
    assert (run.outcome, run.end) == ("lost", f"The cluster lost the node {node} that the desktop ran on.")
