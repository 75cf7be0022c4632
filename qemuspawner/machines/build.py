"""Make a machine's image from Debian packages: mmdebstrap -> mke2fs -> qemu-img.

Needs root, but no loop device and no mount on the host. The finished files take the place of the old ones
in one rename each; a session that runs on the old image keeps it, and so does one that is suspended.
"""

import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from qemuspawner.errors import HostError, MachineError
from qemuspawner.machine import Machine
from qemuspawner.machines import container, dates
from qemuspawner.machines.first_boot import add_first_boot
from qemuspawner.machines.old_images import keep_image
from qemuspawner.machines.recipe import Recipe
from qemuspawner.machines.software import list_software, write_software
from qemuspawner.machines.writing import locked_folder, make_folder
from qemuspawner.qemu.digests import note_digest, read_digest
from qemuspawner.qemu.jail import tie_to_parent
from qemuspawner.units import render_mib

Progress = Callable[[str], None]

MANIFEST = "image.json"
LOG = "build.log"

_WORK_PREFIX = ".build-"
_QUIET_S = 10  # no step stays silent for longer
_TOOLS = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "qemu-img": "qemu-utils"}
# What a tool mounts and starts ends with it, however that ends: remains are deleted, and must lead nowhere.
_APART = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
# sudo and cron may leave the administrator's folders out.
_TOOL_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`image.json`, beside the image it tells of; written last."""

    recipe: str  # digest of everything the image was made from
    built: str  # moment, UTC
    size_bytes: int


ImageState = Literal["current", "stale", "missing"]


def find_image_state(recipe: Recipe, *, images: Path) -> ImageState:
    """Whether the image of this recipe's machine is there and fits it."""
    manifest = load_manifest(images / recipe.machine.id)
    if manifest is None or not all(path.is_file() for path in recipe.outputs):
        return "missing"
    return "current" if manifest.recipe == recipe.digest() else "stale"


