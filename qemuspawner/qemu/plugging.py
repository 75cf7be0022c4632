"""Devices that come and go while the guest runs: folders of the host, and the volume of a first boot.

None may be there when a VM is saved: QEMU saves no virtiofs, and what is saved has to fit every later start.
"""

import asyncio

from qemuspawner.errors import VmError
from qemuspawner.qemu.command import spare_port
from qemuspawner.qemu.process import QemuProcess
from qemuspawner.qemu.virtiofs import FolderServer
from qemuspawner.qemu.vm import Vm
from qemuspawner.texts import Text

# A guest gives a device back in less than a tenth of a second, a slow and busy one in some.
_UNPLUG_S = 10


def device_id(number: int) -> str:
    """Of the device, of what is behind it, and of the file system as the guest finds it."""
    return f"qemuspawner{number}"


async def plug_9p(qemu: QemuProcess, vm: Vm, number: int) -> None:
    """Raises VmError where QEMU refuses."""
    name = device_id(number)
    device: dict[str, object] = {"driver": "virtio-9p-pci", "id": name, "fsdev": name, "mount_tag": name}
    await qemu.execute("device_add", **device, **_place(vm, number))


async def plug_virtiofs(qemu: QemuProcess, vm: Vm, number: int, server: FolderServer) -> None:
    """Raises VmError where QEMU refuses."""
    name = device_id(number)
    await qemu.give_descriptor(name, server.connection.fileno())
    address = {"type": "fd", "data": {"str": name}}
    backend = {"type": "socket", "data": {"addr": address, "server": False}}
    await qemu.execute("chardev-add", id=name, backend=backend)
    device: dict[str, object] = {"driver": "vhost-user-fs-pci", "id": name, "chardev": name, "tag": name}
    try:
        await qemu.execute("device_add", **device, **_place(vm, number))
    except VmError:
        await qemu.execute("chardev-remove", id=name)
        raise


async def is_plugged(qemu: QemuProcess, number: int) -> bool:
    """Whether it is there: a guest may give back later what it was asked for in vain.

    Raises:
        VmError: QEMU is silent.
    """
    found = await qemu.execute("qom-list", path="/machine/peripheral")
    return isinstance(found, list) and any(one.get("name") == device_id(number) for one in found)


async def unplug(qemu: QemuProcess, number: int, *, is_virtiofs: bool) -> None:
    """Take it out, which the guest has a part in.

    Raises:
        VmError: It does not let go of it, or QEMU is silent.
    """
    name = device_id(number)
    try:
        await remove_device(qemu, name)
    except TimeoutError as exc:
        raise VmError(
            Text("The machine did not give a folder back within {unplug_s} s.", unplug_s=_UNPLUG_S)
        ) from exc
    if is_virtiofs:
        await disconnect_virtiofs(qemu, number)


async def disconnect_virtiofs(qemu: QemuProcess, number: int) -> None:
    """What is left of one when its device has gone. Raises VmError where QEMU refuses."""
    await qemu.execute("chardev-remove", id=device_id(number))


async def remove_device(qemu: QemuProcess, name: str) -> None:
    """Take a device out, which the guest has a part in.

    Raises:
        TimeoutError: It does not let go of it.
        VmError: QEMU is silent.
    """
    with qemu.events("DEVICE_DELETED") as events:
        await qemu.execute("device_del", id=name)
        async with asyncio.timeout(_UNPLUG_S):
            async for event in events:
                data = event["data"]
                if isinstance(data, dict) and data.get("device") == name:
                    break


def _place(vm: Vm, number: int) -> dict[str, object]:
    return {"bus": spare_port(number)} if vm.spare_ports else {}
