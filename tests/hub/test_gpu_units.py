"""What a hub offers of the GPUs of its host, which is a made-up one, and what its sessions may take."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import hubs
import pytest
from fake_sysfs import FakeHost

from qemuspawner.hub.admission import capacity
from qemuspawner.hub.admission.gpu_units import GpuUnit, find_units
from qemuspawner.spec import Gpus

Start = Callable[..., Awaitable[hubs.Hub]]
A100, OTHER_A100, MI210 = "0000:65:00.0", "0000:66:00.0", "0000:67:00.0"
PART = "0000:70:00.0/nvidia-222"


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    host = FakeHost(tmp_path)
    host.add(A100, group=1)
    host.add(OTHER_A100, group=2)
    host.add("0000:68:00.0", group=3, driver="nvidia")
    host.add(MI210, "0x038000", "0x1002", "0x740f", group=4)
    type_folder = host.add_type("0000:70:00.0", "nvidia-222", name="GRID T4-1Q", free=1)
    (type_folder / "devices/made").symlink_to("../../..")
    host.add_type("0000:70:00.0", "nvidia-230", name="GRID T4-16Q", free=0)
    return host


def units(host: FakeHost, *allowed: str, denied: tuple[str, ...] = ()) -> tuple[GpuUnit, ...]:
    return find_units(allowed, denied, sysfs=host.sysfs, dev=host.dev)


def test_what_is_allowed_and_can_be_passed_on_counts(host: FakeHost) -> None:
    assert [unit.device for unit in units(host, "*")] == [A100, OTHER_A100, MI210, PART]
    assert [unit.device for unit in units(host, "*", denied=("1002:740f", "GRID*"))] == [A100, OTHER_A100]
    assert units(host) == ()


def test_of_a_type_those_that_desktops_have_count_too(host: FakeHost) -> None:
    """The promises of those desktops are taken off again."""
    assert units(host, "GRID*") == (GpuUnit(model="GRID T4-1Q", device=PART, count=2),)


@pytest.fixture
def gpu_machine(machines_dir: Path, state_dir: Path) -> str:
    hubs.add_machine(machines_dir, state_dir, "gpu", more='\n[gpu]\nneed = "optional"\n')
    return "gpu"


async def test_the_form_offers_gpus_and_says_that_there_are_few(
    quick_hub: Start, gpu_machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        capacity, "find_units", lambda _allowed, _denied: (GpuUnit(model="A100", device=A100),)
    )
    capacity._look_for_gpus.cache_clear()
    hub = await quick_hub(gpus=["*"])
    alice = await hub.log_in("alice")

    form = await hub.get_form(alice, query={"opt-machine": gpu_machine})
    capacity._look_for_gpus.cache_clear()

    assert "There are few: take none that you will not use." in form.text


async def test_a_session_is_told_what_it_may_take(
    quick_hub: Start, gpu_machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [GpuUnit(model="A100", device=A100), GpuUnit(model="T4-1Q", device=PART, count=3)]
    asked = []

    def look(allowed: object, denied: object) -> tuple[GpuUnit, ...]:
        asked.append((allowed, denied))
        return (*found, GpuUnit(model="A100", device=OTHER_A100))

    monkeypatch.setattr(capacity, "find_units", look)
    capacity._look_for_gpus.cache_clear()
    hub = await quick_hub(gpus=["*"], denied_gpus=["MI*"])
    alice = await hub.log_in("alice")

    answer = await hub.start(alice, {"machine": gpu_machine, "gpu": "A100"})
    spec = hub.spawner("alice").make_spec()
    of_parts = hub.spawner("alice").find_gpu_devices(Gpus(count=2, model="T4-1Q"))
    await hub.wait_until_ready("alice")
    run = hub.spawner("alice").find_run()
    capacity._look_for_gpus.cache_clear()

    assert answer.status in (201, 202)
    assert (spec.gpus, spec.gpu_devices) == (Gpus(count=1, model="A100"), (A100, OTHER_A100))
    assert of_parts == (PART, PART)
    assert run is not None
    assert run.promised_gpus == Gpus(count=1, model="A100")
    assert set(asked) == {(("*",), ("MI*",))}
    assert hub.spawner("alice").find_gpu_models() == {"A100": 2, "T4-1Q": 3}
