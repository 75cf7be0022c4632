"""Web tools: the real route with its login between browsers and hostile web servers, without a guest."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
import web_tool
from axe import find_barriers_in_both_looks
from pages import hurry
from playwright.async_api import Browser, expect
from web_tool import PREFIX, Flood, FloodSocket, Session

from qemuspawner.policy import Policy
from qemuspawner.session.screen.visitors import CloseCode

FOLDER = f"{PREFIX}proxy/tool/"


@pytest.fixture
async def session(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Session]:
    async with web_tool.session(monkeypatch) as session:
        yield session


def says(*headers: str, status: int = 200) -> str:
    """The path at which the guest answers so."""
    return f"proxy/tool/says?status={status}" + "".join(f"&header={quote(text)}" for text in headers)


# What reaches the guest


async def test_a_request_reaches_the_guest_as_it_was_sent(session: Session) -> None:
    answer = await session.ask("proxy/tool/a%2Fb/c%20d?x=%3F&y", method="PUT", data=b"x" * 100)

    assert answer.status == 200
    assert answer.json["method"] == "PUT"
    assert answer.json["uri"] == "/a%2Fb/c%20d?x=%3F&y"
    assert answer.json["body_bytes"] == 100


async def test_a_body_may_be_larger_than_those_of_the_session_itself(session: Session) -> None:
    answer = await session.ask("proxy/tool/", method="POST", data=bytes(5 << 20))

    assert answer.json["body_bytes"] == 5 << 20


async def test_a_body_beyond_the_policy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with web_tool.session(monkeypatch, policy=Policy(max_file_mib=1)) as session:
        answer = await session.ask("proxy/tool/", method="POST", data=bytes((1 << 20) + 1))

        assert answer.status == 413
        assert "1 MiB" in answer.json["message"]


async def test_a_body_of_unknown_length_reaches_the_guest(session: Session) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield bytes(1000)

    answer = await session.ask("proxy/tool/", method="POST", data=pieces())

    assert answer.json["body_bytes"] == 10_000


async def test_nothing_of_the_hub_and_its_proxies_reaches_the_guest(session: Session) -> None:
    secrets = {
        "Cookie": f"{session.login()}; _xsrf=ours; jupyterhub-session-id=7; __Host-sso=7; other=7",
        "X-XSRFToken": "ours",
        "X-Forwarded-User": "alice",
        "X-Forwarded-For": "192.0.2.7",
        "X-Real-IP": "192.0.2.7",
        "X-Auth-Request-Access-Token": "secret",
        "Remote-User": "alice",
        "Proxy-Authorization": "secret",
        "X-JupyterHub-Thing": "secret",
        "Connection": "keep-alive, X-Hop",
        "X-Hop": "secret",
    }

    answer = await session.ask("proxy/tool/", headers=session.headers() | secrets)

    names = {name for name, _ in answer.json["headers"]}
    assert not names & ({name.lower() for name in secrets} - {"connection"})


async def test_a_token_of_the_hub_does_not_reach_the_guest(session: Session) -> None:
    answer = await session.ask("proxy/tool/", headers={"Authorization": "token alices"})

    assert answer.status == 200
    assert "alices" not in answer.text


async def test_a_token_in_the_url_is_refused(session: Session) -> None:
    assert (await session.ask("proxy/tool/?token=alices", headers={"X": "y"})).status == 403


async def test_the_guest_is_told_where_it_is_shown(session: Session) -> None:
    answer = await session.ask("proxy/tool/")

    assert ["x-forwarded-prefix", FOLDER.rstrip("/")] in answer.json["headers"]
    assert ["host", session.url.authority] in answer.json["headers"]


async def test_a_tool_that_knows_its_path_is_asked_for_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    async with web_tool.session(monkeypatch, absolute=True) as session:
        answer = await session.ask("proxy/tool/lab?x")

        assert answer.json["uri"] == f"{FOLDER}lab?x"


# Cookies of the guest


async def test_the_guest_gets_its_own_cookies_back(session: Session) -> None:
    given = await session.ask(says("Set-Cookie: _xsrf=2|abc|1; Path=/", "Set-Cookie: sid=x=y; HttpOnly"))
    pairs = [cookie.split(";")[0] for cookie in given.all("Set-Cookie")]
    xsrf = pairs[0].partition("=")[2]

    headers = {"Cookie": "; ".join([session.login(), *pairs]), "X-XSRFToken": xsrf}
    answer = await session.ask("proxy/tool/", headers=session.headers() | headers)

    assert ["cookie", "_xsrf=2|abc|1; sid=x=y"] in answer.json["headers"]
    assert ["x-xsrftoken", "2|abc|1"] in answer.json["headers"]


async def test_a_cookie_of_the_guest_is_for_its_own_path(session: Session) -> None:
    answer = await session.ask(
        says("Set-Cookie: a=1; Domain=example.org; Path=/; Max-Age=60; SameSite=Lax; Secure; HttpOnly; X=y")
    )

    assert answer.all("Set-Cookie") == [
        f"a=guest.1; Path={FOLDER}; Max-Age=60; SameSite=Lax; HttpOnly; Secure",
    ]


@pytest.mark.parametrize(
    "cookie",
    [
        f"{web_tool.CLIENT_ID}=x",
        "jupyterhub-session-id=x",
        "JupyterHub-Session-Id=x",
        "__Host-jupyterhub-user-alice=x",
        "=jupyterhub-session-id=x",
        "a b=x",
    ],
)
async def test_a_cookie_with_a_name_of_the_hubs_is_dropped(session: Session, cookie: str) -> None:
    answer = await session.ask(says(f"Set-Cookie: {cookie}"))

    assert answer.status == 200
    assert answer.all("Set-Cookie") == []


# What comes back


@pytest.mark.parametrize(
    "header",
    [
        "Service-Worker-Allowed: /",
        'Clear-Site-Data: "*"',
        "Strict-Transport-Security: max-age=1; includeSubDomains",
        'Alt-Svc: h2="evil.example:443"',
        "Access-Control-Allow-Origin: https://evil.example",
        "Access-Control-Allow-Credentials: true",
        "Cross-Origin-Opener-Policy: same-origin",
        "X-Accel-Redirect: /secret",
        "NEL: {}",
        "Report-To: {}",
        'WWW-Authenticate: Basic realm="hub"',
        "Refresh: 0; url=https://evil.example",
        "Set-Cookie2: a=1",
    ],
)
async def test_a_header_for_more_than_its_path_is_dropped(session: Session, header: str) -> None:
    answer = await session.ask(says(header))

    assert answer.status == 200
    assert answer.all(header.partition(":")[0]) == []


async def test_an_answer_is_not_loosened(session: Session) -> None:
    """Its own policy stays, and ours beside it; the embedding of it is ours to allow."""
    answer = await session.ask(
        says("Content-Security-Policy: frame-ancestors *", "Cross-Origin-Resource-Policy: cross-origin")
    )

    assert answer.all("Content-Security-Policy") == ["frame-ancestors *", "frame-ancestors 'self'"]
    assert answer.all("Cross-Origin-Resource-Policy") == ["same-origin"]


async def test_what_a_page_needs_passes(session: Session) -> None:
    answer = await session.ask(
        says(
            "Content-Type: text/css", 'ETag: "7"', "Cache-Control: max-age=60", "Content-Disposition: inline"
        )
    )

    assert answer.text == "page"
    assert answer.all("Content-Type") == ["text/css"]
    assert answer.all("ETag") == ['"7"']
    assert answer.all("Cache-Control") == ["max-age=60"]
    assert answer.all("Content-Disposition") == ["inline"]
    assert answer.all("Content-Length") == ["4"]


async def test_a_head_request_has_no_body(session: Session) -> None:
    answer = await session.ask("proxy/tool/", method="HEAD")

    assert answer.status == 200
    assert answer.text == ""


@pytest.mark.parametrize(
    ("location", "leads_to"),
    [
        ("/login?next=%2F", f"{FOLDER}login?next=%2F"),
        ("lab", f"{FOLDER}lab"),
        ("../../..", FOLDER),
        (f"{FOLDER}lab#x", f"{FOLDER}lab#x"),
        ("http://127.0.0.1/x", f"{FOLDER}x"),
        ("/hub/logout", f"{FOLDER}hub/logout"),
        ("/\\evil.example/x", f"{FOLDER}evil.example/x"),
    ],
)
async def test_a_redirect_stays_inside(session: Session, location: str, leads_to: str) -> None:
    answer = await session.ask(says(f"Location: {location}", status=302))

    assert answer.status == 302
    assert answer.all("Location") == [leads_to]


@pytest.mark.parametrize(
    "location",
    [
        "https://evil.example/",
        "//evil.example/",
        "javascript:alert(1)",
        f"{FOLDER}%2e%2e/%2e%2e/",
        f"{FOLDER}..\\..\\",
        "http://user@evil.example/",
    ],
)
async def test_a_redirect_to_elsewhere_is_not_followed(session: Session, location: str) -> None:
    answer = await session.ask(says(f"Location: {location}", status=302))

    assert answer.status == 502
    assert "another site" in answer.json["message"]


async def test_the_ports_address_without_a_slash_leads_to_it(session: Session) -> None:
    answer = await session.ask("proxy/tool?x=1")

    assert (answer.status, answer.all("Location")) == (302, [f"{FOLDER}?x=1"])


# Bounds


async def test_where_nobody_listens_a_sentence_says_so(session: Session) -> None:
    answer = await session.ask("proxy/closed/")

    assert answer.status == 502
    assert "nothing listens" in answer.json["message"]
    assert "desktop" in answer.json["hint"]


async def test_what_does_not_speak_http_is_said(session: Session) -> None:
    answer = await session.ask("proxy/babbler/")

    assert answer.status == 502
    assert "does not speak HTTP" in answer.json["message"]


async def test_a_tool_that_never_answers_is_given_up(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("session.web.port_client", "session.web.routes.proxied"):
        monkeypatch.setattr(f"qemuspawner.{module}.SILENCE_S", 0.2)

    for body in (None, bytes(64 << 20)):
        answer = await session.ask("proxy/silent/", method="POST", data=body)

        assert answer.status == 504
        assert "has not answered" in answer.json["message"]


async def test_a_failure_is_a_page_for_people(session: Session) -> None:
    answer = await session.ask("proxy/closed/", headers=session.headers(Sec_Fetch_Dest="document"))

    assert answer.status == 502
    assert answer.all("Content-Type") == ["text/html; charset=UTF-8"]
    assert "<h1>The web tool &#39;closed&#39; does not answer" in answer.text


async def test_a_tool_that_is_not_there_yet_opens_by_itself_when_it_is(
    session: Session, browser: Browser
) -> None:
    """As right after the start, when the machine's services are not all there; the page keeps nobody out."""
    name, _, value = session.login().partition("=")
    async with await browser.new_page() as page:
        await page.context.add_cookies([{"name": name, "value": value, "url": str(session.url)}])
        await page.clock.install()
        await page.goto(f"{session.url}proxy/closed/")
        await expect(page.get_by_role("heading", name="does not answer")).to_be_visible()
        assert await find_barriers_in_both_looks(page) == []
        async with page.expect_response(lambda answer: answer.request.method == "HEAD") as asked:
            await page.clock.run_for(3000)
        assert (await asked.value).status == 502

        session.supervisor.ports["closed"] = session.supervisor.ports["tool"]
        await hurry(page, expect(page.get_by_text('"uri": "/"')).to_be_visible())


