"""One hub whose desktops run on its own host or on a real cluster, as each start asks."""

import asyncio
import platform
from collections.abc import Awaitable, Callable
from typing import Any

import hubs
import pytest
from jupyterhub import orm
from slurm_cluster import SlurmCluster

from qemuspawner.hub.slurm.host_or_slurm import QemuHostOrSlurmSpawner


@pytest.fixture
async def hub(start_slurm_hub: Callable[..., Awaitable[hubs.Hub]]) -> hubs.Hub:
    return await start_slurm_hub(
        jupyterhub={"spawner_class": QemuHostOrSlurmSpawner},
        more={"QemuHostOrSlurmSpawner": {"run_as": hubs.sessions_account()}},
    )


def jobs(cluster: SlurmCluster) -> list[str]:
    return cluster.run("squeue", "-h", "-o", "%i", "-t", "running,pending").split()


def stored_state(hub: hubs.Hub, name: str) -> dict[str, Any]:
    """What JupyterHub's database has of a user's server."""
    spawner = hub.spawner(name)
    spawner._database.expire_all()
    state = spawner._database.get(orm.Spawner, spawner.orm_spawner.id).state
    return dict(state)


async def test_each_start_is_where_it_was_asked_for(hub: hubs.Hub, cluster: SlurmCluster) -> None:
    alice, bob = await hub.with_token("alice"), await hub.with_token("bob")

    await hub.start(alice, {"where": "host"})
    await hub.start(bob, {"where": "cluster"})
    here, there = await hub.wait_until_ready("alice"), await hub.wait_until_ready("bob")
    states = {name: stored_state(hub, name) for name in ("alice", "bob")}
    running = jobs(cluster)

    assert (here.host, str(there.host)[:10]) == ("127.0.0.1", "198.18.77.")
    assert (states["alice"]["where"], states["alice"]["node"]) == ("host", platform.node())
    assert (states["bob"]["where"], states["bob"]["job_id"]) == ("cluster", running[0])
    assert "job_id" not in states["alice"]
    assert [await hub.spawner(name).poll() for name in states] == [None, None]

    await hub.stop(bob)
    await hub.wait_until_stopped("bob")
    assert jobs(cluster) == []
    assert await hub.spawner("alice").poll() is None
    await hub.stop(alice)
    await hub.wait_until_stopped("alice")
    assert hub.session_folders() == []


async def test_the_same_server_may_start_elsewhere_the_next_time(
    hub: hubs.Hub, cluster: SlurmCluster
) -> None:
    alice = await hub.with_token("alice")
    seen = []
    for where in ("cluster", "host", "cluster"):
        await hub.start(alice, {"where": where})
        await hub.wait_until_ready("alice")
        seen.append((stored_state(hub, "alice")["where"], len(jobs(cluster))))
        await hub.stop(alice)
        await hub.wait_until_stopped("alice")

    assert seen == [("cluster", 1), ("host", 0), ("cluster", 1)]
    assert jobs(cluster) == []


async def test_what_has_no_room_here_goes_to_the_cluster_unless_here_was_asked_for(
    hub: hubs.Hub, cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob, eve = [await hub.with_token(name) for name in ("alice", "bob", "eve")]
    # Room for one desktop of 128 MiB.
    monkeypatch.setattr("qemuspawner.hub.admission.capacity.find_memory_mib", lambda: 1024 + 600)

    await hub.start(alice, {})
    await hub.wait_until_ready("alice")
    await hub.start(bob, {})
    refused = await hub.start(eve, {"where": "host"})
    await hub.wait_until_ready("bob")
    places = [stored_state(hub, name)["where"] for name in ("alice", "bob")]

    assert places == ["host", "cluster"]
    assert refused.status == 409
    assert "This host has" in refused.text


async def test_a_restarted_hub_knows_where_each_desktop_runs(hub: hubs.Hub, cluster: SlurmCluster) -> None:
    people = {"alice": "host", "bob": "cluster"}
    for name, where in people.items():
        await hub.start(await hub.with_token(name), {"where": where})
        await hub.wait_until_ready(name)

    anew = {name: hub.user(name)._new_spawner("") for name in people}
    polled = [await spawner.poll() for spawner in anew.values()]
    await asyncio.gather(*(spawner.stop() for spawner in anew.values()))

    assert polled == [None, None]
    assert jobs(cluster) == []
    assert hub.session_folders() == []


@pytest.mark.parametrize("where", ["moon", "host\n", ["host"], "cluster; id", "x" * 1_000_000])
async def test_there_is_no_other_place(hub: hubs.Hub, where: object) -> None:
    alice = await hub.with_token("alice")

    answer = await hub.start(alice, {"where": where})

    assert answer.status == 400
    assert "a place is 'host' or 'cluster'" in answer.text or "a place is host or cluster" in answer.text
    assert len(answer.text) < 2000


async def test_the_form_lets_choose(hub: hubs.Hub) -> None:
    alice = await hub.log_in("alice")

    page = (await hub.get_form(alice)).text

    assert 'id="qs-where"' in page
    assert '<option value="cluster" >The cluster</option>' in page
