"""What each route of a session answers to whom; see `access.WHO`. A route without a row fails the suite."""

from typing import Any

from access import UNKNOWN, Matrix, Row, everybody, row

# For: admin, viewer, controller, alice's token, alice.
KNOWN = row(200, 200, 200, 200, 200)
MEMBERS = row(403, 200, 200, 200, 200)
CONTROL = row(403, 403, 200, 200, 200)
OWNER = row(403, 403, 403, 200, 200)


def owner(status: int) -> Row:
    """The owner is answered with this, everybody else is forbidden."""
    return row(403, 403, 403, status, status)


def controllers(status: int) -> Row:
    """Who may control is answered with this."""
    return row(403, 403, status, status, status)


def with_login(*inside: int) -> Row:
    """Who has no login at this desktop is sent to the hub's (302)."""
    return row(*inside, **dict.fromkeys(UNKNOWN, 302), bob=302)


_CHECKPOINT = "api/checkpoints/([0-9a-f]+)"
_UPLOAD = "api/files/uploads/([A-Za-z0-9_-]+)"
_WEB_TOOL = "proxy/([^/]+)(/.*)?"
# This machine has no web tools; a form of another site, or of none, is not let in with a cookie.
_TOOL = row(403, 403, 403, 404, 403)

MATRIX: Matrix = {
    ("GET", ""): with_login(200, 200, 200, 200, 200),
    # No websockets; see WEBSOCKETS.
    ("GET", "vnc"): row(403, 403, 403, 426, 403),
    ("GET", "sound"): row(403, 403, 403, 426, 403),
    ("GET", "events"): row(403, 403, 403, 400, 403),
    ("GET", "api"): everybody(200),
    ("GET", "api/status"): KNOWN,
    ("GET", "api/screenshot"): MEMBERS,
    ("GET", "api/thumbnail"): MEMBERS,
    ("GET", "api/script"): owner(404),  # this machine has no agent to run one
    ("POST", "api/ticket"): KNOWN,
    ("POST", "api/extend"): CONTROL,
    # Staff may answer who asked for more time, also where they only wait to be let in; here nobody did.
    ("POST", "api/extension"): row(409, 403, 403, 403, 403),
    # Neither does staff have to be let in to say something; here without a text.
    ("POST", "api/message"): row(400, 403, 403, 403, 403),
    ("POST", "api/about"): OWNER,
    ("POST", "api/keyboard"): controllers(409),  # this machine has no agent to set it
    ("POST", "api/power"): OWNER,
    ("POST", "api/trouble"): controllers(409),  # nothing is wrong
    ("GET", "api/checkpoints"): OWNER,
    ("POST", "api/checkpoints"): owner(503),  # this machine cannot be saved
    ("GET", _CHECKPOINT): owner(409),
    ("POST", _CHECKPOINT): owner(503),
    ("DELETE", _CHECKPOINT): owner(409),
    ("POST", "api/suspend"): owner(503),
    ("GET", "api/people"): MEMBERS,
    ("POST", "api/people"): owner(409),  # the one to be sent away is the owner
    ("POST", "api/driver"): controllers(409),  # nobody is there to drive
    ("POST", "api/requests"): row(200, 200, 400, 400, 400),  # who may, need not ask
    ("POST", "api/answers"): controllers(409),  # nobody of this name asks
    ("GET", "api/shares"): OWNER,
    ("POST", "api/shares"): owner(400),
    ("DELETE", "api/shares"): owner(400),
    ("GET", "api/share-codes"): OWNER,
    ("POST", "api/share-codes"): OWNER,
    ("DELETE", "api/share-codes"): OWNER,
    ("GET", "api/files"): controllers(404),  # this machine has no home
    ("POST", "api/files/folders"): controllers(404),
    ("POST", "api/remote-folders"): owner(409),  # this machine has no agent
    ("DELETE", "api/remote-folders"): owner(400),
    ("GET", "api/files/content"): controllers(404),
    ("OPTIONS", "api/files/uploads"): controllers(204),
    ("POST", "api/files/uploads"): controllers(412),  # without the tus protocol's headers
    ("OPTIONS", _UPLOAD): controllers(204),
    ("HEAD", _UPLOAD): controllers(412),
    ("PATCH", _UPLOAD): controllers(412),
    ("DELETE", _UPLOAD): controllers(412),
    ("GET", _WEB_TOOL): with_login(403, 403, 404, 404, 404),
    ("HEAD", _WEB_TOOL): _TOOL,
    ("POST", _WEB_TOOL): _TOOL,
    ("PUT", _WEB_TOOL): _TOOL,
    ("PATCH", _WEB_TOOL): _TOOL,
    ("DELETE", _WEB_TOOL): _TOOL,
    ("OPTIONS", _WEB_TOOL): _TOOL,
    # For programs, with a scope that a token has where it has all of its owner's.
    ("POST", "api/type"): row(403, 403, 403, 200, 403),
    ("POST", "api/click"): row(403, 403, 403, 409, 403),  # the painter uses no tablet
    ("POST", "api/move"): row(403, 403, 403, 409, 403),
    ("POST", "api/scroll"): row(403, 403, 403, 409, 403),
    ("POST", "api/wait"): row(403, 403, 403, 200, 403),
    ("GET", "oauth_callback"): everybody(400),
    ("GET", "static/(.*)"): everybody(200),
    ("HEAD", "static/(.*)"): everybody(200),
}
# The routes that open a websocket, each with what it needs of Origin and ticket.
WEBSOCKETS: dict[str, Row] = {
    "vnc": row(403, 101, 101, 101, 101),
    "sound": row(403, 101, 101, 101, 101),
    "events": row(101, 101, 101, 101, 101),
}
# What is asked for where the route alone is not enough.
PATHS = {
    "static/(.*)": "static/session.js",
    _CHECKPOINT: "api/checkpoints/abc",
    _UPLOAD: "api/files/uploads/abc",
    _WEB_TOOL: "proxy/web/",
}
BODIES: dict[str, Any] = {
    "api/power": {"action": "reset"},
    "api/trouble": {"act": "retry"},
    "api/files/folders": {"folder": "", "name": "new"},
    "api/remote-folders": {"name": "data"},
    "api/extension": {"grant": False},
    "api/about": {"name": "Night run"},
    "api/keyboard": {"layout": "de"},
    "api/people": {"drop": "alice"},
    "api/driver": {"to": "nobody"},
    "api/requests": {"wants": "control"},
    "api/answers": {"name": "nobody"},
    "api/share-codes": {"role": "view", "expires_in": 60},
    "api/type": {"text": "a"},
    "api/click": {"x": 0, "y": 0},
    "api/move": {"x": 0, "y": 0},
    "api/scroll": {"x": 0, "y": 0, "down": 1},
    "api/wait": {"for": "change", "timeout_s": 0},
}
