"""A machine with a container and a script for its first boot, really built from Debian's packages and booted.

Run by `make test-builds`, and not with the others.
"""

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import hubs
import oci
import pytest
import pytest_asyncio
import vms

from qemuspawner.errors import VmError
from qemuspawner.machines.catalogue import load_catalogue
from qemuspawner.paths import EXAMPLE_MACHINES
from qemuspawner.session.vm.guest import Guest

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1500)]

MACHINE = """
name = "Web"
firmware = "direct"
display = "virtio"
agent = true
[image]
file = "disk.qcow2"
format = "qcow2"
kernel = "vmlinuz"
initrd = "initrd"
cmdline = "root=/dev/vda rw quiet mitigations=off net.ifnames=0"
cmdline_tcg = "norandmaps"
[ports]
web = 8080
[build]
suite = "bookworm"
base = "debian-desktop"
container = "image"
first_boot = "first-boot.sh"
"""

# The second time it would say so.
FIRST_BOOT = """#!/bin/sh
sleep 1
echo "$(id -un) $(systemctl is-active qemu-guest-agent)" >> /root/first-boot
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guest(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guest]:
    machines = tmp_path_factory.mktemp("machines")
    folder = machines / "web"
    folder.mkdir()
    (folder / "machine.toml").write_text(MACHINE)
    (folder / "first-boot.sh").write_text(FIRST_BOOT)
    oci.make_image(folder / "image", "/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/www")
    with hubs.state_folder() as state:
        images = state / "images"
        program = Path(sys.executable).with_name("qemuspawner")
        where = ["--state", state, "--machines", machines, "--machines", EXAMPLE_MACHINES]
        subprocess.run([program, *where, "machines", "build", "web"], check=True)
        machine = load_catalogue([machines, EXAMPLE_MACHINES], images).machines["web"]
        async with vms.running_guest(vms.make_spec(state, machine, memory_mib=1024)) as (guest, _):
            assert guest.agent is not None
            assert await guest.agent.wait_until_ready(timeout_s=400)
            yield guest


async def test_the_containers_page_is_the_machines(guest: Guest) -> None:
    answer = b""
    for _ in range(60):
        with contextlib.suppress(VmError, OSError), await guest.ports.connect("web") as connection:
            answer = await asyncio.to_thread(ask, connection)
        if answer:
            break
        await asyncio.sleep(2)

    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.endswith(oci.PAGE.encode())


async def test_its_script_has_run_before_the_agent_answers(guest: Guest) -> None:
    assert guest.agent is not None
    read = ["cat", "/root/first-boot", "/var/lib/qemuspawner/first-boot-done"]

    code, output = await guest.agent.run(*read, timeout_s=60)
    _, state = await guest.agent.run("systemctl", "is-failed", "qemuspawner-first-boot", timeout_s=60)

    assert (code, output.splitlines()) == (0, ["root inactive"])
    assert state.strip() == "inactive"


def ask(connection: socket.socket) -> bytes:
    connection.setblocking(True)
    connection.settimeout(20)
    connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
    return b"".join(iter(lambda: connection.recv(4096), b""))
