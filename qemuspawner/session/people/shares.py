"""With whom a desktop is shared, and as what: JupyterHub's shares, whose custom scopes only we enforce.

JupyterHub stores the custom scopes of a share, but the login of somebody who comes through it does not carry
them. So the session reads its own list of shares, and that is what counts: a share that was taken back ends
within the seconds that the list is believed.
"""

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from qemuspawner import scopes
from qemuspawner.policy import RANK, Role
from qemuspawner.session.people.hub import Hub, HubError

# How long the list is believed.
FRESH_S = 0.9
# Who had a share so long ago, and has none any more, has not become site staff by that.
_REMEMBERED_S = 30.0

Kind = Literal["user", "group"]
SharedRole = Literal["view", "control"]


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one person or group may do."""

    kind: Kind
    name: str
    role: SharedRole
    expires: float = 0  # Unix seconds; 0: never


class Shares:
    """The shares of one server."""

    def __init__(self, hub: Hub, *, owner: str, server_name: str) -> None:
        self._hub = hub
        self._owner = owner
        self._server_name = server_name
        self._known: tuple[Share, ...] = ()
        self._known_at = float("-inf")
        self._last_seen: dict[tuple[Kind, str], float] = {}
        self.problem = ""  # why the hub does not tell

    async def read(self) -> tuple[Share, ...]:
        """The list, at most 0.9 s old; the last known one while the hub is away."""
        asked_at = time.monotonic()
        if asked_at - self._known_at >= FRESH_S:
            try:
                rows = await self._hub.ask("GET", "users", self._owner, "desktop-shares", self._server_name)
            except HubError as exc:
                if exc.status:
                    # It knows better than what we remember.
                    self._known, self.problem = (), exc.message
            else:
                self._known, self.problem = tuple(_as_share(row) for row in rows["shares"]), ""
            self._known_at = asked_at
            for share in self._known:
                self._last_seen[share.kind, share.name] = asked_at
        return self._known

    def forget(self) -> None:
        """Ask anew the next time."""
        self._known_at = float("-inf")

    async def role_of(self, name: str, groups: Collection[str], *, by_group: bool = True) -> Role | None:
        """What a person may do by a share with them or, `by_group`, with a group of theirs: the most."""
        roles = [
            share.role
            for share in await self.read()
            if (share.kind, share.name) == ("user", name)
            or (by_group and share.kind == "group" and share.name in groups)
        ]
        return max(roles, key=RANK.__getitem__, default=None)

    def had_lately(self, name: str, groups: Collection[str]) -> bool:
        """Whether a person had a share until seconds ago."""
        since = time.monotonic() - _REMEMBERED_S
        keys: list[tuple[Kind, str]] = [("user", name), *(("group", group) for group in groups)]
        return any(self._last_seen.get(key, since) > since for key in keys)

    async def grant(self, kind: Kind, name: str, role: SharedRole, *, expires_in_s: int = 0) -> None:
        """Share as `role`, also where it was shared as another one; `expires_in_s` 0: until it is taken back.

        Raises:
            HubError: There is no such person or group, or the owner may not share.
        """
        other = scopes.VIEW if role == "control" else scopes.CONTROL
        # The hub's POST adds to what there is: what is to go is taken away first.
        await self._ask("PATCH", "shares", {kind: name, "scopes": [self._scope(other)]})
        await self._ask("POST", "shares", {kind: name, "scopes": self._scopes_of(role)})
        await self._hub.ask(
            "POST",
            *("users", self._owner, "desktop-shares", self._server_name),
            body={kind: name, "expires_in": expires_in_s},
        )
        self.forget()

    async def revoke(self, kind: Kind, name: str) -> None:
        """Take a share back. Raises HubError."""
        await self._ask("PATCH", "shares", {kind: name})
        self.forget()

    async def make_code(self, role: SharedRole, *, expires_in_s: int) -> dict[str, Any]:
        """A link that whoever opens it accepts the share by: `{"path", "expires_at"}`. Raises HubError."""
        body = {"scopes": self._scopes_of(role), "expires_in": expires_in_s}
        answer = await self._ask("POST", "share-codes", body)
        return {"path": answer["accept_url"], "expires_at": answer["expires_at"]}

    async def codes(self) -> list[dict[str, Any]]:
        """The links that are good now: their `role`, `expires_at`, and how often they were used (`used`)."""
        answer = await self._ask("GET", "share-codes")
        return [
            {
                "id": item["id"],
                "role": _role_of(item["scopes"]),
                "expires_at": item["expires_at"],
                "used": item["exchange_count"],
            }
            for item in answer["items"]
        ]

    async def revoke_codes(self) -> None:
        """No link is good any more; who has come by one keeps the share. Raises HubError."""
        await self._ask("DELETE", "share-codes")

    async def _ask(self, method: str, collection: str, body: object = None) -> Any:
        return await self._hub.ask(method, collection, self._owner, self._server_name, body=body)

    def _scopes_of(self, role: SharedRole) -> list[str]:
        own = scopes.CONTROL if role == "control" else scopes.VIEW
        return [self._scope("access:servers"), self._scope(own)]

    def _scope(self, scope: str) -> str:
        return f"{scope}!server={self._owner}/{self._server_name}"


def _as_share(row: dict[str, Any]) -> Share:
    return Share(
        kind="group" if row["kind"] == "group" else "user",
        name=str(row["name"]),
        role=_role_of(row["scopes"]),
        expires=float(row["expires"]),
    )


def _role_of(granted: Collection[str]) -> SharedRole:
    """A share that says nothing of roles, as JupyterHub makes it by itself, is for looking on."""
    return "control" if any(scope.partition("!")[0] == scopes.CONTROL for scope in granted) else "view"
