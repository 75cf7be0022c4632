"""The web servers in the guest, proxied: the route, which costs nothing until somebody asks for one."""

from typing import Any

from tornado import httputil, web


@web.stream_request_body
class PortHandler(web.RequestHandler):
    """Stands in for the handler of the same name, whose jupyter-server-proxy takes 70 ms to import."""

    def __new__(  # type: ignore[misc]
        cls, application: web.Application, request: httputil.HTTPServerRequest, **kwargs: Any
    ) -> web.RequestHandler:
        from qemuspawner.session.web.routes import proxied

        return proxied.PortHandler(application, request, **kwargs)
