"""GPUs passed on for real, in a guest that has an IOMMU, graphics cards behind it, and KVM.

Run by `make test-gpu`, and not with the others: that takes minutes.
"""

import json
import os
import pwd
from pathlib import Path
from typing import Any

import pytest
from outer_guest import run_in_outer_guest

from qemuspawner.paths import EXAMPLE_MACHINES

# All of it is the first one's setup.
pytestmark = pytest.mark.timeout(1200)

GPU, SOUND, OTHER = "0000:01:00.0", "0000:01:00.1", "0000:02:00.0"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All findings of inside.py by their names, from one run."""
    variables = {
        # As root the tests run sessions as this one, made by the setup.
        "ACCOUNT": "qemuspawner" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name,
        "MACHINES": str(EXAMPLE_MACHINES),
        "IMAGES": os.environ["QEMUSPAWNER_TEST_IMAGES"],
    }
    script = Path(__file__).with_name("inside.py")
    output, errors = run_in_outer_guest(tmp_path_factory.mktemp("outer"), script, variables)
    print(output, errors)  # for whoever looks into a failure
    return {name: json.loads(value) for name, value in (line.split(" ", 1) for line in output.splitlines())}


def test_each_missing_setting_is_told(found: dict[str, Any]) -> None:
    """Neither is bound yet; then both are, and the account may open neither."""
    code, unbound = found["unbound"]
    assert code == 1
    assert f"{SOUND} has no driver, not vfio-pci." in unbound

    code, without_rights = found["without_rights"]
    assert code == 1
    assert without_rights.count("This account may not open /dev/vfio/") == 2
    assert "8 MiB of memory may be locked" in without_rights

    code, checked = found["checked"]
    assert (code, checked.count("It can be passed on.")) == (0, 2)


def test_the_inventory_is_what_the_kernel_has(found: dict[str, Any]) -> None:
    card, other = found["gpus"]

    assert (card["address"], card["with"], card["driver"], card["bar_mib"]) == (GPU, [SOUND], "vfio-pci", 16)
    assert (other["address"], other["with"]) == (OTHER, [])
    assert card["iommu_group"] != other["iommu_group"]
    assert found["units"] == [GPU, OTHER]


def test_the_probe_finds_kvm(found: dict[str, Any]) -> None:
    assert found["kvm"] is True


def test_a_desktop_boots_with_the_card_and_its_sound_and_has_drivers_for_both(found: dict[str, Any]) -> None:
    cold = found["cold"]

    assert (cold["way"], cold["ready"]) == ("cold", True)
    check_drivers(cold["devices"])


def test_both_are_plugged_into_a_restored_desktop_whose_drivers_take_them(found: dict[str, Any]) -> None:
    assert found["warm"][0] == 0
    plugged = found["plugged"]

    assert (plugged["way"], plugged["ready"]) == ("restored", True)
    check_drivers(plugged["devices"])


def check_drivers(devices: list[str]) -> None:
    """The guest's drivers have taken the card and its sound, beside the guest's own."""
    cards = [line.split() for line in devices if "0x1234 0x1111" in line]
    sounds = [line.split() for line in devices if "0x8086 0x2668" in line]
    assert [words[3:] for words in cards] == [["bochs-drm"]]
    assert [words[3:] for words in sounds] == [["snd_hda_intel"]] * 2
    assert "card1" in devices


def test_a_card_is_one_desktops_and_is_given_back(found: dict[str, Any]) -> None:
    for desktop in ("cold", "plugged"):
        assert (found[desktop]["free"], found[f"{desktop}_released"]) == ([False, True], [True, True])
        assert "this host has none free" in found[desktop]["second"]
