"""Machine.toml files: what is taken, what is refused, and with which words."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qemuspawner.errors import MachineError
from qemuspawner.machine import Machine
from qemuspawner.machines.catalogue import icon_uri, load_catalogue, load_machine, missing_files
from qemuspawner.paths import EXAMPLE_MACHINES

WriteMachine = Callable[..., Path]

NAME = 'name = "M"\n'
IMAGE = '[image]\nfile = "disk.qcow2"\nformat = "qcow2"\n'
DIRECT = 'name = "M"\nfirmware = "direct"\n[image]\nfile = "d"\nkernel = "k"\nformat = "qcow2"\n'
BUILD = DIRECT + '[build]\nsuite = "s"\npackages = ["p"]\n'
ARM = NAME + 'architecture = "aarch64"\n'
ARM_UEFI = f'{ARM}firmware = "uefi"\ndisplay = "virtio"\n{IMAGE}'
SVG = '<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def problems_of(folder: Path, images: Path) -> list[tuple[str, str]]:
    """Key and reason of each problem of the one machine in `folder`."""
    catalogue = load_catalogue([folder.parent], images)
    return [(problem.key, problem.reason) for problem in catalogue.problems]


def test_the_machines_that_come_with_us_have_no_problems(images: Path) -> None:
    catalogue = load_catalogue([EXAMPLE_MACHINES], images)

    assert catalogue.problems == ()
    assert "debian-desktop" in catalogue.machines


def test_windows_takes_the_disc_of_drivers_that_its_comment_names(
    write_machine: WriteMachine, images: Path
) -> None:
    text = (EXAMPLE_MACHINES / "windows-11/machine.toml").read_text().replace('icon = "icon.svg"\n', "")

    machine = load_machine(write_machine(text.replace("# drivers =", "drivers ="), name="windows"), images)

    assert images / "windows/virtio-win.iso" in missing_files(machine)


def test_a_machine_needs_only_a_name_and_an_image(write_machine: WriteMachine, images: Path) -> None:
    machine = load_machine(write_machine(), images)

    assert (machine.id, machine.name, machine.cpus.default) == ("mini", "Minimal", 1)


def test_an_arm_machine_has_its_one_board(write_machine: WriteMachine, images: Path) -> None:
    machine = load_machine(write_machine(ARM_UEFI), images)

    assert (machine.architecture, machine.machine_type) == ("aarch64", "virt")


def test_machines_are_listed_by_name(write_machine: WriteMachine, images: Path) -> None:
    for name, title in (("a", "zebra"), ("b", "Apple"), ("c", "mango")):
        folder = write_machine(f'name = "{title}"\n{IMAGE}', name=name)

    assert list(load_catalogue([folder.parent], images).machines) == ["b", "c", "a"]


def test_image_files_lie_in_the_image_folder_of_the_machine(
    write_machine: WriteMachine, images: Path
) -> None:
    machine = load_machine(write_machine(DIRECT), images)

    assert (machine.image.file, machine.image.kernel) == (str(images / "mini/d"), str(images / "mini/k"))


def test_an_administrator_may_give_an_absolute_path(write_machine: WriteMachine, images: Path) -> None:
    text = 'name = "M"\n[image]\nfile = "/srv/windows.vmdk"\nformat = "vmdk"\n'

    assert load_machine(write_machine(text), images).image.file == "/srv/windows.vmdk"


def test_sizes_and_durations_are_written_as_people_say_them(
    write_machine: WriteMachine, images: Path
) -> None:
    text = NAME + 'memory = { offered = [512, "2 GiB"] }\nlifetime = { idle = "30 min" }\n' + IMAGE

    machine = load_machine(write_machine(text), images)

    assert (machine.memory.offered, machine.lifetime.idle) == ((512, 2048), 1800)


def test_a_default_is_offered_too_and_offers_are_sorted(write_machine: WriteMachine, images: Path) -> None:
    text = f"{NAME}{IMAGE}[cpus]\ndefault = 3\noffered = [8, 1, 8]\n"

    assert load_machine(write_machine(text), images).cpus.offered == (1, 3, 8)


def test_a_changed_file_shows_at_the_next_load(write_machine: WriteMachine, images: Path) -> None:
    folder = write_machine()
    load_catalogue([folder.parent], images)

    (folder / "machine.toml").write_text(f'name = "Other"\n{IMAGE}')

    assert load_catalogue([folder.parent], images).machines["mini"].name == "Other"


def test_a_broken_machine_hides_no_other(write_machine: WriteMachine, images: Path) -> None:
    write_machine(name="good")
    folder = write_machine("name = ", name="bad")

    catalogue = load_catalogue([folder.parent], images)

    assert list(catalogue.machines) == ["good"]
    assert [problem.machine_id for problem in catalogue.problems] == ["bad"]


def test_a_syntax_error_is_reported_with_its_line(write_machine: WriteMachine, images: Path) -> None:
    folder = write_machine('name = "M"\n\nfirmware = bios\n')

    with pytest.raises(MachineError, match=r"mini/machine\.toml: .*line 3"):
        load_machine(folder, images)


def test_every_wrong_key_is_reported_at_once(write_machine: WriteMachine, images: Path) -> None:
    text = """
        nmae = "M"
        colour = 1
        hidden = "no"
        image = { file = 3, format = "floppy" }
        cpus = { offered = [1, "two"] }
    """

    keys = [key for key, _ in problems_of(write_machine(text), images)]

    assert keys == ["nmae", "colour", "name", "hidden", "image.file", "image.format", "cpus.offered[1]"]


@pytest.mark.parametrize(
    ("text", "key", "reason"),
    [
        (f'{NAME}firmwear = "bios"\n{IMAGE}', "firmwear", "there is no such key; is 'firmware' meant?"),
        (f'{NAME}{IMAGE}[memory]\ndefault = "lots"\n', "memory.default", "'lots' does not fit: it is not of"),
        (f'{NAME}{IMAGE}[memory]\ndefault = "8 MiB"\n', "memory.offered", "8 MiB are less than 16 MiB"),
        (f'{NAME}{IMAGE}[memory]\ndefault = -1\n', "memory.default", "it is negative"),
        (f'{NAME}{IMAGE}[cpus]\ndefault = 0\n', "cpus.default", ">= 1"),
        (f'{NAME}{IMAGE}[cpus]\ndefault = true\n', "cpus.default", "expected 'int', got 'bool'"),
        (f'{NAME}{IMAGE}[lifetime]\nmax = "2 h"\n', "lifetime.default", "8 h are more than lifetime.max"),
        (f'{NAME}{IMAGE}[lifetime]\noffered = ["9 d"]\n', "lifetime.offered", "9 d are more than"),
        (f'{NAME}{IMAGE}[lifetime]\ndefault = 0\n', "lifetime.offered", "0 s are less than 1 min"),
        (f'{NAME}{IMAGE}[lifetime]\nidle = 5\n', "lifetime.idle", "5 s are less than 1 min; 0 means"),
        (f'{NAME}home = "/home/user"\n{IMAGE}', "home", "set agent = true, or leave it out"),
        (f'{NAME}{IMAGE}[ports]\n"Web Server" = 80\n', "ports.Web Server", "a port's name must be"),
        (f'{NAME}{IMAGE}[ports]\nweb = 70000\n', "ports[...]", "<= 65535"),
        (f'{NAME}{IMAGE}[gpu]\nneed = "maybe"\n', "gpu.need", "'maybe' is not one of none, optional"),
        (ARM_UEFI.replace("[image]", 'machine_type = "q35"\n[image]'), "machine_type", "of aarch64: virt is"),
        (f'{NAME}machine_type = "virt"\n{IMAGE}', "machine_type", '"virt" is no board of x86_64: "q35" or'),
        (ARM_UEFI.replace('"uefi"', '"bios"'), "firmware", "aarch64 has no BIOS"),
        (f'{ARM}firmware = "uefi"\ndisplay = "std"\n{IMAGE}', "display", "it is one of virtio, bochs"),
        (f'{NAME}secure_boot = true\n{IMAGE}', "secure_boot", 'it needs firmware = "uefi" and'),
        (f'{NAME}tpm = true\nmachine_type = "pc"\n{IMAGE}', "tpm", 'it needs machine_type = "q35"'),
        (NAME + IMAGE + 'drivers = "../x.iso"\n', "image.drivers", "leads out of the machine's image folder"),
        (ARM_UEFI + 'bus = "sata"\n', "image.bus", '"sata" is of PCs'),
        (ARM_UEFI + '[memory]\noffered = ["64 MiB"]\n', "memory.offered", "it needs 128 MiB"),
        (f'name = "a\\nb"\n{IMAGE}', "name", "cannot be shown"),
        (f'{NAME}cpus = 4\n{IMAGE}', "cpus", "it must be a table, such as [cpus]"),
        ('name = "M"\n', "image", "it is missing"),
        ('name = "M"\n[image]\nfile = "../x"\nformat = "raw"\n', "image.file", "leads out of"),
        ('name = "M"\nfirmware = "direct"\n' + IMAGE, "image.kernel", "it is missing"),
        (NAME + IMAGE + 'cmdline = "quiet"\n', "image.cmdline", 'it needs firmware = "direct"'),
        (NAME + IMAGE + 'digest = "md5:1"\n', "image.digest", "does not fit"),
        (BUILD.replace('"p"', ""), "build.packages", "it is empty"),
        (BUILD + 'script = "no.sh"\n', "build.script", "is not a file beside"),
        (BUILD + 'files = "/etc"\n', "build.files", "is not a folder beside"),
        (f'{NAME}{IMAGE}[build]\nsuite = "s"\npackages = ["p"]\n', "build", "has no boot loader"),
    ],
)  # fmt: skip
def test_a_problem_names_key_and_reason(
    text: str, key: str, reason: str, write_machine: WriteMachine, images: Path
) -> None:
    problems = problems_of(write_machine(text), images)

    assert [found for found, _ in problems] == [key]
    assert reason in problems[0][1]


def test_a_problem_reads_as_one_sentence(write_machine: WriteMachine, images: Path) -> None:
    folder = write_machine(f'{NAME}firmware = "efi"\n{IMAGE}')

    (problem,) = load_catalogue([folder.parent], images).problems

    assert str(problem) == (f"{folder}/machine.toml, key 'firmware': 'efi' is not one of bios, uefi, direct.")


@pytest.mark.parametrize("name", ["Upper", "1st", "a_b", "a" * 41, "ä"])
def test_a_folder_whose_name_is_no_id_is_reported(
    name: str, write_machine: WriteMachine, images: Path
) -> None:
    assert "must be 1 to 40 of a-z" in problems_of(write_machine(name=name), images)[0][1]


def test_of_two_machines_with_one_id_the_first_is_taken(write_machine: WriteMachine, images: Path) -> None:
    first = write_machine(catalogue="first").parent
    second = write_machine(f'name = "Second"\n{IMAGE}', catalogue="second").parent

    catalogue = load_catalogue([first, second], images)

    assert catalogue.machines["mini"].name == "Minimal"
    assert "hidden by the machine of the same name" in str(catalogue.problems[0])


def test_a_missing_catalogue_folder_is_reported(tmp_path: Path, images: Path) -> None:
    catalogue = load_catalogue([tmp_path / "nowhere"], images)

    assert str(catalogue.problems[0]) == f"{tmp_path}/nowhere: it cannot be read: No such file or directory."


def test_a_pipe_in_place_of_a_file_does_not_hang_the_hub(write_machine: WriteMachine, images: Path) -> None:
    folder = write_machine()
    (folder / "machine.toml").unlink()
    os.mkfifo(folder / "machine.toml")

    assert problems_of(folder, images) == [("", "'machine.toml' is not a regular file")]


def test_a_huge_file_is_not_read(write_machine: WriteMachine, images: Path) -> None:
    folder = write_machine("#" * 300_000)

    assert problems_of(folder, images) == [("", "'machine.toml' is larger than 256 KiB")]


def test_bytes_that_are_no_text_are_a_problem_of_that_file(write_machine: WriteMachine, images: Path) -> None:
    folder = write_machine()
    (folder / "machine.toml").write_bytes(b"name = '\xff'")

    assert len(problems_of(folder, images)) == 1


def test_missing_image_files_are_found(write_machine: WriteMachine, images: Path) -> None:
    machine = load_machine(write_machine(DIRECT), images)
    (images / "mini").mkdir(parents=True)
    (images / "mini/d").touch()

    assert missing_files(machine) == [images / "mini/k"]


@pytest.fixture
def close_to_us(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Close a folder, also to root."""

    def close(folder: Path) -> None:
        def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
            def checked(path: Any, *args: Any, **kwargs: Any) -> Any:
                if not isinstance(path, int) and folder in Path(path).parents:
                    raise PermissionError(13, "Permission denied", str(path))
                return call(path, *args, **kwargs)

            return checked

        for name in ("stat", "lstat", "open"):
            monkeypatch.setattr(os, name, guarded(getattr(os, name)))

    return close


