"""What keeps people out of a page: axe-core's findings against WCAG 2.2, levels A and AA."""

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page

_STANDARD = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]

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
