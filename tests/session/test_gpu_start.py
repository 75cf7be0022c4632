"""How a desktop with a GPU starts, as far as a host without one can tell."""

from pathlib import Path
from typing import Any, cast

import guests
import pytest
import vms
import warming
from msgspec import structs

from qemuspawner.errors import VmError
from qemuspawner.machine import Gpu, Machine
from qemuspawner.machines.templates import find_suspend_obstacle
from qemuspawner.paths import StatePaths
from qemuspawner.qemu.host import find_qemu
from qemuspawner.session.vm import prepare
from qemuspawner.session.vm.prepare import Host, choose_template
from qemuspawner.spec import Gpus
from qemuspawner.vfio import Passed

CARD = Passed(name="0000:65:00.0", folders=(Path("/sys/nothing"),), node=Path("/dev/vfio/1"), bar_mib=16384)
LARGE = Passed(
    name="0000:66:00.0", folders=(Path("/sys/nothing"),), node=Path("/dev/vfio/2"), bar_mib=1 << 18
)
PROMISED = Gpus(count=1, model="A100")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    disk = guests.make_disk(tmp_path / "disk.raw")
    made = vms.make_machine(image={"file": str(disk), "format": "raw"}, gpu={"need": "optional"})
    return structs.replace(made, id="painter")


@pytest.mark.parametrize(
    ("gpus", "keys", "way", "why"),
    [
        ((), {}, "restored", ""),
        ((CARD,), {}, "restored", ""),
        ((CARD, CARD), {}, "cold", "only one GPU can be plugged into a machine that runs already"),
        ((LARGE,), {}, "cold", "its GPU has more memory than fits into a machine that runs already"),
        ((CARD,), {"plug": False}, "cold", "it is built to have its GPU when it boots"),
        ((CARD,), {"need": "required"}, "cold", "'Painter' has a GPU, whose memory cannot be saved."),
    ],
)
def test_a_template_is_taken_where_its_gpu_can_be_plugged_in(
    tmp_path: Path, machine: Machine, gpus: tuple[Passed, ...], keys: dict[str, bool], way: str, why: str
) -> None:
    machine = structs.replace(machine, agent=True, gpu=structs.replace(Gpu(need="optional"), **keys))
    state = StatePaths(root=tmp_path / "s")
    state.templates.mkdir(parents=True)
    host = Host(qemu=find_qemu(), accelerator="tcg", gpus=gpus)
    warming.put_template(state, machine, host.fingerprint(machine, cpus=1, memory_mib=64))

    plan = choose_template(vms.make_spec(state.root, machine, gpus=PROMISED), host)

    assert (plan.way, plan.why) == (way, why)


@pytest.fixture
def has_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """The session has taken a card that is none: QEMU says so."""
    monkeypatch.setattr(prepare, "take_gpus", lambda spec, *_: (CARD,) if spec.gpus else ())


async def test_a_gpu_that_qemu_cannot_open_ends_the_boot(
    tmp_path: Path, machine: Machine, has_card: None
) -> None:
    spec = vms.make_spec(tmp_path, machine, jail=False, gpus=PROMISED)

    with pytest.raises(VmError, match=r"QEMU (could not start|did not answer)"):
        async with vms.running_guest(spec):
            pass


async def test_a_gpu_is_plugged_in_before_a_restored_machine_goes_on(
    tmp_path: Path, machine: Machine, has_card: None
) -> None:
    """The VM has the port; QEMU refuses the card, and nothing has run meanwhile."""
    spec = vms.make_spec(tmp_path, machine, jail=False)
    async with vms.running_guest(spec) as (guest, prepared):
        await vms.suspend(guest, prepared)

    with pytest.raises(VmError, match=r"QEMU refused 'device_add': .*/sys/nothing"):
        async with vms.running_guest(structs.replace(spec, gpus=PROMISED)):
            pass


def test_a_desktop_with_a_gpu_cannot_be_suspended_and_says_so(tmp_path: Path, machine: Machine) -> None:
    spec = vms.make_spec(tmp_path, machine)

    assert find_suspend_obstacle(spec) == ""
    with_gpu = structs.replace(spec, gpus=PROMISED)
    assert find_suspend_obstacle(with_gpu) == "The desktop has a GPU, whose memory cannot be saved."


async def test_firmware_gives_the_free_port_room_for_a_large_gpu(tmp_path: Path, machine: Machine) -> None:
    """Above the guest's memory, below what 39 bits reach."""
    async with vms.running_guest(vms.make_spec(tmp_path, machine)) as (guest, _):
        window = {"base": 0, "limit": 0}
        while not 0 < window["base"] < window["limit"]:  # until firmware has been there
            (bus, *_) = cast("list[Any]", await guest.qemu.execute("query-pci"))
            (port,) = (device for device in bus["devices"] if device["qdev_id"] == "gpu-port0")
            window = port["pci_bridge"]["bus"]["prefetchable_range"]

    assert window["limit"] + 1 - window["base"] == 256 << 30
    assert window["base"] >= 4 << 30
    assert window["limit"] < 1 << 39
