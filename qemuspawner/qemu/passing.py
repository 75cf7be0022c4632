"""GPUs of the host in a VM: the ports they are plugged into, and what QEMU is told of them.

They are PCI Express devices and get a port each, with the GPU as function 0 and what belongs to it beside.
"""

from collections.abc import Iterator

from qemuspawner.qemu.vm import Vm
from qemuspawner.texts import Text
from qemuspawner.vfio import Passed

# Firmware gives a port the room that its device needs. One that is free at the boot gets as much as is asked
# for: enough for a GPU whose largest memory window has 128 GiB, wherever its alignment begins. The guest's
# addresses are wide enough everywhere (39 bits).
_WINDOW_GIB = 256
_SMALL_WINDOWS_MIB = 64
MAX_LATE_BAR_MIB = _WINDOW_GIB * 1024 // 2
# Ports whose devices come later; each takes as much of the guest's addresses.
MAX_LATE_GPUS = 1
# Far from the numbers of other ports.
_FIRST_CHASSIS = 100


def find_late_obstacle(gpus: tuple[Passed, ...]) -> str:
    """Why these cannot be plugged into a VM that runs already, in a sentence; "" where they can."""
    if len(gpus) > MAX_LATE_GPUS:
        return Text("only one GPU can be plugged into a machine that runs already")
    if any(gpu.bar_mib > MAX_LATE_BAR_MIB for gpu in gpus):
        return Text("its GPU has more memory than fits into a machine that runs already")
    return ""


def port_args(vm: Vm) -> Iterator[dict[str, object]]:
    """The ports, each a -device."""
    if vm.late_gpus:
        for index in range(MAX_LATE_GPUS):
            yield {
                **_port(index),
                "pref64-reserve": _WINDOW_GIB << 30,
                "mem-reserve": _SMALL_WINDOWS_MIB << 20,
            }
        return
    for index in range(len(vm.gpus)):
        yield _port(index)


def _port(index: int) -> dict[str, object]:
    return {"driver": "pcie-root-port", "id": f"gpu-port{index}", "chassis": _FIRST_CHASSIS + index}


def function_args(gpus: tuple[Passed, ...]) -> Iterator[dict[str, object]]:
    """Every function of each GPU, each a -device; its function 0 last, which shows all to a running guest."""
    for index, gpu in enumerate(gpus):
        for number, folder in reversed(list(enumerate(gpu.folders))):
            device: dict[str, object] = {
                "driver": "vfio-pci",
                "id": f"gpu{index}-{number}",
                "bus": f"gpu-port{index}",
                "addr": f"0x0.{number}",
                "sysfsdev": str(folder),
            }
            if number == 0 and len(gpu.folders) > 1:
                device["multifunction"] = True
            yield device
