"""When a desktop was used last, as the hub tells it behind a real proxy, and what the culler makes of it."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import guests
import hubs
import live
import pytest
import pytest_asyncio
from rfb_client import RfbClient
from yarl import URL

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

# A guest's load is looked at every 30 s.
TIMEOUT_S = 50
CONFIG = f"""
c.JupyterHub.last_activity_interval = 1
c.Spawner.environment = {{"JUPYTERHUB_ACTIVITY_INTERVAL": "1"}}
import sys
from pathlib import Path
culler = Path(__file__).with_name("idle_culler_config.py")
culler.write_text(
    "from qemuspawner.hub.culling import DesktopArbiter\\n"
    f"c.IdleCuller.cull_arbiter_hook = DesktopArbiter({{c.QemuSpawner.machines!r}})\\n"
)
c.JupyterHub.services.append(
    {{
        "name": "culler",
        "command": [
            sys.executable, "-m", "jupyterhub_idle_culler",
            "--timeout={TIMEOUT_S}", "--cull-every=1", f"--config={{culler}}",
        ],
    }}
)
c.JupyterHub.load_roles.append(
    {{
        "name": "culler",
        "services": ["culler"],
        "scopes": ["list:users", "read:users:activity", "read:servers", "delete:servers"],
    }}
)
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub() -> AsyncIterator[live.LiveHub]:
    """Beside the painter a machine that computes for ever."""
    async with live.live_hub(more=CONFIG) as hub:
        hubs.add_machine(hub.state / "machines", hub.state, "spinner")
        (hub.state / "machines/spinner/machine.toml").write_text(live.PAINTER.replace("Painter", "Spinner"))
        disk = hub.state / "images/spinner/disk.raw"
        disk.unlink()
        guests.make_disk(disk, sector=guests.boot_sector(guests.SPINNER))
        yield hub


def moment(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC).timestamp()


@contextlib.asynccontextmanager
async def open_tab(person: hubs.Person, desktop: URL, *, key: bool) -> AsyncIterator[None]:
    """A tab that is open, shows what moves and answers pings; with `key` somebody also types."""
    async with RfbClient(person, desktop) as client:

        async def look_on() -> None:
            while True:
                await client.pixel(1, 1)
                if key:
                    await client.press(0x20)
                await asyncio.sleep(0.5)

        looking = asyncio.create_task(look_on())
        try:
            yield
            assert not looking.done() or not key
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)


async def test_an_open_tab_is_culled_and_work_is_not(hub: live.LiveHub) -> None:
    """Three desktops: with a tab that nobody touches, with one where somebody types, with none and work."""
    seen = await hub.start_server("alice", "seen", machine="painter")
    used = await hub.start_server("alice", "used", machine="painter")
    await hub.start_server("alice", "busy", machine="spinner")
    token = await hub.new_token("alice")

    async with (
        hub.person(token=token) as person,
        open_tab(person, seen, key=False),
        open_tab(person, used, key=True),
    ):
        status = json.loads((await person.request("GET", seen / "api/status")).text)
        began = status["last_activity"] - status["now"] + datetime.now(UTC).timestamp()
        async with asyncio.timeout(TIMEOUT_S * 3):
            while "seen" in (servers := await hub.servers("alice")):
                # The session's word, though the proxy has seen bytes ever since.
                last = moment(servers["seen"]["last_activity"])
                assert last == pytest.approx(began, abs=2) or servers["seen"]["pending"]
                if route := (await hub.routes()).get(seen.path.rstrip("/")):
                    saw_later = moment(route["last_activity"]) > began + TIMEOUT_S / 2
                await asyncio.sleep(1)
        assert saw_later

        servers = await hub.servers("alice")
        assert {"used", "busy"} <= set(servers)
        now = datetime.now(UTC).timestamp()
        assert now - moment(servers["used"]["last_activity"]) < 10
        assert now - moment(servers["busy"]["last_activity"]) < TIMEOUT_S
        status = json.loads((await person.request("GET", hub.url / "user/alice/busy/api/status")).text)
        assert status["awake"] == ["cpu"]
        assert status["load"]["cpu_percent"] >= 25


async def test_the_documented_configuration_is_the_tested_one() -> None:
    """What an administrator copies works."""
    manual = (Path(__file__).parent.parent.parent / "docs/administering.md").read_text()

    assert "from qemuspawner.hub.culling import DesktopArbiter" in manual
    for scope in ("list:users", "read:users:activity", "read:servers", "delete:servers"):
        assert f'"{scope}"' in manual
