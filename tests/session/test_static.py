"""The page's files as the build makes them and as a session serves them."""

import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from tornado import httpserver, web
from tornado.testing import bind_unused_port

from qemuspawner.languages import load_languages
from qemuspawner.paths import STATIC
from qemuspawner.session.web.bundle import Bundle, find_bundle
from qemuspawner.session.web.routes import StaticHandler
from qemuspawner.session.web.routes.page import render_page

SCRIPT = "console.log('bundled');" * 20


@pytest.fixture
def static(tmp_path: Path) -> Path:
    """A page's files, with a bundle made from its one module."""
    (tmp_path / "session.js").write_text("one")
    built = tmp_path / "built"
    built.mkdir()
    (built / "session-AB12.js").write_text(SCRIPT)
    (built / "session-AB12.js.gz").write_bytes(gzip.compress(SCRIPT.encode()))
    described = {
        "script": "session-AB12.js",
        "style": "session-CD34.css",
        "icons": "icons-GH78.svg",
        "preloads": ["chunk-EF56.js"],
        "sources": {"session.js": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"},
    }
    (built / "built.json").write_text(json.dumps(described))
    return tmp_path


def test_a_bundle_is_used_while_its_sources_are_what_it_was_made_from(static: Path) -> None:
    """Names are below the static files."""
    assert find_bundle(static) == Bundle(
        script="built/session-AB12.js",
        style="built/session-CD34.css",
        icons="built/icons-GH78.svg",
        preloads=("built/chunk-EF56.js",),
    )


@pytest.mark.parametrize("name", ["session.js", "built/built.json"])
def test_without_a_bundle_of_these_sources_there_is_none(static: Path, name: str) -> None:
    """The page loads the modules themselves."""
    (static / name).unlink()

    assert find_bundle(static) is None


def test_an_edited_module_is_what_the_browser_gets(static: Path) -> None:
    """In a checkout, without building anything."""
    (static / "session.js").write_text("two")

    assert find_bundle(static) is None


def test_the_page_loads_less_than_70_kb() -> None:
    """The whole page compressed: what the browser fetches before it shows a picture."""
    bundle = find_bundle(STATIC)
    assert bundle is not None, "The bundle is missing or stale: run 'pip install .' once."
    built = [bundle.script, bundle.style, bundle.icons, *bundle.preloads]

    compressed = [(STATIC / f"{name}.gz").stat().st_size for name in built]
    page = render_page(
        load_languages()["en"], {"static": "static/", "sound": "view", "web_tools": {"names": []}}
    )
    compressed += [
        len(gzip.compress(text)) for text in (page.encode(), (STATIC / "favicon.svg").read_bytes())
    ]

    assert sum(compressed) < 70_000


@pytest.fixture
async def fetch(static: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """A browser's view of a session's static files; it unpacks nothing."""
    listening, port = bind_unused_port()
    server = httpserver.HTTPServer(web.Application([("/static/(.*)", StaticHandler, {"path": static})]))
    server.add_sockets([listening])
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", auto_decompress=False) as http:
        yield http
    server.stop()


@pytest.mark.parametrize(
    ("accepts", "encoding"), [("gzip, deflate, br", "gzip"), ("identity", None), ("x-gzip", None)]
)
async def test_a_script_goes_out_as_it_was_compressed(
    fetch: aiohttp.ClientSession, accepts: str, encoding: str | None
) -> None:
    """To who takes gzip, with the script's own type."""
    headers = {"Accept-Encoding": accepts}
    async with fetch.get("/static/built/session-AB12.js", headers=headers) as answer:
        body = await answer.read()

    assert (gzip.decompress(body) if encoding else body) == SCRIPT.encode()
    assert answer.headers.get("Content-Encoding") == encoding
    assert answer.headers["Content-Type"] in ("text/javascript", "application/javascript")
    assert answer.headers["Vary"] == "Accept-Encoding"


@pytest.mark.parametrize(
    ("name", "caching"),
    [("built/session-AB12.js", "public, max-age=31536000, immutable"), ("session.js", "no-cache")],
)
async def test_only_what_is_named_by_its_content_is_kept(
    fetch: aiohttp.ClientSession, name: str, caching: str
) -> None:
    """Everything else is asked for again, and not sent again where it is the same."""
    async with fetch.get(f"/static/{name}", headers={"Accept-Encoding": "gzip"}) as answer:
        assert answer.headers["Cache-Control"] == caching
        etag = answer.headers["Etag"]
    async with fetch.get(
        f"/static/{name}", headers={"If-None-Match": etag, "Accept-Encoding": "gzip"}
    ) as answer:
        assert answer.status == 304


@pytest.mark.parametrize("path", ["../secret", "built/../../secret", "built/%2e%2e/%2e%2e/secret"])
async def test_nothing_beside_the_static_files_is_served(
    fetch: aiohttp.ClientSession, static: Path, path: str
) -> None:
    """With and without a compressed form."""
    (static.parent / "secret.gz").write_bytes(b"secret")

    async with fetch.get(f"/static/{path}", headers={"Accept-Encoding": "gzip"}) as answer:
        assert answer.status in (403, 404)
