"""What goes wrong on a cluster, really made to: each time its user reads what has become of the desktop.

Slurm's own word for each is asserted too, so that no test passes for another reason.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable

import hubs
import pytest
from jupyterhub.spawner import SpawnException
from slurm_cluster import SlurmCluster
from slurm_desktops import SlurmDesktop

from qemuspawner.hub.slurm.commands import Slurm

# What a desktop stands still after, without its storage.
LEASE_S = 5


@pytest.fixture
async def hub(start_slurm_hub: Callable[..., Awaitable[hubs.Hub]]) -> hubs.Hub:
    """A hub that keeps desktops whose end nobody asked for."""
    return await start_slurm_hub(suspend_on=["lifetime", "stop"], lease=LEASE_S)


@pytest.fixture
async def desktop(hub: hubs.Hub, cluster: SlurmCluster) -> SlurmDesktop:
    return SlurmDesktop(hub, cluster, await hub.with_token("alice"))


async def test_what_slept_on_one_node_wakes_on_another(
    hub: hubs.Hub, desktop: SlurmDesktop, cluster: SlurmCluster
) -> None:
    await desktop.start()
    first = desktop.node
    await hub.stop(desktop.person)
    await hub.wait_until_stopped("alice")

    with cluster.is_drained(first):
        way = await desktop.start()

    assert (way, desktop.node != first) == ("woken", True)


async def test_a_checkpoint_of_one_node_is_gone_back_to_on_another(
    hub: hubs.Hub, desktop: SlurmDesktop, cluster: SlurmCluster
) -> None:
    await desktop.start()
    first = desktop.node
    code, answer = await desktop.spawner.ask_session("POST", "api/checkpoints", {"title": "Before"})
    await hub.stop(desktop.person)
    await hub.wait_until_stopped("alice")

    with cluster.is_drained(first):
        way = await desktop.start(sleeping=answer["checkpoints"][0]["name"])

    assert code == 200, answer
    assert (way, desktop.node != first) == ("woken", True)


async def test_a_desktop_on_a_node_that_is_cut_off_goes_on_elsewhere_and_never_twice(
    desktop: SlurmDesktop, cluster: SlurmCluster
) -> None:
    """Its storage is still there, so it gives way, and nothing of it is lost."""
    await desktop.start()
    first = desktop.node
    with cluster.is_lost(first):
        word, run = await desktop.wait_until_lost()
        runs_on = len(desktop.qemus)
        way = await desktop.start()
        second = desktop.node

    assert word == "NODE_FAIL"
    assert run.end == f"The cluster lost the node n{first} that the desktop ran on."
    assert (runs_on, desktop.most_at_once, len(desktop.qemus)) == (1, 1, 1)
    assert (way, second != first) == ("woken", True)


async def test_a_desktop_on_a_node_that_is_back_in_time_is_found_again(
    desktop: SlurmDesktop, cluster: SlurmCluster
) -> None:
    await desktop.start()
    spawner, node = desktop.spawner, desktop.node

    cluster.cut(node)
    meanwhile = await spawner.poll()
    cluster.heal(node)
    _, status = await spawner.ask_session("GET", "api/status")

    assert meanwhile is None
    assert status["state"] == "running"


async def test_a_desktop_on_a_node_that_is_back_too_late_is_ended_and_its_disk_kept(
    desktop: SlurmDesktop, cluster: SlurmCluster
) -> None:
    """Nobody has started it elsewhere, so it has run all the time; Slurm ends it when it sees the node."""
    await desktop.start()
    node = desktop.node
    with cluster.is_lost(node):
        word, run = await desktop.wait_until_lost()
        ran_on = len(desktop.qemus)
    async with asyncio.timeout(60):
        while desktop.qemus or desktop.saved is None:
            await asyncio.sleep(0.2)

    assert (word, ran_on) == ("NODE_FAIL", 1)
    assert run.end == f"The cluster lost the node n{node} that the desktop ran on."
    assert desktop.saved.memory == "lost"


async def test_a_desktop_whose_node_is_dead_starts_elsewhere(
    desktop: SlurmDesktop, cluster: SlurmCluster
) -> None:
    """Nothing starts it by itself, and who does waits until its lease says that it stands still."""
    await desktop.start()
    first = desktop.node
    cluster.kill(first)
    try:
        word, run = await desktop.wait_until_lost()
        await desktop.start()
        _, status = await desktop.spawner.ask_session("GET", "api/status")
        second = desktop.node
        said = [event.get("message") for event in desktop.spawner._progress._events]
    finally:
        cluster.boot(first)
        cluster.wait_until_answering(first)

    assert word == "NODE_FAIL"
    assert (run.outcome, run.end) == ("lost", f"The cluster lost the node n{first} that the desktop ran on.")
    assert second != first
    assert "Making sure that the desktop runs on no other node any more" in said
    assert status["why"].startswith("booted from the disk that was kept")


async def test_a_job_that_is_cancelled_on_the_cluster_leaves_its_disk(
    desktop: SlurmDesktop, cluster: SlurmCluster
) -> None:
    """Slurm ends all of its processes at once, so there is no time for its memory."""
    await desktop.start()

    cluster.run("scancel", desktop.spawner.job_id)
    word, run = await desktop.wait_until_lost()
    saved = desktop.saved

    assert word == "CANCELLED"
    assert run.outcome == "asleep"
    assert run.end.endswith("Its disk is kept, programs that were open are not.")
    assert saved is not None
    assert saved.memory == "lost"


async def test_a_desktop_whose_time_on_the_cluster_is_over_is_asleep(
    desktop: SlurmDesktop, cluster: SlurmCluster
) -> None:
    await desktop.start()

    # Below the notice that it is given.
    cluster.run("scontrol", "update", f"jobid={desktop.spawner.job_id}", "timelimit=3")
    word, run = await desktop.wait_until_lost()

    assert word == "COMPLETED"
    assert run.outcome == "asleep"
    assert run.end.startswith("The desktop's time on the cluster is over, or the cluster needs its place.")
    assert await desktop.start() == "woken"


async def test_a_desktop_that_gives_its_place_to_another_job_is_ended_and_not_started_elsewhere(
    desktop: SlurmDesktop, cluster: SlurmCluster
) -> None:
    await desktop.start()
    spawner, first = desktop.spawner, desktop.node
    job_id = spawner.job_id
    refused = cluster.run("scontrol", "requeue", job_id, check=False, errors=True)
    after_that = desktop.job_state(job_id)

    urgent = ("sbatch", "--parsable", "-p", "urgent", "-w", f"n{first}", "-c4", "-t5", "--output=/dev/null")
    other = cluster.run(*urgent, "--wrap", "sleep 300").strip()
    try:
        word, run = await desktop.wait_until_lost()
    finally:
        cluster.run("scancel", other)

    assert "disabled" in refused
    assert after_that == "RUNNING"
    assert word == "PREEMPTED"
    assert desktop.saved is not None
    assert run.outcome == "asleep"


@pytest.mark.parametrize("lost", ["munge", "slurmctld"])
async def test_while_slurm_does_not_answer_nothing_is_taken_for_gone(
    desktop: SlurmDesktop, hub: hubs.Hub, cluster: SlurmCluster, lost: str
) -> None:
    """And who wants to start or to end one reads why that cannot be."""
    await desktop.start()
    spawner, bob = desktop.spawner, hub.user("bob")
    down = cluster.munge_is_down if lost == "munge" else cluster.controller_is_down

    with down():
        spawner._submitted_at = asyncio.get_running_loop().time()  # nothing that was known before counts
        alive, started, stopped = await asyncio.gather(
            spawner.poll(), bob.spawn(), spawner.stop(), return_exceptions=True
        )
        _, status = await spawner.ask_session("GET", "api/status")

    assert alive is None
    assert status["state"] == "running"
    for refused in (started, stopped):
        assert isinstance(refused, SpawnException)
        assert re.match(r"'\w+' of Slurm ", refused.message), refused.message
    assert await spawner.poll() is None
    assert len(desktop.qemus) == 1


async def test_a_desktop_that_the_cluster_has_paused_says_so_and_goes_on(
    desktop: SlurmDesktop, cluster: SlurmCluster
) -> None:
    """As where Slurm suspends who has to give way (`PreemptMode=SUSPEND`)."""
    await desktop.start()
    spawner = desktop.spawner

    async def look() -> tuple[str, bool, bool]:
        """Slurm's word, whether the hub takes it for alive, and what its card has."""
        await spawner._queue.find_job(spawner.job_id, max_age_s=0)
        is_alive = await spawner.poll() is None
        (card,) = (await spawner.desktop_cards())["cards"]
        return desktop.job_state(spawner.job_id), is_alive, card["is_paused"]

    cluster.run("scontrol", "suspend", spawner.job_id)
    frozen = await look()
    cluster.run("scontrol", "resume", spawner.job_id)
    later = await look()
    _, status = await spawner.ask_session("GET", "api/status")

    assert frozen == ("SUSPENDED", True, True)
    assert later == ("RUNNING", True, False)
    assert status["state"] == "running"


