"""What the session learns from the request for its page."""

from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
import vms
from tornado import httpserver, web
from tornado.testing import bind_unused_port

from qemuspawner.languages import find_language
from qemuspawner.paths import STATIC
from qemuspawner.session.people.access import Person, Role, Tickets
from qemuspawner.session.web.routes.page import PageHandler


@pytest.mark.parametrize(("role", "tag"), [("owner", "de"), ("control", "fr")])
async def test_what_is_said_in_the_guest_is_said_as_its_owner_reads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, role: Role, tag: str
) -> None:
    """Guests read their pages in languages of their own."""

    async def let_in(handler: PageHandler) -> None:
        handler.person = Person(name="alice", role=role)

    monkeypatch.setattr(PageHandler, "prepare", let_in)
    monkeypatch.setattr(PageHandler, "hub_auth", SimpleNamespace(hub_prefix="/hub/"))
    monkeypatch.setattr(PageHandler, "status", lambda _: {})
    monkeypatch.setattr(PageHandler, "xsrf_token", b"token")
    spec = vms.make_spec(tmp_path, vms.make_machine(image={"file": "disk", "format": "raw"}))
    supervisor = SimpleNamespace(spec=spec, language=find_language("fr_FR"))
    app = web.Application(
        [("/", PageHandler)], prefix="/", supervisor=supervisor, tickets=Tickets(), static_path=str(STATIC)
    )
    listening, port = bind_unused_port()
    server = httpserver.HTTPServer(app)
    server.add_sockets([listening])

    headers = {"Accept-Language": "de-DE,en;q=0.5"}
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://127.0.0.1:{port}/", headers=headers) as answer,
    ):
        assert (answer.status, 'lang="de"' in await answer.text()) == (200, True)
    server.stop()

    assert supervisor.language.tag == tag
