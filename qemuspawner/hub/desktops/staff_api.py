"""Routes of the hub's REST API for its staff: all desktops, a word to who is at them, and hosts.

`admin:servers` is the scope of staff. Where a role gives it for some groups or users only, these are all that
its people see, and hosts, which are everybody's, are not theirs to drain.
"""

import json
import platform
from collections.abc import Iterable

from jupyterhub import apihandlers
from jupyterhub.scopes import Scope, needs_scope

from qemuspawner.errors import printable
from qemuspawner.hub.admission.drains import drain, list_drains, undo_drain
from qemuspawner.hub.desktops.api import DesktopsHandler
from qemuspawner.hub.desktops.overview import describe, find_spawners, overview_of
from qemuspawner.hub.json_body import ReadsJson
from qemuspawner.hub.languages import http_error
from qemuspawner.hub.records import Records
from qemuspawner.spec import SessionStatus, Wall
from qemuspawner.texts import Text

_MAX_REASON = 200
_MAX_NODE = 253  # the longest name of a host; RFC 1035


class StaffHandler(ReadsJson):
    @property
    def records(self) -> Records:
        spawner = self.settings["spawner_class"](config=self.settings["config"])
        if not hasattr(spawner, "records"):
            raise http_error(self.request, 404, Text("This hub starts no desktops."))
        records: Records = spawner.records
        return records

    def is_for(self, user_name: str) -> bool:
        """Whether this person's staff scope is for that user's desktops."""
        return bool(self.has_scope(f"admin:servers!user={user_name}"))

    def text(self, name: str, *, longest: int) -> str:
        """A line of text of the request's body. Raises HTTPError 400."""
        body = self.get_json_body()
        value = body.get(name) if isinstance(body, dict) else None
        if not isinstance(value, str) or not value.strip() or len(value) > longest:
            raise http_error(
                self.request,
                400,
                Text("'{name}' must be a text of 1 to {most} characters.", name=name, most=longest),
            )
        return printable(value).strip()


class OverviewHandler(StaffHandler):
    @needs_scope("admin:servers", post_filter=True)  # type: ignore[untyped-decorator]
    async def get(self) -> None:
        """Every desktop that starts, runs or stops, with what its session says of it."""
        spawners = find_spawners(self.users)
        statuses = await overview_of(self.settings).look(spawners)
        sees_all = self.parsed_scopes["admin:servers"] == Scope.ALL
        shown = [
            describe(spawner, statuses.get(spawner))
            for spawner in spawners
            if spawner.active and (sees_all or self.is_for(spawner.user.name))
        ]
        self.write(json.dumps({"desktops": shown}))


class MessageHandler(DesktopsHandler):
    @needs_scope("admin:servers")  # type: ignore[untyped-decorator]
    async def post(self, user_name: str, server_name: str) -> None:
        """As the session's own `api/message`."""
        await self.act(user_name, server_name, "api/message")


class HostsHandler(StaffHandler):
    @needs_scope("admin:servers")  # type: ignore[untyped-decorator]
    async def get(self) -> None:
        """The hosts that run desktops, are drained or take the next one, with what was promised there.

        `walls` are those that stand around all desktops there, as their sessions saw them; null where none
        has said.
        """
        spawners = [spawner for spawner in find_spawners(self.users) if spawner.active]
        statuses = await overview_of(self.settings).look(spawners)
        active = [spawner.known for spawner in spawners]
        drains = list_drains(self.records)
        names = {known.node for known in active} | drains.keys() | {platform.node()}
        hosts = []
        for name in sorted(names - {""}):
            here = [known for known in active if known.node == name]
            found = drains.get(name)
            hosts.append(
                {
                    "name": name,
                    "desktops": len(here),
                    "cpus": sum(known.cpus for known in here),
                    "memory_mib": sum(known.memory_mib for known in here),
                    "walls": _common_walls(
                        status
                        for spawner, status in statuses.items()
                        if status is not None and spawner.known.node == name
                    ),
                    "drain": found and {"reason": found.reason, "by": found.by, "since": found.since},
                }
            )
        self.write(json.dumps({"hosts": hosts}))


def _common_walls(statuses: Iterable[SessionStatus]) -> list[Wall] | None:
    # A desktop that is only starting has none to show yet.
    seen = [status.walls for status in statuses if status.walls]
    return [wall for wall in seen[0] if all(wall in walls for walls in seen)] if seen else None


class DrainHandler(StaffHandler):
    @needs_scope("admin:servers")  # type: ignore[untyped-decorator]
    def post(self, node: str) -> None:
        """Start nothing new on a host: `{"reason": ...}`, which users read."""
        reason = self.text("reason", longest=_MAX_REASON)
        if len(node) > _MAX_NODE or printable(node) != node:
            text = Text("The name of a host has at most {most} characters.", most=_MAX_NODE)
            raise http_error(self.request, 400, text)
        drain(self.records, node, reason=reason, by=self.current_user.name)
        self.log.warning("The host %s is drained by %s: %s", node, self.current_user.name, reason)
        self.set_status(204)

    @needs_scope("admin:servers")  # type: ignore[untyped-decorator]
    def delete(self, node: str) -> None:
        """Let desktops start there again."""
        if not undo_drain(self.records, node):
            raise http_error(self.request, 404, Text("The host '{host}' is not drained.", host=node))
        self.log.warning("The host %s is not drained any more, by %s", node, self.current_user.name)
        self.set_status(204)


apihandlers.default_handlers += [
    (r"/api/desktops", OverviewHandler),
    (r"/api/desktops/hosts", HostsHandler),
    (r"/api/desktops/hosts/([^/]+)/drain", DrainHandler),
    (r"/api/users/([^/]+)/desktops/([^/]*)/message", MessageHandler),
]
