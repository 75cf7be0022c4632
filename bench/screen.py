"""What a person sees: from a key, or a change of the guest's own, to the browser's canvas; motion; the page.

    QEMUSPAWNER_TEST_IMAGES=STATE/images python bench/screen.py [--rounds N] [--only keys changes motion page]

Chromium through a real configurable-http-proxy, noVNC with the page's settings on both paths: our relay, and
websockify 0.13, in turns in every round and to the same QEMU. The guest is a boot sector (screens.S) at
1280x800, assembled here (binutils). The page itself is measured through a real hub. Prints Markdown.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import aiohttp
import live
from figures import record
from PIL import Image
from playwright.async_api import Browser, Page, async_playwright
from relay_peers import start_path
from tornado import httpserver, web
from tornado.testing import bind_unused_port

from qemuspawner.paths import STATIC

KEYS = 20
CHANGES = 6
MOTION_S = 5
KEY, ALONE, MOTION = range(3)
SIZE = (1280, 1600)
ARGUMENTS = ["--no-sandbox", "--disable-gpu"]
PATHS = {"relay": 15, "websockify": 0}  # with the refresh that we keep awake, in ms

# The page's own settings (share/static/desktop.js). A moment is when the visible canvas has been drawn on and
# its middle has another colour than before.
PAGE = """<!doctype html><body style="margin:0"><div id="screen" style="width:1280px;height:800px"></div>
<script type="module">
import { RFB } from "/static/vendor/novnc.js";
let bytes = 0, draws = 0, shown = null, waiting = null;
const draw = CanvasRenderingContext2D.prototype.drawImage;
CanvasRenderingContext2D.prototype.drawImage = function (...args) {
  draw.apply(this, args);
  if (this.canvas.isConnected) {
    draws += 1;
    const now = performance.timeOrigin + performance.now();
    if (window.isMotion) return;
    const isRed = this.getImageData(640, 400, 1, 1).data[0] > 128;
    if (isRed !== shown) { shown = isRed; waiting?.(now); waiting = null; }
  }
};
const socket = new WebSocket(`ws://${location.host}${location.hash.slice(1)}`, ["binary"]);
socket.addEventListener("message", ({ data }) => { bytes += data.byteLength; });
const rfb = new RFB(document.getElementById("screen"), socket, { shared: true });
rfb.qualityLevel = 6;
rfb.compressionLevel = 2;
rfb.scaleViewport = true;
rfb.addEventListener("connect", () => { window.isConnected = true; });
window.change = () => new Promise((resolve) => { waiting = resolve; });
window.key = async () => {
  const changed = change();
  const asked = performance.timeOrigin + performance.now();
  rfb.sendKey(0x61, "KeyA");
  return (await changed) - asked;
};
window.motion = async (wait_ms) => {
  window.isMotion = true;
  const before = [bytes, draws, performance.now()];
  await new Promise((resolve) => setTimeout(resolve, wait_ms));
  const seconds = (performance.now() - before[2]) / 1000;
  return [(draws - before[1]) / seconds, (bytes - before[0]) / seconds / 1e6];
};
</script>"""

# In the session's page: when its canvas is drawn on for the first time, from the beginning of its loading.
FIRST_PICTURE = """
const draw = CanvasRenderingContext2D.prototype.drawImage;
CanvasRenderingContext2D.prototype.drawImage = function (...args) {
  draw.apply(this, args);
  if (this.canvas.isConnected && this.getImageData(9, 9, 1, 1).data[3]) {
    window.firstPicture ??= performance.now();
  }
};
"""

Results = dict[str, dict[str, list[float]]]


def assemble(folder: Path, what: int) -> Path:
    """The guest's disk."""
    source = Path(__file__).with_name("screens.S")
    subprocess.run(["as", "--32", "-o", folder / "screens.o", source], check=True)
    link = ["ld", "-m", "elf_i386", "-Ttext", "0x7c00", "-e", "0x7c00", "--oformat", "binary"]
    subprocess.run([*link, "-o", folder / "screens.bin", folder / "screens.o"], check=True)
    sector = bytearray((folder / "screens.bin").read_bytes())
    sector[509] = what
    disk = folder / "disk.img"
    disk.write_bytes(sector + (picture() if what == MOTION else b"") + bytes(64 * 512))
    return disk


