"""How far behind a desktop's sound is in the browser, and how often it stops: a minute of a tone.

    QEMUSPAWNER_TEST_IMAGES=STATE/images python bench/sound.py [--seconds N]

A real hub behind a real proxy, Debian's chromium, a guest that does nothing but play (`TONE_SECTOR` of
tests/guests.py). The page tells four times a second how much sound waited to be played at most since it told
before; chromium without a sound device plays by a clock of its own. Prints Markdown.
"""

import argparse
import asyncio
import logging
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import guests
import hubs
import live
from figures import record
from playwright.async_api import Page, async_playwright

LIMIT_MS = 120

# Resolves when the page has told once more.
NEXT = """
() => new Promise((resolve) => {
  const button = document.getElementById("sound");
  const observer = new MutationObserver(() => {
    observer.disconnect();
    resolve({ ...button.dataset });
  });
  observer.observe(button, { attributeFilter: ["data-buffered-ms"] });
})
"""


async def open_desktop(hub: live.LiveHub, page: Page) -> None:
    """The page of a guest that plays, with its sound turned on."""
    hubs.add_machine(hub.state / "machines", hub.state, "tone")
    toml = live.PAINTER.replace("[image]", "sound = true\n[image]")
    (hub.state / "machines/tone/machine.toml").write_text(toml)
    disk = hub.state / "images/tone/disk.raw"
    disk.unlink()
    guests.make_disk(disk, sector=guests.TONE_SECTOR)
    desktop = await hub.start_server("alice", machine="tone")
    await page.goto(str((hub.url / "hub/login").with_query(next=desktop.path)))
    await page.get_by_label("Username").fill("alice")
    await page.get_by_label("Password").fill(hub.password("alice"))
    await page.get_by_role("button", name="Sign in").click()
    await page.locator("#sound").click()
    await page.locator("#sound[data-playing=true]").wait_for()


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=60)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    async with live.live_hub() as hub, async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = await browser.new_page(viewport={"width": 1280, "height": 800})
        await open_desktop(hub, page)
        # Let the page come to rest first.
        for _ in range(8):
            first = await page.evaluate(NEXT)
        most: list[float] = []
        while len(most) < arguments.seconds * 4:
            told = await page.evaluate(NEXT)
            most.append(float(told["bufferedMs"]))
        await browser.close()
    underruns, dropped_ms = (int(told[key]) - int(first[key]) for key in ("underruns", "droppedMs"))
    quantiles = statistics.quantiles(most, n=100)
    print("| a tone, s | buffered p50, ms | p95, ms | max, ms | limit, ms | underruns | left out, ms |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {arguments.seconds} | {quantiles[49]:.0f} | {quantiles[94]:.0f} | {max(most):.0f} | {LIMIT_MS} "
        f"| {underruns} | {dropped_ms} |"
    )
    record("buffered", "ms", most, limit_p90=LIMIT_MS)
    record("underruns", f"in {arguments.seconds} s", [underruns], limit=0)
    record("left out", "ms", [dropped_ms])


if __name__ == "__main__":
    asyncio.run(main())
