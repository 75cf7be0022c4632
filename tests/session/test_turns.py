"""Few at a time, whoever dies meanwhile."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qemuspawner.session.host.turns import take_turn

HOLDER = """
import asyncio, sys
from pathlib import Path
from qemuspawner.session.host.turns import take_turn

async def main():
    async with take_turn(Path(sys.argv[1]), patience_s=60):
        print("mine", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture
def one_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


async def test_the_next_one_waits_for_the_end_of_the_first_also_by_kill(
    one_slot: None, tmp_path: Path
) -> None:
    script = "import os; os.cpu_count = lambda: 2" + HOLDER
    holder = subprocess.Popen([sys.executable, "-c", script, tmp_path / "turns"], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert await asyncio.to_thread(holder.stdout.readline) == b"mine\n"
    began = asyncio.Event()

    async def wait() -> None:
        async with take_turn(tmp_path / "turns", patience_s=60):
            began.set()

    waiting = asyncio.create_task(wait())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(began.wait(), 0.3)
    holder.kill()
    holder.communicate()

    await asyncio.wait_for(waiting, 10)


async def test_nobody_waits_where_there_are_no_locks() -> None:
    async with asyncio.timeout(10), take_turn(Path("/proc/nowhere"), patience_s=60):
        pass