async def test_what_the_cluster_can_never_run_fails_at_once_and_leaves_the_queue(
    desktop: SlurmDesktop, hub: hubs.Hub, cluster: SlurmCluster
) -> None:
    """Also where a partition was changed since the hub looked, so that its own checks let it through."""
    user, limit = hub.user("alice"), ("scontrol", "update", "partitionname=desktop")
    await desktop.spawner._queue.cluster(max_age_s=0)
    cluster.run(*limit, "maxtime=15")
    try:
        async with asyncio.timeout(60):
            with pytest.raises(SpawnException) as caught:
                await user.spawn()
        left = cluster.run("squeue", "-h", "-t", "running,pending", "-o", "%i").split()
    finally:
        cluster.run(*limit, "maxtime=4:00:00")

    # Slurm says the first until it has looked closer.
    assert re.match(
        r"The cluster can never run this desktop as it was asked for \(Partition(Config|TimeLimit)\)\.",
        caught.value.message,
    )
    assert left == []
    assert list((hub.state_dir / "jobs").iterdir()) == []


async def test_forty_that_wait_ask_slurm_no_more_often_than_one(
    hub: hubs.Hub, cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    run = Slurm._run

    async def counted(self: Slurm, *command: str, given: bytes = b"") -> str:
        asked.append(command[0])
        return await run(self, *command, given=given)

    monkeypatch.setattr(Slurm, "_run", counted)
    fill = ("sbatch", "--parsable", "--output=/dev/null", "-c4", "-t5", "--wrap", "sleep 300")
    blockers = [cluster.run(*fill).strip() for _ in "123"]
    users = [hub.user(f"user{number}") for number in range(40)]
    starts = [asyncio.create_task(user.spawn()) for user in users]
    try:
        async with asyncio.timeout(60):
            while len(cluster.run("squeue", "-h", "-t", "pending", "-o", "%i").split()) < len(users):
                await asyncio.sleep(0.5)
        asked.clear()
        begun = asyncio.get_running_loop().time()
        await asyncio.sleep(5)
        took = asyncio.get_running_loop().time() - begun
        squeues = asked.count("squeue")
    finally:
        cluster.run("scancel", "--user", hubs.sessions_account())
        cluster.run("scancel", *blockers)
        ends = await asyncio.gather(*starts, return_exceptions=True)

    # Each second for all, each five for their places, and each minute for jobs that are nobody's.
    assert 0 < squeues <= 4 + took * 1.2
    assert [end for end in ends if not isinstance(end, SpawnException)] == []
