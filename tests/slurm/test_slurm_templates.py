"""Templates and images where desktops are jobs: made on a node, fetched once, started from on any other."""

import os
import stat
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import hubs
import pytest
import warming
from slurm_cluster import SlurmCluster
from slurm_desktops import SlurmDesktop

from qemuspawner.hub.sessions.warmer import warmer
from qemuspawner.paths import StatePaths

# The painter has no agent, and nothing waits long for it.
_SESSION = """
import qemuspawner.session.life.supervisor as supervisor
supervisor._AGENT_TIMEOUT_S = supervisor._RESTORED_AGENT_TIMEOUT_S = 1
from qemuspawner.session import main; main()
"""


def write_program(path: Path, script: str) -> None:
    """What nodes have: our package, and what a test plays of it."""
    path.write_text(f"#!{sys.executable}\nimport sys\nsys.path[:0] = {sys.path!r}\n{script}")
    path.chmod(stat.S_IRWXU | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)


@pytest.fixture
def programs(state_dir: Path) -> Path:
    folder = state_dir / "bin"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    write_program(folder / "qemuspawner-session", _SESSION)
    write_program(folder / "qemuspawner", warming.agentless_script())
    return folder


@pytest.fixture
def machines_dir(state_dir: Path) -> Path:
    """A machine with an agent, where nodes may read it."""
    machines = state_dir / "machines"
    hubs.add_machine(machines, state_dir, "mini")
    machine = machines / "mini" / "machine.toml"
    machine.write_text(machine.read_text().replace("shutdown =", "agent = true\nshutdown ="))
    return machines


async def test_a_template_that_is_missing_is_made_on_a_node_and_started_from_on_another(
    start_slurm_hub: Callable[..., Awaitable[hubs.Hub]],
    cluster: SlurmCluster,
    state_dir: Path,
    programs: Path,
) -> None:
    local = state_dir / "local"
    local.mkdir()
    local.chmod(0o1777)
    hub = await start_slurm_hub(
        cmd=[str(programs / "qemuspawner-session")],
        warm_missing=True,
        image_cache=str(local),
        slurm_log=f"{state_dir}/local/%j.log",
    )
    desktop = SlurmDesktop(hub, cluster, await hub.with_token("alice"))

    first = await desktop.start()
    node = desktop.node
    backing = [path for path in desktop.opened if path.endswith("-disk.raw")]
    await hub.stop(desktop.person)
    await hub.wait_until_stopped("alice")
    await warmer().wait()
    templates = list(StatePaths(root=state_dir).templates.glob("mini-*"))
    with cluster.is_drained(node):
        second = await desktop.start()
        elsewhere = desktop.node != node
    copies = sorted(path.name.partition("-")[2] for path in local.glob("[0-9]*/[!.]*"))

    assert (first, second, elsewhere) == ("cold", "restored", True)
    assert len(templates) == 1
    assert [os.path.commonpath([path, local]) for path in backing] == [str(local)]
    assert copies == ["disk.raw", "memory"]
