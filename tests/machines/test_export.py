"""A machine that is taken elsewhere is whole there, and nothing is left of one that could not be."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import guests
import pytest

from qemuspawner.errors import MachineError, QemuSpawnerError
from qemuspawner.machine import Machine
from qemuspawner.machines import image_files
from qemuspawner.machines.catalogue import load_machine
from qemuspawner.machines.export import export_machine
from qemuspawner.qemu.image import check_image, recognise_format

TEXT = '# Ours.\nname = "Alma"\nicon = "icon.svg"\n[image]\nfile = "disk.qcow2"\nformat = "qcow2"\n'


@pytest.fixture
def machine(tmp_path: Path, write_machine: Callable[..., Path]) -> Machine:
    folder = write_machine(TEXT, name="alma")
    (folder / "icon.svg").write_text("<svg/>")
    (folder / ".history").mkdir()
    images = tmp_path / "images" / "alma"
    images.mkdir(parents=True)
    guests.make_disk(images / "disk.qcow2", "qcow2")
    return load_machine(folder, tmp_path / "images")


def test_an_exported_machine_is_one_of_another_host(machine: Machine, tmp_path: Path) -> None:
    out = tmp_path / "out"

    export_machine(machine, out, image_format=None, progress=lambda _: None)

    assert sorted(path.name for path in out.iterdir()) == ["SHA256SUMS", "icon.svg", "images", "machine.toml"]
    assert "# Ours." in (out / "machine.toml").read_text()
    assert (out / "images/disk.qcow2").read_bytes() == Path(machine.image.file).read_bytes()
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=out, check=True)


@pytest.mark.parametrize("image_format", ["raw", "vmdk", "vdi", "vhd", "vhdx"])
def test_its_image_may_be_in_the_format_of_another_program(
    image_format: str, machine: Machine, tmp_path: Path, write_machine: Callable[..., Path]
) -> None:
    out = tmp_path / "out"

    export_machine(machine, out, image_format=image_format, progress=lambda _: None)  # type: ignore[arg-type]

    (out / "machine.toml").rename(write_machine(name="there") / "machine.toml")
    (tmp_path / "machines/there/icon.svg").write_text("<svg/>")
    (out / "images").rename(tmp_path / "images/there")
    there = load_machine(tmp_path / "machines/there", tmp_path / "images")
    assert (there.image.format, recognise_format(Path(there.image.file))) == (image_format, image_format)
    check_image(there.image)


@pytest.mark.parametrize("trouble", ["missing", "exists", "no room"])
def test_what_cannot_be_exported_leaves_nothing(
    trouble: str, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    match trouble:
        case "missing":
            Path(machine.image.file).unlink()
        case "exists":
            out.mkdir()
        case "no room":
            monkeypatch.setattr(image_files, "SPARE_BYTES", 1 << 60)
    before = sorted(tmp_path.iterdir())

    with pytest.raises((MachineError, QemuSpawnerError), match=r"is missing|is there already|are free"):
        export_machine(machine, out, image_format=None, progress=lambda _: None)

    assert sorted(tmp_path.iterdir()) == before
