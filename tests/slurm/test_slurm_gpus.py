"""A GPU that Slurm gives to a desktop's job, from the option to the command line of QEMU on its node."""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import fake_gpu_session
import hubs
import pytest
from fake_sysfs import FakeHost
from slurm_cluster import SlurmCluster

ADDRESSES = ("0000:41:00.0", "0000:c1:00.0")


@pytest.fixture
def node(state_dir: Path) -> FakeHost:
    """The made-up host of all nodes: two cards in groups of their own, the second with its sound device."""
    root = state_dir / "node"
    root.mkdir()
    host = FakeHost(root)
    host.add(ADDRESSES[0], group=7)
    host.add(ADDRESSES[1], group=9)
    host.add("0000:c1:00.1", "0x040300", group=9)
    (root / "gpus.toml").write_text(f"gpu = {list(ADDRESSES)}\n")
    real = shutil.which("qemu-system-x86_64")
    program = root / "bin" / "qemu-system-x86_64"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {root}/log/$$\nexec {real} "$@"\n')
    program.chmod(0o755)
    (root / "log").mkdir()
    for path in (root / "log", *(root / "dev/vfio").iterdir()):
        shutil.chown(path, hubs.sessions_account())
    return host


@pytest.fixture
async def hub(
    start_slurm_hub: Callable[..., Awaitable[hubs.Hub]], state_dir: Path, machines_dir: Path, node: FakeHost
) -> hubs.Hub:
    hubs.add_machine(machines_dir, state_dir, "tomo", more='[gpu]\nneed = "required"\n')
    path = os.pathsep.join(sys.path)
    command = ["env", f"PYTHONPATH={path}", sys.executable, fake_gpu_session.__file__, str(node.sysfs.parent)]
    return await start_slurm_hub(cmd=command, jail=False, gpus=["T4"])


def command_lines(node: FakeHost) -> list[str]:
    """Those that QEMU was started with to run a guest with a card."""
    texts = (path.read_text() for path in (node.sysfs.parent / "log").iterdir())
    return [text for text in texts if "vfio-pci" in text]


async def refused(hub: hubs.Hub) -> str:
    """Wait for alice's start to fail; what she reads."""
    spawner = hub.spawner("alice")
    async with asyncio.timeout(60):
        while spawner.pending:
            await asyncio.sleep(0.05)
    return str(spawner._spawn_future.exception())


async def test_a_jobs_gpus_come_to_qemu_by_their_number_in_slurm(
    hub: hubs.Hub, cluster: SlurmCluster, node: FakeHost
) -> None:
    """Another job has the first of the two; QEMU itself finds no such card here."""
    other = cluster.run(
        *("sbatch", "--parsable", "-p", "gpu", "--gres=gpu:t4:1", "-t5", "--output=/dev/null"),
        *("--wrap", "sleep 300"),
    ).strip()
    alice = await hub.with_token("alice")
    try:
        too_many = await hub.start(alice, {"machine": "tomo", "gpu": "t4:3"})
        unknown = await hub.start(alice, {"machine": "tomo", "gpu": "a100"})
        await hub.start(alice, {"machine": "tomo", "gpu": "t4"})
        refusal = await refused(hub)
    finally:
        cluster.run("scancel", other)

    assert json.loads(too_many.text)["message"] == (
        "The option 'gpu' is 't4:3'; 'Tomo' needs a GPU, at most 2 of 't4'."
    )
    assert unknown.status == 400
    assert "QEMU" in refusal
    (line,) = command_lines(node)
    assert f"{node.sysfs}/devices/pci0000:00/{ADDRESSES[1]}" in line
    assert f"{node.sysfs}/devices/pci0000:00/0000:c1:00.1" in line
    assert ADDRESSES[0] not in line


async def test_a_gpu_that_shares_its_iommu_group_is_refused_on_its_node(
    hub: hubs.Hub, node: FakeHost
) -> None:
    node.add("0000:42:00.0", group=7)
    alice = await hub.with_token("alice")

    await hub.start(alice, {"machine": "tomo", "gpu": "t4"})
    refusal = await refused(hub)

    assert "this host has none free that it can have" in refusal
    assert command_lines(node) == []
