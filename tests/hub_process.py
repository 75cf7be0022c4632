"""A hub as a process of its own, which can be killed and started again."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from jupyterhub.utils import random_port

# Of a service that may do everything the tests do.
TOKEN = "a-token-for-the-test"

_CONFIG = """
import sys
sys.path[:0] = {path!r}
{merged}
c.JupyterHub.authenticator_class = "dummy"
c.JupyterHub.db_url = "sqlite:///{state}/hub.sqlite"
c.JupyterHub.cookie_secret = b"0" * 32
c.JupyterHub.bind_url = "http://127.0.0.1:{proxy_port}"
c.JupyterHub.hub_port = {port}
c.JupyterHub.services = [{{"name": "test", "api_token": {token!r}, "admin": True}}]
c.JupyterHub.load_roles = [
    {{"name": "test", "services": ["test"],
      "scopes": ["admin:users", "admin:servers", "admin:server_state", "read:servers"]}}
]
"""


class HubProcess:
    """JupyterHub as its own process."""

    def __init__(self, config: Path, url: str, http: aiohttp.ClientSession) -> None:
        self._config, self._http = config, http
        self._url = f"{url}/hub/api"
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        command = [sys.executable, "-m", "jupyterhub", "-f", str(self._config)]
        self._process = subprocess.Popen(command, cwd=self._config.parent, start_new_session=True)
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(aiohttp.ClientConnectorError):
                    await self.ask("GET", "/health")
                    return
                await asyncio.sleep(0.1)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    async def ask(self, method: str, path: str, *, json: object = None) -> Any:
        headers = {"Authorization": f"token {TOKEN}"}
        async with self._http.request(method, self._url + path, headers=headers, json=json) as response:
            return await response.json() if "json" in response.content_type else await response.text()

    async def server(self) -> dict[str, Any]:
        user = await self.ask("GET", "/users/alice?include_stopped_servers")
        server: dict[str, Any] = user["servers"][""]
        return server

    async def wait_for_server(self, key: str, value: object) -> dict[str, Any]:
        async with asyncio.timeout(60):
            while (server := await self.server())[key] != value:
                await asyncio.sleep(0.1)
        return server


@contextlib.asynccontextmanager
async def running_hub_process(
    folder: Path, merged: str, *, path: Sequence[str], state: Path, host: str = "127.0.0.1"
) -> AsyncIterator[HubProcess]:
    """A hub with the user alice, configured in `folder` by the lines `merged`, which import from `path`."""
    port = random_port()
    config = folder / "jupyterhub_config.py"
    config.write_text(
        _CONFIG.format(
            path=list(path), merged=merged, state=state, proxy_port=random_port(), port=port, token=TOKEN
        )
    )
    async with aiohttp.ClientSession() as http:
        hub = HubProcess(config, f"http://{host}:{port}", http)
        await hub.start()
        await hub.ask("POST", "/users/alice")
        yield hub
        with contextlib.suppress(Exception):
            await hub.ask("DELETE", "/users/alice/server")
            await hub.wait_for_server("stopped", True)
        hub.kill()