def picture() -> bytes:
    """Like a photograph to an encoder: shapes of every size, and grain."""
    image = Image.new("RGB", SIZE, (128, 128, 128))
    for shrunk in (64, 16, 4, 1):
        small = (SIZE[0] // shrunk, SIZE[1] // shrunk)
        layer = Image.merge("RGB", [Image.effect_noise(small, 90 if shrunk > 1 else 12) for _ in range(3)])
        image = Image.blend(image, layer.resize(SIZE, Image.Resampling.BICUBIC), 0.4)
    return image.convert("RGBA").tobytes("raw", "BGRA")


@contextlib.contextmanager
def guest(folder: Path, what: int) -> Iterator[tuple[Path, list[float]]]:
    """QEMU as a session starts it; its VNC socket, and the moments at which the guest changed its screen."""
    vnc, port = folder / "vnc", folder / "debug"
    moments: list[float] = []
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(port))
    listening.listen()
    process = subprocess.Popen([
        "qemu-system-x86_64", "-nodefaults", "-machine", "pc", "-accel", "tcg", "-m", "64",
        "-display", "none", "-vga", "std", "-vnc", f"unix:{vnc},share=force-shared,lossy=on",
        "-debugcon", f"unix:{port}",
        "-drive", f"file={assemble(folder, what)},format=raw,if=ide,snapshot=on",
    ])  # fmt: skip
    debug, _ = listening.accept()

    def note() -> None:
        with contextlib.suppress(OSError):
            while debug.recv(1):
                moments.append(time.time() * 1000)

    threading.Thread(target=note, daemon=True).start()
    try:
        while not vnc.exists():
            time.sleep(0.02)
        yield vnc, moments
    finally:
        process.kill()
        process.wait()
        debug.close()
        listening.close()


@contextlib.asynccontextmanager
async def proxy(targets: dict[str, int]) -> AsyncIterator[int]:
    """configurable-http-proxy with a route for each path; its port."""
    port, api_port = (bind_unused_port()[0] for _ in range(2))
    ports = [one.getsockname()[1] for one in (port, api_port)]
    for one in (port, api_port):
        one.close()
    token = secrets.token_hex(16)
    command = ["configurable-http-proxy", "--ip", "127.0.0.1", "--port", str(ports[0])]
    command += ["--api-ip", "127.0.0.1", "--api-port", str(ports[1]), "--log-level", "error"]
    # In a group of its own: the command may be a script that starts Node.
    environ = os.environ | {"CONFIGPROXY_AUTH_TOKEN": token}
    process = subprocess.Popen(command, env=environ, start_new_session=True)
    try:
        async with aiohttp.ClientSession(headers={"Authorization": f"token {token}"}) as http:
            for path, target in targets.items():
                body = {"target": f"http://127.0.0.1:{target}"}
                while True:
                    with contextlib.suppress(aiohttp.ClientConnectorError):
                        await http.post(f"http://127.0.0.1:{ports[1]}/api/routes{path}", json=body)
                        break
                    await asyncio.sleep(0.1)
        yield ports[0]
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


@contextlib.asynccontextmanager
async def urls_to(vnc: Path) -> AsyncIterator[dict[str, str]]:
    """A page for each path. Open one at a time: what keeps QEMU awake for one would for the other."""

    class PageHandler(web.RequestHandler):
        def get(self) -> None:
            self.finish(PAGE)

    listening, port = bind_unused_port()
    routes = [("/", PageHandler), ("/static/(.*)", web.StaticFileHandler, {"path": STATIC})]
    server = httpserver.HTTPServer(web.Application(routes))
    server.add_sockets([listening])
    try:
        with contextlib.ExitStack() as stack:
            ports = {
                f"/{name}": stack.enter_context(start_path(name, vnc, keepalive_ms=keepalive_ms)).port
                for name, keepalive_ms in PATHS.items()
            }
            async with proxy({"/": port, **ports}) as proxy_port:
                yield {name: f"http://127.0.0.1:{proxy_port}/#/{name}" for name in PATHS}
    finally:
        server.stop()


@contextlib.asynccontextmanager
async def connected(browser: Browser, url: str) -> AsyncIterator[Page]:
    context = await browser.new_context(viewport={"width": 1280, "height": 800})
    page = await context.new_page()
    await page.goto(url)
    await page.wait_for_function("window.isConnected")
    await asyncio.sleep(1)
    try:
        yield page
    finally:
        await context.close()
        await asyncio.sleep(0.3)  # until the relay has let go of QEMU


