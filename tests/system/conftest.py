from collections.abc import AsyncIterator

import live
import pytest_asyncio


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub() -> AsyncIterator[live.LiveHub]:
    """The whole product, started once for a module's tests."""
    async with live.live_hub() as hub:
        yield hub
