"""The disk of the images fills up in the midst of a step: one line says so, and the old image stays."""

import functools
import hashlib
import os
import random
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import guests
import hubs
import published
import pytest
from recipes import recipe

from qemuspawner.cli import main
from qemuspawner.machines import image_files, take_home
from qemuspawner.machines.edits import set_keys
from qemuspawner.paths import StatePaths

MIB = 1 << 20
# So much is on the way, and cannot be compressed.
NEW_MIB = 8
MACHINE = """
name = "Mini"
[image]
file = "disk.qcow2"
format = "qcow2"
"""
RECIPE = recipe("Tiny", 'disk = "16 MiB"')
# In mmdebstrap's place; the root folder is the last argument.
PACKAGES = """#!/bin/sh -e
for root; do :; done
mkdir -p "$root/boot"
echo kernel > "$root/boot/vmlinuz-6.1"
head -c {bytes} /dev/urandom > "$root/data"
"""

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def state() -> Iterator[StatePaths]:
    """Its images lie on a file system of 64 MiB."""
    with hubs.state_folder() as folder:
        state = StatePaths(root=folder / "state")
        state.images.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", "size=64m,mode=755", "tmpfs", str(state.images)]
        subprocess.run(mount, check=True)
        yield state
        subprocess.run(["umount", "--lazy", str(state.images)], check=True)


@pytest.fixture(autouse=True)
def unforeseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """That there is no room is found out by the kernel alone."""
    for module in (image_files, take_home):
        monkeypatch.setattr(module, "SPARE_BYTES", -(1 << 50))