async def measure_keys(browser: Browser, results: Results, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder, guest(Path(folder), KEY) as (vnc, _):
        async with urls_to(vnc) as urls:
            for _ in range(rounds):
                for name, url in urls.items():
                    async with connected(browser, url) as page:
                        for number in range(KEYS):
                            # Rest for different times, so that keys meet QEMU's timer at every phase.
                            await asyncio.sleep(0.3 + 0.017 * (number % 9))
                            results["key to canvas, ms"][name].append(await page.evaluate("key()"))


async def measure_changes(browser: Browser, results: Results, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder, guest(Path(folder), ALONE) as (vnc, moments):
        async with urls_to(vnc) as urls:
            for _ in range(rounds):
                for name, url in urls.items():
                    async with connected(browser, url) as page:
                        await page.evaluate("change()")
                        for _ in range(CHANGES):
                            seen = await page.evaluate("change()")
                            results["a change of the guest's own, ms"][name].append(seen - moments[-1])


async def measure_motion(browser: Browser, results: Results, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder, guest(Path(folder), MOTION) as (vnc, _):
        await asyncio.sleep(5)  # it reads its picture
        async with urls_to(vnc) as urls:
            for _ in range(rounds):
                for name, url in urls.items():
                    async with connected(browser, url) as page:
                        await page.evaluate("motion(3000)")  # QEMU finds out that it moves
                        frames, rate = await page.evaluate(f"motion({MOTION_S * 1000})")
                        results["motion, frames/s"][name].append(frames)
                        results["motion, MB/s"][name].append(rate)


async def measure_page(browser: Browser, rounds: int) -> None:
    """The session's own page, with nothing in the browser's cache and with everything."""
    first, again, loaded = [], [], {}
    async with live.live_hub(named_servers=9) as hub:
        url = await hub.start_server("demo", "page", machine="painter")
        for _ in range(rounds):
            context = await browser.new_context(viewport={"width": 1280, "height": 800})
            page = await context.new_page()
            await page.add_init_script(FIRST_PICTURE)
            await page.goto(str((hub.url / "hub/login").with_query(next="/hub/home")))
            await page.get_by_label("Username").fill("demo")
            await page.get_by_label("Password").fill(hub.password("demo"))
            await page.get_by_role("button", name="Sign in").click()
            await page.wait_for_url("**/hub/home")
            for times in (first, again):
                await page.goto(str(url))
                # Not `wait_for_function`: the page's policy forbids what that does.
                while not (moment := await page.evaluate("() => window.firstPicture")):
                    await asyncio.sleep(0.05)
                times.append(moment / 1000)
                if times is first:
                    # What was asked for later is not waited for.
                    loaded = await page.evaluate(
                        """() => [...performance.getEntriesByType("navigation"),
                                  ...performance.getEntriesByType("resource")]
                            .filter((entry) => !entry.name.includes("/api/"))
                            .filter((entry) => entry.startTime <= window.firstPicture)
                            .map((entry) => [entry.name, entry.encodedBodySize])"""
                    )
            await context.close()
    print("| the page | | limit |\n|---|---|---|")
    sent = sum(size for _, size in loaded)
    record("first picture, nothing cached", "s", first, limit=1)
    record("first picture, all cached", "s", again)
    record("requests before the first picture", "requests", [len(loaded)], limit=4)
    record("their bytes as sent", "bytes", [sent], limit=70000)
    print(f"| first picture, nothing cached, s | {spread(first)} | 1 |")
    print(f"| first picture, all cached, s | {spread(again)} | |")
    print(f"| requests before it | {len(loaded)} | 4 |")
    print(f"| their bytes as sent | {sent} | 70000 |\n")
    for name, size in loaded:
        print(f"    {size:7} {name.partition('/demo/page/')[2] or 'the page itself'}")


def spread(values: list[float]) -> str:
    values = sorted(values)
    return f"{statistics.median(values):.2f} (p90 {values[int(len(values) * 0.9)]:.2f}, max {values[-1]:.2f})"


def render(results: Results) -> str:
    lines = ["| measure, p50 (p90, max) | relay | websockify | websockify : relay |", "|---|---|---|---|"]
    for measure, row in results.items():
        ratio = statistics.median(row["websockify"]) / statistics.median(row["relay"])
        lines.append(f"| {measure} | {spread(row['relay'])} | {spread(row['websockify'])} | {ratio:.2f} |")
    return "\n".join(lines)


# Of each: what is to be kept, as record() says it.
_LIMITS: dict[str, dict[str, Any]] = {
    "key to canvas, ms": {"limit": 35, "limit_p90": 50, "times_better": 2.5},
    "a change of the guest's own, ms": {"limit_p90": 45},
    "motion, frames/s": {"limit": 30, "more_is_better": True},
    "motion, MB/s": {"limit": 8},
}


def hand_over(results: Results) -> None:
    for measure, row in results.items():
        name, unit = measure.rsplit(", ", 1)
        record(name, unit, row["relay"], peers={"websockify": row["websockify"]}, **_LIMITS.get(measure, {}))


MEASURES = {"keys": measure_keys, "changes": measure_changes, "motion": measure_motion}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=[*MEASURES, "page"], default=[*MEASURES, "page"])
    arguments = parser.parse_args()
    rounds = arguments.rounds
    logging.basicConfig(level=logging.ERROR)
    results: Results = defaultdict(lambda: defaultdict(list))
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path="/usr/bin/chromium", args=ARGUMENTS)
        for name, measure in MEASURES.items():
            if name in arguments.only:
                await measure(browser, results, rounds)
                print(render(results) + "\n", file=sys.stderr)  # what there is, should the rest fail
        print(render(results) + "\n")
        hand_over(results)
        if "page" in arguments.only:
            await measure_page(browser, rounds)
        await browser.close()


if __name__ == "__main__":
    asyncio.run(main())