def load_manifest(folder: Path) -> Manifest | None:
    """What is known of the built image in `folder`; None where nothing was finished."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError):
        return None


def build_machine(
    recipe: Recipe,
    *,
    images: Path,
    progress: Progress,
    sessions: Path | None = None,
    force: bool = False,
    mirror: str = "",
) -> bool:
    """Make the image, kernel and initrd of a machine in `images/ID/`; False where they were up to date.

    What desktops in the folder `sessions` stand on is kept beside the new files. `mirror` is an apt
    repository to take the packages from, in place of Debian's.

    Raises:
        MachineError: Not root, another build under way, or a step failed, and the old image stays.
        HostError: A tool is missing or the disk is too full.
    """
    machine = recipe.machine
    if not force and find_image_state(recipe, images=images) == "current":
        progress(f"The image of '{machine.id}' is up to date.")
        return False
    _check_host(recipe, images)
    target = images / machine.id
    with _named(machine, target), _lock(target, machine), _work_folder(target) as work:
        log = target / LOG
        log.unlink(missing_ok=True)
        started = time.monotonic()
        run = _Steps(machine=machine, log=log, progress=progress)
        digest = recipe.digest()
        root = _install_packages(recipe, work, run, mirror=mirror)
        _add_containers(recipe, root, work, run)
        if scripts := [layer.first_boot for layer in recipe.layers if layer.first_boot]:
            add_first_boot(root, scripts)
        software = list_software(root, recipe)
        disk = _make_disk(root, recipe, work, run, digest=digest)
        if sessions is not None:
            keep_image(machine, sessions)
        write_software(target, software)
        progress("Reading it once more for its digest")
        _put_in_place(machine, target, disk, digest=digest)
        log.unlink()
        size = render_mib(Path(machine.image.file).stat().st_size >> 20)
        progress(f"'{machine.id}' was built in {time.monotonic() - started:.0f} s: {size}.")
    return True


def _check_host(recipe: Recipe, images: Path) -> None:
    machine, build = recipe.machine, recipe.build
    if os.geteuid() != 0:
        raise MachineError(
            f"Building '{machine.id}' needs root: its files belong to root inside the image.",
            hint=f"Try 'sudo qemuspawner machines build {machine.id}', with the same --state.",
        )
    needed = _TOOLS | (container.TOOLS if recipe.has_container else {})
    for tool, package in needed.items():
        if shutil.which(tool, path=_TOOL_PATH) is None:
            raise HostError(
                f"'{tool}' was not found on this host.", hint=f"Install it: apt install {package}."
            )
    existing = next(folder for folder in (images, *images.parents) if folder.is_dir())
    free_mib = shutil.disk_usage(existing).free >> 20
    if free_mib < build.disk:
        raise HostError(
            f"Building '{machine.id}' takes up to {render_mib(build.disk)}; "
            f"{render_mib(free_mib)} are free at {existing}.",
            hint="Make room, or choose another folder with --state.",
        )


@contextmanager
def _named(machine: Machine, target: Path) -> Iterator[None]:
    """Make the folder of the image; an error of the disk, such as a full one, says whose image it was."""
    try:
        make_folder(target)
        yield
    except OSError as exc:
        raise MachineError(
            f"'{machine.id}' cannot be built in {target}: {exc.strerror}.",
            hint="What was built before is still there. A build needs room, and root's right to write.",
        ) from exc


@contextmanager
def _lock(target: Path, machine: Machine) -> Iterator[None]:
    try:
        with locked_folder(target):
            yield
    except BlockingIOError as exc:
        raise MachineError(
            f"'{machine.id}' is being built already.", hint="Wait for that build to end."
        ) from exc


@contextmanager
def _work_folder(target: Path) -> Iterator[Path]:
    """A folder beside the result, so that a rename puts it in place; remains of a killed build go first."""
    for remains in target.glob(f"{_WORK_PREFIX}*"):
        shutil.rmtree(remains)
    with tempfile.TemporaryDirectory(prefix=_WORK_PREFIX, dir=target) as name:
        work = Path(name)
        # apt gives up root for downloading and must still get to its files.
        work.chmod(0o755)
        yield work


class _Steps:
    """Runs the tools of one build, their output in its log and the essence of it told as progress."""

    def __init__(self, *, machine: Machine, log: Path, progress: Progress) -> None:
        self._machine = machine
        self._log = log
        self._progress = progress
        self._told_at = 0.0

    def tell(self, text: str) -> None:
        self._progress(text)
        self._told_at = time.monotonic()

    def run(self, command: list[str]) -> None:
        """Raises MachineError with the tool's last words and the log's name."""
        env = {**os.environ, "PATH": _TOOL_PATH, "LC_ALL": "C.UTF-8", **dates.ENVIRONMENT}
        last = ""
        with self._log.open("a") as log:
            log.write(f"$ {' '.join(command)}\n")
            process = subprocess.Popen(
                tie_to_parent([*_APART, *command], parent_pid=os.getpid()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                env=env,
                umask=0o022,  # the administrator's own umask must not get into the image
            )
            with process:
                try:
                    for line in process.stdout or ():
                        log.write(line)
                        last = line.strip() or last
                        self._tell_line(line.strip())
                except BaseException:
                    process.kill()
                    # Until the last of them has ended, they write.
                    while process.stdout and process.stdout.read():
                        pass
                    raise
        if process.returncode != 0:
            raise MachineError(
                f"Building '{self._machine.id}' failed in {command[0]}: {last or process.returncode}",
                hint=f"The whole story is in {self._log}.",
            )

    def _tell_line(self, line: str) -> None:
        # "I: /" is a kernel package's word, not mmdebstrap's.
        if line.startswith("I: ") and not line.startswith(("I: running --", "I: /")):
            self.tell(f"{line[3:4].upper()}{line[4:]}")
        elif time.monotonic() - self._told_at > _QUIET_S and line.startswith(
            ("Get:", "Unpacking ", "Setting up ")
        ):
            self.tell(f"  {line}")


def _install_packages(recipe: Recipe, work: Path, run: _Steps, *, mirror: str) -> Path:
    """A folder with the packages installed and the recipe's files and scripts applied."""
    root = work / "root"
    hooks = []
    for number, layer in enumerate(recipe.layers):
        part = work / f"layer-{number}"
        part.mkdir()
        if layer.files:
            hooks.append(f"--essential-hook={_stage_files(layer.files, part)}")
        if layer.script:
            script = part / "customize"
            shutil.copyfile(layer.script, script)
            script.chmod(0o755)
            hooks.append(f"--customize-hook={script}")
    packages, suite = recipe.packages, recipe.build.suite
    run.tell(f"Installing {len(packages)} packages and what they need from Debian {suite}")
    run.run(
        [
            "mmdebstrap",
            "--verbose",
            "--variant=minbase",
            f"--include={','.join(packages)}",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in recipe.exclude),
            "--dpkgopt=force-confold",  # the recipe's own configuration files stay
            '--aptopt=Acquire::Retries "3"',
            *hooks,
            suite,
            str(root),
            *([mirror] if mirror else []),
        ]
    )
    return root


