"""The manual is whole, and what it says can be done so."""

import argparse
import ast
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn, get_args

import msgspec
import pytest
from jupyterhub import apihandlers, handlers
from jupyterhub.app import JupyterHub
from jupyterhub.auth import Authenticator
from jupyterhub.authenticators.shared import SharedPasswordAuthenticator
from jupyterhub.proxy import ConfigurableHTTPProxy
from jupyterhub_idle_culler import IdleCuller
from tornado.web import RequestHandler
from traitlets import HasTraits

from qemuspawner import hub
from qemuspawner.cli import _parser
from qemuspawner.hub import metrics
from qemuspawner.hub.admission import gate
from qemuspawner.machine import Machine
from qemuspawner.scopes import CUSTOM_SCOPES
from qemuspawner.session.screen.visitors import CloseCode
from qemuspawner.session.web.routes import ROUTES
from qemuspawner.spec import SPEC_VARIABLE, SessionEnd, SessionSpec, SessionStatus

PROJECT = Path(__file__).parent.parent
MANUAL = PROJECT / "docs"
PAGES = sorted(MANUAL.rglob("*.md"))

# Those of others, which the manual sets, too.
SETTINGS = (JupyterHub, Authenticator, SharedPasswordAuthenticator, ConfigurableHTTPProxy, IdleCuller)


def find_configurables() -> list[type[HasTraits]]:
    """Whatever of the hub has traits to set."""
    for module in pkgutil.walk_packages(hub.__path__, "qemuspawner.hub."):
        importlib.import_module(module.name)
    found: dict[type[HasTraits], None] = {}
    left: list[type[HasTraits]] = [HasTraits]
    while left:
        for kind in left.pop().__subclasses__():
            left.append(kind)
            if kind.__module__.startswith("qemuspawner.") and kind.class_own_traits(config=True):
                found[kind] = None
    return sorted(found, key=lambda kind: kind.__name__)


CONFIGURABLES = find_configurables()
TRAITS = [name for kind in CONFIGURABLES for name in sorted(kind.class_own_traits(config=True))]


def rows(page: str, begin: str) -> list[int]:
    """The rows of a page's tables that begin so, each as the number of its bars."""
    lines = (MANUAL / page).read_text().splitlines()
    return [line.replace("\\|", "").count("|") for line in lines if line.startswith(f"| {begin} |")]