async def test_what_stays_wrong_is_not_asked_again(session: Session) -> None:
    headers = session.headers(Sec_Fetch_Dest="document")

    assert "web_tool.js" in (await session.ask("proxy/closed/", headers=headers)).text
    assert "web_tool.js" not in (await session.ask("proxy/babbler/", headers=headers)).text


async def test_what_was_cut_off_does_not_look_whole(session: Session) -> None:
    with pytest.raises(aiohttp.ClientPayloadError):
        await session.ask("proxy/cut/")


async def test_a_browser_that_reads_slowly_holds_the_guest_up(session: Session) -> None:
    """Nothing piles up in between; and the guest is left when the browser leaves."""
    async with session.http.get(f"{session.url}proxy/tool/flood", headers=session.headers()) as answer:
        assert await answer.content.readexactly(1 << 20)
        before = -1
        while before != Flood.sent_bytes:
            before = Flood.sent_bytes
            await asyncio.sleep(0.3)
        # The buffers of four sockets; without the hold it would be hundreds of MiB by now.
        assert before < 64 << 20

    async with asyncio.timeout(10):
        await Flood.over.wait()


async def test_a_page_that_reads_its_websocket_slowly_holds_the_guest_up(session: Session) -> None:
    async with await open_socket(session, "proxy/tool/flood-socket") as socket:
        await socket.receive_bytes()
        before = -1
        while before != FloodSocket.sent_bytes:
            before = FloodSocket.sent_bytes
            await asyncio.sleep(0.3)

        assert before < 64 << 20


