"""The JSON that programs send to routes of the hub."""

from typing import Any

from jupyterhub.apihandlers.base import APIHandler
from tornado import web

from qemuspawner.given_texts import is_writable


class ReadsJson(APIHandler):  # type: ignore[misc]
    """Refuses what no file and no database could take."""

    def get_json_body(self) -> Any:
        body = super().get_json_body()
        if not is_writable(body):
            raise web.HTTPError(400, "The request's body has characters that are none.")
        return body
