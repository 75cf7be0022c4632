"""What a session needs of JupyterHub, for the one person at this terminal.

The session is the same as under a hub and knows nothing of this: it asks for a login by OAuth, and for the
user of each token. Here the only user is the terminal's, who logs in once, by a code that the terminal shows.
All of it listens at 127.0.0.1 alone: other accounts of this host reach that, but know neither code nor token.
"""

import base64
import hashlib
import hmac
import json
import secrets
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from tornado import web

# From the redirect to the page until the session has asked for the token.
_CODE_LIFE_S = 60
_COOKIE = "qemuspawner-start"
_CALLBACK = "oauth_callback"


@dataclass(kw_only=True)
class LoneHub:
    """Its one user, the one session, and who has shown what."""

    user: str
    session_url: str  # with the prefix
    session_token: str  # the session's own, and its secret as a client of OAuth
    client_id: str

    def __post_init__(self) -> None:
        self.login_code = secrets.token_urlsafe(24)  # "" once it was used
        self._cookie = secrets.token_urlsafe(32)
        self._user_tokens: set[str] = set()
        self._codes: dict[str, tuple[float, str]] = {}  # when it was made, and its PKCE challenge

    @property
    def scope(self) -> str:
        return f"access:servers!server={self.user}/"

    @property
    def callback_path(self) -> str:
        return urlsplit(self.session_url).path + _CALLBACK

    def make_app(self, *, host: str) -> web.Application:
        """`host` is the only name by which it is asked: a page of another site has another one."""
        return web.Application(
            [
                (r"/login", _LoginHandler),
                (r"/hub/api/oauth2/authorize", _AuthorizeHandler),
                (r"/hub/api/oauth2/token", _TokenHandler),
                (r"/hub/api/user", _UserHandler),
                (r"/hub/api/users/[^/]*/desktop-shares/.*", _SharesHandler),
                (r"/hub/api/.*", _AnythingHandler),
                (r"/(?:hub/home)?", _HomeHandler),
            ],
            hub=self,
            host=host,
            log_function=lambda _handler: None,
        )

    def log_in(self, code: str) -> str:
        """The cookie of whoever shows the code, the first time; "" for all others."""
        if not self.login_code or not _same(code, self.login_code):
            return ""
        self.login_code = ""
        return self._cookie

    def knows(self, cookie: str) -> bool:
        return _same(cookie, self._cookie)

    def make_code(self, challenge: str) -> str:
        code = secrets.token_urlsafe(32)
        self._codes[code] = (time.monotonic(), challenge)
        return code

    def redeem(self, code: str, verifier: str) -> str:
        """A token for a code that was made in the last minute, once; "" for another one. Source: RFC 7636."""
        made_at, challenge = self._codes.pop(code, (float("-inf"), ""))
        digest = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
        if time.monotonic() - made_at > _CODE_LIFE_S or not _same(digest, challenge):
            return ""
        token = secrets.token_urlsafe(32)
        self._user_tokens.add(token)
        return token

    def is_session(self, token: str) -> bool:
        return _same(token, self.session_token)

    def find_user(self, token: str) -> dict[str, Any] | None:
        """As JupyterHub describes a user to who has this token."""
        if not self.is_session(token) and token not in self._user_tokens:
            return None
        return {
            "kind": "user",
            "name": self.user,
            "admin": False,
            "groups": [],
            "scopes": [self.scope],
        }


class _Handler(web.RequestHandler):
    @property
    def hub(self) -> LoneHub:
        hub: LoneHub = self.settings["hub"]
        return hub

    @property
    def token(self) -> str:
        kind, _, token = self.request.headers.get("Authorization", "").partition(" ")
        return token if kind.lower() in ("token", "bearer") else ""

    def prepare(self) -> None:
        if self.request.host != self.settings["host"]:
            raise web.HTTPError(403, "This is asked by another name than its own.")

    def set_default_headers(self) -> None:
        self.set_header("Cache-Control", "no-store")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
        self.set_header("X-Content-Type-Options", "nosniff")

    def check_xsrf_cookie(self) -> None:
        """Nothing here acts by a cookie alone."""

    def say(self, text: str, status: int = 200) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.finish(text + "\n")


class _LoginHandler(_Handler):
    def get(self) -> None:
        cookie = self.hub.log_in(self.get_query_argument("code", ""))
        if cookie:
            # Strict would leave it out when the session sends the browser here.
            self.set_cookie(_COOKIE, cookie, httponly=True, samesite="Lax")
            self.redirect(self.hub.session_url)
        elif self.hub.knows(self.get_cookie(_COOKIE) or ""):
            self.redirect(self.hub.session_url)
        else:
            self.say("This address was used already, or is not the whole one. Start the desktop again.", 403)


class _AuthorizeHandler(_Handler):
    def get(self) -> None:
        hub = self.hub
        if not hub.knows(self.get_cookie(_COOKIE) or ""):
            self.say("Open the address that the terminal shows.", 403)
            return
        target = self.get_query_argument("redirect_uri", "")
        if (
            self.get_query_argument("client_id", "") != hub.client_id
            or self.get_query_argument("response_type", "") != "code"
            or self.get_query_argument("code_challenge_method", "S256") != "S256"
            or target not in (hub.callback_path, hub.session_url + _CALLBACK)
        ):
            raise web.HTTPError(400)
        code = hub.make_code(self.get_query_argument("code_challenge", ""))
        query = urlencode({"code": code, "state": self.get_query_argument("state", "")})
        self.redirect(f"{hub.session_url}{_CALLBACK}?{query}")


class _TokenHandler(_Handler):
    def post(self) -> None:
        hub = self.hub
        if self.get_body_argument("client_id", "") != hub.client_id or not hub.is_session(
            self.get_body_argument("client_secret", "")
        ):
            raise web.HTTPError(403)
        token = hub.redeem(self.get_body_argument("code", ""), self.get_body_argument("code_verifier", ""))
        if not token:
            raise web.HTTPError(400)
        self.finish({"access_token": token, "token_type": "Bearer", "scope": hub.scope})


class _UserHandler(_Handler):
    def get(self) -> None:
        user = self.hub.find_user(self.token)
        if user is None:
            raise web.HTTPError(403)
        self.finish(user)


class _SharesHandler(_Handler):
    def get(self) -> None:
        """With nobody: there is nobody else."""
        if not self.hub.is_session(self.token):
            raise web.HTTPError(403)
        self.finish({"shares": []})


class _AnythingHandler(_Handler):
    """What a session tells a hub, which nobody here has to know, and what only a hub can do."""

    def post(self) -> None:
        if not self.hub.is_session(self.token):
            raise web.HTTPError(403)
        if self.request.path.endswith(("/activity", "/ended")):
            self.finish("{}")
            return
        self._refuse()

    def get(self) -> None:
        self._refuse()

    patch = delete = put = get

    def _refuse(self) -> None:
        self.set_status(404)
        self.finish(json.dumps({"message": "A desktop that was started at a terminal has no hub for this."}))


class _HomeHandler(_Handler):
    def get(self) -> None:
        self.say("This desktop was started at a terminal. Ctrl-C there ends it.")


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())
