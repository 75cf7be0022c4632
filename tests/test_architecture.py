"""Imports run one way, leaves <- qemu <- machines <- hub | session | cli, and the hub never touches QEMU."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "qemuspawner"

ALLOWED = {
    "leaf": {"leaf"},
    "qemu": {"leaf", "qemu"},
    "machines": {"leaf", "qemu", "machines"},
    "hub": {"leaf", "machines", "hub"},
    "session": {"leaf", "qemu", "machines", "session"},
    "cli": {"leaf", "qemu", "machines", "cli"},
    "staff": {"leaf", "staff"},
    "tljh": {"leaf", "staff", "tljh"},
}

# Within session/, each of those before it.
SESSION_ROOMS = ("host", "inside", "screen", "vm", "life", "people", "web", "session")


def room_of(module: str) -> str:
    """ "qemuspawner.qemu.vm" -> "qemu"; "qemuspawner.units" -> "leaf"."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else "leaf"


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of each module of ours that the file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are written in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "qemuspawner")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_of)
def test_imports_run_one_way(path: Path) -> None:
    allowed = ALLOWED[room_of(module_of(path))]

    wrong = [f"line {line}: {name}" for line, name in imports_of(path) if room_of(name) not in allowed]

    assert wrong == []


def session_room_of(module: str) -> str:
    """ "qemuspawner.session.vm.guest" -> "vm"; "qemuspawner.session.app" -> "session"."""
    room = module.split(".")[2:3]
    return room[0] if room and room[0] in SESSION_ROOMS else "session"


@pytest.mark.parametrize("path", sorted((PACKAGE / "session").rglob("*.py")), ids=module_of)
def test_a_sessions_rooms_are_built_upon_each_other(path: Path) -> None:
    below = SESSION_ROOMS[: SESSION_ROOMS.index(session_room_of(module_of(path))) + 1]
    names = [(line, name) for line, name in imports_of(path) if room_of(name) == "session"]

    wrong = [f"line {line}: {name}" for line, name in names if session_room_of(name) not in below]

    assert wrong == []


def test_a_hub_never_loads_what_speaks_with_qemu() -> None:
    """Not by way of another module either, in a process of its own."""
    script = """
import sys
import qemuspawner.hub.spawner
print(*(name for name in sys.modules if name.startswith("qemuspawner.qemu")))
"""

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr
