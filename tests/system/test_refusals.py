"""What a host or an image has wrong reaches the user in a sentence, through a real hub and a real session."""

import asyncio
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import hubs
import pytest

from qemuspawner.hub.spawner import QemuSpawner

StartHub = Callable[..., Awaitable[hubs.Hub]]

TOOLS = ("sh", "setpriv", "unshare", "bwrap", "true", "qemu-img", "qemu-system-x86_64")


@pytest.fixture
def programs(state_dir: Path) -> Path:
    """A folder for PATH with what a session needs, for a test to take something away."""
    folder = state_dir / "bin"
    folder.mkdir(mode=0o755)
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, tool
        (folder / tool).symlink_to(found)
    return folder


async def refusal(hub: hubs.Hub, **fields: str) -> str:
    """What the user reads when the machine is started; nothing may be left of it."""
    alice = await hub.log_in("alice")
    await hub.submit_form(alice, machine="mini", **fields)
    async with asyncio.timeout(60):
        while hub.spawner("alice").pending:
            await asyncio.sleep(0.1)
    answer = await alice.request("GET", hub.url / "spawn-pending" / "alice")
    assert not hub.spawner("alice").active
    assert hub.session_folders() == []
    return answer.text


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        ("", "qemu-system-x86_64 was not found on this host"),
        ("5.2.0", "QEMU 5.2.0 is too old; 7.2 is needed"),
    ],
)
async def test_a_host_without_a_fit_qemu_says_so(
    version: str, sentence: str, start_hub: StartHub, programs: Path
) -> None:
    qemu = programs / "qemu-system-x86_64"
    qemu.unlink()
    if version:
        qemu.write_text(f"#!/bin/sh\necho 'QEMU emulator version {version}'\n")
        qemu.chmod(0o755)
    hub = await start_hub(environment={"PATH": str(programs)})

    assert sentence in await refusal(hub)


async def test_a_host_without_the_jails_tools_says_so(start_hub: StartHub, programs: Path) -> None:
    (programs / "bwrap").unlink()
    hub = await start_hub(environment={"PATH": str(programs)})

    assert "The jail around QEMU needs bwrap" in await refusal(hub)


async def test_emulation_that_is_not_allowed_is_refused(start_hub: StartHub) -> None:
    hub = await start_hub(accelerator="tcg", allow_tcg=False)

    assert "Emulation (TCG) is chosen here, and not allowed" in await refusal(hub)


async def test_a_hostile_image_is_refused_by_name(start_hub: StartHub, state_dir: Path) -> None:
    """A qcow2 that names a host file as its backing file, under the name of a raw disk."""
    disk = state_dir / "images" / "mini" / "disk.raw"
    disk.unlink()
    command = [
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-u",
        "-b",
        "/etc/passwd",
        "-F",
        "raw",
        str(disk),
        "1M",
    ]
    subprocess.run(command, check=True)
    disk.chmod(0o444)
    hub = await start_hub()

    assert "machine.toml says raw, but the file is in the format qcow2" in await refusal(hub)


async def test_a_machine_larger_than_the_hosts_memory_is_refused_with_the_numbers(
    start_hub: StartHub, machines_dir: Path
) -> None:
    toml = machines_dir / "mini" / "machine.toml"
    toml.write_text(toml.read_text().replace('"128 MiB"', '"64 TiB"').replace('"256 MiB"', '"65 TiB"'))
    hub = await start_hub()

    alice = await hub.log_in("alice")
    answer = await hub.submit_form(alice, machine="mini")

    assert "of memory for desktops in all; the desktop needs" in answer.text


async def test_a_desktop_does_not_start_without_the_gpu_that_it_was_promised(
    start_hub: StartHub, machines_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its hub believes."""
    toml = machines_dir / "mini" / "machine.toml"
    toml.write_text(toml.read_text() + '\n[gpu]\nneed = "optional"\n')
    monkeypatch.setattr(QemuSpawner, "can_pass_gpus", True)
    hub = await start_hub(gpu_units={"A100": 1})

    text = await refusal(hub, gpu="A100")

    assert "The desktop was promised a GPU (A100), and this host has none free that it can have." in text


async def test_a_state_folder_that_cannot_be_written_is_told(start_hub: StartHub, state_dir: Path) -> None:
    """A file lies where the sessions' folder should be."""
    (state_dir / "sessions").write_text("")
    hub = await start_hub()
    alice = await hub.log_in("alice")

    answer = await hub.submit_form(alice, machine="mini")

    assert answer.status in (200, 400, 500)
    assert "cannot be" in answer.text
    assert (state_dir / "sessions").is_file()