def keys(kind: type[msgspec.Struct] = Machine, prefix: str = "") -> Iterator[str]:
    """Every key of machine.toml, dotted."""
    for field in msgspec.structs.fields(kind):
        if field.name in ("id", "folder"):  # what the catalogue adds
            continue
        tables = [
            option
            for option in (field.type, *get_args(field.type))
            if isinstance(option, type) and issubclass(option, msgspec.Struct)
        ]
        if tables:
            yield from keys(tables[0], f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


@pytest.mark.parametrize("key", list(keys()))
def test_every_key_of_machine_toml_is_described(key: str) -> None:
    """In a row of a table: type, default, meaning and example."""
    assert rows("machines.md", f"`{key}`") == [6]


@pytest.mark.parametrize("trait", TRAITS)
def test_every_trait_is_described(trait: str) -> None:
    """In a row of a table: type, default and meaning."""
    assert rows("administering.md", f"`{trait}`") == [5]


@pytest.mark.parametrize("path", [route.path for route in ROUTES])
def test_every_route_of_a_session_is_described(path: str) -> None:
    """In a row of a table: method, who may, and answer."""
    assert rows("sessions.md", f"`{path}`" if path else "(empty)") == [5]


@pytest.mark.parametrize("field", SessionStatus.__struct_fields__)
def test_every_field_of_the_status_is_described(field: str) -> None:
    """In a row of the table of SessionStatus: type and meaning. SessionSpec has a few of the same names."""
    text = (MANUAL / "sessions.md").read_text().partition("\n## SessionStatus\n")[2].partition("\n## ")[0]

    assert f"\n| `{field}` | " in text


@pytest.mark.parametrize("field", SessionSpec.__struct_fields__)
def test_every_field_of_the_specification_is_described(field: str) -> None:
    """Below the name of its variable, some in one row."""
    text = (MANUAL / "sessions.md").read_text()
    table = text.partition(f"`{SPEC_VARIABLE}`")[2]

    assert any(f"`{field}`" in line.split("|")[1] for line in table.splitlines() if line.startswith("|"))


@pytest.mark.parametrize("code", list(CloseCode))
def test_every_close_code_is_described(code: CloseCode) -> None:
    """In a row of a table: name and meaning."""
    assert rows("sessions.md", f"{code.value} | {code.name}") == [4]


# The hub


def hub_routes() -> list[tuple[str, str]]:
    """Each route that is added to JupyterHub's, as "/api/users/([^/]+)/saved" and "GET"."""
    routes = [*apihandlers.default_handlers, *handlers.default_handlers]
    return [
        (path, method.upper())
        for path, handler in routes
        # Those of the gate are JupyterHub's own routes.
        if handler.__module__.startswith("qemuspawner.") and handler.__module__ != gate.__name__
        for method in ("get", "head", "post", "put", "patch", "delete")
        if getattr(handler, method) is not getattr(RequestHandler, method)
    ]


def described_routes() -> Iterator[tuple[str, set[str]]]:
    """Path and methods of each row that has them; one without a path goes on with the last one."""
    for page in PAGES:
        path = ""
        for line in page.read_text().splitlines():
            match = re.match(r"\| (?:`/?([^`?]*)[^`]*`)? ?\| ((?:[A-Z]{3,6}(?:, )?)+) \|", line)
            if match:
                path = match[1] or path
                yield path, set(match[2].split(", "))


@pytest.mark.parametrize(("path", "method"), hub_routes())
def test_every_route_of_the_hub_is_described(path: str, method: str) -> None:
    """In a row of a table: path below /hub or /hub/api, with names in capitals, and methods."""
    # A group with alternatives is a word; all others are names.
    wanted = re.compile(
        re.sub(r"\((?![a-z]+\|)[^)]*\)", "[A-Z-]+", path.removeprefix("/api").removeprefix("/"))
    )

    assert any(
        method in methods and (wanted.fullmatch(shown) or wanted.fullmatch(f"users/NAME/{shown}"))
        for shown, methods in described_routes()
    )


def scopes_asked_for() -> set[str]:
    """All that our routes name in `needs_scope`."""
    calls = (
        node
        for path in (PROJECT / "qemuspawner" / "hub").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "needs_scope"
    )
    return {one.value for call in calls for one in call.args if isinstance(one, ast.Constant)}


@pytest.mark.parametrize("scope", sorted(scopes_asked_for() | set(CUSTOM_SCOPES)))
def test_every_scope_is_described(scope: str) -> None:
    """In a row of a table: who has it, and what it lets them do."""
    assert rows("reference/hub.md", f"`{scope}`") == [4]


def metric_names() -> list[str]:
    """As Prometheus has them: those of counters end so."""
    return [
        f"{one.name}_total" if one.type == "counter" else one.name
        for one in metrics.REGISTRY.collect()
        if one.name.startswith("qemuspawner_")
    ]


@pytest.mark.parametrize("metric", metric_names())
def test_every_metric_is_described(metric: str) -> None:
    """In a row of a table with its labels and meaning; several may share one."""
    table = (MANUAL / "administering.md").read_text().partition("\n## Metrics\n")[2].partition("\n## ")[0]

    assert re.search(rf"^\| [^|]*`{metric}`[^|]*\| [^|]+ \| [^|]+ \|$", table, re.MULTILINE)


def audited_events() -> set[str]:
    """All that is written to the audit log, as the code names it; how a session ends is its last state."""
    events = set(get_args(SessionEnd.__annotations__["state"]))
    for path in (PROJECT / "qemuspawner").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and is_note(node.func):
                events |= {one.value for one in ast.walk(node.args[0]) if isinstance(one, ast.Constant)}
    return events


def is_note(called: ast.expr) -> bool:
    """`self.audit(...)` of a route, or `audit.note(...)`."""
    match called:
        case ast.Attribute(attr="audit"):
            return True
        case ast.Attribute(attr="note", value=ast.Name(id=owner) | ast.Attribute(attr=owner)):
            return owner in ("self", "audit", "_audit")
    return False


def test_every_event_of_the_audit_log_is_described_and_no_other() -> None:
    """In a row of a table with its facts; several may share one."""
    table = (
        (MANUAL / "administering.md").read_text().partition("\n### The audit log\n")[2].partition("\n## ")[0]
    )
    cells = re.findall(r"^\| (`[^|]*`) \| [^|]+ \|$", table, re.MULTILINE)

    assert {name for cell in cells for name in re.findall("`([a-z-]+)`", cell)} == audited_events()


# What pages tell to do


def blocks(*languages: str) -> Iterator[tuple[Path, str]]:
    """The code in pages, by its language; "" is what is indented."""
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
            if match[2] in languages:
                yield page, textwrap.dedent(match[3])
        if "" in languages:
            for match in re.finditer(r"(?:^(?: {4,}.*)?\n)+", text, re.MULTILINE):
                yield page, textwrap.dedent(match[0])


def commands() -> Iterator[str]:
    """Each call of our command in a block; what a shell puts around it is left out."""
    others = re.compile("(?:user|group)(?:add|mod) |install |make |.*python -c")
    call = re.compile(r"^(?:.*[\s/])?(qemuspawner (?:--(?:state|machines) \S+ )*[a-z].*)$")
    for _, text in blocks("sh", ""):
        for line in text.replace("\\\n", " ").splitlines():
            if (match := call.match(line)) and not others.match(line):
                yield re.split(r"\s>|\s{3,}", match[1])[0]


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_a_command_of_the_manual_is_one(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its words and options are those that the program takes."""

    def refuse(_: argparse.ArgumentParser, message: str) -> NoReturn:
        raise AssertionError(message)

    monkeypatch.setattr(argparse.ArgumentParser, "error", refuse)

    _parser().parse_args(shlex.split(command, comments=True)[1:])


def settings() -> Iterator[tuple[str, str]]:
    """Class and trait of each setting in the manual."""
    for page, text in blocks("python"):
        for node in ast.walk(ast.parse(text, filename=str(page))):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Attribute)
                and isinstance(node.value.value, ast.Name)
                and node.value.value.id == "c"
            ):
                yield node.value.attr, node.attr


@pytest.mark.parametrize(("name", "trait"), sorted(set(settings())))
def test_a_setting_of_the_manual_is_one(name: str, trait: str) -> None:
    """Of JupyterHub, of the culler or of ours."""
    kinds = {one.__name__: one for one in (*SETTINGS, *CONFIGURABLES)}

    assert trait in kinds[name].class_traits(config=True)


@pytest.mark.parametrize("text", [text for _, text in blocks("toml")])
def test_toml_of_the_manual_is_sound(text: str) -> None:
    assert tomllib.loads(text)


def test_screenshots_of_the_manual_are_made_by_tests() -> None:
    """Each is named in one of them."""
    wanted = {
        name
        for page in PAGES
        for name in re.findall(r"^```\{screenshot\} (\S+)$", page.read_text(), re.MULTILINE)
    }
    tests = "".join(path.read_text() for path in (PROJECT / "tests").rglob("test_*.py"))

    assert wanted
    assert [
        name for name in sorted(wanted) if not re.search(rf'"(?:screenshots/)?{name}(?:\.png)?"', tests)
    ] == []


def test_the_manual_is_built_without_a_warning(tmp_path: Path) -> None:
    """Every link, heading, picture and table; as `make docs` does."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html"]

    done = subprocess.run([*command, MANUAL, tmp_path / "html"], capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "html" / "explanation" / "security.html").is_file()
