"""What runs in the outer guest: it binds its GPUs, as an administrator does, and starts desktops with them.

Each finding is a line "NAME JSON" on standard output.
"""

import asyncio
import contextlib
import grp
import io
import json
import logging
import os
import pwd
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from qemuspawner.cli import main
from qemuspawner.errors import SessionError
from qemuspawner.gpus import find_gpus
from qemuspawner.hub.admission.gpu_units import find_units
from qemuspawner.machines.catalogue import load_machine
from qemuspawner.paths import StatePaths, session_id
from qemuspawner.qemu import host, process
from qemuspawner.qemu.host import find_qemu, kvm_works
from qemuspawner.session.host.gpus import take_gpus
from qemuspawner.session.vm import guest as session_guest
from qemuspawner.session.vm.guest import Guest
from qemuspawner.session.vm.prepare import prepare
from qemuspawner.spec import Gpus, SessionSpec

ACCOUNT = pwd.getpwnam(os.environ["ACCOUNT"])
MACHINES = Path(os.environ["MACHINES"])
STATE = Path("/run/state")
MEMORY_MIB = 1024
GPU, SOUND, OTHER = "0000:01:00.0", "0000:01:00.1", "0000:02:00.0"
PCI = Path("/sys/bus/pci")

# In the inner guest: address, vendor, device and driver of each PCI device.
_LIST = """for d in /sys/bus/pci/devices/*; do
echo $(basename $d) $(cat $d/vendor $d/device) $(basename $(readlink $d/driver)); done; ls /dev/dri"""


# This host is emulated, and what it runs is some twenty times as slow as on a real one.
host._PROBE_TIMEOUT_S = 120
process._QMP_TIMEOUT_S = 120
session_guest._QMP_TIMEOUT_S = 120


def tell(name: str, value: Any) -> None:
    print(name, json.dumps(value), flush=True)


def run_command(*arguments: str) -> tuple[int, str]:
    """The administrator's command in this process: another one would import everything again."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            main([f"--state={STATE}", f"--machines={STATE / 'machines'}", *arguments])
        except SystemExit as exc:
            return int(exc.code or 0), printed.getvalue()
    raise AssertionError("main() exits.")


def bind(address: str) -> None:
    device = PCI / "devices" / address
    (device / "driver_override").write_text("vfio-pci")
    (PCI / "drivers_probe").write_text(address)


def administer() -> None:
    """As root: what docs/administering.md asks for."""
    tell("unbound", run_command("gpu", "check"))
    for address in (GPU, SOUND, OTHER):
        bind(address)
    tell("gpus", json.loads(run_command("gpu", "list", "--json")[1])["gpus"])
    STATE.mkdir()
    for folder in ("sessions", "gpus"):
        (STATE / folder).mkdir(mode=0o711)
        os.chown(STATE / folder, ACCOUNT.pw_uid, ACCOUNT.pw_gid)
    (STATE / "templates").mkdir()
    os.chown(STATE / "templates", ACCOUNT.pw_uid, ACCOUNT.pw_gid)
    (STATE / "images").symlink_to(os.environ["IMAGES"])
    shutil.copytree(MACHINES, STATE / "machines")
    toml = STATE / "machines" / "debian-desktop" / "machine.toml"
    toml.write_text(toml.read_text() + '\n[gpu]\nneed = "optional"\n')


def give_up_root() -> None:
    os.setgroups([ACCOUNT.pw_gid])
    os.setresgid(*(ACCOUNT.pw_gid,) * 3)
    os.setresuid(*(ACCOUNT.pw_uid,) * 3)


def give_nodes() -> None:
    """As the udev rule does, and LimitMEMLOCK in the hub's unit."""
    for gpu in find_gpus():
        if gpu.driver == "vfio-pci":
            node = Path(f"/dev/vfio/{gpu.iommu_group}")
            os.chown(node, 0, grp.getgrgid(ACCOUNT.pw_gid).gr_gid)
            node.chmod(0o660)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def check_as_account() -> None:
    """In a child: what the account lacks before anybody gave it anything."""
    if os.fork() == 0:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 << 20, 8 << 20))
        give_up_root()
        tell("without_rights", run_command("gpu", "check"))
        os._exit(0)
    os.wait()