def test_a_machine_that_is_closed_to_the_hub_hides_no_other(
    write_machine: WriteMachine, images: Path, close_to_us: Callable[[Path], None]
) -> None:
    write_machine(name="good")
    folder = write_machine(name="bad")
    close_to_us(folder)

    catalogue = load_catalogue([folder.parent], images)

    assert list(catalogue.machines) == ["good"]
    assert list(map(str, catalogue.problems)) == [
        f"{folder}/machine.toml: it cannot be read: Permission denied."
    ]


def test_an_image_folder_that_is_closed_to_the_hub_counts_as_missing(
    write_machine: WriteMachine, images: Path, close_to_us: Callable[[Path], None]
) -> None:
    machine = load_machine(write_machine(), images)
    close_to_us(images / "mini")

    assert missing_files(machine) == [images / "mini/disk.qcow2"]


@pytest.mark.parametrize(
    ("text", "key", "reason"),
    [
        (BUILD + r'script = "a\u0000b"', "build.script", "is not a file beside machine.toml"),
        (BUILD + f'script = "{"a" * 5000}"', "build.script", "is not a file beside machine.toml"),
        (BUILD + r'files = "a\u0000b"', "build.files", "is not a folder beside machine.toml"),
        (f"a = {'[' * 50_000}", "", "its values lie too deep in one another"),
        (f'icon = "circle.svg"\n{NAME}{IMAGE}', "icon", "is not the name of an SVG or PNG file"),
        (f'icon = "{"a" * 5000}.svg"\n{NAME}{IMAGE}', "icon", "it cannot be read: File name too long"),
    ],
    ids=["NUL", "long", "NUL in a folder", "deep", "circle", "long icon"],
)
def test_a_machine_that_cannot_be_examined_hides_no_other(
    text: str, key: str, reason: str, write_machine: WriteMachine, images: Path
) -> None:
    write_machine(name="good")
    folder = write_machine(text, name="bad")
    (folder / "circle.svg").symlink_to("circle.svg")

    catalogue = load_catalogue([folder.parent], images)

    assert list(catalogue.machines) == ["good"]
    assert [problem.key for problem in catalogue.problems] == [key]
    assert reason in catalogue.problems[0].reason


