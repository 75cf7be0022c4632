"""Building an image: the real one, made once by `make test`, and what happens when a build fails."""

import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from recipes import recipe

from qemuspawner.errors import HostError, MachineError
from qemuspawner.machine import Machine
from qemuspawner.machines import build, dates
from qemuspawner.machines.build import build_machine, find_image_state, load_manifest
from qemuspawner.machines.catalogue import load_catalogue, load_machine, missing_files
from qemuspawner.machines.recipe import Recipe, find_recipe
from qemuspawner.machines.software import Program, list_software, load_software, write_software
from qemuspawner.paths import EXAMPLE_MACHINES

RECIPE = recipe(
    "Tiny", 'script = "customize.sh"', 'first_boot = "first.sh"', 'files = "files"', 'disk = "16 MiB"'
)

# Leaves behind what mmdebstrap would, in no time; the root folder is the last argument.
FAKE_MMDEBSTRAP = """#!/bin/sh
echo "I: downloading packages with apt..." >&2
for root; do :; done
mkdir -p "$root/boot"
echo kernel > "$root/boot/vmlinuz-6.1"
"""

# What is there after a build.
WHOLE = ["digests.json", "disk.qcow2", "image.json", "software.json", "vmlinuz"]

HOLD_LOCK = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print(flush=True)
input()
"""


@pytest.fixture
def demo_images() -> Path:
    """Where `make test` has built the demo machine."""
    return Path(os.environ["QEMUSPAWNER_TEST_IMAGES"])


@pytest.fixture
def demo(demo_images: Path) -> Machine:
    return load_machine(EXAMPLE_MACHINES / "debian-desktop", demo_images)


@pytest.fixture
def machine(write_machine: Callable[..., Path], images: Path) -> Machine:
    folder = write_machine(RECIPE, name="tiny")
    (folder / "customize.sh").write_text("#!/bin/sh\n")
    (folder / "first.sh").write_text("#!/bin/sh\necho lower\n")
    (folder / "files/etc").mkdir(parents=True)
    (folder / "files/etc/hostname").write_text("tiny\n")
    return load_machine(folder, images)


def silent(_text: str) -> None:
    pass


def content_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_demo_machine_is_built_and_current(demo: Machine, demo_images: Path) -> None:
    assert missing_files(demo) == []
    assert find_image_state(find_recipe(demo, {}), images=demo_images) == "current"


def test_the_manifest_tells_the_recipe_and_the_size(demo: Machine, demo_images: Path) -> None:
    manifest = load_manifest(demo_images / demo.id)

    assert manifest is not None
    assert manifest.recipe == find_recipe(demo, {}).digest()
    assert manifest.size_bytes == Path(demo.image.file).stat().st_size


def test_the_demo_image_stays_below_900_mib(demo: Machine) -> None:
    assert Path(demo.image.file).stat().st_size < 900 << 20


def test_images_are_read_by_everybody_and_written_by_nobody(demo: Machine) -> None:
    """The sessions' account is another one than the administrator's."""
    modes = {stat.S_IMODE(Path(path).stat().st_mode) for path in (demo.image.file, demo.image.kernel)}

    assert modes == {0o444}


def test_an_image_that_is_up_to_date_is_not_built_again(
    machine: Machine, images: Path, use_mmdebstrap: Callable[[str], None]
) -> None:
    use_mmdebstrap(FAKE_MMDEBSTRAP)
    build_machine(find_recipe(machine, {}), images=images, progress=silent)
    told: list[str] = []

    assert build_machine(find_recipe(machine, {}), images=images, progress=told.append) is False
    assert told == ["The image of 'tiny' is up to date."]


def test_a_build_leaves_image_kernel_and_manifest_alone(
    machine: Machine, images: Path, use_mmdebstrap: Callable[[str], None]
) -> None:
    use_mmdebstrap(FAKE_MMDEBSTRAP)

    assert build_machine(find_recipe(machine, {}), images=images, progress=silent) is True
    assert content_of(images / "tiny") == [
        "digests.json",
        "disk.qcow2",
        "image.json",
        "software.json",
        "vmlinuz",
    ]


def test_a_build_says_how_far_it_is(
    machine: Machine, images: Path, use_mmdebstrap: Callable[[str], None]
) -> None:
    use_mmdebstrap(FAKE_MMDEBSTRAP)
    told: list[str] = []

    build_machine(find_recipe(machine, {}), images=images, progress=told.append)

    assert told[:4] == [
        "Installing 1 packages and what they need from Debian bookworm",
        "Downloading packages with apt...",
        "Writing the file system",
        "Converting it to qcow2",
    ]


@pytest.mark.parametrize(
    "changed", ["machine.toml", "customize.sh", "first.sh", "files/etc/hostname", "files/etc/new"]
)
def test_a_changed_recipe_makes_the_image_stale(
    changed: str, machine: Machine, images: Path, use_mmdebstrap: Callable[[str], None]
) -> None:
    use_mmdebstrap(FAKE_MMDEBSTRAP)
    build_machine(find_recipe(machine, {}), images=images, progress=silent)
    path = Path(machine.folder) / changed
    before = path.read_text() if path.exists() else ""

    path.write_text(before.replace("bookworm", "trixie") + "# changed\n")

    changed_machine = load_machine(path.parents[changed.count("/")], images)
    assert find_image_state(find_recipe(changed_machine, {}), images=images) == "stale"


def test_a_changed_description_leaves_the_image_current(
    machine: Machine, images: Path, use_mmdebstrap: Callable[[str], None]
) -> None:
    use_mmdebstrap(FAKE_MMDEBSTRAP)
    build_machine(find_recipe(machine, {}), images=images, progress=silent)
    path = Path(machine.folder) / "machine.toml"

    path.write_text(path.read_text().replace("Tiny", "Very tiny"))

    assert find_image_state(find_recipe(load_machine(path.parent, images), {}), images=images) == "current"


def test_a_session_keeps_the_image_it_has_open(
    machine: Machine, images: Path, use_mmdebstrap: Callable[[str], None]
) -> None:
    use_mmdebstrap(FAKE_MMDEBSTRAP)
    build_machine(find_recipe(machine, {}), images=images, progress=silent)
    with Path(machine.image.kernel).open() as in_use:
        build_machine(find_recipe(machine, {}), images=images, progress=silent, force=True)

        assert in_use.read() == "kernel\n"
        assert os.fstat(in_use.fileno()).st_ino != Path(machine.image.kernel).stat().st_ino


def test_a_failed_build_leaves_its_log_and_names_it(
    machine: Machine, images: Path, use_mmdebstrap: Callable[[str], None]
) -> None:
    use_mmdebstrap('#!/bin/sh\nfor root; do :; done; mkdir "$root"; echo "E: no such package" >&2; exit 1\n')

    with pytest.raises(MachineError, match="failed in mmdebstrap: E: no such package") as caught:
        build_machine(find_recipe(machine, {}), images=images, progress=silent)

    assert content_of(images / "tiny") == ["build.log"]
    assert str(images / "tiny/build.log") in caught.value.hint


def test_a_failed_build_leaves_the_old_image(
    machine: Machine, images: Path, use_mmdebstrap: Callable[[str], None], tmp_path: Path
) -> None:
    use_mmdebstrap(FAKE_MMDEBSTRAP)
    build_machine(find_recipe(machine, {}), images=images, progress=silent)
    (tmp_path / "bin/mmdebstrap").write_text("#!/bin/sh\nexit 1\n")

    with pytest.raises(MachineError):
        build_machine(find_recipe(machine, {}), images=images, progress=silent, force=True)

    assert find_image_state(find_recipe(machine, {}), images=images) == "current"


def test_an_interrupted_build_leaves_nothing(
    machine: Machine, images: Path, use_mmdebstrap: Callable[[str], None]
) -> None:
    """The tool is asked to end and waited for; then its half-done work goes."""
    use_mmdebstrap('#!/bin/sh\nfor root; do :; done; mkdir "$root"; echo "I: started"; exec sleep 60\n')

    def interrupt(text: str) -> None:
        if text == "Started":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_machine(find_recipe(machine, {}), images=images, progress=interrupt)

    assert content_of(images / "tiny") == ["build.log"]


def test_what_an_interrupted_build_had_mounted_is_away_before_its_folder_is_deleted(
    machine: Machine, images: Path, use_mmdebstrap: Callable[[str], None], tmp_path: Path
) -> None:
    """Else what lies behind would be deleted with it, and it could never be."""
    behind = tmp_path / "behind"
    behind.mkdir()
    (behind / "file").touch()
    use_mmdebstrap(
        FAKE_MMDEBSTRAP + f'mount --bind {behind} "$root/boot"\necho "I: started"\nexec sleep 1234.5\n'
    )

    def interrupt(text: str) -> None:
        if text == "Started":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_machine(find_recipe(machine, {}), images=images, progress=interrupt)

    assert content_of(images / "tiny") == ["build.log"]
    assert content_of(behind) == ["file"]
    assert str(images) not in Path("/proc/mounts").read_text()
    assert subprocess.run(["pgrep", "-f", "^sleep 1234.5$"]).returncode == 1


def test_remains_of_a_killed_build_go_with_the_next(
    machine: Machine, images: Path, use_mmdebstrap: Callable[[str], None]
) -> None:
    use_mmdebstrap(FAKE_MMDEBSTRAP)
    (images / "tiny/.build-killed/root").mkdir(parents=True)

    build_machine(find_recipe(machine, {}), images=images, progress=silent)

    assert content_of(images / "tiny") == [
        "digests.json",
        "disk.qcow2",
        "image.json",
        "software.json",
        "vmlinuz",
    ]


def test_two_builds_of_one_machine_are_one_too_many(
    machine: Machine, images: Path, use_mmdebstrap: Callable[[str], None]
) -> None:
    use_mmdebstrap(FAKE_MMDEBSTRAP)
    (images / "tiny").mkdir(parents=True)
    command = [sys.executable, "-c", HOLD_LOCK, str(images / "tiny")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()

        with pytest.raises(MachineError, match="'tiny' is being built already"):
            build_machine(find_recipe(machine, {}), images=images, progress=silent)

        other.kill()


def test_a_recipe_without_a_kernel_is_refused(
    machine: Machine, images: Path, use_mmdebstrap: Callable[[str], None]
) -> None:
    use_mmdebstrap(FAKE_MMDEBSTRAP.replace("vmlinuz-6.1", "README"))

    with pytest.raises(MachineError, match=r"brought 0 files /boot/vmlinuz-\*"):
        build_machine(find_recipe(machine, {}), images=images, progress=silent)


def test_building_needs_root(machine: Machine, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(MachineError) as caught:
        build_machine(find_recipe(machine, {}), images=images, progress=silent)

    assert "sudo qemuspawner machines build tiny" in caught.value.hint


def test_a_missing_tool_is_named_with_its_package(
    machine: Machine, images: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(build, "_TOOL_PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    with pytest.raises(HostError, match="'mmdebstrap' was not found"):
        build_machine(find_recipe(machine, {}), images=images, progress=silent)


def test_a_full_disk_is_said_before_anything_is_done(
    machine: Machine, images: Path, use_mmdebstrap: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_mmdebstrap(FAKE_MMDEBSTRAP)
    monkeypatch.setattr(build.shutil, "disk_usage", lambda _path: _Full())

    with pytest.raises(HostError, match="takes up to 16 MiB; 3 MiB are free"):
        build_machine(find_recipe(machine, {}), images=images, progress=silent)

    assert not images.exists()


class _Full:
    free = 3 << 20


def test_a_machine_without_a_recipe_cannot_be_built(write_machine: Callable[..., Path], images: Path) -> None:
    machine = load_machine(write_machine(), images)

    with pytest.raises(MachineError, match=r"'mini' has no \[build\] table"):
        build_machine(find_recipe(machine, {}), images=images, progress=silent)


# What two builds from the same packages have in common

DATING_MMDEBSTRAP = """#!/bin/sh
for root; do :; done
mkdir -p "$root/boot" "$root/etc/old"
echo kernel > "$root/boot/vmlinuz-6.1"
echo "$SOURCE_DATE_EPOCH" > "$root/etc/told"
ln -s nowhere "$root/etc/link"
ln -s old "$root/etc/folder"
touch -d @1000000000 "$root/etc/old"
"""


def test_no_date_in_an_image_tells_when_it_was_built(
    machine: Machine, images: Path, use_mmdebstrap: Callable[[str], None], tmp_path: Path
) -> None:
    """But the moment of a change of an inode, where mke2fs has no other."""
    use_mmdebstrap(DATING_MMDEBSTRAP)

    build_machine(find_recipe(machine, {}), images=images, progress=silent)

    raw = as_raw(machine, tmp_path)
    paths = ["/", "/lost+found", "/boot", "/etc", "/etc/told", "/etc/link", "/etc/folder", "/etc/old"]
    found = {path: inode_dates(raw, path) for path in paths}
    assert found.pop("/etc/old") == {"atime": 1000000000, "mtime": 1000000000, "crtime": dates.LATEST_S}
    assert {date for inode in found.values() for date in inode.values()} == {dates.LATEST_S}
    said = re.findall(
        r"^(?:Filesystem created|Last write time|Last checked): +(.*)$", ask_debugfs(raw, "stats"), re.M
    )
    assert said == ["Sat Aug  9 00:00:00 2025"] * 3
    assert ask_debugfs(raw, "cat /etc/told") == f"{dates.LATEST_S}\n"


def test_what_is_known_of_fonts_is_found_anew_when_their_folders_have_their_dates(
    machine: Machine, images: Path, use_mmdebstrap: Callable[[str], None], tmp_path: Path
) -> None:
    """It goes by these, and is worth nothing with others."""
    use_mmdebstrap(
        DATING_MMDEBSTRAP
        + 'mkdir -p "$root/usr/bin" "$root/var/cache/fontconfig"\ntouch "$root/usr/bin/fc-cache"\n'
    )
    chroot = tmp_path / "bin/chroot"
    chroot.write_text('#!/bin/sh\n(echo "$2 $3"; stat -c %Y "$1/etc") > "$1/var/cache/fontconfig/known"\n')
    chroot.chmod(0o755)

    build_machine(find_recipe(machine, {}), images=images, progress=silent)

    raw, known = as_raw(machine, tmp_path), "/var/cache/fontconfig/known"
    assert ask_debugfs(raw, f"cat {known}") == f"fc-cache --system-only\n{dates.LATEST_S}\n"
    assert set(inode_dates(raw, known).values()) == {dates.LATEST_S}


def as_raw(machine: Machine, folder: Path) -> Path:
    raw = folder / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", machine.image.file, raw], check=True)
    return raw


def ask_debugfs(raw: Path, question: str) -> str:
    command = ["/usr/sbin/debugfs", "-R", question, str(raw)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={"TZ": "UTC"}).stdout


def inode_dates(raw: Path, path: str) -> dict[str, int]:
    """In seconds; without ctime, which Debian 12's mke2fs takes from the host's file system."""
    found = re.findall(r"^ ?(atime|mtime|crtime): 0x([0-9a-f]{8})", ask_debugfs(raw, f"stat {path}"), re.M)
    return {name: int(date, 16) for name, date in found}


# A build that goes on from another machine's

DERIVED = """
name = "Derived"
firmware = "direct"
[image]
file = "disk.qcow2"
format = "qcow2"
kernel = "vmlinuz"
[build]
suite = "bookworm"
base = "BASE"
script = "customize.sh"
files = "files"
disk = "16 MiB"
packages = ["silx"]
"""

# Does what the hooks say, and notes what it was asked for.
HOOKED_MMDEBSTRAP = """#!/bin/sh
for root; do :; done
mkdir -p "$root/boot"
echo kernel > "$root/boot/vmlinuz-6.1"
printf '%s\\n' "$@" > "$root/asked"
for word; do
    case $word in --essential-hook=*|--customize-hook=*) "${word#*=}" "$root" ;; esac
