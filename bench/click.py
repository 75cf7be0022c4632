"""From the click on Start to the desktop's first frame in the browser, span by span.

    QEMUSPAWNER_TEST_IMAGES=STATE/images python bench/click.py [--rounds N]

A real hub behind a real proxy, Debian's chromium, the demo desktop from its template (2 CPUs, 2 GiB). Each
round starts a fresh desktop. Moments come from the browser's own performance clock and from the session's
steps; all are this host's wall clock. Prints Markdown.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import live
from figures import record
from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Page, async_playwright

MACHINE = "debian-desktop"

# Notes when the websocket is asked for, when it opens, and when the canvas first shows more than one colour.
WATCH = """
window.moments = {};
const now = () => performance.timeOrigin + performance.now();
const note = (name) => { moments[name] ??= now(); };
// A proxy, not a subclass: noVNC looks at the socket's own prototype.
window.WebSocket = new Proxy(WebSocket, {
  construct(target, args) {
    note("websocket asked");
    const socket = new target(...args);
    socket.addEventListener("open", () => note("websocket open"));
    return socket;
  },
});
function look() {
  const canvas = document.querySelector("#screen canvas");
  if (canvas?.width > 300) {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const words = new Uint32Array(data.buffer);
    for (let at = 0; at < words.length; at += 997) {
      if (words[at] !== words[0]) { note("first frame"); return; }
    }
  }
  requestAnimationFrame(look);
}
requestAnimationFrame(look);
"""

SPANS = (
    ("the hub takes the form, the session is forked", "clicked", "session began"),
    ("host and image checked, disk made, QEMU started", "session began", "machine started"),
    ("the template is restored, and runs", "machine started", "machine running"),
    ("the display answers", "machine running", "desktop ready"),
    ("hub, proxy route, redirects, login at the session", "desktop ready", "page asked"),
    ("the page arrives", "page asked", "page there"),
    ("its modules, until the websocket is asked for", "page there", "websocket asked"),
    ("websocket through the proxy", "websocket asked", "websocket open"),
    ("VNC handshake and first frame", "websocket open", "first frame"),
)


async def one_round(hub: live.LiveHub, page: Page, name: str) -> dict[str, float]:
    """Unix seconds of every moment."""
    await page.goto(str(hub.url / f"hub/spawn/demo/{name}"))
    button = page.get_by_role("button", name="Start")
    await button.wait_for()
    moments = {"clicked": time.time()}
    await button.click(no_wait_after=True)
    async with asyncio.timeout(60):
        while not await drawn(page):
            await asyncio.sleep(0.05)
    found: dict[str, Any] = await page.evaluate(
        """() => {
            const entry = performance.getEntriesByType("navigation")[0];
            const at = (ms) => performance.timeOrigin + ms;
            return { ...moments, "page asked": at(entry.requestStart), "page there": at(entry.responseEnd) };
        }"""
    )
    moments |= {key: value / 1000 for key, value in found.items()}
    status = json.loads(
        await page.evaluate(
            "fetch('api/status', {headers: {'X-XSRFToken': "
            "JSON.parse(document.getElementById('session-config').textContent).xsrf}}).then((a) => a.text())"
        )
    )
    steps = [(status["started"] + step["at"], step["text"]) for step in status["steps"]]
    assert status["way"] == "restored", status
    moments["session began"] = status["started"]
    for name, words in (
        ("machine started", "Starting the virtual machine"),
        ("machine running", "The machine is restored"),
        ("desktop ready", "The desktop is ready"),
    ):
        moments[name] = next(at for at, text in steps if text.startswith(words))
    return moments


async def drawn(page: Page) -> bool:
    # In the middle of a redirect there is no page to ask.
    with contextlib.suppress(PlaywrightError):
        return bool(await page.evaluate("() => Boolean(window.moments?.['first frame'])"))
    return False


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}..{max(values):.2f})"


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    rounds = []
    async with live.live_hub(named_servers=99) as hub, async_playwright() as driver:
        program = Path(sys.executable).with_name("qemuspawner")
        subprocess.run(
            [program, "--state", hub.state, "warm", MACHINE, "--cpus", "2", "--memory", "2 GiB"],
            check=True,
            stdout=sys.stderr,
        )
        browser = await driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = await browser.new_page(viewport={"width": 1280, "height": 800})
        await page.add_init_script(WATCH)
        await page.goto(str((hub.url / "hub/login").with_query(next="/hub/home")))
        await page.get_by_label("Username").fill("demo")
        await page.get_by_label("Password").fill(hub.password("demo"))
        await page.get_by_role("button", name="Sign in").click()
        await page.wait_for_url(re.compile("/hub/home"))
        for number in range(arguments.rounds + 1):
            name = f"click{number}"
            moments = await one_round(hub, page, name)
            # The first one fills the browser's cache and loads the template's memory, as once a day.
            if number:
                rounds.append(moments)
            await page.goto("about:blank")
            await hub.stop_server("demo", name)
        await browser.close()
    print("| span | seconds | share |\n|---|---|---|")
    total = [one["first frame"] - one["clicked"] for one in rounds]
    for name, begin, end in SPANS:
        values = [one[end] - one[begin] for one in rounds]
        print(f"| {name} | {spread(values)} | {statistics.median(values) / statistics.median(total):.0%} |")
        record(name, "s", values)
    print(f"| **click to first frame** | {spread(total)} | |")
    record("click to first frame", "s", total, limit=2)
    inside = [
        one["machine running"] - one["machine started"]
        + one["websocket asked"] - one["page there"]
        + one["first frame"] - one["websocket open"]
        for one in rounds
    ]  # fmt: skip
    outside = [whole - part for whole, part in zip(total, inside, strict=True)]
    print(f"| of it without the restore, the modules and the first frame | {spread(outside)} | |")
    record("of it without the restore, the modules and the first frame", "s", outside, limit=1)
    print("\nThe template's memory was loaded and the browser's cache filled by a round before these.")


if __name__ == "__main__":
    asyncio.run(main())
