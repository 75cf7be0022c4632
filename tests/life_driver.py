"""Does to a real hub, and sees of it, what the life cycle's model speaks of; see `life_model`."""

import asyncio
import io
import json
import os
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, get_args

import aiohttp
import guests
import hubs
import life_model as model
import live
from PIL import Image
from processes import find_qemu, find_qemus
from rfb_client import RfbClient
from yarl import URL

from qemuspawner import scopes
from qemuspawner.locks import find_holder
from qemuspawner.paths import SessionPaths, StatePaths, session_id
from qemuspawner.spec import State

OWNER, GUEST = "alice", "bob"
# The hub's configuration for it, beside that of `live`.
CONFIG = f"""
c.QemuSpawner.max_checkpoints = {model.MOST_CHECKPOINTS}
c.QemuSpawner.poll_interval = 1
"""
_COLOURS: dict[tuple[int, ...], model.Colour] = {guests.GREEN: "green", guests.RED: "red"}
_ROLES: dict[str, model.Role] = {scopes.VIEW: "view", scopes.CONTROL: "control"}
# Of the hub's database: what a desktop has in it while there is one.
_TABLES = ("api_tokens", "oauth_clients", "oauth_codes", "servers", "spawners", "shares", "share_codes")


class Driver:
    """The owner's servers and their guest, by the REST API of the hub and of sessions."""

    def __init__(self, hub: live.LiveHub, owner: hubs.Person, guest: hubs.Person) -> None:
        self.hub = hub
        self._owner = owner
        self._guest = guest

    # Doing

    async def do(self, server: str, action: model.Action) -> int:
        """The answer's status; NOBODY where there is none."""
        match action:
            case model.Start(sleeping):
                options: dict[str, object] = {"machine": "painter"}
                if isinstance(sleeping, int):
                    options["sleeping"] = await self._point(server, sleeping)
                elif sleeping:
                    options["sleeping"] = sleeping
                return await self._ask("POST", self._server(server), json={"user_options": options})
            case model.Stop():
                return await self._ask("DELETE", self._server(server))
            case model.Remove():
                return await self._ask("DELETE", self._server(server), json={"remove": True})
            case model.Suspend():
                return await self._ask("POST", f"users/{OWNER}/desktops/{server}/suspend")
            case model.Extend():
                seconds = {"seconds": model.EXTENDED_BY_H * 3600}
                return await self._ask("POST", f"users/{OWNER}/desktops/{server}/extend", json=seconds)
            case model.SwitchOff():
                return await self._ask_session("POST", server, "api/power", json={"action": "poweroff"})
            case model.Reset():
                return await self._ask_session("POST", server, "api/power", json={"action": "reset"})
            case model.PressKey():
                async with RfbClient(self._owner, self._desktop(server)) as client:
                    await client.press(ord("x"))
                    # QEMU answers in order: it has the key by then.
                    await client.pixel(0, 0)
                return 200
            case model.Share(role):
                return await self._share(server, role)
            case model.SaveCheckpoint(title):
                return await self._ask_session("POST", server, "api/checkpoints", json={"title": title})
            case model.GoBack(index):
                name = await self._point(server, index)
                return await self._ask_session("POST", server, f"api/checkpoints/{name}", json={})
            case model.Forget(index):
                path = f"users/{OWNER}/saved/{session_id(OWNER, server)}"
                name = "" if index is None else f"/{await self._point(server, index)}"
                return await self._ask("DELETE", path + name)
            case model.KillQemu():
                return self._kill(find_qemu(self._paths(server)))
            case model.KillSupervisor():
                return self._kill(find_holder(self._paths(server).lock))
        raise AssertionError(action)

    async def _share(self, server: str, role: model.Role | None) -> int:
        path = f"shares/{OWNER}/{server}"
        # The hub's POST adds to what there is.
        status = await self._ask("PATCH", path, json={"user": GUEST})
        if status != 200 or role is None:
            return status
        names = ["access:servers", scopes.VIEW if role == "view" else scopes.CONTROL]
        given = [f"{name}!server={OWNER}/{server}" for name in names]
        return await self._ask("POST", path, json={"user": GUEST, "scopes": given})

    @staticmethod
    def _kill(pid: int | None) -> int:
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        return model.NOBODY

    # Seeing

    async def see(self, servers: Collection[str]) -> dict[str, model.Seen]:
        """It all, as it is now."""
        user, cards, saved, tokens = await asyncio.gather(
            self._get(f"users/{OWNER}?include_stopped_servers=1"),
            self._get(f"users/{OWNER}/desktop-cards"),
            self._get(f"users/{OWNER}/saved"),
            self._get(f"users/{OWNER}/tokens"),
        )
        states = {card["server"]: card["state"] for card in cards["cards"]}
        notes = [token["note"] for token in tokens["api_tokens"]]
        return {
            server: await self._see_one(
                server,
                row=user["servers"].get(server),
                card=states.get(server, ""),
                saved=[one for one in saved["saved"] if one["server"] == server],
                tokens=sum(
                    note.endswith(f"/{OWNER}/{server}/") and note.startswith("Server") for note in notes
                ),
            )
            for server in servers
        }

    async def _see_one(
        self, server: str, *, row: Any, card: str, saved: Sequence[dict[str, Any]], tokens: int
    ) -> model.Seen:
        paths = self._paths(server)
        is_ready = bool(row and row["ready"])
        session = await self._see_session(server) if is_ready else {}
        left = {entry.name for entry in paths.root.glob("*")} - {paths.lock.name, paths.saved.name}
        return model.Seen(
            is_known=row is not None,
            card=card,
            is_ready=is_ready,
            kept=next((one["memory"] for one in saved if one["kind"] == "suspended"), None),
            points=tuple(
                (one["title"], one["title"] == "Before going back")
                for one in saved
                if one["kind"] == "checkpoint"
            ),
            shared=await self._see_share(server) if row else None,
            qemus=len(find_qemus(paths)),
            supervisors=int(find_holder(paths.lock) is not None),
            tokens=tokens,
            has_folder=paths.root.exists(),
            has_more=bool(left),
            **session,
        )

    async def _see_session(self, server: str) -> dict[str, Any]:
        """What the session itself says and shows, where it does."""
        desktop = self._desktop(server)
        code, body = await _fetch(self._owner, "GET", desktop / "api/status")
        if code != 200:
            return {}
        status = json.loads(body)
        assert status["state"] in get_args(State), status
        if status["state"] != "running":
            return {}
        code, body = await _fetch(self._guest, "GET", desktop / "api/status")
        return {
            "screen": await self._see_screen(desktop),
            "hours": round((status["deadline"] - status["started"]) / 3600),
            "let_in": json.loads(body)["you"]["role"] if code == 200 else None,
        }

    async def _see_screen(self, desktop: URL) -> model.Colour | None:
        # As many as one person may take.
        while (answer := await _fetch(self._owner, "GET", desktop / "api/screenshot"))[0] == 429:
            await asyncio.sleep(0.2)
        code, body = answer
        if code != 200:
            return None
        picture = Image.open(io.BytesIO(body)).convert("RGB")
        return _COLOURS.get(picture.getpixel((picture.width // 2, picture.height // 2)))  # type: ignore[arg-type]

    async def _see_share(self, server: str) -> model.Role | None:
        path = self.hub.url / f"hub/api/shares/{OWNER}/{server}"
        status, body = await _fetch(self._owner, "GET", path)
        # It may have been deleted just now.
        items = json.loads(body)["items"] if status == 200 else []
        given = {scope.partition("!")[0] for one in items for scope in one["scopes"]}
        return next((role for scope, role in _ROLES.items() if scope in given), None)

    async def sweep(self) -> None:
        """Do what each session does at its start."""
        program = "from qemuspawner.session import main; main()"
        account = hubs.sessions_account()
        command = [sys.executable, "-c", program, "--sweep", str(self.hub.state)]
        environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        process = await asyncio.create_subprocess_exec(
            *command, user=account or None, cwd="/", env=environ, stdout=asyncio.subprocess.DEVNULL
        )
        assert await process.wait() == 0

    def count_rows(self) -> Counter[str]:
        """What the hub's database has of everybody."""
        uri = f"file:{self.hub.state / 'jupyterhub.sqlite'}?mode=ro"
        database = sqlite3.connect(uri, uri=True)
        try:
            return Counter(
                {table: database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in _TABLES}
            )
        finally:
            database.close()

    async def promised_cpus(self) -> int:
        _, answer = await self.hub.ask("GET", "desktops/capacity")
        (host,) = answer["hosts"]
        return int(host["cpus"]["total"] - host["cpus"]["free"])

    # Asking

    async def _ask(self, method: str, path: str, **kwargs: Any) -> int:
        return await self._request(method, self.hub.url / "hub/api" / path, **kwargs)

    async def _ask_session(self, method: str, server: str, path: str, **kwargs: Any) -> int:
        return await self._request(method, self._desktop(server) / path, **kwargs)

    async def _request(self, method: str, url: URL, **kwargs: Any) -> int:
        try:
            status, _ = await _fetch(self._owner, method, url, **kwargs)
        except aiohttp.ClientError:
            # Who answers was killed; the proxy in between sometimes says no more than that.
            return 503
        return status

    async def _get(self, path: str) -> Any:
        # Not with `/`, which would escape the question mark.
        status, body = await _fetch(self._owner, "GET", URL(f"{self.hub.url}hub/api/{path}"))
        assert status == 200, (path, status, body)
        return json.loads(body)

    async def _point(self, server: str, index: int) -> str:
        """The name of a checkpoint, the newest first; one that there is not where there is none."""
        saved = (await self._get(f"users/{OWNER}/saved"))["saved"]
        names = [one["name"] for one in saved if one["server"] == server and one["kind"] == "checkpoint"]
        return names[index] if index < len(names) else "abcdef"

    def _server(self, server: str) -> str:
        return f"users/{OWNER}/servers/{server}"

    def _desktop(self, server: str) -> URL:
        return self.hub.url / "user" / OWNER / server

    def _paths(self, server: str) -> SessionPaths:
        return StatePaths(root=self.hub.state).session(session_id(OWNER, server))


async def _fetch(person: hubs.Person, method: str, url: URL, **kwargs: Any) -> tuple[int, bytes]:
    """As a program does: a browser would be sent on to pages."""
    headers = {"Authorization": f"token {person.token}"}
    async with person.http.request(method, url, headers=headers, allow_redirects=False, **kwargs) as answer:
        return answer.status, await answer.read()