done
cp -r "$root" "$KEEP"
"""


@pytest.fixture
def derived(machine: Machine, write_machine: Callable[..., Path], images: Path) -> Recipe:
    (Path(machine.folder) / "customize.sh").write_text('#!/bin/sh\necho lower >> "$1/scripts"\n')
    (Path(machine.folder) / "files/etc/motd").write_text("tiny\n")
    folder = write_machine(DERIVED.replace("BASE", "tiny"), name="derived")
    (folder / "customize.sh").write_text('#!/bin/sh\necho upper >> "$1/scripts"\n')
    (folder / "files/etc").mkdir(parents=True)
    (folder / "files/etc/hostname").write_text("derived\n")
    return find_recipe(load_machine(folder, images), {"tiny": machine})


def test_a_build_goes_on_from_its_base(
    derived: Recipe,
    images: Path,
    use_mmdebstrap: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_mmdebstrap(HOOKED_MMDEBSTRAP)
    monkeypatch.setenv("KEEP", str(tmp_path / "kept"))

    build_machine(derived, images=images, progress=silent)

    kept = tmp_path / "kept"
    assert "--include=linux-image-amd64,silx" in (kept / "asked").read_text()
    assert (kept / "etc/motd").read_text() == "tiny\n"
    assert (kept / "etc/hostname").read_text() == "derived\n"
    assert (kept / "scripts").read_text() == "lower\nupper\n"


def test_a_changed_base_makes_the_image_stale(
    derived: Recipe, images: Path, use_mmdebstrap: Callable[[str], None]
) -> None:
    use_mmdebstrap(FAKE_MMDEBSTRAP)
    build_machine(derived, images=images, progress=silent)
    assert find_image_state(derived, images=images) == "current"

    (derived.layers[0].folder / "files/etc/motd").write_text("changed\n")

    assert find_image_state(derived, images=images) == "stale"


def test_the_image_runs_scripts_at_its_first_boot_its_bases_first(
    machine: Machine,
    write_machine: Callable[..., Path],
    images: Path,
    use_mmdebstrap: Callable[[str], None],
    tmp_path: Path,
) -> None:
    use_mmdebstrap(FAKE_MMDEBSTRAP)
    text = DERIVED.replace("BASE", machine.id).replace('script = "customize.sh"', 'first_boot = "own.sh"')
    folder = write_machine(text.replace('files = "files"', ""), name="derived")
    (folder / "own.sh").write_text("#!/bin/sh\necho upper\n")
    upper = load_machine(folder, images)

    build_machine(find_recipe(upper, {machine.id: machine}), images=images, progress=silent)

    raw, units = as_raw(upper, tmp_path), "/etc/systemd/system"
    unit = ask_debugfs(raw, f"cat {units}/qemuspawner-first-boot.service")
    runs = re.findall("^ExecStart=(.*)$", unit, re.M)
    assert [ask_debugfs(raw, f"cat {path}").splitlines()[-1] for path in runs] == ["echo lower", "echo upper"]
    assert all("Mode:  0755" in ask_debugfs(raw, f"stat {path}") for path in runs)
    link = ask_debugfs(raw, f"stat {units}/multi-user.target.wants/qemuspawner-first-boot.service")
    assert f'dest: "{units}/qemuspawner-first-boot.service"' in link


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "'first.sh' is not a file beside machine.toml"),
        ("echo hi\n", "'first.sh' is a script for the guest and must begin with #!"),
    ],
)
def test_a_script_that_no_image_could_run_is_a_problem_of_the_machine(
    content: str, reason: str, machine: Machine, images: Path
) -> None:
    script = Path(machine.folder) / "first.sh"
    script.unlink()
    if content:
        script.write_text(content)

    (problem,) = load_catalogue([script.parents[1]], images).problems

    assert (problem.key, problem.reason) == ("build.first_boot", reason)


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        ("nobody", "there is no machine 'nobody', which 'derived' names as build.base"),
        ("derived", "build.base of 'derived' goes round in a circle: derived -> derived"),
        ("plain", "'plain' has no [build] table, and 'derived' names it as build.base"),
    ],
)
def test_a_base_that_cannot_be_built_on_is_a_problem_of_the_machine(
    base: str, reason: str, write_machine: Callable[..., Path], images: Path
) -> None:
    folder = write_machine(
        DERIVED.replace("BASE", base).replace('script = "customize.sh"', ""), name="derived"
    )
    (folder / "files").mkdir()
    write_machine('name = "Plain"\n[image]\nfile = "x"\nformat = "raw"\n', name="plain")

    catalogue = load_catalogue([folder.parent], images)

    assert list(catalogue.machines) == ["plain"]
    assert [problem.reason for problem in catalogue.problems] == [reason]
    assert catalogue.problems[0].key == "build.base"


def test_bases_that_go_round_in_a_circle_are_a_problem_of_each_and_of_who_builds_on_them(
    write_machine: Callable[..., Path], images: Path
) -> None:
    text = DERIVED.replace('script = "customize.sh"\nfiles = "files"\n', "")
    for name, base in (("ape", "bear"), ("bear", "ape"), ("cat", "ape")):
        folder = write_machine(text.replace("BASE", base), name=name)

    catalogue = load_catalogue([folder.parent], images)

    assert not catalogue.machines
    assert {problem.machine_id: problem.reason.rpartition(": ")[2] for problem in catalogue.problems} == {
        "ape": "ape -> bear -> ape",
        "bear": "bear -> ape -> bear",
        "cat": "ape -> bear -> ape",
    }


# What is in a built image

STATUS = """\
Package: silx
Status: install ok installed
Version: 1.1.0+dfsg-5
Section: science
Architecture: all
Maintainer: x <x@example.org>
Description: Toolbox for X-Ray data analysis

