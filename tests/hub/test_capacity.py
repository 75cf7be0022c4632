"""What hosts have for desktops, and starts that do not fit, through a real hub."""

import json
import os
import platform
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import hubs
import pytest

from qemuspawner.hub.admission.admission import Admission
from qemuspawner.hub.admission.capacity import HostCapacity, calculate_capacity, find_memory_mib
from qemuspawner.hub.admission.promises import Need, Promise
from qemuspawner.hub.spawner import QemuSpawner
from qemuspawner.spec import SESSION_OVERHEAD_MIB, Gpus, SessionStatus

Start = Callable[..., Awaitable[hubs.Hub]]
NOW = time.time()


class GpuSpawner(QemuSpawner):
    """Of sessions that pass GPUs on."""

    can_pass_gpus = True


def promise(*, hours: float = 1, **more: Any) -> Promise:
    values = {"user": "alice", "server": "", "cpus": 1, "memory_mib": 1024, "until": NOW + 3600 * hours}
    return Promise(**(values | more))


def host(*promises: Promise, cpus: int | None = 8, memory_mib: int = 8192, **gpus: int) -> HostCapacity:
    return calculate_capacity("here", cpus=cpus, memory_mib=memory_mib, gpus=gpus, promises=promises)


def shortage(of: HostCapacity, **need: Any) -> tuple[str, str, float | None]:
    found = Admission(host=of).find_shortage(Need(**({"cpus": 1, "memory_mib": 1024} | need)))
    assert found is not None
    return found.field, found.text, found.free_at


def test_what_was_promised_is_not_free_whatever_is_used() -> None:
    found = host(promise(cpus=2), promise(gpus=Gpus(model="A100", count=2)), A100=3, T4=1)

    assert found.describe() == {
        "host": "here",
        "cpus": {"total": 8, "free": 5},
        "memory_mib": {"total": 8192, "free": 8192 - 2 * (1024 + SESSION_OVERHEAD_MIB)},
        "gpus": [{"model": "A100", "total": 3, "free": 1}, {"model": "T4", "total": 1, "free": 1}],
    }


def test_what_does_not_fit_is_refused_with_numbers_and_when_it_will() -> None:
    full = host(promise(memory_mib=4096, hours=2), promise(hours=5), memory_mib=6000)

    field, text, free_at = shortage(full, memory_mib=3000)

    assert (field, free_at) == ("memory", NOW + 7200)
    assert text.startswith(
        "This host has 432 MiB of memory free; the desktop needs 3.148 GiB. Unless desktops"
    )


def test_several_have_to_end_before_there_is_enough() -> None:
    full = host(promise(hours=1), promise(hours=2), promise(hours=3), memory_mib=3 * 1248)

    assert shortage(full, memory_mib=2000)[2] == NOW + 7200


def test_what_can_never_fit_is_told_so() -> None:
    field, text, free_at = shortage(host(promise()), memory_mib=16384)

    assert (field, free_at) == ("memory", None)
    assert (
        text == "This host has 8 GiB of memory for desktops in all; the desktop needs 16.22 GiB. Choose less."
    )


def test_cpus_count_where_they_are_limited() -> None:
    assert shortage(host(promise(cpus=7)), cpus=2)[:2][0] == "cpus"
    assert (
        Admission(host=host(promise(cpus=7), cpus=None)).find_shortage(Need(cpus=512, memory_mib=1)) is None
    )


@pytest.mark.parametrize(
    ("asked", "sentence", "free_at"),
    [
        (
            Gpus(model="A100", count=2),
            "This host has 1 of 2 GPUs 'A100' free; the desktop needs 2.",
            NOW + 3600,
        ),
        (Gpus(count=2), "This host does not have 2 GPUs of one model free.", NOW + 3600),
        (Gpus(count=3), "This host does not have 3 GPUs of one model free.", None),
        (Gpus(model="H100", count=1), "This host does not have 1 GPUs 'H100' free.", None),
    ],
    ids=["two of a model", "two", "three", "unknown"],
)
def test_gpus_are_counted_by_model(asked: Gpus, sentence: str, free_at: float | None) -> None:
    found = shortage(host(promise(gpus=Gpus(model="A100", count=1)), A100=2, T4=1), gpus=asked)

    assert found[0] == "gpu"
    assert found[1].startswith(sentence)
    assert found[2] == free_at


def test_any_model_is_the_one_with_the_most_free() -> None:
    admission = Admission(host=host(promise(gpus=Gpus(model="A100", count=2)), A100=3, T4=2))

    assert admission.choose_gpus(Need(cpus=1, memory_mib=1, gpus=Gpus(count=1))) == Gpus(model="T4", count=1)


