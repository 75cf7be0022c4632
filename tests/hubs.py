"""A hub for tests: a real JupyterHub in this process, people with browsers, and machines to start."""

import asyncio
import contextlib
import os
import pwd
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import guests
from jupyterhub.httpclient import JupyterHubHTTPClient
from jupyterhub.proxy import Proxy
from jupyterhub.tests.mocking import MockHub
from jupyterhub.tests.utils import add_user
from traitlets.config import Config
from yarl import URL

from qemuspawner.hub.spawner import QemuSpawner
from qemuspawner.paths import TEMPLATES

# The hub's console scripts lie beside its Python.
SESSION_COMMAND = [str(Path(sys.executable).with_name("qemuspawner-session"))]

MACHINE = """
name = "{name}"
description = "{description}"
version = "1"
firmware = "bios"
shutdown = "1 s"

[image]
file = "disk.raw"
format = "raw"

[cpus]
default = 1
offered = [1, 2]

[memory]
default = "128 MiB"
offered = ["128 MiB", "256 MiB"]

[lifetime]
default = "1 h"
offered = ["30 min", "1 h"]
max = "2 h"
"""


def sessions_account() -> str:
    """Who sessions run as in tests: never root, and without making an account."""
    if os.geteuid() != 0:
        return ""
    for name in ("qemuspawner", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise AssertionError("This host has no account 'nobody'.")


@contextlib.contextmanager
def state_folder() -> Iterator[Path]:
    """A short path that the sessions' account can go through; pytest's own folders are closed to it."""
    path = Path(tempfile.mkdtemp(prefix="qs-"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def add_machine(
    machines: Path, state: Path, name: str, *, title: str = "", description: str = "", more: str = ""
) -> None:
    """Put a machine with the painter's disk into the folder `machines`; `more` is TOML."""
    (machines / name).mkdir(parents=True)
    text = MACHINE.format(name=title or name.title(), description=description)
    (machines / name / "machine.toml").write_text(text + more)
    images = state / "images" / name
    images.mkdir(parents=True)
    guests.make_disk(images / "disk.raw")
    for folder in (images, images.parent):
        folder.chmod(0o755)


class MemoryProxy(Proxy):
    """Routes in a dict: tests speak to the hub and to sessions directly, and need no Node."""

    should_start = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.routes: dict[str, dict[str, Any]] = {}

    async def add_route(self, routespec: str, target: str, data: Any) -> None:
        self.routes[routespec] = {"routespec": routespec, "target": target, "data": data}

    async def delete_route(self, routespec: str) -> None:
        self.routes.pop(routespec, None)

    async def get_all_routes(self) -> dict[str, dict[str, Any]]:
        return self.routes


class CookieJar(aiohttp.CookieJar):
    """Cookies as browsers keep them: aiohttp compares a path "/space%20word" with "/space word"."""

    def filter_cookies(self, request_url: URL) -> Any:
        return super().filter_cookies(URL(str(request_url).replace("%", "%25"), encoded=True))


def browser() -> aiohttp.ClientSession:
    """A client with a browser's cookies.

    A new connection for each request: the proxy closes idle ones after 5 s, and unlike a browser aiohttp does
    not send a POST again that met such a close half-way.
    """
    return aiohttp.ClientSession(
        cookie_jar=CookieJar(unsafe=True), connector=aiohttp.TCPConnector(force_close=True)
    )


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a server said, after redirects."""

    status: int
    text: str
    url: URL
    headers: Mapping[str, str]


@dataclass(kw_only=True)
class Person:
    """Somebody who uses the hub with a browser or, where `token` is given, by its API."""

    name: str
    http: aiohttp.ClientSession
    token: str = ""

    async def request(self, method: str, url: URL | str, **kwargs: Any) -> Answer:
        headers = {"Sec-Fetch-Mode": "navigate", **kwargs.pop("headers", {})}
        if self.token:
            headers["Authorization"] = f"token {self.token}"
        async with self.http.request(method, url, headers=headers, **kwargs) as response:
            text = await response.text(errors="replace")
            return Answer(status=response.status, text=text, url=response.url, headers=response.headers)

    def xsrf(self, url: URL) -> str:
        return self.http.cookie_jar.filter_cookies(url)["_xsrf"].value


@dataclass(kw_only=True)
class Hub:
    """The running hub."""

    app: MockHub
    state_dir: Path
    machines: Path
    _exits: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    @property
    def url(self) -> URL:
        """Where the hub itself listens, ending in /hub/."""
        return URL(self.app.hub.url, encoded=True)

    @property
    def pages(self) -> URL:
        return self.url

    def password(self, user: str, /) -> str:
        """Everybody's is their name."""
        return user

    def user(self, name: str, *, admin: bool = False, groups: tuple[str, ...] = ()) -> Any:
        """A user of the hub, made if need be."""
        user = add_user(self.app.db, self.app, name=name, admin=admin)
        if groups:
            user.sync_groups(list(groups))
        return user

    def spawner(self, name: str, server_name: str = "") -> QemuSpawner:
        spawner: QemuSpawner = self.user(name).spawners[server_name]
        return spawner

    async def person(self, name: str, *, token: str = "", admin: bool = False) -> Person:
        """Somebody who is not logged in."""
        self.user(name, admin=admin)
        http = browser()
        await self._exits.enter_async_context(http)
        return Person(name=name, http=http, token=token)

    async def log_in(self, name: str, *, admin: bool = False) -> Person:
        """Somebody with a browser who has logged in."""
        person = await self.person(name, admin=admin)
        await person.request("GET", self.url / "login")
        answer = await person.request(
            "POST",
            (self.url / "login").with_query(_xsrf=person.xsrf(self.url)),
            data={"username": name, "password": self.password(name)},
            allow_redirects=False,
        )
        assert answer.status == 302, answer.text
        # The first page brings the XSRF cookie of the login.
        await person.request("GET", self.url / "home")
        return person

    async def with_token(self, name: str, *, admin: bool = False) -> Person:
        """Somebody who uses the API with a token of their own."""
        user = self.user(name, admin=admin)
        return await self.person(name, token=user.new_api_token(), admin=admin)

    async def get_form(
        self, person: Person, *, server_name: str = "", query: str | Mapping[str, str] = ""
    ) -> Answer:
        return await person.request("GET", self._spawn_url(person, server_name).with_query(query))

    async def submit_form(self, person: Person, *, server_name: str = "", **fields: str) -> Answer:
        """Press Start; the answer is the hub's own, without following it to the waiting page."""
        url = self._spawn_url(person, server_name)
        return await person.request(
            "POST",
            url.with_query(_xsrf=person.xsrf(url)),
            data=aiohttp.FormData(fields, default_to_multipart=True),
            allow_redirects=False,
        )

    async def start(
        self, person: Person, options: object = None, *, server_name: str = "", owner: str = ""
    ) -> Answer:
        """Start a server by the API."""
        url = self._server_url(owner or person.name, server_name)
        return await self._ask(person, "POST", url, json={"user_options": options})

    async def stop(self, person: Person, *, server_name: str = "", owner: str = "") -> Answer:
        return await self._ask(person, "DELETE", self._server_url(owner or person.name, server_name))

    async def ask(self, person: Person, method: str, path: str, **kwargs: Any) -> Answer:
        """A route of the hub's API; `path` comes after /hub/api/."""
        return await self._ask(person, method, self.url / "api" / path, **kwargs)

    async def _ask(self, person: Person, method: str, url: URL, **kwargs: Any) -> Answer:
        """By the API, as the hub's own pages do or with a token."""
        headers = {} if person.token else {"X-XSRFToken": person.xsrf(url)}
        return await person.request(method, url, headers=headers, **kwargs)

    async def wait_until_ready(self, name: str, *, server_name: str = "", timeout_s: float = 60) -> URL:
        """Wait for a server that is starting; where its session listens."""
        async with asyncio.timeout(timeout_s):
            while (spawner := self.spawner(name, server_name)).pending:
                await asyncio.sleep(0.05)
        assert spawner.ready, spawner._spawn_future
        return URL(spawner.server.url, encoded=True)

    async def wait_until_stopped(self, name: str, *, server_name: str = "", timeout_s: float = 60) -> None:
        async with asyncio.timeout(timeout_s):
            while self.spawner(name, server_name).active:
                await asyncio.sleep(0.05)

    def session_folders(self) -> list[str]:
        """The sessions that run, or left something behind."""
        return sorted(entry.name for entry in (self.state_dir / "sessions").glob("[!.]*"))

    async def close(self) -> None:
        for user in list(self.app.users.values()):
            for name, spawner in list(user.spawners.items()):
                if spawner._spawn_future:
                    spawner._spawn_future.cancel()
                if spawner.active or getattr(spawner, "pid", 0):
                    await user.stop(name)
        await self._exits.aclose()
        # Of this test's event loop; the fixture does not close it.
        await JupyterHubHTTPClient.loop_instance().close()

    def _spawn_url(self, person: Person, server_name: str) -> URL:
        return self.url / "spawn" / person.name / server_name if server_name else self.url / "spawn"

    def _server_url(self, owner: str, server_name: str) -> URL:
        user = self.url / "api" / "users" / owner
        return user / "servers" / server_name if server_name else user / "server"


def hub_config(state: Path, machines: Path, **spawner: Any) -> Config:
    """A hub with our spawner; `spawner` sets its traits."""
    return Config(
        {
            "JupyterHub": {
                "spawner_class": QemuSpawner,
                "proxy_class": MemoryProxy,
                "template_paths": [str(TEMPLATES)],
                "allow_named_servers": True,
                # Else it is written to the working directory.
                "cookie_secret": os.urandom(32),
            },
            "QemuSpawner": {
                "state_dir": str(state),
                "machines": [str(machines)],
                "run_as": sessions_account(),
                "allow_tcg": True,
                "cmd": SESSION_COMMAND,
                # A stop ends a desktop for good, unless a test is about sleeping.
                "suspend_on": [],
                **spawner,
            },
        }
    )


@contextlib.asynccontextmanager
async def running_hub(hub_app: Any, config: Config, *, state: Path, machines: Path) -> AsyncIterator[Hub]:
    """Start a hub with pytest-jupyterhub's `hub_app`; everything that runs is stopped at the end."""
    hub = Hub(app=await hub_app(config=config), state_dir=state, machines=machines)
    try:
        yield hub
    finally:
        await hub.close()
