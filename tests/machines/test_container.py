"""A container image becomes a part of a machine; by the real skopeo and umoci."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import oci
import pytest
from recipes import recipe

from qemuspawner.errors import MachineError
from qemuspawner.machines.build import build_machine, find_image_state
from qemuspawner.machines.catalogue import load_catalogue, load_machine
from qemuspawner.machines.recipe import Recipe, find_recipe

RECIPE = recipe("Web", 'container = "image:web"', 'disk = "64 MiB"')
SERVE = ("/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/www")

# Leaves what mmdebstrap would, and what came of it can be looked at afterwards.
FAKE_MMDEBSTRAP = """#!/bin/sh
for root; do :; done
mkdir -p "$root/boot" "$root/etc/systemd/system"
echo kernel > "$root/boot/vmlinuz-6.1"
echo "$@" > "$root/asked"
"""


@pytest.fixture
def folder(write_machine: Callable[..., Path]) -> Path:
    return write_machine(RECIPE, name="web")


@pytest.fixture
def recipe(folder: Path, images: Path) -> Recipe:
    oci.make_image(folder / "image", *SERVE)
    return find_recipe(load_machine(folder, images), {})


@pytest.fixture
def build(
    images: Path, use_mmdebstrap: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Recipe], Path]:
    """Build, and return a copy of the root folder from before it became a disk."""
    use_mmdebstrap(FAKE_MMDEBSTRAP)
    mke2fs = tmp_path / "bin/mke2fs"
    mke2fs.write_text(
        f'#!/bin/sh\nfor a; do [ "$before" = -d ] && cp -a "$a" {tmp_path}/root; before=$a; done\n'
        'exec /usr/sbin/mke2fs "$@"\n'
    )
    mke2fs.chmod(0o755)

    def run(recipe: Recipe) -> Path:
        build_machine(recipe, images=images, progress=lambda _text: None)
        return tmp_path / "root"

    return run


def test_the_machine_has_the_container_and_runs_it(recipe: Recipe, build: Callable[[Recipe], Path]) -> None:
    root = build(recipe)

    bundle = root / "srv/container"
    config: dict[str, Any] = json.loads((bundle / "config.json").read_text())
    assert (bundle / "rootfs/www/index.html").read_text() == oci.PAGE
    assert config["process"]["args"] == list(SERVE)
    assert config["process"]["terminal"] is False
    assert "DISPLAY=:0" in config["process"]["env"]
    # Its ports are the machine's, and so is its screen.
    assert {space["type"] for space in config["linux"]["namespaces"]} == {"pid", "mount"}
    assert {"/tmp/.X11-unix", "/run/desktop"} <= {mount["destination"] for mount in config["mounts"]}
    unit = root / "etc/systemd/system/multi-user.target.wants/container.service"
    assert unit.is_symlink()
    assert "crun" in (root / "asked").read_text()


def test_an_archive_is_taken_too(folder: Path, images: Path, build: Callable[[Recipe], Path]) -> None:
    oci.make_image(folder / "layout", *SERVE)
    subprocess.run(
        ["skopeo", "copy", "-q", f"oci:{folder}/layout:web", f"oci-archive:{folder}/image:web"], check=True
    )

    root = build(find_recipe(load_machine(folder, images), {}))

    assert (root / "srv/container/rootfs/www/index.html").read_text() == oci.PAGE


def test_a_changed_container_makes_the_image_stale(
    recipe: Recipe, images: Path, build: Callable[[Recipe], Path]
) -> None:
    build(recipe)
    assert find_image_state(recipe, images=images) == "current"

    (recipe.layers[0].folder / "image/index.json").write_text("{}")

    assert find_image_state(recipe, images=images) == "stale"


def test_a_container_for_other_processors_is_refused_and_leaves_nothing(
    folder: Path, images: Path, build: Callable[[Recipe], Path]
) -> None:
    oci.make_image(folder / "image", *SERVE, architecture="arm64")

    with pytest.raises(MachineError, match="is for arm64"):
        build(find_recipe(load_machine(folder, images), {}))

    assert sorted(path.name for path in (images / "web").iterdir()) == ["build.log"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("docker://docker.io/library/nginx:latest", "does not say which image it is"),
        ("../image", "is not beside machine.toml"),
        ("/etc", "is not beside machine.toml"),
        ("nothing", "is neither a folder in the OCI layout nor an archive"),
        ("image:a b", "is no tag"),
    ],
)
def test_a_container_that_is_none_is_a_problem_of_the_machine(
    text: str, reason: str, write_machine: Callable[..., Path], images: Path
) -> None:
    folder = write_machine(RECIPE.replace("image:web", text), name="web")

    (problem,) = load_catalogue([folder.parent], images).problems

    assert problem.key == "build.container"
    assert reason in problem.reason
