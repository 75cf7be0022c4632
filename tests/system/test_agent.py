"""Programs that act at a desktop, through the whole product, with the client that the manual offers."""

import asyncio
import contextlib
import importlib.util
import io
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import guests
import hubs
import live
import pytest
import pytest_asyncio
from audit_log import audit_lines
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from yarl import URL

from qemuspawner.scopes import AGENT

pytestmark = pytest.mark.asyncio(loop_scope="module")

_spec = importlib.util.spec_from_file_location("agent_client", live.PROJECT / "docs/agent_client.py")
assert _spec is not None
assert _spec.loader is not None
agent_client = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(agent_client)

# For people to look at; not compared.
SCREENSHOTS = live.PROJECT / "screenshots"

ACCESS = "access:servers!server=alice/desk"
HAND = f"{AGENT}!server=alice/desk"
# As long as one may be; to type it takes half a minute.
LONG_TEXT = "x" * 2000


class Tokens:
    """Makes tokens as people do on the hub's page, and takes them back."""

    def __init__(self, hub: live.LiveHub) -> None:
        self._hub = hub
        self._ids: dict[str, str] = {}

    async def make(self, user: str, *scopes: str) -> str:
        status, model = await self._hub.ask("POST", f"users/{user}/tokens", json={"scopes": scopes})
        assert status == 201, model
        self._ids[model["token"]] = f"users/{user}/tokens/{model['id']}"
        return str(model["token"])

    async def revoke(self, token: str) -> None:
        status, _ = await self._hub.ask("DELETE", self._ids[token])
        assert status == 204


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desktop(hub: live.LiveHub) -> URL:
    """Alice's desktop: the painter, which an hour without input would end."""
    hubs.add_machine(hub.state / "machines", hub.state, "idler")
    toml = live.PAINTER.replace("[lifetime]", '[lifetime]\nidle = "1 h"')
    (hub.state / "machines/idler/machine.toml").write_text(toml)
    return await hub.start_server("alice", "desk", machine="idler")


@pytest.fixture
def tokens(hub: live.LiveHub) -> Tokens:
    return Tokens(hub)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def token(hub: live.LiveHub, desktop: URL) -> str:
    """Of a program that alice lets use her desktop, and of nothing else."""
    return await Tokens(hub).make("alice", ACCESS, HAND)


@pytest.fixture
def client(desktop: URL, token: str) -> Any:
    return agent_client.Desktop(str(desktop), token)


async def ask(url: URL, token: str, what: str, **body: Any) -> tuple[int, dict[str, Any]]:
    """Ask as a program does."""
    headers = {"Authorization": f"token {token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(url / "api" / what, json=body) as answer,
    ):
        return answer.status, await answer.json()


def colour(picture: bytes) -> tuple[int, ...]:
    with Image.open(io.BytesIO(picture)) as image:
        return tuple(image.convert("RGB").getpixel((image.width // 2, image.height // 2)))  # type: ignore[arg-type]


def audited(hub: live.LiveHub, event: str) -> list[dict[str, Any]]:
    return [line for line in audit_lines(hub.state) if line["event"] == event]


# What it does


async def test_a_program_types_waits_and_sees(client: Any) -> None:
    """The painter turns from green to red with a key."""

    def use() -> tuple[Any, ...]:
        still = client.wait("still")
        before = colour(client.screenshot())
        done = client.type("a")
        client.wait("still", still_s=0.3)
        between = colour(client.screenshot())
        client.press("ctrl+shift+b")
        client.wait("still", still_s=0.3)
        return still, before, done, between, colour(client.screenshot())

    still, before, done, between, after = await asyncio.to_thread(use)

    assert still
    assert (before, between) == (guests.GREEN, guests.RED)
    assert after in (guests.GREEN, guests.RED)
    assert done == {"done": "typed", "count": 1, "screen": {"width": 640, "height": 400}}


async def test_what_was_typed_is_counted_in_the_audit_log_and_not_told(
    hub: live.LiveHub, client: Any, token: str
) -> None:
    await asyncio.to_thread(client.type, "secret")

    line = audited(hub, "agent-typed")[-1]
    assert (line["by"], line["count"], line["server"]) == ("alice", 6, "desk")
    assert "secret" not in json.dumps(line)
    assert line["token"]
    assert token not in json.dumps(line)


async def test_typing_is_use_of_the_desktop(desktop: URL, client: Any, token: str) -> None:
    async def idle_deadline() -> float:
        headers = {"Authorization": f"token {token}"}
        async with aiohttp.ClientSession(headers=headers) as http, http.get(desktop / "api/status") as answer:
            return float((await answer.json())["idle_deadline"])

    before = await idle_deadline()
    await asyncio.sleep(0.1)
    await asyncio.to_thread(client.press, "space")

    assert await idle_deadline() > before


async def test_keys_wait_while_the_desktop_is_being_saved(
    hub: live.LiveHub, desktop: URL, token: str
) -> None:
    """QEMU drops what a paused machine is sent, the release of a key too."""

    async def save() -> int:
        headers = {"Authorization": f"token {await hub.new_token('alice')}"}
        async with aiohttp.ClientSession(headers=headers) as http:
            return (await http.post(desktop / "api/checkpoints", json={})).status

    saving = asyncio.create_task(save())
    async with asyncio.timeout(10):
        while not list(hub.state.glob("sessions/*/saved/*")):
            await asyncio.sleep(0.002)
    assert not list(hub.state.glob("sessions/*/saved/*/saved.json"))

    status, _ = await ask(desktop, token, "type", text="a")

    assert status == 200
    assert list(hub.state.glob("sessions/*/saved/*/saved.json"))
    assert await saving == 200


async def test_a_change_ends_the_waiting_for_it(desktop: URL, token: str, client: Any) -> None:
    await asyncio.to_thread(client.wait)
    waiting = asyncio.create_task(ask(desktop, token, "wait", **{"for": "change"}, timeout_s=20))
    await asyncio.sleep(0.5)
    assert not waiting.done()
    await asyncio.to_thread(client.press, "space")

    status, answer = await waiting
    assert (status, answer["met"]) == (200, True)


async def test_one_program_of_a_person_waits_at_a_time(desktop: URL, token: str) -> None:
    first = asyncio.create_task(ask(desktop, token, "wait", **{"for": "change"}, timeout_s=2))
    await asyncio.sleep(0.5)

    status, answer = await ask(desktop, token, "wait", **{"for": "change"}, timeout_s=2)

    assert status == 429
    assert "Try again in 1 s." in answer["message"]
    assert (await first)[1]["met"] is False


async def test_a_pointer_that_can_only_be_pushed_is_said_to_be(desktop: URL, token: str) -> None:
    """The painter uses no tablet."""
    status, answer = await ask(desktop, token, "click", x=1, y=1)

    assert status == 409
    assert "can only be pushed" in answer["message"]


# Who may


async def test_a_browser_has_no_hand(hub: live.LiveHub, desktop: URL) -> None:
    async with hub.person("alice") as alice:
        await hub.open_session(alice, desktop)
        headers = {"X-XSRFToken": alice.xsrf(desktop)}
        answer = await alice.request("POST", desktop / "api/type", json={"text": "a"}, headers=headers)

    assert answer.status == 403
    assert "a token of their own" in answer.text


@pytest.mark.parametrize(
    "scopes",
    [
        [ACCESS],
        [ACCESS, "custom:qemuspawner:control!server=alice/desk"],
        [ACCESS, f"{AGENT}!server=alice/other"],
        [HAND],
    ],
)
async def test_a_token_without_the_scope_for_this_desktop_has_no_hand(
    tokens: Tokens, desktop: URL, scopes: list[str]
) -> None:
    status, _ = await ask(desktop, await tokens.make("alice", *scopes), "type", text="a")

    assert status == 403


@pytest.mark.parametrize("scope", [HAND, f"{AGENT}!user=alice", f"{AGENT}!user"])
async def test_the_scope_counts_for_one_desktop_or_all_of_its_owner(
    tokens: Tokens, desktop: URL, scope: str
) -> None:
    status, _ = await ask(desktop, await tokens.make("alice", ACCESS, scope), "type", text="a")

    assert status == 200


@contextlib.asynccontextmanager
async def shared_with(hub: live.LiveHub, name: str, *scopes: str) -> AsyncIterator[None]:
    """Alice's desktop, shared with somebody as the hub can."""
    await hub.ask("POST", f"users/{name}")
    async with hub.person("alice") as alice:
        headers = {"X-XSRFToken": alice.xsrf(hub.url / "hub/")}
        url = hub.url / "hub/api/shares/alice/desk"
        body = {"user": name, "scopes": [f"{scope}!server=alice/desk" for scope in scopes]}
        answer = await alice.request("POST", url, json=body, headers=headers)
        assert answer.status == 200, answer.text
        try:
            yield
        finally:
            await alice.request("PATCH", url, json={"user": name}, headers=headers)


async def test_others_let_programs_act_where_the_share_says_so(
    hub: live.LiveHub, tokens: Tokens, desktop: URL
) -> None:
    """And lose it with the share, within 3 s."""
    async with shared_with(hub, "dave", "access:servers", "custom:qemuspawner:control", AGENT):
        token = await tokens.make("dave", ACCESS, HAND)
        assert (await ask(desktop, token, "type", text="a"))[0] == 200
        withdrawn_at = time.monotonic()

    assert await time_to_end(desktop, token) - withdrawn_at < 3


async def test_who_may_only_look_on_has_no_hand(hub: live.LiveHub, tokens: Tokens, desktop: URL) -> None:
    async with shared_with(hub, "carol", "access:servers", "custom:qemuspawner:view", AGENT):
        status, answer = await ask(desktop, await tokens.make("carol", ACCESS, HAND), "type", text="a")

    assert status == 403
    assert "needs the role 'control'" in answer["message"]


# Revocation


async def time_to_end(desktop: URL, token: str) -> float:
    """Go on typing until it is forbidden; when that was."""
    async with asyncio.timeout(10):
        while (await ask(desktop, token, "type", keys=["a"]))[0] != 403:
            await asyncio.sleep(0.05)
    return time.monotonic()


async def test_a_revoked_token_has_no_hand_within_three_seconds(tokens: Tokens, desktop: URL) -> None:
    token = await tokens.make("alice", ACCESS, HAND)
    assert (await ask(desktop, token, "type", text="a"))[0] == 200

    await tokens.revoke(token)
    revoked_at = time.monotonic()

    assert await time_to_end(desktop, token) - revoked_at < 3


async def test_revocation_ends_a_text_that_is_being_typed(
    hub: live.LiveHub, tokens: Tokens, desktop: URL
) -> None:
    """Half-way; the program is told how much was typed."""
    await hub.ask("POST", "users/alice")
    token = await tokens.make("alice", ACCESS, HAND)
    typing = asyncio.create_task(ask(desktop, token, "type", text="x" * 1000))
    await asyncio.sleep(0.5)
    await tokens.revoke(token)
    revoked_at = time.monotonic()

    status, answer = await typing

    assert status == 403
    assert time.monotonic() - revoked_at < 3
    assert "of 1000 keys were pressed before." in answer["message"]
    assert 0 < audited(hub, "agent-typed")[-1]["count"] < 1000


async def test_revocation_ends_the_waiting(tokens: Tokens, desktop: URL) -> None:
    token = await tokens.make("alice", ACCESS, HAND)
    await ask(desktop, token, "wait", **{"for": "still"}, timeout_s=20)
    waiting = asyncio.create_task(ask(desktop, token, "wait", **{"for": "change"}, timeout_s=30))
    await asyncio.sleep(0.3)
    await tokens.revoke(token)
    revoked_at = time.monotonic()

    assert (await waiting)[0] == 403
    assert time.monotonic() - revoked_at < 3


# Bounds


PLACE = {"x": 0, "y": 0}
SIZE = "as the screen has 640x400 pixels."


@pytest.mark.parametrize(
    ("what", "body", "sentence"),
    [
        ("type", {}, "Send either 'text' or 'keys'."),
        ("type", {"text": "a", "keys": ["a"]}, "Send either 'text' or 'keys'."),
        ("type", {"text": LONG_TEXT + "x"}, "'text' has 2001 characters; it may have 1 to 2000."),
        ("type", {"text": "5 €"}, "The text has characters that no US keyboard has: '€'."),
        ("type", {"keys": ["a"] * 51}, "'keys' has 51 entries; it may have 1 to 50."),
        ("type", {"keys": ["100%"]}, "There is no key '100%'; keys are called as without Shift: "),
        ("click", PLACE | {"x": 640}, f"'x' is 640; it must be a whole number from 0 to 639, {SIZE}"),
        ("click", PLACE | {"y": -1}, f"'y' is -1; it must be a whole number from 0 to 399, {SIZE}"),
        ("click", {"x": 0}, "'y' is missing."),
        ("click", PLACE | {"button": 1}, "'button' is 1; it must be one of 'left', 'middle', 'right'."),
        ("click", PLACE | {"drag_to": {"x": 0, "y": 400}}, "'drag_to.y' is 400; "),
        ("click", PLACE | {"double": True, "drag_to": PLACE}, "Send either 'double' or 'drag_to'."),
        ("move", PLACE | {"z": 0}, "There is no field 'z', only x, y."),
        ("scroll", PLACE | {"down": 21}, "'down' is 21; it must be a whole number from -20 to 20 notches"),
        ("wait", {"for": "good"}, "'for' is 'good'; it must be one of 'change', 'still'."),
        ("wait", {"for": "still", "timeout_s": 61}, "'timeout_s' is 61; it must be a number from 0 to 60."),
        ("wait", {"for": "still", "region": PLACE | {"x": 600, "width": 41}}, "'region.width' is 41; "),
    ],
)
async def test_what_is_out_of_bounds_is_refused_with_a_sentence(
    desktop: URL, token: str, what: str, body: dict[str, Any], sentence: str
) -> None:
    status, answer = await ask(desktop, token, what, **body)

    assert status == 400
    assert answer["message"].startswith(sentence)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=6,
)
NAMES = ("text", "keys", "x", "y", "button", "double", "drag_to", "down", "for", "timeout_s", "region")
# A field of each that is never right, so that the painter is left in peace.
BODIES = st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4).map(lambda body: {**body, "never": 1})


async def test_whatever_comes_is_refused_in_good_order(desktop: URL, token: str) -> None:
    """Bytes that are no JSON, JSON that is no object, objects of anything; never an error of our own."""

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.sampled_from(["type", "click", "move", "scroll", "wait"]),
        st.binary(max_size=50) | JSON.filter(lambda value: value != {}).map(as_json) | BODIES.map(as_json),
    )
    def fuzz(what: str, body: bytes) -> None:
        with pytest.raises(agent_client.DesktopError, match=r"^400: .+"):
            client._ask(what, body)

    client = agent_client.Desktop(str(desktop), token)
    await asyncio.to_thread(fuzz)
    for body in (b"[" * 60_000, b'{"x": ' * 10_000, b'{"text": "\\ud800"}', b'{"x": 1e999, "y": 0}'):
        with pytest.raises(agent_client.DesktopError, match=r"^400: .+"):
            await asyncio.to_thread(client._ask, "click" if b"x" in body else "type", body)


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