async def test_what_is_seldom_asked_for_is_loaded_when_it_is() -> None:
    """It would cost each session that imports for itself 70 ms."""
    script = "import qemuspawner.session.app, sys; print('jupyter_server_proxy' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"


# Who may


@pytest.mark.parametrize(
    ("least", "allowed"),
    [("view", "vivs bobs alices"), ("control", "bobs alices"), ("owner", "alices"), ("nobody", "")],
)
async def test_the_policy_says_who_may(monkeypatch: pytest.MonkeyPatch, least: Any, allowed: str) -> None:
    async with web_tool.session(monkeypatch, policy=Policy(ports=least)) as session:
        for token in ("eves", "vivs", "bobs", "alices"):
            answer = await session.ask("proxy/tool/", headers=session.headers(token))
            assert answer.status == (200 if token in allowed.split() else 403)


async def test_a_stranger_gets_nothing(session: Session) -> None:
    cases = [({"Sec-Fetch-Mode": "navigate"}, 302), ({"Sec-Fetch-Mode": "cors"}, 403)]
    for headers, status in cases:
        assert (await session.ask("proxy/tool/", headers=headers)).status == status
    assert (await session.ask("proxy/tool/", method="POST", headers={"X": "y"})).status == 403
    assert (await session.ask("proxy/tool/", headers=session.headers("made-up"))).status == 403


