"""Who may come in and who is there: shares, requests, mouse and keyboard."""

import time
from typing import Any, get_args

from tornado import web

from qemuspawner.session.people.people import Request
from qemuspawner.session.people.shares import Kind, SharedRole
from qemuspawner.session.web.routes.base import Handler, Refusal
from qemuspawner.texts import Text

_LONGEST_SHARE_S = 366 * 86400
_LEAST_SHARE_S = 60
_MAX_NAME = 255
_MAX_REASON = 200


class _SharingHandler(Handler):
    def text(self, body: dict[str, Any], key: str, *, longest: int, default: str | None = None) -> str:
        """A text of the body; raises HTTPError 400."""
        value = body.get(key, default)
        if not isinstance(value, str) or len(value) > longest or not (value or default == ""):
            raise web.HTTPError(400, f"'{key}' must be a text of 1 to {longest} characters.")
        return value

    def role(self, body: dict[str, Any], key: str) -> SharedRole:
        value = body.get(key)
        for role in get_args(SharedRole):
            if value == role:
                return role  # type: ignore[no-any-return]
        raise web.HTTPError(400, f"'{key}' must be 'view' or 'control'.")

    def lasting_s(self, body: dict[str, Any], *, default: int) -> int:
        value = body.get("expires_in", default)
        if type(value) is not int or not (value == default or _LEAST_SHARE_S <= value <= _LONGEST_SHARE_S):
            raise web.HTTPError(
                400, f"'expires_in' must be seconds, from {_LEAST_SHARE_S} to {_LONGEST_SHARE_S}."
            )
        return value

    def with_whom(self, body: dict[str, Any]) -> tuple[Kind, str]:
        kinds = [kind for kind in get_args(Kind) if kind in body]
        if len(kinds) != 1:
            raise web.HTTPError(400, "One of 'user' and 'group' says with whom it is shared.")
        return kinds[0], self.text(body, kinds[0], longest=_MAX_NAME)


class SharesHandler(_SharingHandler):
    """With whom the desktop is shared."""

    least = "owner"

    async def get(self) -> None:
        await self.write_shares()

    async def post(self) -> None:
        """Share it, or change as what and until when it is shared."""
        body = self.body()
        kind, name = self.with_whom(body)
        role, lasting_s = self.role(body, "role"), self.lasting_s(body, default=0)
        if kind == "user" and name == self.supervisor.spec.user:
            raise web.HTTPError(400, "The desktop is theirs already.")
        await self.people.shares.grant(kind, name, role, expires_in_s=lasting_s)
        self.audit("shared", kind=kind, who=name, as_role=role, expires_in_s=lasting_s)
        await self.write_shares()

    async def delete(self) -> None:
        """Take a share back."""
        kind, name = self.with_whom(self.body())
        await self.people.shares.revoke(kind, name)
        self.audit("unshared", kind=kind, who=name)
        await self.write_shares()

    async def write_shares(self) -> None:
        shares = self.people.shares
        now = time.time()
        rows = await shares.read()
        codes = [] if shares.problem else await shares.codes()
        self.finish(
            {
                "shares": [
                    {
                        "kind": share.kind,
                        "name": share.name,
                        "role": share.role,
                        "expires_in_s": max(1, round(share.expires - now)) if share.expires else 0,
                    }
                    for share in rows
                ],
                "codes": codes,
                "problem": shares.problem,
            }
        )


class ShareCodesHandler(SharesHandler):
    """Links by which whoever has one can accept a share."""

    async def post(self) -> None:
        """Make one; this is the only time that it is told."""
        body = self.body()
        role, lasting_s = self.role(body, "role"), self.lasting_s(body, default=86400)
        code = await self.people.shares.make_code(role, expires_in_s=lasting_s)
        self.audit("share-link-made", as_role=role, expires_in_s=lasting_s)
        self.finish(code)

    async def delete(self) -> None:
        """No link is good any more."""
        await self.people.shares.revoke_codes()
        self.audit("share-links-revoked")
        await self.write_shares()


class PeopleHandler(_SharingHandler):
    """Who is there."""

    async def get(self) -> None:
        self.finish(self.people.describe(self.person))

    async def post(self) -> None:
        """Send somebody away: `{"drop": NAME}`."""
        if self.person.role != "owner":
            raise Refusal(403, Text("Only the owner can send others away."))
        self.people.drop(self.text(self.body(), "drop", longest=_MAX_NAME), by=self.person)
        self.finish(self.people.describe(self.person))


class RequestsHandler(_SharingHandler):
    """Ask for more than one may, and answer who asks."""

    least = "waiting"

    async def post(self) -> None:
        """`{"wants": "view" | "control" | "drive", "reason": ...}`.

        With `name` it is the hub that asks, as the owner, for somebody who cannot come in here.
        """
        body = self.body()
        wants = body.get("wants")
        if wants not in ("view", "control", "drive"):
            raise web.HTTPError(400, "'wants' must be 'view', 'control' or 'drive'.")
        name = self.person.name
        if self.person.role == "owner":
            name = self.text(body, "name", longest=_MAX_NAME)
        elif self.person.may("control" if wants != "drive" else "owner") or (
            wants == "view" and self.person.may("view")
        ):
            raise web.HTTPError(400, f"You may {wants} already.")
        elif wants == "drive" and not self.person.may("control"):
            raise Refusal(403, Text("Ask for control first."))
        reason = self.text(body, "reason", longest=_MAX_REASON, default="")
        self.people.ask(Request(name=name, wants=wants, reason=reason, asked_at=time.monotonic()))
        self.finish(self.people.describe(self.person))


class AnswersHandler(_SharingHandler):
    """Answer a request: `{"name": ..., "grant": "view" | "control" | null}`."""

    least = "control"

    async def post(self) -> None:
        body = self.body()
        name = self.text(body, "name", longest=_MAX_NAME)
        granted = None if body.get("grant") is None else self.role(body, "grant")
        await self.people.answer(name, granted, by=self.person)
        self.finish(self.people.describe(self.person))


class DriverHandler(_SharingHandler):
    """Who has mouse and keyboard: `{"to": NAME}` or, for the owner, `{"one": true or false}`."""

    least = "control"

    async def post(self) -> None:
        body = self.body()
        if "one" in body:
            if self.person.role != "owner" or type(body["one"]) is not bool:
                raise Refusal(
                    403, Text("Only the owner decides, by true or false, whether one person drives.")
                )
            self.people.set_one_driver(one=body["one"], by=self.person)
        else:
            self.people.hand_over(self.text(body, "to", longest=_MAX_NAME), by=self.person)
        self.finish(self.people.describe(self.person))
