"""What each route that we add to the hub answers to whom; see `access.WHO`. One without a row fails.

Administrators have all scopes there, and a guest has access to the desktop alone. Where its session is
asked in somebody's name, a 403 is the session's.
"""

import re
from collections.abc import Iterator

from access import OUTSIDE, UNKNOWN, Matrix, Row, row
from jupyterhub import apihandlers, handlers
from tornado import web

import qemuspawner.hub.batch.port_api
import qemuspawner.hub.routes  # noqa: F401 - for what both add

# Of a user they know nothing they are told that there is no such thing.
_STRANGERS = {who: 404 for who in OUTSIDE if who not in UNKNOWN}
_LOGIN = {who: 302 for who in OUTSIDE if who in UNKNOWN or "token" in who}


def administrators(status: int) -> Row:
    """They are answered with this, everybody else is forbidden."""
    return row(status, 403, 403, 403, 403)


def owner(status: int, *, admin: int = 0) -> Row:
    """The owner is answered with this, and administrators (with `admin`); there is nothing for guests."""
    return row(admin or status, 404, 404, status, status, **_STRANGERS)


def guests(admin: int, viewer: int, controller: int, owner: int) -> Row:
    """Who has access to the desktop gets as far as its session."""
    return row(admin, viewer, controller, owner, owner, **_STRANGERS)


def page(admin: int, *inside: int, strangers: int) -> Row:
    """`inside`: the viewer, the controller, alice; tokens are for programs, and lead to the login."""
    viewer, controller, alice = inside
    people = {"bob": strangers, "revoked guest": strangers}
    return row(admin, viewer, controller, 302, alice, **_LOGIN, **people)


def form(admin: int, *inside: int, strangers: int) -> Row:
    """As `page`, for what it sends."""
    viewer, controller, alice = inside
    return row(admin, viewer, controller, 403, alice, **{"bob": strangers, "revoked guest": strangers})


_USER = "/api/users/([^/]+)"
_SERVER = f"{_USER}/server"
_NAMED = f"{_USER}/servers/([^/]*)"
_DESKTOP = f"{_USER}/desktops/([^/]*)"
_SAVED = f"{_USER}/saved/([0-9a-f]{{20}})"
_ONE_SAVED = f"{_SAVED}/([0-9a-f]{{6,20}})"
_SHARES = f"{_USER}/desktop-shares/([^/]*)"
_PEOPLE = f"{_USER}/desktop-people/([^/]*)"
_ASKING = f"{_USER}/access-requests/([^/]*)"
_FAVOURITES = f"{_USER}/favourites/(machine|proposal)"
_SETTING = f"{_USER}/settings/(.+)"
_MACHINE = "/api/machines/([^/]+)"
_MACHINE_OF = f"{_USER}/machines/([^/]+)"
_UPLOAD = f"{_MACHINE}/uploads/([^/]+)"
_DRAIN = "/api/desktops/hosts/([^/]+)/drain"
_ANNOUNCEMENT = "/api/announcements/([0-9]{1,18})"
_WISH = "/api/publications/([0-9]{1,9})"