def make_spec(name: str, *devices: str, templates: bool) -> SessionSpec:
    machine = load_machine(STATE / "machines" / "debian-desktop", images=STATE / "images")
    return SessionSpec(
        session_id=session_id("alice", name),
        user="alice",
        server_name=name,
        state_dir=str(STATE),
        machine=machine,
        cpus=1,
        memory_mib=MEMORY_MIB,
        gpus=Gpus(count=1, model="fake"),
        gpu_devices=devices,
        lifetime_s=3600,
        max_lifetime_s=3600,
        accelerator="kvm",
        templates=templates,
    )


async def start_desktop(spec: SessionSpec, name: str) -> None:
    """Start a desktop, and tell which devices its guest has, with which drivers."""
    begin = time.monotonic()
    log = logging.LoggerAdapter(logging.getLogger("inside"))
    with contextlib.ExitStack() as stack:
        prepared = prepare(spec, stack, lambda _text, _progress: None)
        guest = Guest(prepared.started, prepared.paths, prepared.spec.machine, log=log)
        try:
            await guest.connect()
            assert guest.agent is not None
            ready = await guest.agent.wait_until_ready(timeout_s=240)
            seconds = time.monotonic() - begin
            listed = ""
            for _ in range(100):
                _, listed = await guest.agent.run("/bin/sh", "-c", _LIST, timeout_s=60)
                if listed.count("bochs") == 1 and listed.count("snd_hda") == 2:
                    break
                await asyncio.sleep(0.3)
            free = [not is_busy(find_node(address)) for address in (GPU, OTHER)]
            second = taken_by_another(spec)
            tell(
                name,
                {
                    "way": guest.plan.way,
                    "why": guest.plan.why,
                    "ready": ready,
                    "seconds": round(seconds, 1),
                    "all_seconds": round(time.monotonic() - begin, 1),
                    "devices": listed.splitlines(),
                    "free": free,
                    "second": second,
                },
            )
        finally:
            await guest.stop()
    tell(f"{name}_released", [not is_busy(find_node(address)) for address in (GPU, OTHER)])


def find_node(address: str) -> Path:
    group = (PCI / "devices" / address / "iommu_group").readlink().name
    return Path("/dev/vfio") / group


def is_busy(node: Path) -> bool:
    """A group is one program's."""
    try:
        os.close(os.open(node, os.O_RDWR))
    except OSError:
        return True
    return False


def taken_by_another(spec: SessionSpec) -> str:
    """What a second session is told that may take the same GPU only, in a process of its own."""
    read, write = os.pipe()
    if os.fork() == 0:
        with contextlib.ExitStack() as stack:
            try:
                words = ",".join(one.name for one in take_gpus(spec, STATE / "gpus", stack))
            except SessionError as exc:
                words = exc.message
            os.write(write, words.encode())
        os._exit(0)
    os.wait()
    return os.read(read, 4096).decode()


def run() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    administer()
    check_as_account()
    give_nodes()
    give_up_root()
    tell("checked", run_command("gpu", "check"))
    tell("units", [unit.device for unit in find_units(["*"], [])])
    tell("kvm", kvm_works(find_qemu(), StatePaths(root=STATE).probes))
    asyncio.run(start_desktop(make_spec("cold", GPU, templates=False), "cold"))
    begin = time.monotonic()
    tell("warm", run_command("warm", "debian-desktop", "--cpus=1", f"--memory={MEMORY_MIB} MiB"))
    tell("warm_seconds", round(time.monotonic() - begin, 1))
    asyncio.run(start_desktop(make_spec("plugged", GPU, templates=True), "plugged"))


if __name__ == "__main__":
    run()