def test_a_folder_whose_name_is_no_text_can_be_shown(write_machine: WriteMachine, images: Path) -> None:
    """A page with surrogates cannot be encoded: one such folder broke an administrator's form."""
    folder = write_machine(name=os.fsdecode(b"\xff"))

    (problem,) = load_catalogue([folder.parent], images).problems

    assert str(problem).encode()


def test_a_file_that_is_missing_and_comes_back_is_noticed_though_the_text_stays(
    write_machine: WriteMachine, images: Path
) -> None:
    folder = with_icon(write_machine, "icon.svg")
    icon = folder / "icon.svg"
    found = []

    for change in (lambda: icon.write_text(SVG), icon.unlink, lambda: icon.write_text("no"), icon.unlink):
        change()
        found.append([key for key, _ in problems_of(folder, images)])
    icon.write_text(SVG)

    assert found == [[], ["icon"], ["icon"], ["icon"]]
    assert problems_of(folder, images) == []


def test_an_icon_that_became_a_circle_is_no_error(write_machine: WriteMachine, images: Path) -> None:
    folder = with_icon(write_machine, "icon.svg")
    (folder / "icon.svg").write_text(SVG)
    machine = load_machine(folder, images)
    (folder / "icon.svg").unlink()
    (folder / "icon.svg").symlink_to("icon.svg")

    assert icon_uri(machine) == ""