async def test_only_declared_ports_are_reached(session: Session) -> None:
    for name in ("other", "22", "Tool", "tool%2F"):
        assert (await session.ask(f"proxy/{name}/")).status == 404


async def test_who_may_no_longer_is_sent_away(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """From what is open, too: a websocket, and an answer without end."""
    monkeypatch.setattr("qemuspawner.session.web.routes.proxied._LASTING_S", 0.1)
    url = f"{session.url}proxy/tool/drip"
    async with (
        asyncio.timeout(20),
        await open_socket(session, headers=socket_headers(session, "bobs")) as socket,
        session.http.get(url, headers=session.headers("bobs")) as events,
    ):
        assert (await events.content.readline()) == b"data: x\n"
        session.shares.roles["bob"] = "view"

        assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
        assert socket.close_code == CloseCode.WITHDRAWN
        with pytest.raises(aiohttp.ClientPayloadError):
            await events.read()


async def test_the_audit_log_has_who_opened_what(session: Session) -> None:
    """Once each, however many requests a page makes."""
    for _ in range(2):
        await session.ask("proxy/tool/")
    await session.ask("proxy/tool/", headers=session.headers("bobs"))

    (log,) = Path(session.supervisor.spec.state_dir).glob("sessions/.audit-*/*.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    opened = [line for line in lines if line["event"] == "web-tool-opened"]
    assert [(line["by"], line["tool"]) for line in opened] == [("alice", "tool"), ("bob", "tool")]


# Other sites


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_requests_of_other_sites_are_refused(session: Session, site: str) -> None:
    """Forms, scripts and pictures; a link may lead here."""
    for method, mode in (("POST", "navigate"), ("GET", "no-cors"), ("GET", "cors"), ("PUT", "cors")):
        headers = session.headers(Sec_Fetch_Site=site, Sec_Fetch_Mode=mode, Origin="https://evil.example")
        assert (await session.ask("proxy/tool/", method=method, headers=headers)).status == 403
    headers = session.headers(Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate")
    assert (await session.ask("proxy/tool/", headers=headers)).status == 200


@pytest.mark.parametrize(
    ("origin", "status"), [("own", 200), ("http://evil.example", 403), ("null", 403), ("", 403)]
)
async def test_without_fetch_metadata_the_origin_decides(session: Session, origin: str, status: int) -> None:
    """Browsers leave it out where the page was not opened by https."""
    headers = {"Cookie": session.login()}
    if origin:
        headers["Origin"] = str(session.url.origin()) if origin == "own" else origin

    assert (await session.ask("proxy/tool/", method="POST", headers=headers)).status == status


# Websockets


def socket_headers(session: Session, token: str = "alices", origin: str = "own") -> dict[str, str]:
    headers = {"Cookie": session.login(token), "Sec-Fetch-Mode": "websocket"}
    if origin:
        headers["Origin"] = str(session.url.origin()) if origin == "own" else origin
    return headers


async def open_socket(session: Session, path: str = "proxy/tool/socket", **kwargs: Any) -> Any:
    kwargs.setdefault("headers", socket_headers(session))
    return await session.http.ws_connect(f"{session.url}{path}", **kwargs)


async def test_a_websocket_carries_text_and_bytes_both_ways(session: Session) -> None:
    async with await open_socket(session) as socket:
        await socket.send_str("hällo")
        assert await socket.receive_str() == "hällo"
        await socket.send_bytes(bytes(1 << 20))
        assert len(await socket.receive_bytes()) == 1 << 20

    assert session.supervisor.inputs == 2


async def test_a_page_that_somebody_opens_counts_as_use_of_the_desktop(session: Session) -> None:
    """What a page asks for by itself does not."""
    await session.ask("proxy/tool/", headers=session.headers(Sec_Fetch_User="?1"))
    await session.ask("proxy/tool/", method="POST")

    assert session.supervisor.inputs == 1


async def test_the_guest_chooses_the_subprotocol(session: Session) -> None:
    async with await open_socket(session, protocols=("first", "second")) as socket:
        assert socket.protocol == "second"


async def test_a_close_code_passes(session: Session) -> None:
    async with await open_socket(session) as socket:
        await socket.send_str("leave")
        assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
        assert socket.close_code == 4321


async def test_a_websocket_tells_the_guest_nothing_of_the_hub(session: Session) -> None:
    async with await open_socket(session) as socket:
        await socket.send_str("headers")
        told = await socket.receive_str()

    assert web_tool.CLIENT_ID not in told
    assert "Cookie" not in told


@pytest.mark.parametrize(
    ("path", "status"), [("no-socket", 404), ("../closed/", 502), ("../babbler/", 502), ("../other/", 404)]
)
async def test_a_websocket_that_the_guest_does_not_open_is_refused(
    session: Session, path: str, status: int
) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await open_socket(session, f"proxy/tool/{path}")

    assert refused.value.status == status


@pytest.mark.parametrize("origin", ["", "null", "http://evil.example", "http://127.0.0.1.evil.example"])
async def test_a_websocket_opens_from_pages_of_this_origin_only(session: Session, origin: str) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await open_socket(session, headers=socket_headers(session, origin=origin))

    assert refused.value.status == 403


async def test_a_websocket_asks_for_a_login_and_the_role(monkeypatch: pytest.MonkeyPatch) -> None:
    async with web_tool.session(monkeypatch, policy=Policy(ports="owner")) as session:
        for token in ("made-up", "bobs"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await open_socket(session, headers=socket_headers(session, token))
            assert refused.value.status == 403


async def test_a_script_opens_a_websocket_with_its_token(session: Session) -> None:
    async with await open_socket(session, headers={"Authorization": "token alices"}) as socket:
        await socket.send_str("x")
        assert await socket.receive_str() == "x"
