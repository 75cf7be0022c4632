"""What of a request reaches a web server in the guest, and what of its answer reaches the browser.

The guest is hostile, and its pages have the origin of the hub. It is told nothing of the hub, of its proxies
and of other guests, and an answer of it is about that one path: it sets nothing for the whole origin.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

Headers = list[tuple[str, str]]

# Begins the value of each cookie of the guest's: what comes back without it is not the guest's.
_MARK = "guest."
_MAX_COOKIES = 50

# Between two neighbours only (RFC 9110, 7.6.1), or said anew for the connection to the guest.
_HOP_BY_HOP = {
    "connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "expect", "content-length",
}  # fmt: skip
# Who somebody is, and what proxies on the way here have put in: logins, addresses, certificates.
_PRIVATE = re.compile(
    "authorization|cookie|cookie2|forwarded|via|proxy-.*|remote-.*|ssl-.*|cf-.*|sec-websocket-.*"
    "|x-(forwarded|real|original|auth|remote|client|ssl|jupyterhub|amzn|goog|ms|envoy|proxy|scheme|user)(-.*)?"
)
# A token that a page has read from a cookie comes back in one of these.
_TOKENS = re.compile("x-[a-z-]*(xsrf|csrf)[a-z-]*")

# All that an answer may say. Much of the rest holds for the whole origin (Strict-Transport-Security, Alt-Svc,
# Clear-Site-Data, NEL), is an order to a server in between (X-Accel-Redirect), lets other sites read along
# (Access-Control-Allow-Origin) or lets a page rule above its path (Service-Worker-Allowed).
_PASSED_ON = {
    "accept-ranges", "age", "allow", "cache-control", "content-disposition", "content-encoding",
    "content-language", "content-range", "content-security-policy", "content-type", "date", "etag", "expires",
    "last-modified", "permissions-policy", "pragma", "referrer-policy", "retry-after", "vary",
    "x-content-type-options", "x-frame-options",
}  # fmt: skip

# On every answer, beside the guest's own. Policies add up: the guest cannot loosen one. Without an opener
# policy no page of the guest keeps a hold of the desktop's page, which has one.
ALWAYS = (
    ("Content-Security-Policy", "frame-ancestors 'self'"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)

# Names that mean something to JupyterHub or, by their beginning, to browsers.
_FORBIDDEN_COOKIES = ("jupyterhub", "service-", "__host-", "__secure-")
# RFC 6265, 4.1.1, and the spaces and commas that browsers take as well.
_COOKIE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+=[ -:<-~]*")
_ATTRIBUTES = {"expires": "Expires", "max-age": "Max-Age", "samesite": "SameSite"}


class OutsideError(ValueError):
    """An answer leads out of its own path."""


def to_guest(headers: Iterable[tuple[str, str]]) -> Headers:
    """The headers of a request as the guest gets them."""
    headers = list(headers)
    dropped = _HOP_BY_HOP | _named_by_connection(headers)
    passed = [
        (name, value)
        for name, value in headers
        if (lower := name.lower()) not in dropped
        and not _PRIVATE.fullmatch(lower)
        and not _TOKENS.fullmatch(lower)
    ]
    passed += [
        (name, value.removeprefix(_MARK))
        for name, value in headers
        if _TOKENS.fullmatch(name.lower()) and value.startswith(_MARK)
    ]
    cookies = [
        cookie for name, value in headers if name.lower() == "cookie" for cookie in _own_cookies(value)
    ]
    return [*passed, ("Cookie", "; ".join(cookies))] if cookies else passed


def from_guest(headers: Iterable[tuple[str, str]], *, folder: str) -> Headers:
    """The headers of an answer as the browser gets them, without Location.

    `folder` is the path of the port, the only one that its cookies are for.
    """
    headers = list(headers)
    passed = [(name, value) for name, value in headers if name.lower() in _PASSED_ON]
    cookies = (
        cookie
        for name, value in headers
        if name.lower() == "set-cookie"
        for cookie in _limit_cookie(value, folder)
    )
    passed += [("Set-Cookie", cookie) for cookie, _ in zip(cookies, range(_MAX_COOKIES), strict=False)]
    return [*passed, *ALWAYS]


def locate(location: str, *, asked: str, folder: str, hosts: Iterable[str]) -> str:
    """Where a redirect leads, below `folder`.

    Args:
        location: As the guest says it: its own path, one that knows of `folder`, or a whole URL.
        asked: The path that the guest was asked for.
        folder: The path of the port; it ends with a slash.
        hosts: What the guest may call itself.

    Raises:
        OutsideError: It leads to another site.
    """
    target = urlsplit(urljoin(f"http://guest{asked}", location))
    if target.scheme not in ("http", "https") or target.netloc.lower() not in {"guest", *hosts}:
        raise OutsideError(location)
    path = target.path or "/"
    # Browsers read both as they read "..": one folder up, and so on to the desktop or the hub.
    if any(unquote(part) in (".", "..") for part in re.split(r"[/\\]", path)):
        raise OutsideError(location)
    if not path.startswith(folder):
        path = folder + path.lstrip("/\\")
    return urlunsplit(("", "", path, target.query, target.fragment))


def _named_by_connection(headers: Iterable[tuple[str, str]]) -> set[str]:
    named = (value for name, value in headers if name.lower() == "connection")
    return {token.strip().lower() for value in named for token in value.split(",")}


def _own_cookies(header: str) -> Iterator[str]:
    """Those of a Cookie header that the guest has set, as it has set them."""
    for pair in header.split(";"):
        name, _, value = pair.strip().partition("=")
        if value.startswith(_MARK):
            yield f"{name}={value.removeprefix(_MARK)}"


def _limit_cookie(header: str, folder: str) -> Iterator[str]:
    """A Set-Cookie header with its value marked and for `folder` alone; nothing where it must not be."""
    first, *rest = header.split(";")
    name, _, value = (part.strip() for part in first.partition("="))
    if not _COOKIE.fullmatch(f"{name}={value}") or name.lower().startswith(_FORBIDDEN_COOKIES):
        return
    attributes: Mapping[str, str] = {
        key.strip().lower(): value.strip() for key, _, value in (part.partition("=") for part in rest)
    }
    kept = [f"{name}={_MARK}{value}", f"Path={folder}"]
    kept += [
        f"{shown}={attributes[key]}"
        for key, shown in _ATTRIBUTES.items()
        if re.fullmatch(r"[A-Za-z0-9 ,:+-]+", attributes.get(key, ""))
    ]
    kept += [flag for flag in ("HttpOnly", "Secure") if flag.lower() in attributes]
    yield "; ".join(kept)
