"""The whole product as processes: proxy, hub with the example configuration, sessions."""

import asyncio
import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import hubs
from free_ports import free_ports
from yarl import URL

PROJECT = Path(__file__).parent.parent

# Beside the demo machine: the painter, ready in half a second, and a test's own token.
CONFIG = """
load_subconfig({example!r})
from qemuspawner import paths
c.QemuSpawner.machines = [str(paths.EXAMPLE_MACHINES), {machines!r}]
c.QemuSpawner.run_as = {account!r}
c.QemuSpawner.suspend_on = {suspend_on!r}
c.JupyterHub.named_server_limit_per_user = {named_servers}
c.Authenticator.allowed_users = {users!r}
c.JupyterHub.hub_port = {hub_port}
c.JupyterHub.bind_url = "http://127.0.0.1:{port}"
c.ConfigurableHTTPProxy.should_start = False
c.ConfigurableHTTPProxy.auth_token = {token!r}
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{api_port}"
c.JupyterHub.services = [{{"name": "test", "api_token": {token!r}}}]
c.JupyterHub.load_roles = [
    {{
        "name": "test",
        "services": ["test"],
        "scopes": ["admin:users", "admin:servers", "admin:groups", "tokens", "proxy"],
    }}
]
"""

USERS = ("demo", "alice", "bob", "carol", "dave")

PAINTER = """
name = "Painter"
shutdown = "1 s"
[image]
file = "disk.raw"
format = "raw"
[cpus]
default = 1
[memory]
default = "64 MiB"
offered = ["64 MiB"]
[lifetime]
default = "1 h"
offered = ["1 h"]
max = "2 d"
"""


