import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import hubs
import pytest
from chromium import LogIn, visitors
from playwright.async_api import Browser

import qemuspawner

STANDIN = [sys.executable, str(Path(__file__).with_name("standin.py"))]


def standin_traits(plan: str) -> dict[str, Any]:
    """The spawner's traits that put the stand-in in the session's place."""
    folders = [str(Path(qemuspawner.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {"QEMUSPAWNER_STANDIN": plan, "PYTHONPATH": os.pathsep.join(filter(None, folders))}
    return {"cmd": STANDIN, "environment": environment}


@pytest.fixture
def standin(start_hub: Callable[..., Awaitable[hubs.Hub]]) -> Callable[..., Awaitable[hubs.Hub]]:
    """Start a hub whose sessions are stand-ins that do as `plan` says; see standin.py."""

    async def start(plan: str = "ready", **spawner: Any) -> hubs.Hub:
        return await start_hub(**standin_traits(plan), **spawner)

    return start


@pytest.fixture
def quick_hub(start_hub: Callable[..., Awaitable[hubs.Hub]]) -> Callable[..., Awaitable[hubs.Hub]]:
    """Start a hub whose sessions are ready at once, and do nothing else; see quick_standin.py."""
    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("quick_standin.py"))]

    async def start(**settings: Any) -> hubs.Hub:
        return await start_hub(cmd=command, **settings)

    return start


@pytest.fixture
async def hub(standin: Callable[..., Awaitable[hubs.Hub]]) -> hubs.Hub:
    """A hub whose sessions are stand-ins that are soon ready."""
    return await standin()


@pytest.fixture
async def log_in(browser: Browser) -> AsyncIterator[LogIn]:
    """Opens a page as somebody who has just logged in; see `visitors`."""
    async with visitors(browser) as log_in:
        yield log_in
