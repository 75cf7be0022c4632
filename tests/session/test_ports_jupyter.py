"""A real Jupyter server as a web tool: its pages, its own XSRF check, and a terminal's websocket."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
import web_tool
from tornado.testing import bind_unused_port
from web_tool import PREFIX, Session

FOLDER = f"{PREFIX}proxy/jupyter/"


@pytest.fixture
async def session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Session]:
    """With a Jupyter server that has no login of its own, and is told where it is shown."""
    async with contextlib.AsyncExitStack() as stack:
        while True:
            # Between our look at the port and Jupyter's use of it others may take it.
            listener, port = bind_unused_port()
            listener.close()
            process = stack.enter_context(running_jupyter(port, tmp_path))
            session = await stack.enter_async_context(
                web_tool.session(monkeypatch, ports={"jupyter": port}, absolute=True)
            )
            async with asyncio.timeout(60):
                while process.poll() is None and (await session.ask("proxy/jupyter/api")).status == 502:
                    await asyncio.sleep(0.2)
            if process.poll() is None:
                break
        yield session


@contextlib.contextmanager
def running_jupyter(port: int, home: Path) -> Iterator["subprocess.Popen[bytes]"]:
    command = [
        *(sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root"),
        *(f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--ServerApp.base_url={FOLDER}"),
        *("--IdentityProvider.token=", "--ServerApp.terminals_enabled=True", f"--ServerApp.root_dir={home}"),
    ]
    environ = {**os.environ, "HOME": str(home), "JUPYTER_CONFIG_DIR": str(home)}
    process = subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


async def test_a_terminal_of_a_jupyter_server_answers(session: Session) -> None:
    """Its cookie with the token against forgery makes the way to the browser, to its page and back."""
    page = await session.ask("proxy/jupyter/login?next=x")
    given = [cookie.split(";")[0] for cookie in page.all("Set-Cookie")]
    xsrf = next(pair.partition("=")[2] for pair in given if pair.startswith("_xsrf="))
    cookies = "; ".join([session.login(), *given])

    without = await session.ask("proxy/jupyter/api/terminals", method="POST")
    headers = session.headers() | {"Cookie": cookies, "X-XSRFToken": xsrf}
    made = await session.ask("proxy/jupyter/api/terminals", method="POST", headers=headers)

    assert without.status == 403
    assert made.status == 200, made.text
    headers = {"Cookie": cookies, "Origin": str(session.url.origin()), "Sec-Fetch-Mode": "websocket"}
    url = f"{session.url}proxy/jupyter/terminals/websocket/{made.json['name']}"
    async with asyncio.timeout(30), session.http.ws_connect(url, headers=headers) as socket:
        await socket.send_str(json.dumps(["stdin", "echo $((6 * 7))-done\r"]))
        seen = ""
        while "42-done" not in seen:
            message = await socket.receive()
            assert message.type is aiohttp.WSMsgType.TEXT
            kind, *text = json.loads(message.data)
            seen += text[0] if kind == "stdout" else ""