@pytest.fixture
def run(state: StatePaths, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `qemuspawner machines`; exit code and errors."""

    def machines(*arguments: str) -> tuple[int, str]:
        where = ["--state", str(state.root), "--machines", str(state.root.parent / "machines")]
        with pytest.raises(SystemExit) as caught:
            main([*where, "machines", *arguments])
        assert isinstance(caught.value.code, int)
        return caught.value.code, capsys.readouterr().err

    return machines


def add(state: StatePaths, text: str) -> Path:
    """The machine "mini" with an old image; that."""
    folder = state.root.parent / "machines/mini"
    folder.mkdir(parents=True)
    (folder / "machine.toml").write_text(text)
    image = state.images / "mini/disk.qcow2"
    image.parent.mkdir()
    guests.make_disk(image, "qcow2")
    return image


def make_new(folder: Path, image_format: str) -> Path:
    """A disk of NEW_MIB, all of it in use."""
    raw, made = folder / "new.raw", folder / f"new.{image_format}"
    raw.write_bytes(guests.BOOT_SECTOR + random.Random(8).randbytes(NEW_MIB * MIB - len(guests.BOOT_SECTOR)))
    if image_format != "raw":
        command = ["qemu-img", "convert", "-f", "raw", "-O", image_format, str(raw), str(made)]
        subprocess.run(command, check=True)
    return made


def fill(state: StatePaths, *, but_mib: int) -> None:
    left = shutil.disk_usage(state.images).free - but_mib * MIB
    (state.images / "filler").write_bytes(bytes(left))


def files(state: StatePaths) -> dict[str, bytes]:
    """All that is there, but for what makes it full."""
    return {
        str(path.relative_to(state.images)): path.read_bytes()
        for path in state.images.rglob("*")
        if path.is_file() and path.name != "filler"
    }


def is_one_line(err: str) -> bool:
    """An error with at most a hint."""
    lines = err.splitlines()
    return lines[0].startswith("error: ") and [line[:6] for line in lines[1:]] in ([], ["hint: "])


def test_fetch(state: StatePaths, run: Run, tmp_path: Path) -> None:
    add(state, MACHINE)
    new = make_new(tmp_path, "qcow2")
    digest = f"sha256:{hashlib.sha256(new.read_bytes()).hexdigest()}"

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    before = files(state)
    fill(state, but_mib=NEW_MIB // 2)
    try:
        url = f"http://127.0.0.1:{server.server_port}/{new.name}"
        code, err = run("fetch", "mini", "--url", url, "--digest", digest)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

    assert (code, is_one_line(err)) == (1, True), err
    assert "cannot be written: No space left on device." in err
    assert files(state) == before


@pytest.mark.parametrize("options", [(), ("--move",)])
def test_import(state: StatePaths, run: Run, tmp_path: Path, options: tuple[str, ...]) -> None:
    add(state, MACHINE)
    new = make_new(tmp_path, "qcow2")
    before = files(state)
    fill(state, but_mib=NEW_MIB // 2)

    code, err = run("import", "mini", str(new), *options)

    assert (code, is_one_line(err)) == (1, True), err
    assert "cannot be written: No space left on device." in err
    assert files(state) == before
    assert new.exists()


def test_convert(state: StatePaths, run: Run, tmp_path: Path) -> None:
    """What came fits, what is made of it does not."""
    add(state, MACHINE)
    new = make_new(tmp_path, "vmdk")
    before = files(state)
    fill(state, but_mib=NEW_MIB * 3 // 2)

    code, err = run("import", "mini", str(new), "--convert")

    assert (code, is_one_line(err)) == (1, True), err
    assert "No space left on device" in err
    assert files(state) == before


@pytest.mark.parametrize(
    ("packages_mib", "said"),
    [(24, "'mini' cannot be built in "), (8, "Building 'mini' failed in qemu-img: ")],
    ids=["packages", "image"],
)
def test_build(
    state: StatePaths, run: Run, use_mmdebstrap: Callable[[str], None], packages_mib: int, said: str
) -> None:
    add(state, RECIPE)
    use_mmdebstrap(PACKAGES.format(bytes=packages_mib * MIB))
    (state.images / "mini/vmlinuz").write_bytes(b"old")
    before = files(state)
    fill(state, but_mib=20)

    code, err = run("build", "mini")

    log = state.images / "mini/build.log"
    assert (code, is_one_line(err)) == (1, True), err
    assert said in err
    assert "No space left on device" in err
    log.unlink()
    assert files(state) == before


@pytest.mark.parametrize("free_mib", [0, 1])
def test_publish(state: StatePaths, run: Run, tmp_path: Path, free_mib: int) -> None:
    """The machine's next version; the one before stays, and its machine.toml."""
    world = published.World(state=state, machines=state.root.parent / "machines")
    published.add_base(world, tmp_path)
    published.suspend(world, published.change_disk(world, tmp_path / "changed.raw"))
    assert run("publish", "alice", "pymca", "--for-all") == (0, "")
    disk = tmp_path / "changed.raw"
    with disk.open("r+b") as file:
        file.seek(published.START + 8 * MIB)
        file.write(os.urandom(2 * MIB))
    published.suspend(world, disk)
    before, text = files(state), (state.machines / "pymca/machine.toml").read_text()
    fill(state, but_mib=free_mib + (2 if free_mib else 0))

    code, err = run("publish", "alice", "pymca")

    assert (code, is_one_line(err)) == (1, True), err
    assert "No space left on device" in err
    assert files(state) == before
    assert (state.machines / "pymca/machine.toml").read_text() == text


@pytest.mark.parametrize("command", [("pack-desktop", "alice"), ("pack", "base")])
def test_pack(state: StatePaths, run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    world = published.World(state=state, machines=state.root.parent / "machines")
    published.add_base(world, tmp_path)
    published.suspend(world, published.change_disk(world, tmp_path / "changed.raw"))
    file = world.machines / "base/machine.toml"
    file.write_text(set_keys(file.read_text(), {"download": True}))
    state.downloads.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k,mode=700", "tmpfs", str(state.downloads)]
    subprocess.run(mount, check=True)
    try:
        code, err = run(*command)
        left = [path for path in state.downloads.rglob("*") if path.is_file()]
    finally:
        subprocess.run(["umount", "--lazy", str(state.downloads)], check=True)

    assert (code, is_one_line(err)) == (1, True), err
    assert "No space left on device" in err
    assert str(state.root) not in err
    assert left == []