async def test_a_program_that_goes_away_stops_typing_and_who_is_too_fast_is_told_when(
    hub: live.LiveHub, tokens: Tokens, desktop: URL
) -> None:
    """What it had asked for counts all the same."""
    seen = len(audited(hub, "agent-typed"))
    text = "x" * 1500
    async with shared_with(hub, "dave", "access:servers", "custom:qemuspawner:control", AGENT):
        token = await tokens.make("dave", ACCESS, HAND)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await ask(desktop, token, "type", text=text)
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"token {token}"}) as http,
            http.post(desktop / "api/type", json={"text": text}) as refused,
        ):
            answer = await refused.json()

    assert refused.status == 429
    assert answer["message"].startswith("1500 keys and clicks are too many for now")
    assert 0 < int(refused.headers["Retry-After"]) <= 30
    async with asyncio.timeout(5):
        while len(audited(hub, "agent-typed")) == seen:
            await asyncio.sleep(0.05)
    assert audited(hub, "agent-typed")[seen]["count"] < 200


# With a desktop


CHECK = "[ $(cat /tmp/x) = hello ] && clear && printf '\\033]11;green\\007'\n"
GREEN = (0, 255, 0)


@pytest.mark.timeout(600)
async def test_a_program_works_in_the_terminal_of_the_demo_desktop(hub: live.LiveHub, tokens: Tokens) -> None:
    """And everybody who looks on sees where it points."""
    desktop = await hub.start_server("alice", "demo", machine="debian-desktop", cpus=2, memory=1024)
    token = await tokens.make("alice", "access:servers!server=alice/demo", f"{AGENT}!server=alice/demo")
    client = agent_client.Desktop(str(desktop), token)

    def work() -> tuple[int, ...]:
        client.wait("still", timeout_s=60, still_s=2)
        client.click(400, 300)
        client.type("echo hello > /tmp/x\n")
        assert client.wait("still", timeout_s=60)
        client.type(CHECK)
        assert client.wait("still", timeout_s=60, still_s=2)
        # On a busy host also a picture that changes is still for long.
        until = time.monotonic() + 60
        while (colour := look()) != GREEN and time.monotonic() < until:
            time.sleep(1)
        return colour

    def look() -> tuple[int, ...]:
        picture = client.screenshot()
        SCREENSHOTS.mkdir(exist_ok=True)
        (SCREENSHOTS / "agent.png").write_bytes(picture)
        with Image.open(io.BytesIO(picture)) as image:
            return tuple(image.convert("RGB").getpixel((400, 300)))  # type: ignore[arg-type]

    async with (
        aiohttp.ClientSession(headers={"Authorization": f"token {token}"}) as http,
        http.ws_connect(desktop / "events") as events,
    ):
        seen = await asyncio.to_thread(work)
        pointers: dict[str, Any] = {}
        while not pointers:
            pointers = (await events.receive_json(timeout=10)).get("pointers", {})

    assert seen == GREEN
    assert pointers == {"alice's agent": [400, 300]}
    assert audited(hub, "agent-clicked")[-1]["x"] == 400
