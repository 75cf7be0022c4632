"""A desktop for programs: copy this file beside a notebook; it needs nothing but Python."""

import json
import time
import urllib.error
import urllib.request


class DesktopError(Exception):
    """The desktop refused; the text is its own sentence."""


class Desktop:
    """One desktop. `url` is that of its page, `token` one with the scopes that docs/agents.md names."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url.rstrip("/") + "/api/"
        self._headers = {"Authorization": f"token {token}", "Content-Type": "application/json"}

    def screenshot(self) -> bytes:
        """The screen as a PNG; in a notebook: `IPython.display.Image(desktop.screenshot())`."""
        return self._ask("screenshot")

    def type(self, text: str) -> dict:
        """Type a text of at most 2000 characters; "\\n" is Return."""
        return self._act("type", text=text)

    def press(self, *keys: str) -> dict:
        """Press keys or chords one after the other, such as "Return" or "ctrl+shift+t"."""
        return self._act("type", keys=keys)

    def click(self, x: int, y: int, **more: object) -> dict:
        """Click; `button="right"`, `double=True`, `drag_to={"x": ..., "y": ...}`."""
        return self._act("click", x=x, y=y, **more)

    def move(self, x: int, y: int) -> dict:
        return self._act("move", x=x, y=y)

    def scroll(self, x: int, y: int, down: int) -> dict:
        """Turn the wheel there by so many notches; negative ones are up."""
        return self._act("scroll", x=x, y=y, down=down)

    def wait(self, what: str = "still", timeout_s: float = 30, **more: object) -> bool:
        """Wait for a "change" of the screen, or until it is "still"; whether that came about in time."""
        return self._act("wait", **{"for": what}, timeout_s=timeout_s, **more)["met"]

    def _act(self, what: str, **fields: object) -> dict:
        return json.loads(self._ask(what, json.dumps(fields).encode()))

    def _ask(self, what: str, body: bytes | None = None) -> bytes:
        """With a body it is a POST. Waits as long as it is told to where it was too fast."""
        while True:
            request = urllib.request.Request(self._url + what, body, self._headers)
            try:
                with urllib.request.urlopen(request, timeout=120) as answer:
                    return answer.read()
            except urllib.error.HTTPError as exc:
                if exc.code != 429:
                    raise DesktopError(f"{exc.code}: {json.load(exc).get('message')}") from None
                time.sleep(float(exc.headers["Retry-After"]))
