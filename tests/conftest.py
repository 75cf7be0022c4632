import contextlib
import functools
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import chromium
import guests
import hubs
import proofs
import pytest
import vms
import warming
from fake_qemu import FakeQemu
from msgspec import structs
from playwright.async_api import Browser
from processes import find_processes
from sessions import PROGRAM, Session, sessions_state, wait_for
from xdist.scheduler import LoadScopeScheduling

from qemuspawner.machine import Image, Machine, Seconds
from qemuspawner.paths import StatePaths

# What takes long comes first, so that no process is left with it at the end.
_LONG = ("system", "slurm", "proof", "machines", "session", "hub")


@functools.cache
def _belongs_to(module: Path) -> str:
    """Modules of one name run in one process: what they share is costly to make, or can be there once."""
    if module.parent.name == "slurm":
        return "slurm"
    return "warm" if "warm_state" in module.read_text() else str(module)


class _Together(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return _belongs_to(self.config.rootpath / nodeid.partition("::")[0])


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _Together(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if goals := config.getoption("goals"):
        wanted = re.split(r"[\s,]+", goals)
        items[:] = [item for item in items if proofs.find_goal(item) in wanted]

    def rank(item: pytest.Item) -> tuple[bool, int]:
        folder = item.path.parent.name
        return _belongs_to(item.path) != "warm", _LONG.index(folder) if folder in _LONG else len(_LONG)

    items.sort(key=rank)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="tests/proof: in full, and write what is found to bench/PROOF.md"
    )
    parser.addoption("--goals", default="", metavar="R1,S4", help="tests/proof: prove only these")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "goal(name): the goal in tests/proofs.py that a test proves")
    # Once: a process of xdist's leaves it to the one that started it.
    if config.getoption("full") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(proofs.Table())


_GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def compare_with_golden() -> Callable[[str, list[str]], None]:
    """Compare lines with tests/golden/NAME.txt; with GOLDEN=1 (`make golden`) write them instead."""

    def compare(name: str, lines: list[str]) -> None:
        path = _GOLDEN / f"{name}.txt"
        text = "\n".join(lines) + "\n"
        if os.environ.get("GOLDEN"):
            path.write_text(text)
        assert text == path.read_text()

    return compare


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A state folder that the sessions' account can go through."""
    with hubs.state_folder() as path:
        yield path


@pytest.fixture
def fake_qemu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeQemu]:
    """It is everybody's QEMU then."""
    with hubs.state_folder() as folder:
        fake = FakeQemu(folder)
        monkeypatch.setenv("PATH", fake.path)
        yield fake


@pytest.fixture
def state() -> Iterator[StatePaths]:
    with sessions_state() as state:
        yield state


@pytest.fixture
def start(state: StatePaths) -> Iterator[Callable[..., Session]]:
    """Start a session of the painter; whatever is left of it is ended with the test."""
    disk = guests.make_disk(state.root / "painter")
    # The painter does not know the power button.
    machine = Machine(name="Painter", image=Image(file=str(disk), format="raw"), shutdown=Seconds(1))
    sessions: list[Session] = []

    def start(server_name: str = "", program: str = PROGRAM, **keys: Any) -> Session:
        spec = vms.make_spec(state.root, machine, server_name=server_name, lifetime_s=600, max_lifetime_s=600)
        sessions.append(Session(state, structs.replace(spec, **keys), program=program))
        return sessions[-1]

    yield start
    for session in sessions:
        session.process.kill()
        session.process.wait()
    for session in sessions:
        wait_for(lambda session=session: not find_processes(session.paths))


@pytest.fixture(scope="session")
def warm_state() -> Iterator[Path]:
    """A state folder with the template of the demo machine with 1 CPU and 1 GiB; leave that as it is."""
    with warming.demo_state() as path:
        yield path


@pytest.fixture(scope="session")
def chromium_url() -> Iterator[str]:
    """The one Chromium of all tests that have pages; started by the first of them."""
    with chromium.running_chromium() as url:
        yield url


@pytest.fixture
async def browser(chromium_url: str) -> AsyncIterator[Browser]:
    """It, for a test with an event loop of its own."""
    async with chromium.connected_browser(chromium_url) as browser:
        yield browser


@pytest.fixture
def machines_dir(state_dir: Path, tmp_path: Path) -> Path:
    """A folder with one machine, "mini", that everybody may start."""
    machines = tmp_path / "machines"
    hubs.add_machine(machines, state_dir, "mini")
    return machines


@pytest.fixture
async def start_hub(
    hub_app: Any, state_dir: Path, machines_dir: Path
) -> AsyncIterator[Callable[..., Awaitable[hubs.Hub]]]:
    """Start a hub with other settings of the spawner, or in `jupyterhub` of the hub, than the usual ones.

    `more` are the settings of other classes, by their names.
    """
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            *,
            jupyterhub: Mapping[str, Any] | None = None,
            more: Mapping[str, Any] | None = None,
            **spawner: Any,
        ) -> hubs.Hub:
            config = hubs.hub_config(state_dir, machines_dir, **spawner)
            config.JupyterHub.update(jupyterhub or {})
            config.update(more or {})
            running = hubs.running_hub(hub_app, config, state=state_dir, machines=machines_dir)
            return await stack.enter_async_context(running)

        yield start


@pytest.fixture
async def hub(start_hub: Callable[..., Awaitable[hubs.Hub]]) -> hubs.Hub:
    """A hub whose sessions are real ones."""
    return await start_hub()
