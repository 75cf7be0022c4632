"""Desktops as jobs of their users' own accounts, on the real cluster; with accounts that every host has."""

import pwd
from collections.abc import Awaitable, Callable

import hubs
import pytest
from slurm_cluster import SlurmCluster
from slurm_hubs import refused_by_form

from qemuspawner.errors import HostError
from qemuspawner.hub.batch.engine import tag
from qemuspawner.hub.slurm.commands import Slurm
from qemuspawner.hub.slurm.owners import Owners

ONE, OTHER, STRANGER = "nobody", "games", "news"
OWN = {"slurm_user": "{username}", "slurm_prefix": ["runuser", "-u", "{username}", "--"]}
SMALL = ("--time=5", "--output=/dev/null")


@pytest.fixture
async def hub(start_slurm_hub: Callable[..., Awaitable[hubs.Hub]]) -> hubs.Hub:
    return await start_slurm_hub(**OWN)


def owners(cluster: SlurmCluster) -> dict[str, str]:
    """Of the jobs that are there."""
    listed = cluster.run("squeue", "-h", "-o", "%i %u", "-t", "running,pending")
    return dict(line.split() for line in listed.splitlines())


async def test_a_job_and_its_files_are_their_users_own(hub: hubs.Hub, cluster: SlurmCluster) -> None:
    for name in (ONE, OTHER):
        person = await hub.with_token(name)
        answer = await hub.start(person, {})
        assert answer.status in (201, 202), answer.text
    for name in (ONE, OTHER):
        await hub.wait_until_ready(name)
    spawners = [hub.spawner(name) for name in (ONE, OTHER)]

    assert owners(cluster) == {spawners[0].job_id: ONE, spawners[1].job_id: OTHER}
    for spawner, name in zip(spawners, (ONE, OTHER), strict=True):
        folder = hub.state_dir / "sessions" / spawner.session_id
        files = [folder, folder / "spec.json", folder / "vm"]
        assert {path.stat().st_uid for path in files} == {pwd.getpwnam(name).pw_uid}
        assert folder.stat().st_mode & 0o777 == 0o700

    await hub.stop(await hub.with_token(ONE))
    await hub.wait_until_stopped(ONE)
    assert owners(cluster) == {spawners[1].job_id: OTHER}
    assert await spawners[1].poll() is None


async def test_only_jobs_of_the_hubs_users_are_taken_for_forgotten_ones(
    hub: hubs.Hub, cluster: SlurmCluster
) -> None:
    """Everybody on a cluster can write a hub's mark into a job of their own."""
    hub.user(OTHER)
    await hub.start(await hub.with_token(ONE), {})
    await hub.wait_until_ready(ONE)
    spawner = hub.spawner(ONE)
    mark = f"--comment={tag(spawner._hub_id, 'f' * 20)}"
    forgotten, foreign, plain = [
        await Slurm(("runuser", "-u", name, "--")).submit([*more, *SMALL], "#!/bin/sh\nsleep 300\n")
        for name, more in ((OTHER, [mark]), (STRANGER, [mark]), (OTHER, []))
    ]
    reaper = spawner.user.settings["qemuspawner_reaper"]
    reaper._timer.stop()  # its rounds are ours now
    reaper._suspects.clear()

    await reaper.tend()
    await reaper.tend()
    left = owners(cluster)
    cluster.run("scancel", foreign, plain)

    assert forgotten not in left
    assert left == {spawner.job_id: ONE, foreign: STRANGER, plain: OTHER}


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nobody-of-that-name", "You have no account 'nobody-of-that-name' on the cluster."),
        ("root", "Desktops do not run as root."),
    ],
)
async def test_who_has_no_account_there_reads_so(hub: hubs.Hub, name: str, sentence: str) -> None:
    person = await hub.log_in(name)

    form = await hub.get_form(person)
    answer = await refused_by_form(hub, person)

    assert form.status == 200
    assert sentence in answer


@pytest.mark.parametrize("name", ["-u", "a,b", "a b", "a\n", "", "ä", "../x", "x" * 300, "a%b", "root"])
def test_a_name_that_is_no_account_never_becomes_an_argument(name: str) -> None:
    with pytest.raises(HostError):
        Owners(user="{username}", prefix=("sudo", "-u", "{username}")).slurm_of(name)


def test_a_service_account_is_everybodys() -> None:
    service = Owners(user="svc", prefix=("runuser", "-u", "svc", "--"))

    assert service.name_of("alice") == "svc"
    assert service.slurm_of("alice").prefix == ("runuser", "-u", "svc", "--")
    assert service.watch == (Slurm(("runuser", "-u", "svc", "--")), "svc")