MATRIX: Matrix = {
    # Starts and ends: JupyterHub's own, with our check before a start; here of options that are refused.
    ("GET", _SERVER): owner(200),
    ("POST", _SERVER): owner(400),
    ("PUT", _SERVER): owner(409),  # with nothing of options that a desktop runs with
    ("PATCH", _SERVER): owner(400),
    ("DELETE", _SERVER): owner(204),  # that one does not run
    ("GET", _NAMED): owner(404),
    ("DELETE", _NAMED): owner(404),  # before the next, by which the hub knows it
    ("POST", _NAMED): owner(400),
    ("PUT", _NAMED): owner(409),
    ("PATCH", _NAMED): owner(400),
    ("GET", f"{_DESKTOP}/progress"): owner(200),
    ("GET", "/spawn"): page(200, 200, 200, 200, strangers=200),  # everybody's own
    ("POST", "/spawn"): form(400, 400, 400, 400, strangers=400),
    ("GET", "/spawn/([^/]+)"): page(200, 404, 404, 200, strangers=404),
    ("POST", "/spawn/([^/]+)"): form(400, 404, 404, 400, strangers=404),
    ("GET", "/spawn/([^/]+)/([^/]+)"): page(200, 404, 404, 200, strangers=404),
    ("POST", "/spawn/([^/]+)/([^/]+)"): form(400, 404, 404, 400, strangers=404),
    # What the form and the pages ask for.
    ("GET", f"{_USER}/quotas"): owner(200),
    # Of hosts, and of nobody's desktops.
    ("GET", "/api/desktops/capacity"): row(200, 200, 200, 200, 200, **dict.fromkeys(_STRANGERS, 200)),
    ("GET", f"{_USER}/choices"): owner(200),
    ("GET", f"{_DESKTOP}/partitions"): owner(200),
    ("GET", f"{_USER}/terms"): owner(200),
    ("GET", f"{_USER}/proposals"): owner(200),
    ("GET", _FAVOURITES): owner(200),
    ("PUT", f"{_FAVOURITES}/(.+)"): owner(204),
    ("DELETE", f"{_FAVOURITES}/(.+)"): owner(204),
    ("GET", f"{_USER}/settings"): owner(200),
    ("PUT", _SETTING): owner(400),  # none of a machine
    ("DELETE", _SETTING): owner(204),
    ("GET", f"{_DESKTOP}/advice"): owner(200),
    ("GET", f"{_USER}/mails"): owner(200),
    ("PUT", f"{_USER}/mails"): owner(400),  # without a word
    # Desktops.
    ("GET", f"{_USER}/desktops"): owner(200),
    ("GET", f"{_USER}/desktop-cards"): owner(200),
    ("POST", f"{_DESKTOP}/extend"): guests(403, 403, 200, 200),
    ("POST", f"{_DESKTOP}/about"): guests(403, 403, 403, 200),
    ("POST", f"{_DESKTOP}/suspend"): guests(403, 403, 403, 503),  # this machine cannot be saved
    ("GET", f"{_DESKTOP}/thumbnail"): guests(403, 200, 200, 200),
    ("GET", f"{_USER}/saved"): owner(200),
    ("DELETE", _SAVED): owner(404),  # nothing is saved
    ("DELETE", _ONE_SAVED): owner(404),
    ("GET", f"{_ONE_SAVED}/picture"): guests(404, 404, 404, 404),
    ("GET", _SHARES): owner(200),
    ("POST", _SHARES): owner(400),
    ("GET", _PEOPLE): owner(200, admin=403),
    ("POST", _PEOPLE): owner(400, admin=403),
    # Everybody with a browser may ask, and none of them learns what there is.
    ("POST", _ASKING): row(202, 202, 202, 403, 202, **{"bob": 202, "revoked guest": 202}),
    # For the session itself, whose token nobody here has.
    ("POST", f"{_DESKTOP}/ended"): guests(403, 403, 403, 403),
    ("POST", f"{_DESKTOP}/port"): guests(403, 403, 403, 403),
    # Publishing: owners wish, administrators answer.
    ("POST", f"{_DESKTOP}/publish"): guests(403, 403, 403, 400),
    ("GET", f"{_USER}/publications"): owner(200),
    ("DELETE", f"{_USER}/publications/([0-9]{{1,9}})"): owner(404, admin=403),
    ("GET", "/api/publications"): administrators(200),
    ("POST", _WISH): administrators(400),
    ("PUT", _WISH): administrators(404),
    # Images taken home: by the owner alone; the desktop does not sleep, the machine does not allow it.
    **{(method, f"{_DESKTOP}/image"): owner(409, admin=403) for method in ("GET", "POST", "DELETE")},
    **{(method, f"{_DESKTOP}/image/file"): owner(409, admin=403) for method in ("GET", "HEAD")},
    **{(method, f"{_MACHINE_OF}/image"): owner(403) for method in ("GET", "POST", "DELETE")},
    **{(method, f"{_MACHINE_OF}/image/file"): owner(403) for method in ("GET", "HEAD")},
    # Staff.
    ("GET", "/api/desktops"): administrators(200),
    ("GET", "/api/desktops/asking"): administrators(200),
    ("POST", f"{_DESKTOP}/extension"): administrators(400),
    ("POST", f"{_DESKTOP}/message"): administrators(400),
    ("GET", "/api/desktops/hosts"): administrators(200),
    ("POST", _DRAIN): administrators(400),
    ("DELETE", _DRAIN): administrators(404),
    ("GET", "/api/announcements"): administrators(200),
    ("POST", "/api/announcements"): administrators(400),
    ("DELETE", _ANNOUNCEMENT): administrators(404),
    ("POST", f"{_ANNOUNCEMENT}/acknowledgement"): guests(404, 404, 404, 404),
    ("GET", "/api/desktops/statistics"): administrators(200),
    ("GET", r"/api/desktops/statistics/([a-z]+)\.csv"): administrators(200),
    ("GET", "/desktops/statistics"): page(200, 403, 403, 403, strangers=403),
    # Machines.
    ("GET", "/machines"): page(200, 403, 403, 403, strangers=403),
    ("GET", "/api/machines"): administrators(200),
    ("POST", "/api/machines"): administrators(400),
    ("GET", _MACHINE): administrators(200),
    ("PUT", _MACHINE): administrators(400),
    ("PATCH", _MACHINE): administrators(400),
    ("DELETE", _MACHINE): administrators(400),
    ("GET", f"{_MACHINE}/versions/([0-9]{{1,6}})"): administrators(404),
    ("POST", f"{_MACHINE}/undo"): administrators(400),
    ("PUT", f"{_MACHINE}/icon"): administrators(400),
    ("POST", "/api/removed-machines/([^/]+)/restore"): administrators(404),
    ("GET", f"{_MACHINE}/image"): administrators(200),
    ("DELETE", f"{_MACHINE}/image"): administrators(404),
    ("POST", f"{_MACHINE}/image"): administrators(202),  # from no URL, which is found out later
    ("POST", f"{_MACHINE}/uploads"): administrators(412),  # without the tus protocol's headers
    ("HEAD", _UPLOAD): administrators(412),
    ("PATCH", _UPLOAD): administrators(412),
    ("DELETE", _UPLOAD): administrators(412),
}