def _add_containers(recipe: Recipe, root: Path, work: Path, run: _Steps) -> None:
    """The uppermost layer's container; one is what a machine runs."""
    layer = next((layer for layer in reversed(recipe.layers) if layer.build.container), None)
    if layer is not None:
        run.tell("Unpacking the container image")
        _, tag = container.split_tag(layer.build.container)
        container.add_container(root, layer.container, tag, work, run.run)


def _stage_files(files: Path, work: Path) -> Path:
    """Copy the recipe's files with the modes they shall have, and return a hook that lays them over the root.

    A wheel keeps no modes: what begins with #! is executable.
    """
    staged = work / "files"
    shutil.copytree(files, staged, copy_function=shutil.copyfile)
    for path in (staged, *staged.rglob("*")):
        executable = path.is_dir() or path.read_bytes().startswith(b"#!")
        path.chmod(0o755 if executable else 0o644)
    hook = work / "lay-files"
    hook.write_text('#!/bin/sh\nexec cp -r --preserve=mode "$(dirname "$0")/files/." "$1/"\n')
    hook.chmod(0o755)
    return hook


def _date_back(root: Path, run: _Steps) -> None:
    dates.date_back(root)
    # What is known of fonts goes by the dates of their folders; else each desktop would look for it anew.
    if (root / "usr/bin/fc-cache").exists():
        run.run(["chroot", str(root), "fc-cache", "--system-only"])
        dates.date_back(root / "var/cache/fontconfig")


def _make_disk(root: Path, recipe: Recipe, work: Path, run: _Steps, *, digest: str) -> Path:
    """The root folder as a file system without partitions, in a qcow2."""
    for path in (root / "boot").iterdir():
        # QEMU is given them; in the image they would only be in the way.
        shutil.move(path, work / path.name)
    _date_back(root, run)
    raw = work / "disk.raw"
    with raw.open("wb") as file:
        file.truncate(recipe.build.disk << 20)
    # The same recipe gives the same identifiers, as it gives the same dates: see `dates`.
    identifier = str(uuid.uuid5(uuid.NAMESPACE_URL, digest))
    run.tell("Writing the file system")
    run.run(
        [
            *("mke2fs", "-q", "-t", "ext4", "-L", "root", "-m", "0"),
            *("-O", "^metadata_csum_seed"),
            *("-U", identifier, "-E", f"hash_seed={identifier},lazy_itable_init=1,root_owner=0:0"),
            *("-d", str(root), str(raw)),
        ]
    )
    disk = work / "disk.qcow2"
    run.tell("Converting it to qcow2")
    run.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(disk)])
    return disk


def _put_in_place(machine: Machine, target: Path, disk: Path, *, digest: str) -> None:
    """Rename the results over the old files; until the new manifest is there, the image counts as missing."""
    work = disk.parent
    finished = {machine.image.file: disk}
    for name, pattern in ((machine.image.kernel, "vmlinuz-*"), (machine.image.initrd, "initrd.img-*")):
        if name:
            found = sorted(work.glob(pattern))
            if len(found) != 1:
                raise MachineError(
                    f"Building '{machine.id}' brought {len(found)} files /boot/{pattern}; one is needed.",
                    hint="Name one kernel package and what makes its initrd in build.packages.",
                )
            finished[name] = found[0]
    manifest = Manifest(
        recipe=digest,
        built=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        size_bytes=disk.stat().st_size,
    )
    written = work / MANIFEST
    written.write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    (target / MANIFEST).unlink(missing_ok=True)
    for name, path in finished.items():
        held = read_digest(path)
        path.chmod(0o444)
        path.replace(name)
        note_digest(Path(name), held)
    written.chmod(0o444)
    written.replace(target / MANIFEST)