Package: libhidden
Status: install ok installed
Version: 1
Section: libs
Architecture: all
Maintainer: x <x@example.org>
Description: Nobody looks for it

Package: linux-image-amd64
Status: install ok installed
Version: 6.1
Section: kernel
Architecture: all
Maintainer: x <x@example.org>
Description: Linux
"""

ENTRY = """[Desktop Entry]
Type=Application
Name=silx view
Comment=View data files
Exec=silx view %F
"""


def test_the_software_is_what_the_package_database_says(derived: Recipe, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "var/lib/dpkg/info").mkdir(parents=True)
    (root / "var/lib/dpkg/status").write_text(STATUS)
    (root / "var/lib/dpkg/info/silx.list").write_text("/usr/share/applications/silx-view.desktop\n")
    applications = root / "usr/share/applications"
    applications.mkdir(parents=True)
    (applications / "silx-view.desktop").write_text(ENTRY)
    (applications / "hidden.desktop").write_text(ENTRY + "NoDisplay=true\n")
    (applications / "broken.desktop").write_bytes(b"\xff\xfe[")

    found = list_software(root, derived)

    assert found == [
        Program(name="silx view", version="1.1.0+dfsg-5", summary="View data files", package="silx")
    ]
    write_software(tmp_path, found)
    assert load_software(tmp_path) == tuple(found)


def test_the_demo_image_tells_its_software(demo_images: Path) -> None:
    names = {program.name: program for program in load_software(demo_images / "debian-desktop")}

    assert names["Mousepad"].package == "mousepad"
    assert names["Mousepad"].version.startswith("0.")
    assert "linux-image-amd64" not in names