# What stands for a route's variable parts.
_EXAMPLES = (
    ("users/([^/]+)", "users/alice"),
    ("spawn/([^/]+)", "spawn/alice"),
    ("servers/([^/]*)", "servers/none"),
    ("machines/([^/]+)", "machines/wakeful"),
    ("([0-9a-f]{20})", "0" * 20),
    ("([0-9a-f]{6,20})", "abcdef"),
    ("(machine|proposal)", "machine"),
    (r"([a-z]+)\.csv", "users.csv"),
    ("([^/]*)", "desk"),
    ("([^/]+)", "none"),
    ("(.+)", "wakeful"),
)
_NUMBER = re.compile(r"\(\[0-9\]\{[0-9,]+\}\)")


def list_routes() -> Iterator[tuple[str, type[web.RequestHandler]]]:
    """What we have added or put in the place of JupyterHub's own."""
    for path, handler, *_ in (*apihandlers.default_handlers, *handlers.default_handlers):
        if handler.__module__.startswith("qemuspawner."):
            yield path, handler


def example_of(route: str) -> str:
    """A path that the route takes, below the hub's own."""
    path = _NUMBER.sub("1", route)
    for pattern, example in _EXAMPLES:
        path = path.replace(pattern, example)
    return path.removeprefix("/")
