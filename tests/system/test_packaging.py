"""What is handed out: the sdist and its wheel, in an environment where nothing else of ours is."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

import guests
import hubs
import pytest
import vms
from packaging.requirements import Requirement
from sessions import Session

from qemuspawner.machine import Image, Machine, Seconds
from qemuspawner.paths import StatePaths

PROJECT = Path(__file__).parent.parent.parent
PACKAGE = PROJECT / "qemuspawner"


def build(project: Path, target: str, folder: Path, *, path: str) -> Path:
    """Build `project` with the programs of `path`, and return what was made."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)],
        cwd=project,
        env={"PATH": path, "PYTHONPATH": os.pathsep.join(sys.path[1:])},
        check=True,
    )
    (made,) = folder.glob("*.tar.gz" if target == "sdist" else "*.whl")
    return made


def depends_on(installed: Distribution) -> list[Distribution]:
    """What it names as its dependencies, extras apart, as that is installed for the tests."""
    requirements = [Requirement(text) for text in installed.requires or ()]
    return [
        distribution(one.name)
        for one in requirements
        if one.marker is None or one.marker.evaluate({"extra": ""})
    ]


def list_needed(installed: Distribution) -> list[Distribution]:
    """All that it depends on, and what these depend on."""
    found: dict[str, Distribution] = {}
    left = [installed]
    while left:
        for one in depends_on(left.pop()):
            if one.name not in found:
                found[one.name] = one
                left.append(one)
    return list(found.values())


def find_ours(environment: Path) -> Distribution:
    (site,) = environment.glob("lib/python3*/site-packages")
    (ours,) = distributions(name="qemuspawner", path=[str(site)])
    return ours


@pytest.fixture(scope="module")
def environment() -> Iterator[Path]:
    """A virtual environment with the wheel, made from the sdist without npm, and with what it depends on."""
    with hubs.state_folder() as folder:
        sdist = build(PROJECT, "sdist", folder / "sdist", path=os.environ["PATH"])
        subprocess.run(["tar", "-C", str(folder), "-xzf", str(sdist)], check=True)
        wheel = build(folder / sdist.name.removesuffix(".tar.gz"), "wheel", folder / "wheel", path="/usr/bin")
        made = folder / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(made)], check=True)
        pip = [sys.executable, "-m", "pip", "--quiet", "--python", str(made / "bin" / "python")]
        subprocess.run([*pip, "install", "--no-index", "--no-deps", str(wheel)], check=True)
        ours = find_ours(made)
        for needed in list_needed(ours):
            for name in {file.parts[0] for file in needed.files or ()} - {"..", "__pycache__"}:
                link = Path(str(ours.locate_file(name)))
                if not link.exists():
                    link.symlink_to(str(needed.locate_file(name)))
        yield made


def run(program: Path, *arguments: str) -> str:
    done = subprocess.run(
        [program, *arguments], env={"PATH": os.environ["PATH"]}, cwd="/", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_session_starts_from_the_wheel(environment: Path) -> None:
    """With QEMU, far from this folder; the sessions' account reads all of it."""
    with hubs.state_folder() as root:
        state = StatePaths(root=root)
        state.sessions.mkdir()
        state.sessions.chmod(0o1777)
        disk = guests.make_disk(root / "painter")
        machine = Machine(name="Painter", image=Image(file=str(disk), format="raw"), shutdown=Seconds(1))
        session = Session(
            state, vms.make_spec(root, machine), command=[environment / "bin" / "qemuspawner-session"]
        )
        try:
            session.wait_until_ready()
            assert session.qemu_pid
        finally:
            session.process.terminate()
            session.process.wait(30)


def test_the_wheel_has_novnc_the_pages_and_the_examples(environment: Path) -> None:
    """The page comes as the bundle, which was made from the scripts beside it."""
    script = """
from qemuspawner import paths
from qemuspawner.languages import load_languages
from qemuspawner.session.web.bundle import find_bundle
assert find_bundle(paths.STATIC) is not None
print(paths.STATIC, (paths.STATIC / "vendor" / "novnc.js").stat().st_size > 100_000)
print(sorted(load_languages()), (paths.TEMPLATES / "session.html").is_file())
print(sorted(path.name for path in paths.SYSTEMD_UNITS.iterdir()))
"""

    static, languages, units = run(environment / "bin" / "python", "-c", script).splitlines()

    assert static.startswith(str(environment)) and static.endswith(" True")
    assert languages == "['de', 'en', 'fr'] True"
    assert units == "['jupyterhub-proxy.service', 'jupyterhub.service', 'tljh.conf']"


def test_the_wheels_command_knows_the_demo_machine(environment: Path, tmp_path: Path) -> None:
    told = run(environment / "bin" / "qemuspawner", "--state", str(tmp_path), "machines", "list")

    assert "debian-desktop" in told


def test_jupyterhub_finds_the_wheels_spawners(environment: Path) -> None:
    """By their names; and TLJH its plug-in."""
    script = """
from importlib.metadata import entry_points
from jupyterhub.app import JupyterHub
print(JupyterHub(spawner_class="qemu").spawner_class.__name__)
print(*(one.value for one in entry_points(group="tljh")))
"""

    assert run(environment / "bin" / "python", "-c", script).split() == ["QemuSpawner", "qemuspawner.tljh"]


def imported() -> set[str]:
    """The modules outside of the standard library that the package imports anywhere, by their first part."""
    names = set[str]()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module or "")
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"qemuspawner"}


def test_whatever_is_imported_is_a_dependency(environment: Path) -> None:
    """But for what the extras add, and pluggy, which is there wherever TLJH loads its plug-in."""
    modules = {
        file.parts[0].removesuffix(".py")
        for needed in depends_on(find_ours(environment))
        for file in needed.files or ()
    }

    assert imported() - modules == {"pluggy", "batchspawner", "uvloop"}
