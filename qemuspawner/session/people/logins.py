"""Who JupyterHub says is asking: its OAuth client, with answers that are believed for seconds, not minutes.

JupyterHub's own client believes an answer for 5 minutes. A share that was taken back would go on as long.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from jupyterhub.services.auth import HubOAuth
from tornado.web import HTTPError, RequestHandler

# How long an answer of the hub is good, and how long while the hub is away: desktops live on without it.
FRESH_S = 1.5
_WITHOUT_HUB_S = 300.0
_MAX_KNOWN = 500

Model = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Login:
    """The proof that a request came with: asked for again, the hub says whether it is still good."""

    token: str
    session_id: str


class Logins(HubOAuth):  # type: ignore[misc]
    """Replaces JupyterHub's cache of user models by one of seconds, which outlives an absence of the hub."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._known: OrderedDict[str, tuple[float, Model | None]] = OrderedDict()

    def login_of(self, handler: RequestHandler) -> Login:
        return Login(token=self.get_token(handler) or "", session_id=self.get_session_id(handler))

    def user_for_token(
        self, token: str, use_cache: bool = True, session_id: str = "", *, sync: bool = True
    ) -> Any:
        if sync:
            return super().user_for_token(token, use_cache=use_cache, session_id=session_id)
        return self._find(token, session_id, fresh_s=FRESH_S if use_cache else 0)

    def find(self, login: Login, *, fresh_s: float = FRESH_S) -> Awaitable[Model | None]:
        """The user model of a login, at most `fresh_s` old; None where the hub does not know it any more."""
        return self._find(login.token, login.session_id, fresh_s=fresh_s)

    def lets_in(self, model: Model) -> bool:
        """Whether the hub gives somebody access to this server."""
        return bool(self.check_scopes(self.access_scopes, model))

    async def _find(self, token: str, session_id: str, *, fresh_s: float) -> Model | None:
        key = hashlib.sha256(f"{session_id}\0{token}".encode("utf-8", "replace")).hexdigest()
        asked_at = time.monotonic()
        known_at, known = self._known.get(key, (float("-inf"), None))
        if asked_at - known_at < fresh_s:
            return known
        try:
            model: Model | None = await super().user_for_token(
                token, use_cache=False, session_id=session_id, sync=False
            )
        except HTTPError:
            if asked_at - known_at < _WITHOUT_HUB_S:
                return known
            raise
        self._known[key] = (asked_at, model)
        self._known.move_to_end(key)
        while len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        return model