def with_icon(write_machine: WriteMachine, icon: str) -> Path:
    return write_machine(f'name = "M"\nicon = "{icon}"\n{IMAGE}')


def test_an_icon_comes_as_a_data_uri(write_machine: WriteMachine, images: Path) -> None:
    """Inside an <img> a hostile icon's script does not run."""
    folder = with_icon(write_machine, "icon.svg")
    (folder / "icon.svg").write_text(SVG)

    uri = icon_uri(load_machine(folder, images))

    assert uri.startswith("data:image/svg+xml;base64,")
    assert not set(uri) & set("<>\"'")


def test_an_icon_that_went_away_is_no_error(write_machine: WriteMachine, images: Path) -> None:
    machine = Machine(**{"name": "M", "icon": "icon.svg", "folder": "/nonexistent", "image": None})

    assert icon_uri(machine) == ""


@pytest.mark.parametrize(
    "icon", ["../secret.svg", "/etc/passwd", "icon.png", "link.svg", "pipe.svg", "gone.svg"]
)
def test_an_icon_is_an_svg_or_png_of_the_machine_itself(
    icon: str, write_machine: WriteMachine, images: Path
) -> None:
    folder = with_icon(write_machine, icon)
    (folder.parent / "secret.svg").write_text(SVG)
    (folder / "icon.png").write_text(SVG)
    (folder / "link.svg").symlink_to("../secret.svg")
    os.mkfifo(folder / "pipe.svg")

    assert [key for key, _ in problems_of(folder, images)] == ["icon"]


