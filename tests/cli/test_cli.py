"""The command `qemuspawner` as an administrator meets it: what it prints, where, and its exit code."""

import json
import os
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
import warming

from qemuspawner import __version__
from qemuspawner.cli import main
from qemuspawner.machines.catalogue import load_machine
from qemuspawner.paths import StatePaths
from qemuspawner.qemu import network, walls
from qemuspawner.qemu.host import find_qemu
from qemuspawner.qemu.network import check_network
from qemuspawner.qemu.saving import fingerprint
from qemuspawner.qemu.walls import ALWAYS, JAIL

MACHINE = 'name = "Rocky 9"\nversion = "9.4"\n[image]\nfile = "disk.raw"\nformat = "raw"\n'


class Command:
    """Runs `qemuspawner` with a catalogue of our own."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.state = root / "state"
        self.machines = root / "machines"
        self.machines.mkdir()
        self._capsys = capsys
        self.out = self.err = ""

    def add(self, name: str, text: str = MACHINE, *, image: bool = False) -> None:
        (self.machines / name).mkdir()
        (self.machines / name / "machine.toml").write_text(text)
        if image:
            folder = self.state / "images" / name
            folder.mkdir(parents=True)
            (folder / "disk.raw").touch()

    def run(self, *arguments: str) -> int:
        with pytest.raises(SystemExit) as caught:
            main(["--state", str(self.state), "--machines", str(self.machines), *arguments])
        captured = self._capsys.readouterr()
        self.out, self.err = captured.out, captured.err
        assert isinstance(caught.value.code, int)
        return caught.value.code


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, capsys)


def test_list_shows_each_machine_and_its_image(command: Command) -> None:
    command.add("rocky", image=True)
    command.add("alma", MACHINE.replace("Rocky", "Alma"))

    assert command.run("machines", "list") == 0
    assert command.out.splitlines() == [
        "ID     NAME     IMAGE    CPUS     MEMORY",
        "alma   Alma 9   missing  1, 2, 4  1 GiB, 2 GiB, 4 GiB",
        "rocky  Rocky 9  present  1, 2, 4  1 GiB, 2 GiB, 4 GiB",
    ]


def test_list_for_programs_is_json(command: Command) -> None:
    command.add("rocky", image=True)

    command.run("machines", "list", "--json")

    assert json.loads(command.out) == [
        {
            "id": "rocky",
            "name": "Rocky 9",
            "version": "9.4",
            "hidden": False,
            "image": "present",
            "cpus": [1, 2, 4],
            "memory_mib": [1024, 2048, 4096],
            "gpu": "none",
            "folder": str(command.machines / "rocky"),
        }
    ]


def test_list_names_a_broken_machine_and_shows_the_others(command: Command) -> None:
    command.add("rocky")
    command.add("broken", "name = 3")

    assert command.run("machines", "list") == 0
    assert "rocky" in command.out
    assert "broken/machine.toml, key 'name': 3 does not fit: expected 'str', got 'int'." in command.err


def test_show_tells_everything_about_a_machine(command: Command) -> None:
    command.add("rocky")

    assert command.run("machines", "show", "rocky") == 0
    assert f"image        {command.state}/images/rocky/disk.raw (raw, missing)" in command.out
    assert "lifetime     1 h, 8 h (default), 1 d" in command.out


def test_show_of_a_broken_machine_says_what_is_wrong(command: Command) -> None:
    command.add("broken", "name = 3")

    assert command.run("machines", "show", "broken") == 1
    assert command.err.startswith(f"error: {command.machines}/broken/machine.toml, key 'name'")
    assert command.err.endswith("hint: docs/machines.md describes every key of machine.toml.\n")


def test_an_unknown_machine_is_answered_with_the_known_ones(command: Command) -> None:
    command.add("rocky")

    assert command.run("machines", "show", "windows") == 1
    assert command.err.splitlines() == [
        "error: There is no machine 'windows'; known: rocky.",
        "hint: Another folder is given with --machines.",
    ]


def test_check_prints_all_problems_and_fails(command: Command) -> None:
    command.add("rocky")
    command.add("broken", "name = 3\ncpus = 4")

    assert command.run("machines", "check") == 1
    assert command.out.splitlines() == [
        f"{command.machines}/broken/machine.toml, key 'name': 3 does not fit: expected 'str', got 'int'.",
        f"{command.machines}/broken/machine.toml, key 'image': it is missing.",
        f"{command.machines}/broken/machine.toml, key 'cpus': it must be a table, such as [cpus].",
        f"rocky: the file {command.state}/images/rocky/disk.raw is missing.",
    ]


def test_check_of_a_sound_catalogue_says_so(command: Command) -> None:
    command.add("rocky", image=True)

    assert command.run("machines", "check") == 0
    assert command.out == "1 machines, no problems.\n"


def test_check_finds_machines_that_users_could_not_tell_apart(command: Command) -> None:
    """Of what they are offered, by name and version together."""
    command.add("alma", MACHINE.replace("9.4", "9.5"), image=True)
    command.add("first", image=True)
    command.add("hidden", f"hidden = true\n{MACHINE}", image=True)
    command.add("second", MACHINE.replace("Rocky", "rocky"), image=True)

    assert command.run("machines", "check") == 1
    assert command.out == "second: it has the name and version of 'first'.\n"


def test_check_finds_an_image_that_is_not_the_one_named(command: Command) -> None:
    command.add("rocky", f'{MACHINE}digest = "sha256:{"0" * 64}"', image=True)

    assert command.run("machines", "check") == 1
    assert command.out == (
        f"rocky: the digest of {command.state}/images/rocky/disk.raw is not that of machine.toml.\n"
    )


def test_check_notes_what_images_hold_and_finds_what_has_changed(command: Command) -> None:
    """Bits that have turned on the disk leave its date alone."""
    command.add("rocky", image=True)
    disk = command.state / "images/rocky/disk.raw"
    disk.write_bytes(b"image")
    digest = f"sha256:{sha256(b'image').hexdigest()}"

    assert command.run("machines", "check", "--digests") == 0
    assert command.out.splitlines()[-2:] == [
        f"rocky: disk.raw {digest}",
        "1 machines, no problems.",
    ]

    status = disk.stat()
    disk.write_bytes(b"imago")
    os.utime(disk, ns=(status.st_atime_ns, status.st_mtime_ns))

    assert command.run("machines", "check", "--digests") == 1
    assert command.out.splitlines()[-1].startswith(f"rocky: disk.raw has changed: it had the digest {digest}")


def test_check_takes_an_image_whose_digest_is_right(command: Command) -> None:
    command.add("rocky", f'{MACHINE}digest = "sha256:{sha256().hexdigest()}"', image=True)

    assert command.run("machines", "check") == 0


def test_build_of_a_machine_without_recipe_is_refused(command: Command) -> None:
    command.add("rocky")

    assert command.run("machines", "build", "rocky") == 1
    assert command.err.splitlines()[0] == "error: 'rocky' has no [build] table."


def test_the_first_of_several_folders_wins(command: Command, tmp_path: Path) -> None:
    command.add("rocky")
    other = tmp_path / "other/rocky"
    other.mkdir(parents=True)
    (other / "machine.toml").write_text(MACHINE.replace("Rocky", "Other"))

    command.run("--machines", str(other.parent), "machines", "list")

    assert "Rocky 9" in command.out
    assert "hidden by the machine of the same name" in command.err


def test_the_state_folder_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QEMUSPAWNER_STATE", str(tmp_path))

    with pytest.raises(SystemExit):
        main(["machines", "show", "debian-desktop"])

    assert f"{tmp_path}/images/debian-desktop/disk.qcow2" in capsys.readouterr().out


def test_doctor_tries_out_this_host(command: Command) -> None:
    command.add("rocky", image=True)

    assert command.run("doctor") == 0
    for word in ("QEMU ", "KVM ", "jail ", "Folders of the host ", "memory ", "'rocky' can be started."):
        assert word in command.out


def test_doctor_says_which_networks_guests_can_have(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "find_name_servers", lambda: ("192.0.2.53",))
    check_network.cache_clear()
    assert command.run("doctor") == 0
    assert "ok       Guests can have the networks 'none', 'allow' and 'internet'." in command.out

    which = shutil.which
    monkeypatch.setattr(network.shutil, "which", lambda name: None if name == "pasta" else which(name))
    check_network.cache_clear()
    assert command.run("doctor") == 0
    assert "warning  Guests can have the network 'none' only:" in command.out
    assert "needs the packages passt" in command.out


def test_doctor_names_every_wall_that_stands(command: Command) -> None:
    command.run("doctor")

    told = [line.split("'")[1] for line in command.out.splitlines() if line.startswith("ok       The wall")]
    assert told == [*ALWAYS, *JAIL]


def test_doctor_fails_where_a_wall_does_not_stand(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walls, "SANDBOX", "off")

    assert command.run("doctor") == 1
    assert "error    The wall 'seccomp' does not stand" in command.out


def test_doctor_fails_where_the_host_lacks_something(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert command.run("doctor") == 1
    assert "error    qemu-system-x86_64 was not found on this host." in command.out


DESKTOP = f"agent = true\n{MACHINE}"


def add_template(command: Command, name: str, *, cpus: int = 1) -> str:
    """Put a template there, as if it had been made; its name."""
    machine = load_machine(command.machines / name, command.state / "images")
    fits = fingerprint(machine, cpus=cpus, memory_mib=2048, accelerator="tcg", qemu=find_qemu())
    state = StatePaths(root=command.state)
    state.templates.mkdir(exist_ok=True)
    return warming.put_template(state, machine, fits).root.name


def change_image(command: Command, name: str) -> None:
    os.utime(command.state / "images" / name / "disk.raw", (1, 1))


def test_templates_are_listed_with_what_they_are_and_whether_they_fit(command: Command) -> None:
    command.add("rocky", DESKTOP, image=True)
    command.add("alma", DESKTOP, image=True)
    alma, rocky = add_template(command, "alma"), add_template(command, "rocky", cpus=2)
    change_image(command, "rocky")

    assert command.run("templates", "list") == 0
    head, *lines = (line.split(maxsplit=2) for line in command.out.splitlines())
    assert head[:2] == ["NAME", "MACHINE"]
    assert [line[:2] for line in lines] == [[alma, "alma"], [rocky, "rocky"]]
    assert lines[0][2].split()[:4] == ["1", "2", "GiB", "tcg"]
    assert lines[0][2].endswith(" yes")
    assert lines[1][2].endswith(" the machine's image has changed")


def test_templates_are_listed_for_programs_too(command: Command) -> None:
    command.add("rocky", DESKTOP, image=True)
    name = add_template(command, "rocky")
    shutil.rmtree(command.machines / "rocky")

    assert command.run("templates", "list", "--json") == 0
    (row,) = json.loads(command.out)
    assert (row["name"], row["machine"], row["cpus"], row["memory_mib"]) == (name, "rocky", 1, 2048)
    assert (row["fits"], row["misfits"]) == (False, ["its machine is gone"])
    assert row["size_bytes"] > 0


def test_a_host_without_templates_has_an_empty_list(command: Command) -> None:
    assert command.run("templates", "list", "--json") == 0
    assert command.out == "[]\n"


def test_a_template_is_removed_by_its_name(command: Command) -> None:
    command.add("rocky", DESKTOP, image=True)
    names = [add_template(command, "rocky", cpus=cpus) for cpus in (1, 2)]

    assert command.run("templates", "remove", names[0]) == 0
    assert command.out == f"Deleted {names[0]}.\n"
    assert [path.name for path in (command.state / "templates").iterdir()] == [names[1]]


def test_stale_templates_are_removed_and_the_others_stay(command: Command) -> None:
    command.add("rocky", DESKTOP, image=True)
    command.add("alma", DESKTOP, image=True)
    kept, stale = add_template(command, "alma"), add_template(command, "rocky")
    change_image(command, "rocky")

    assert command.run("templates", "remove", "--stale") == 0
    assert command.out == f"Deleted {stale}.\n"
    assert [path.name for path in (command.state / "templates").iterdir()] == [kept]


def test_all_templates_are_removed(command: Command) -> None:
    command.add("rocky", DESKTOP, image=True)
    for cpus in (1, 2):
        add_template(command, "rocky", cpus=cpus)

    assert command.run("templates", "remove", "--all") == 0
    assert list((command.state / "templates").iterdir()) == []


def test_only_a_template_is_removed(command: Command) -> None:
    (command.state / "images").mkdir(parents=True)

    assert command.run("templates", "remove", "../images") == 1
    assert command.err.startswith("error: There is no template '../images'.\n")
    assert (command.state / "images").is_dir()


def test_a_size_that_is_not_offered_is_refused_with_those_that_are(command: Command) -> None:
    command.add("rocky", DESKTOP, image=True)

    assert command.run("warm", "rocky", "--cpus", "3") == 1
    assert command.err == "error: 'rocky' is not offered with 3 CPUs, but with 1, 2, 4.\n"
    assert command.run("warm", "rocky", "--memory", "3 GiB") == 1
    assert command.err == (
        "error: 'rocky' is not offered with 3 GiB of memory, but with 1 GiB, 2 GiB, 4 GiB.\n"
    )


def test_a_machine_without_an_image_cannot_be_warmed(command: Command) -> None:
    command.add("rocky", DESKTOP)

    assert command.run("warm", "rocky") == 1
    assert command.err.startswith("error: The image of 'rocky' is missing: ")


def test_a_machine_that_can_have_no_template_says_why(command: Command) -> None:
    command.add("rocky", image=True)

    assert command.run("warm", "rocky") == 1
    assert command.err == (
        "error: No template can be made of 'rocky'. "
        "'Rocky 9' has no guest agent, which has to make each copy its user's own.\n"
    )


def test_without_a_machine_those_that_cannot_be_warmed_are_left_out(command: Command) -> None:
    command.add("rocky", image=True)
    command.add("alma", DESKTOP)

    assert command.run("warm") == 0
    assert sorted(command.out.splitlines()) == [
        "'alma' is left out: its image is missing.",
        "'rocky' is left out. 'Rocky 9' has no guest agent, which has to make each copy its user's own.",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--cpus", "2"),
        ("rocky", "--memory", "much"),
        ("rocky", "--all-sizes", "--cpus", "2"),
        ("rocky", "--accelerator", "xen"),
    ],
)
def test_sizes_that_make_no_sense_are_wrong_usage(arguments: tuple[str, ...], command: Command) -> None:
    command.add("rocky", DESKTOP, image=True)

    assert command.run("warm", *arguments) == 2


def test_doctor_counts_the_templates_that_fit(command: Command) -> None:
    command.add("rocky", DESKTOP, image=True)
    for cpus in (1, 2):
        add_template(command, "rocky", cpus=cpus)

    command.run("doctor")
    assert "ok       2 of 2 templates fit." in command.out
    change_image(command, "rocky")
    command.run("doctor")
    assert "warning  0 of 2 templates fit." in command.out


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])

    assert capsys.readouterr().out == f"{__version__}\n"


def test_no_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])

    assert caught.value.code == 2