def test_the_memory_of_this_host_is_found(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       16384000 kB\nMemFree: 1 kB\n")

    assert find_memory_mib(tmp_path / "meminfo") == 16000
    assert find_memory_mib() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20


# Through the hub


@pytest.fixture
def gpu_machine(machines_dir: Path, state_dir: Path) -> str:
    hubs.add_machine(machines_dir, state_dir, "gpu", more='\n[gpu]\nneed = "optional"\n')
    return "gpu"


async def capacity(hub: hubs.Hub, person: hubs.Person) -> dict[str, Any]:
    answer = await person.request("GET", hub.url / "api/desktops/capacity")
    assert answer.status == 200, answer.text
    (found,) = json.loads(answer.text)["hosts"]
    return dict(found)


async def test_anybody_who_is_logged_in_sees_what_is_free(quick_hub: Start) -> None:
    hub = await quick_hub(cpu_overcommit=2, memory_reserve="1 GiB")
    alice, bob = [await hub.with_token(name) for name in ("alice", "bob")]
    await hub.start(alice, {"machine": "mini", "cpus": 2, "memory": 256})

    seen = await capacity(hub, bob)
    stranger = await (await hub.person("nobody")).request("GET", hub.url / "api/desktops/capacity")

    cpus, memory = 2 * len(os.sched_getaffinity(0)), find_memory_mib() - 1024
    assert seen == {
        "host": platform.node(),
        "cpus": {"total": cpus, "free": cpus - 2},
        "memory_mib": {"total": memory, "free": memory - 256 - SESSION_OVERHEAD_MIB},
        "gpus": [],
    }
    assert stranger.status == 403


async def test_a_start_that_does_not_fit_makes_nothing(quick_hub: Start) -> None:
    hub = await quick_hub(memory_reserve=find_memory_mib() - 300)
    alice = await hub.log_in("alice")

    answer = await hub.start(alice, {"machine": "mini", "memory": 128})

    assert answer.status == 409
    assert json.loads(answer.text)["message"] == (
        "This host has 300 MiB of memory for desktops in all; the desktop needs 352 MiB. Choose less."
    )
    assert hub.session_folders() == []
    assert hub.spawner("alice").promise is None


async def test_memory_is_promised_once_and_free_again_after_a_stop(quick_hub: Start) -> None:
    hub = await quick_hub(memory_reserve=find_memory_mib() - 500)
    alice, bob = [await hub.log_in(name) for name in ("alice", "bob")]
    await hub.start(alice, {"machine": "mini", "lifetime": "30 min"})

    refused = await hub.start(bob, {"machine": "mini"})
    await hub.stop(alice)
    await hub.wait_until_stopped("alice")
    started = await hub.start(bob, {"machine": "mini"})

    assert "This host has 148 MiB of memory free; the desktop needs 352 MiB." in refused.text
    assert "enough is free in 30 min;" in refused.text
    assert started.status in (201, 202)


async def test_gpus_are_not_offered_where_sessions_pass_none_on(quick_hub: Start, gpu_machine: str) -> None:
    hub = await quick_hub(gpu_units={"A100": 1})
    alice = await hub.log_in("alice")

    answer = await hub.start(alice, {"machine": gpu_machine, "gpu": "A100"})
    form = await hub.get_form(alice)

    assert answer.status == 400
    assert "this hub has no GPUs for desktops" in answer.text
    assert "A100" not in form.text
    assert (await capacity(hub, alice))["gpus"] == []


async def test_a_desktop_that_may_have_any_gpu_is_promised_a_model(
    quick_hub: Start, gpu_machine: str
) -> None:
    hub = await quick_hub(jupyterhub={"spawner_class": GpuSpawner}, gpu_units={"A100": 1, "T4": 2})
    alice = await hub.log_in("alice")

    form = await hub.get_form(alice)
    answer = await hub.start(alice, {"machine": gpu_machine, "gpu": "1"})

    assert answer.status in (201, 202)
    assert hub.spawner("alice").make_spec().gpus == Gpus(model="T4", count=1)
    # What is stored for the next start is what was asked for.
    assert hub.spawner("alice").user_options["gpu"] == "1"
    assert (await capacity(hub, alice))["gpus"] == [
        {"model": "A100", "total": 1, "free": 1},
        {"model": "T4", "total": 2, "free": 1},
    ]
    for choice in ("none", "A100", "T4", "T4:2"):
        assert f"&#34;value&#34;: &#34;{choice}&#34;" in form.text


async def test_an_extension_is_believed(quick_hub: Start) -> None:
    hub = await quick_hub()
    alice = await hub.log_in("alice")
    await hub.start(alice, {"machine": "mini"})
    spawner = hub.spawner("alice")

    # By the clock of a host that is a day ahead.
    tomorrow = time.time() + 86400
    spawner.note_deadline(
        SessionStatus(session_id="x", state="running", now=tomorrow, deadline=tomorrow + 5000)
    )

    assert spawner.promise is not None
    assert spawner.promise.until == pytest.approx(time.time() + 5000, abs=5)