def test_a_large_icon_is_refused(write_machine: WriteMachine, images: Path) -> None:
    folder = with_icon(write_machine, "icon.svg")
    (folder / "icon.svg").write_text(SVG + " " * 70_000)

    assert problems_of(folder, images) == [("icon", "'icon.svg' is larger than 64 KiB")]


def test_software_is_a_name_or_a_table(write_machine: WriteMachine, images: Path) -> None:
    text = f'{NAME}software = ["Fiji", {{ name = "ParaView 5.11", gpu = true }}]\n{IMAGE}'

    machine = load_machine(write_machine(text), images)

    assert [(program.name, program.gpu) for program in machine.programs] == [
        ("Fiji", False),
        ("ParaView 5.11", True),
    ]


def test_presets_that_cannot_be_started_are_refused(write_machine: WriteMachine, images: Path) -> None:
    presets = (
        '[[presets]]\nname = "A"\ncpus = 3\nmemory = "3 GiB"\nlifetime = "3 d"\n'
        '[[presets]]\nname = "A"\nlifetime = "1 s"\n'
        '[[presets]]\nname = "a\\nb"\n'
    )
    folder = write_machine(f'{NAME}software = ["a\\u0007"]\n{IMAGE}{presets}')

    assert problems_of(folder, images) == [
        ("software[0]", "it has characters that cannot be shown, such as a line break"),
        ("presets[0].cpus", "3 is not among cpus.offered"),
        ("presets[0].memory", "3 GiB is not among memory.offered"),
        ("presets[0].lifetime", "3 d is not within 1 min to 2 d"),
        ("presets[1].name", "'A' is the name of another preset, too"),
        ("presets[1].lifetime", "1 s is not within 1 min to 2 d"),
        ("presets[2].name", "it has characters that cannot be shown, such as a line break"),
    ]
