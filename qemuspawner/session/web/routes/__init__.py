"""The routes of a session: every path below its prefix, and who serves it."""

from typing import NamedTuple

from jupyterhub.services.auth import HubOAuthCallbackHandler
from tornado import web

from qemuspawner.session.web.routes.agent import (
    ClickHandler,
    MoveHandler,
    ScrollHandler,
    TypeHandler,
    WaitHandler,
)
from qemuspawner.session.web.routes.checkpoints import CheckpointHandler, CheckpointsHandler
from qemuspawner.session.web.routes.control import (
    AboutHandler,
    ExtendHandler,
    ExtensionHandler,
    KeyboardHandler,
    MessageHandler,
    PowerHandler,
    ScreenshotHandler,
    ScriptHandler,
    StatusHandler,
    SuspendHandler,
    ThumbnailHandler,
    TicketHandler,
    TroubleHandler,
)
from qemuspawner.session.web.routes.events import EventsHandler
from qemuspawner.session.web.routes.files import (
    ContentHandler,
    FilesHandler,
    FoldersHandler,
    UploadHandler,
    UploadsHandler,
)
from qemuspawner.session.web.routes.page import NotFoundHandler, PageHandler, ProbeHandler, StaticHandler
from qemuspawner.session.web.routes.ports import PortHandler
from qemuspawner.session.web.routes.remote_folders import RemoteFoldersHandler
from qemuspawner.session.web.routes.screen import VncHandler
from qemuspawner.session.web.routes.sharing import (
    AnswersHandler,
    DriverHandler,
    PeopleHandler,
    RequestsHandler,
    ShareCodesHandler,
    SharesHandler,
)
from qemuspawner.session.web.routes.sound import SoundHandler

__all__ = ["ROUTES", "NotFoundHandler", "ProbeHandler", "Route", "StaticHandler"]


class Route(NamedTuple):
    """A path below the session's prefix, and who serves it."""

    path: str
    handler: type[web.RequestHandler]


# Every route there is. tests/session_matrix.py holds a row for each of its methods; the suite fails without.
ROUTES = (
    Route("", PageHandler),
    Route("vnc", VncHandler),
    Route("events", EventsHandler),
    Route("sound", SoundHandler),
    Route("api", ProbeHandler),
    Route("api/status", StatusHandler),
    Route("api/screenshot", ScreenshotHandler),
    Route("api/thumbnail", ThumbnailHandler),
    Route("api/script", ScriptHandler),
    Route("api/ticket", TicketHandler),
    Route("api/extend", ExtendHandler),
    Route("api/extension", ExtensionHandler),
    Route("api/message", MessageHandler),
    Route("api/about", AboutHandler),
    Route("api/keyboard", KeyboardHandler),
    Route("api/power", PowerHandler),
    Route("api/trouble", TroubleHandler),
    Route("api/suspend", SuspendHandler),
    Route("api/checkpoints", CheckpointsHandler),
    Route("api/checkpoints/([0-9a-f]+)", CheckpointHandler),
    Route("api/people", PeopleHandler),
    Route("api/driver", DriverHandler),
    Route("api/requests", RequestsHandler),
    Route("api/answers", AnswersHandler),
    Route("api/shares", SharesHandler),
    Route("api/share-codes", ShareCodesHandler),
    Route("api/files", FilesHandler),
    Route("api/files/folders", FoldersHandler),
    Route("api/remote-folders", RemoteFoldersHandler),
    Route("api/files/content", ContentHandler),
    Route("api/files/uploads", UploadsHandler),
    Route("api/files/uploads/([A-Za-z0-9_-]+)", UploadHandler),
    Route("proxy/([^/]+)(/.*)?", PortHandler),
    Route("api/type", TypeHandler),
    Route("api/click", ClickHandler),
    Route("api/move", MoveHandler),
    Route("api/scroll", ScrollHandler),
    Route("api/wait", WaitHandler),
    Route("oauth_callback", HubOAuthCallbackHandler),
    Route("static/(.*)", StaticHandler),
)
