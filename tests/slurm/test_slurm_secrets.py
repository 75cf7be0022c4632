"""A session's token and keys are not where a job's script is stored, and nothing of them is left behind."""

import asyncio
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import hubs
import pytest
from slurm_cluster import SlurmCluster

TLS = {"internal_ssl": True, "trusted_alt_names": ["IP:198.18.77.1"]}
OWN = {"slurm_user": "{username}", "slurm_prefix": ["runuser", "-u", "{username}", "--"]}

StartHub = Callable[..., Awaitable[hubs.Hub]]


def stored_by_slurm(cluster: SlurmCluster) -> dict[Path, bytes]:
    """What its controller and its nodes have on their disks."""
    folders = [cluster.folder / "state", *cluster.folder.glob("spool.n*")]
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def command_lines() -> bytes:
    """Of all processes."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes())
        except OSError:  # it has ended
            continue
    return b"\n".join(lines)


async def wait_in_queue(hub: hubs.Hub, cluster: SlurmCluster, name: str) -> "asyncio.Task[object]":
    """Start a desktop that finds no room, until its job waits."""
    start = asyncio.create_task(hub.user(name).spawn())
    async with asyncio.timeout(30):
        while not getattr(hub.spawner(name), "job_id", ""):
            await asyncio.sleep(0.05)
    return start


@pytest.mark.parametrize(("user", "settings"), [("alice", {}), ("games", OWN)], ids=["service", "own"])
async def test_no_secret_is_in_what_slurm_stores(
    start_slurm_hub: StartHub, cluster: SlurmCluster, state_dir: Path, user: str, settings: dict[str, object]
) -> None:
    hub = await start_slurm_hub(jupyterhub=TLS, **settings)
    await hub.user(user).spawn()
    spawner = hub.spawner(user)
    secrets = (spawner.api_token.encode(), b"PRIVATE KEY")

    script = cluster.run("scontrol", "write", "batch_script", spawner.job_id, "-")
    stored = stored_by_slurm(cluster)

    assert "--job 3" in script
    assert [path for path, text in stored.items() if script.encode() in text] != []
    for text in (script.encode(), command_lines(), *stored.values()):
        assert [secret for secret in secrets if secret in text] == []
    assert list((state_dir / "jobs").iterdir()) == []


@pytest.mark.parametrize(
    ("user", "settings", "mode"),
    [("alice", {}, 0o700), ("games", OWN, 0o1733)],
    ids=["service", "own"],
)
async def test_what_waits_for_a_job_is_its_accounts_alone_and_goes_with_a_start_that_is_cancelled(
    start_slurm_hub: StartHub,
    cluster: SlurmCluster,
    state_dir: Path,
    user: str,
    settings: dict[str, object],
    mode: int,
) -> None:
    hub = await start_slurm_hub(**settings)
    folder = state_dir / "jobs"
    with cluster.is_full():
        start = await wait_in_queue(hub, cluster, user)
        (waiting,) = folder.iterdir()
        owner, its_mode = waiting.owner(), stat.S_IMODE(waiting.stat().st_mode)
        token_is_there = hub.spawner(user).api_token in waiting.read_text()

        await hub.user(user).stop()
        await asyncio.gather(start, return_exceptions=True)

    assert (owner, its_mode) == (user if settings else hubs.sessions_account(), 0o600)
    assert stat.S_IMODE(folder.stat().st_mode) == mode
    assert token_is_there
    assert list(folder.iterdir()) == []


async def test_nobody_keeps_another_users_start_away_by_a_file_of_its_name(
    start_slurm_hub: StartHub, cluster: SlurmCluster, state_dir: Path
) -> None:
    """Where jobs are the users' own, all of them may write to the folder."""
    hub = await start_slurm_hub(**OWN)
    folder = state_dir / "jobs"
    with cluster.is_full():
        start = await wait_in_queue(hub, cluster, "games")
        (first,) = folder.iterdir()
        await hub.user("games").stop()
        await asyncio.gather(start, return_exceptions=True)
    first.symlink_to(state_dir / "elsewhere")
    (folder / hub.spawner("games").session_id).symlink_to(state_dir / "elsewhere")

    await hub.user("games").spawn()

    assert hub.spawner("games").ready
    assert not (state_dir / "elsewhere").exists()


async def test_a_job_that_slurm_does_not_take_leaves_nothing(
    start_slurm_hub: StartHub, state_dir: Path
) -> None:
    hub = await start_slurm_hub(gres=["no-such:1"])

    with pytest.raises(Exception, match="of Slurm failed"):
        await hub.user("alice").spawn()

    assert list((state_dir / "jobs").iterdir()) == []
