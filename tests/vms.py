"""Sessions' VMs without their web side."""

import asyncio
import contextlib
import io
import json
import logging
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from PIL import Image as Picture

from qemuspawner.machine import Machine, decode_unit
from qemuspawner.paths import session_id
from qemuspawner.qemu.vm import DRIVERS
from qemuspawner.saved import Fingerprint, Saved
from qemuspawner.session.life.clocks import Clocks
from qemuspawner.session.life.life import Ending
from qemuspawner.session.life.supervisor import Supervisor
from qemuspawner.session.vm.guest import Guest
from qemuspawner.session.vm.keep import Keeper
from qemuspawner.session.vm.prepare import Prepared, prepare
from qemuspawner.spec import SessionSpec, SessionStatus

LOG = logging.LoggerAdapter(logging.getLogger(__name__))


def make_machine(**keys: Any) -> Machine:
    """A machine as machine.toml would have it; `image` is a table."""
    return msgspec.convert({"name": "Painter", **keys}, Machine, dec_hook=decode_unit)


def make_spec(state: Path, machine: Machine, *, server_name: str = "", **more: Any) -> SessionSpec:
    """A session of alice's with one CPU, by emulation."""
    keys = {
        "session_id": session_id("alice", server_name),
        "user": "alice",
        "server_name": server_name,
        "state_dir": str(state),
        "machine": machine,
        "cpus": 1,
        "memory_mib": 64,
        "lifetime_s": 3600,
        "max_lifetime_s": 3600,
        "accelerator": "tcg",
        "allow_tcg": True,
    }
    return SessionSpec(**{**keys, **more})  # type: ignore[arg-type]


def make_saved(**more: Any) -> Saved:
    """What is known of a desktop that was put to sleep, without one."""
    fits = Fingerprint(
        qemu="7.2", accelerator="tcg", cpu="max", machine="m", image="i", cpus=1, memory_mib=64
    )
    keys = {"name": "now", "saved_at": 0, "memory": "streamed", "layers": 1, "files": {}, "size_bytes": 0}
    return Saved(kind="suspended", fingerprint=fits, **{**keys, **more})


@contextlib.asynccontextmanager
async def running_guest(
    spec: SessionSpec, *, memories: Mapping[str, int] | None = None
) -> AsyncIterator[tuple[Guest, Prepared]]:
    """The VM of a session, connected; ended, with everything that is not kept, at the end."""
    (Path(spec.state_dir) / "sessions").mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        prepared = prepare(spec, stack, lambda _text, _progress: None, memories=memories)
        guest = Guest(prepared.started, prepared.paths, prepared.spec.machine, log=LOG)
        try:
            await guest.connect()
            yield guest, prepared
        finally:
            await guest.stop()


@contextlib.asynccontextmanager
async def supervised(spec: SessionSpec, *, clocks: Clocks | None = None) -> AsyncIterator[Supervisor]:
    """A session's life without its web side; ended at the end."""
    (Path(spec.state_dir) / "sessions").mkdir(exist_ok=True)
    supervisor = Supervisor(spec, clocks=clocks)
    supervisor.prepare()
    running = asyncio.create_task(supervisor.run())
    try:
        yield supervisor
    finally:
        supervisor.end(Ending(reason="The test is over.", graceful=False))
        await running


async def wait_for_status(
    supervisor: Supervisor, condition: Callable[[SessionStatus], object], *, timeout_s: float = 60
) -> SessionStatus:
    """The first status for which `condition` is true."""
    async with asyncio.timeout(timeout_s):
        while not condition(supervisor.status()):
            await supervisor.changed.wait()
    return supervisor.status()


async def suspend(guest: Guest, prepared: Prepared) -> Saved:
    """Put the VM to sleep, as the supervisor does."""
    keeper = Keeper.of(prepared)
    saved = await keeper.suspend(guest)
    await guest.stop()
    keeper.tidy(saved)
    return saved


async def screen(guest: Guest) -> Picture.Image:
    return Picture.open(io.BytesIO(await guest.screenshot())).convert("RGB")


def write_whole_disk(guest: Guest, target: Path) -> None:
    """Everything that the ended guest has on its disk, base image and layers together, as a raw file."""
    image = guest.machine.image
    node: dict[str, Any] = {
        "driver": DRIVERS[image.format],
        "file": {"driver": "file", "filename": image.file},
    }
    for path in guest.disks:
        file = {"driver": "file", "filename": str(path)}
        node = {"driver": "qcow2", "file": file, "backing": node}
    command = ["qemu-img", "convert", "-O", "raw", f"json:{json.dumps(node)}", str(target)]
    subprocess.run(command, check=True)
