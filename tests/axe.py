"""What keeps people out of a page: axe-core's findings against WCAG 2.2, levels A and AA."""

from typing import Literal

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, ViewportSize

_STANDARD = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]

_PHONE: ViewportSize = {"width": 390, "height": 800}

_SETTLE = """Promise.allSettled(document.getAnimations()
    .filter((one) => one.effect.getComputedTiming().iterations !== Infinity)
    .map((one) => one.finished))"""


async def find_barriers(page: Page, *, within: str = "") -> list[str]:
    """A line for each element that fails: rule, element, what is wrong. `within` is a CSS selector."""
    # A colour on its way from one to another is neither.
    await page.evaluate(_SETTLE)
    options = {"resultTypes": ["violations"], "runOnly": {"type": "tag", "values": _STANDARD}}
    results = await Axe().run(page, context=within or None, options=options)
    return [
        f"{violation['id']}: {node['html'][:160]}: {node['failureSummary']}"
        for violation in results.response["violations"]
        for node in violation["nodes"]
    ]


async def find_barriers_in_both_looks(page: Page, *, within: str = "") -> list[str]:
    """As `find_barriers`, wide and light, then on a phone and dark; the page is left as it was."""
    before = page.viewport_size
    assert before is not None
    found = [f"light: {line}" for line in await find_barriers(page, within=within)]
    await page.set_viewport_size(_PHONE)
    await _set_scheme(page, "dark")
    found += [f"dark, on a phone: {line}" for line in await find_barriers(page, within=within)]
    await page.set_viewport_size(before)
    await _set_scheme(page, "light")
    return found


async def _set_scheme(page: Page, scheme: Literal["light", "dark"]) -> None:
    await page.emulate_media(color_scheme=scheme)
    # JupyterHub's pages hear of it a moment later, and not where their reader has chosen.
    await page.evaluate("scheme => { document.documentElement.dataset.bsTheme = scheme; }", scheme)
