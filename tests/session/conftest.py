import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fake_desktop import FakeDesktop


@pytest.fixture
async def desktop(tmp_path: Path) -> AsyncIterator[FakeDesktop]:
    """A VNC server of ours at a unix socket, to which nobody is connected yet."""
    fake = FakeDesktop(tmp_path / "fake-vnc")
    server = await asyncio.start_unix_server(fake.greet, fake.path)
    yield fake
    server.close()
    while not fake.connections.empty():
        fake.connections.get_nowait()[1].close()