class LiveHub:
    """A hub behind a proxy of its own, which a restart of the hub leaves alone."""

    def __init__(
        self,
        state: Path,
        *,
        named_servers: int,
        suspend_on: Sequence[str],
        more: str = "",
        within: Sequence[str] = (),
    ) -> None:
        self.state = state
        self._within = within
        self._suspend_on = list(suspend_on)
        self._named_servers = named_servers
        self._more = more
        self.token = secrets.token_hex(16)
        self.port, self._hub_port, self._api_port = free_ports(3)
        self.url = URL(f"http://127.0.0.1:{self.port}/")
        self._config = state / "config.py"
        self._proxy: subprocess.Popen[bytes] | None = None
        self._hub: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        machines = self.state / "machines"
        hubs.add_machine(machines, self.state, "painter")
        (machines / "painter" / "machine.toml").write_text(PAINTER)
        built = Path(os.environ["QEMUSPAWNER_TEST_IMAGES"]) / "debian-desktop"
        (self.state / "images" / "debian-desktop").symlink_to(built)
        self._config.write_text(
            CONFIG.format(
                example=str(PROJECT / "jupyterhub_config.py"),
                machines=str(machines),
                account=hubs.sessions_account(),
                named_servers=self._named_servers,
                users=set(USERS),
                suspend_on=self._suspend_on,
                token=self.token,
                port=self.port,
                hub_port=self._hub_port,
                api_port=self._api_port,
            )
            + self._more
        )

    def start_proxy(self) -> None:
        command = ["configurable-http-proxy", "--ip", "127.0.0.1", "--port", str(self.port)]
        command += ["--api-ip", "127.0.0.1", "--api-port", str(self._api_port)]
        command += ["--default-target", f"http://127.0.0.1:{self._hub_port}", "--log-level", "error"]
        environ = os.environ | {"CONFIGPROXY_AUTH_TOKEN": self.token}
        self._proxy = subprocess.Popen(command, env=environ, start_new_session=True)

    def stop_proxy(self) -> None:
        assert self._proxy is not None
        os.killpg(self._proxy.pid, signal.SIGTERM)
        self._proxy.wait()

    async def restore_routes(self) -> None:
        """Have the hub tell a new proxy its routes, as it does by itself every few minutes."""
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    status, _ = await self.ask("POST", "proxy")
                    if status == 200:
                        return
                await asyncio.sleep(0.2)

    async def start(self) -> None:
        """Start the hub, or start it again, and wait until it answers."""
        self.launch()
        async with asyncio.timeout(90), aiohttp.ClientSession() as http:
            while True:
                assert self._hub is not None and self._hub.poll() is None, self.log()
                with contextlib.suppress(aiohttp.ClientError):
                    async with http.get(self.url / "hub/api") as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.2)

    def launch(self) -> None:
        """Start the hub's process, whatever comes of it."""
        environ = os.environ | {"QEMUSPAWNER_STATE": str(self.state)}
        command = [*self._within, sys.executable, "-m", "jupyterhub", "-f", str(self._config)]
        with (self.state / "hub.log").open("ab") as log:
            self._hub = subprocess.Popen(
                command, cwd=self.state, env=environ, stdout=log, stderr=log, start_new_session=True
            )

    def log(self) -> str:
        return (self.state / "hub.log").read_text()

    @property
    def pid(self) -> int:
        assert self._hub is not None
        return self._hub.pid

    def kill(self) -> None:
        assert self._hub is not None
        self._hub.kill()
        self._hub.wait()

    def terminate(self) -> None:
        """End the hub as its service's stop does; desktops go on."""
        assert self._hub is not None
        self._hub.terminate()
        self._hub.wait()

    async def stop(self) -> None:
        """Stop every server, the hub and the proxy."""
        try:
            with contextlib.suppress(aiohttp.ClientError):
                for user in USERS:
                    for name in await self.servers(user):
                        await self.stop_server(user, name)
        finally:
            if self._hub is not None and self._hub.poll() is None:
                self.terminate()
            self.stop_proxy()

    # As an administrator's script does

    async def ask(self, method: str, path: str, **kwargs: Any) -> tuple[int, Any]:
        headers = {"Authorization": f"token {self.token}"}
        async with (
            aiohttp.ClientSession(headers=headers) as http,
            http.request(method, self.url / "hub/api" / path, **kwargs) as answer,
        ):
            text = await answer.text()
            return answer.status, await answer.json() if text else None

    async def routes(self) -> dict[str, Any]:
        """What the proxy itself says of its routes, by path."""
        headers = {"Authorization": f"token {self.token}"}
        async with (
            aiohttp.ClientSession(headers=headers) as http,
            http.get(f"http://127.0.0.1:{self._api_port}/api/routes") as answer,
        ):
            return dict(await answer.json())

    async def servers(self, user: str) -> dict[str, Any]:
        status, model = await self.ask("GET", f"users/{user}")
        return dict(model["servers"]) if status == 200 else {}

    async def new_token(self, user: str) -> str:
        await self.ask("POST", f"users/{user}")
        _, model = await self.ask("POST", f"users/{user}/tokens")
        return str(model["token"])

    async def start_server(self, user: str, name: str = "", /, **options: object) -> URL:
        """Start a server and wait until it is ready; its URL."""
        await self.ask("POST", f"users/{user}")
        path = f"users/{user}/servers/{name}" if name else f"users/{user}/server"
        status, model = await self.ask("POST", path, json={"user_options": options})
        assert status in (201, 202), model
        async with asyncio.timeout(300):
            while not (server := (await self.servers(user)).get(name, {})).get("ready"):
                assert server.get("pending") or status == 201, server
                await asyncio.sleep(0.2)
        return self.url.join(URL(server["url"]))

    async def stop_server(self, user: str, name: str = "") -> None:
        """Stop a server, and forget it where it has a name."""
        path = f"users/{user}/servers/{name}" if name else f"users/{user}/server"
        await self.ask("DELETE", path, json={"remove": bool(name)})
        async with asyncio.timeout(60):
            while (server := (await self.servers(user)).get(name)) and not server.get("stopped"):
                await asyncio.sleep(0.2)

    # As people with a browser do

    @property
    def pages(self) -> URL:
        return self.url / "hub/"

    def password(self, user: str, /) -> str:
        name = "admin-password" if user == "admin" else "demo-password"
        return (self.state / name).read_text().strip()

    @contextlib.asynccontextmanager
    async def person(self, name: str = "", *, token: str = "") -> AsyncIterator[hubs.Person]:
        """Somebody with a browser; logged in where a name is given, by the API where a token is."""
        async with hubs.browser() as http:
            person = hubs.Person(name=name, http=http, token=token)
            if name and not token:
                login = self.url / "hub/login"
                await person.request("GET", login)
                answer = await person.request(
                    "POST",
                    login.with_query(_xsrf=person.xsrf(self.url / "hub/")),
                    data={"username": name, "password": self.password(name)},
                )
                assert answer.status == 200, answer.text
            yield person

    async def open_session(self, person: hubs.Person, url: URL) -> hubs.Answer:
        """Open a desktop's page, confirming what the hub asks about somebody else's server."""
        answer = await person.request("GET", url)
        if "oauth2/authorize" in str(answer.url) and answer.status == 200:
            fields = re.findall(
                r'name="scopes"\s+value="([^"]*)"|value="([^"]*)"\s+name="scopes"', answer.text
            )
            data = [("scopes", first or second) for first, second in fields]
            data.append(("_xsrf", person.xsrf(self.url / "hub/")))
            answer = await person.request("POST", answer.url, data=data)
        return answer


@contextlib.asynccontextmanager
async def live_hub(
    *, named_servers: int = 3, suspend_on: Sequence[str] = (), more: str = "", within: Sequence[str] = ()
) -> AsyncIterator[LiveHub]:
    """`more` is added to the hub's configuration; `within` is the beginning of its command."""
    with hubs.state_folder() as state:
        hub = LiveHub(state, named_servers=named_servers, suspend_on=suspend_on, more=more, within=within)
        hub.prepare()
        try:
            hub.start_proxy()
            await hub.start()
            yield hub
        finally:
            await hub.stop()
