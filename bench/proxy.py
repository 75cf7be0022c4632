"""What viewers cost the proxy: JupyterHub's own (configurable-http-proxy), with websockets through it.

    python bench/proxy.py [--viewers 10 50] [--mib N]

So many viewers with ten updates of 16 KiB a second each, then one as fast as it goes. CPU and memory are the
proxy's. Prints Markdown.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import aiohttp
from aiohttp import web
from jupyterhub.utils import random_port
from processes import pss_mib

_PIECE = bytes(16 * 1024)
_UPDATES_A_S = 10
_WATCHED_S = 10


async def flood(request: web.Request) -> web.WebSocketResponse:
    """A desktop that sends `mib` MiB as fast as they are taken."""
    socket = web.WebSocketResponse(compress=False)
    await socket.prepare(request)
    for _ in range(int(request.query["mib"]) * 1024 * 1024 // len(_PIECE)):
        await socket.send_bytes(_PIECE)
    await socket.close()
    return socket


async def paint(request: web.Request) -> web.WebSocketResponse:
    """A desktop of which something changes all the time."""
    socket = web.WebSocketResponse(compress=False)
    await socket.prepare(request)
    with contextlib.suppress(ConnectionError):
        while not socket.closed:
            await socket.send_bytes(_PIECE)
            await asyncio.sleep(1 / _UPDATES_A_S)
    return socket


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def last_child(pid: int) -> int:
    """Where a launcher runs Node, that; else the process itself."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return last_child(int(children[0])) if children else pid


@contextlib.asynccontextmanager
async def running_proxy(http: aiohttp.ClientSession, port: int) -> AsyncIterator[tuple[str, int]]:
    """Where it listens, and its pid; everything goes to the desktop on `port`."""
    proxy_port, api_port = random_port(), random_port()
    command = ["configurable-http-proxy", "--ip", "127.0.0.1", "--port", str(proxy_port)]
    command += ["--api-ip", "127.0.0.1", "--api-port", str(api_port)]
    command += ["--default-target", f"http://127.0.0.1:{port}", "--log-level", "error"]
    process = subprocess.Popen(
        command, env=os.environ | {"CONFIGPROXY_AUTH_TOKEN": "bench"}, start_new_session=True
    )
    url = f"http://127.0.0.1:{proxy_port}"
    try:
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(aiohttp.ClientConnectorError):
                    async with http.get(url):
                        break
                await asyncio.sleep(0.1)
        yield url, last_child(process.pid)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


async def read(http: aiohttp.ClientSession, url: str) -> int:
    """Bytes, until the desktop closes or we are cancelled."""
    count = 0
    async with http.ws_connect(url, max_msg_size=0) as socket:
        async for message in socket:
            count += len(message.data)
    return count


async def main(viewers: list[int], mib: int) -> None:
    app = web.Application()
    app.router.add_get("/flood", flood)
    app.router.add_get("/paint", paint)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
        running_proxy(http, runner.addresses[0][1]) as (url, pid),
    ):
        print("| measure | |")
        print("|---|---|")
        print(f"| nobody there, MiB PSS | {pss_mib(pid):.0f} |")
        for count in viewers:
            readers = [asyncio.create_task(read(http, f"{url}/paint")) for _ in range(count)]
            await asyncio.sleep(3)
            before, begun = cpu_s(pid), time.monotonic()
            await asyncio.sleep(_WATCHED_S)
            part = (cpu_s(pid) - before) / (time.monotonic() - begun)
            print(f"| {count} viewers with {_UPDATES_A_S} updates a second, part of a core | {part:.3f} |")
            print(f"| the same, MiB PSS | {pss_mib(pid):.0f} |", flush=True)
            for reader in readers:
                reader.cancel()
            await asyncio.wait(readers)
        before, begun = cpu_s(pid), time.monotonic()
        assert await read(http, f"{url}/flood?mib={mib}") == mib << 20
        took = time.monotonic() - begun
        print(f"| one viewer as fast as it goes, MiB/s | {mib / took:.0f} |")
        print(f"| the same, CPU s/GiB | {(cpu_s(pid) - before) / mib * 1024:.2f} |")
    await runner.cleanup()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--viewers", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--mib", type=int, default=1024)
    asked = parser.parse_args()
    asyncio.run(main(asked.viewers, asked.mib))
