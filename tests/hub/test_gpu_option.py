"""The option `gpu`, without a hub."""

import msgspec
import pytest

from qemuspawner.hub.form.gpu_option import gpu_field, offered_gpus
from qemuspawner.hub.form.options import Limits, RefusedOptionsError, check_options
from qemuspawner.machine import Gpu, Image, Machine
from qemuspawner.spec import Gpus

PLAIN = Machine(id="debian", name="Debian", image=Image(file="/nowhere/disk.raw", format="raw"))
OPTIONAL = msgspec.structs.replace(PLAIN, gpu=Gpu(need="optional"))
REQUIRED = msgspec.structs.replace(PLAIN, gpu=Gpu(need="required"))
MOST = {"A100": 2, "10de:2204": 1}


@pytest.mark.parametrize(
    ("value", "asked"),
    [
        ("none", None),
        ("", None),
        (0, None),
        ("a100", Gpus(model="A100", count=1)),
        (" A100:2 ", Gpus(model="A100", count=2)),
        ("10de:2204", Gpus(model="10de:2204", count=1)),
        ("10DE:2204:1", Gpus(model="10de:2204", count=1)),
        (2, Gpus(count=2)),
        ("1", Gpus(count=1)),
    ],
)
def test_a_gpu_is_asked_for_by_model_and_number(value: object, asked: Gpus | None) -> None:
    read = gpu_field(OPTIONAL, MOST).read({"gpu": value})

    assert read == asked


@pytest.mark.parametrize("asked", [Gpus(model="A100", count=1), Gpus(model="A100", count=2), Gpus(count=2)])
def test_what_is_stored_reads_back_as_it_was(asked: Gpus) -> None:
    assert gpu_field(OPTIONAL, MOST).read({"gpu": str(asked)}) == asked


@pytest.mark.parametrize(
    "value",
    [
        "H100",
        "A100:3",
        3,
        "10de:2204:2",
        "A100:0",
        "A100:x",
        ":1:",
        "00",
        -1,
        10**6,
        True,
        None,
        [],
        1.0,
        "x" * 10**6,
    ],
)
def test_what_is_not_there_is_refused_with_what_is(value: object) -> None:
    with pytest.raises(
        ValueError, match="a desktop can have at most 1 of '10de:2204' or 2 of 'A100'"
    ) as refusal:
        gpu_field(OPTIONAL, MOST).read({"gpu": value})

    assert len(str(refusal.value)) < 250


@pytest.mark.parametrize(
    ("machine", "most", "sentence"),
    [
        (PLAIN, MOST, "The option 'gpu' is 'A100'; 'Debian' takes no GPU."),
        (OPTIONAL, {}, "The option 'gpu' is 'A100'; this hub has no GPUs for desktops."),
    ],
)
def test_no_gpu_is_promised_that_a_guest_would_not_get(
    machine: Machine, most: dict[str, int], sentence: str
) -> None:
    with pytest.raises(RefusedOptionsError) as refusal:
        check_options(
            {"gpu": "A100"}, machines={"debian": machine}, limits=Limits(gpus=most), startable=False
        )

    assert refusal.value.problems == {"gpu": sentence}


def test_a_machine_that_needs_a_gpu_gets_one_unasked() -> None:
    assert gpu_field(REQUIRED, MOST).read({}) == Gpus(count=1)
    with pytest.raises(ValueError, match="'Debian' needs a GPU"):
        gpu_field(REQUIRED, MOST).read({"gpu": "none"})


def test_a_machine_that_needs_a_gpu_does_not_start_where_there_are_none() -> None:
    with pytest.raises(RefusedOptionsError) as refusal:
        check_options({}, machines={"debian": REQUIRED}, limits=Limits())

    assert refusal.value.problems == {"machine": "'Debian' needs a GPU, and this hub has none for desktops."}


def test_a_form_offers_each_number_of_each_model() -> None:
    assert list(map(str, offered_gpus(OPTIONAL, MOST))) == ["10de:2204", "A100", "A100:2"]
    assert offered_gpus(PLAIN, MOST) == []
