"""Pictures of desktops by the hub's API: of real sessions and of saved ones, and for whom there are any."""

import asyncio
import io
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import hubs
import keeping
import pytest
from jupyterhub import orm
from PIL import Image
from yarl import URL

from qemuspawner import scopes
from qemuspawner.hub.desktops.pictures import ThumbnailHandler

StartHub = Callable[..., Awaitable[hubs.Hub]]
SAVED = "19a0000000"


@pytest.fixture
async def hub(start_hub: StartHub) -> hubs.Hub:
    """A hub that is configured as the example is."""
    settings = {"custom_scopes": scopes.CUSTOM_SCOPES, "extra_user_scopes": set(scopes.USER_SCOPES)}
    return await start_hub(jupyterhub=settings)


def share(hub: hubs.Hub, *, user: str = "", group: str = "") -> None:
    """Alice shares her default desktop for looking on."""
    server = hub.user("alice").get_or_create_spawner("", "").orm_spawner
    share_with = hub.user(user).orm_user if user else orm.Group.find(hub.app.db, group)
    granted = [f"{scope}!server=alice/" for scope in ("access:servers", scopes.VIEW)]
    orm.Share.grant(hub.app.db, server, share_with, scopes=granted)
    hub.app.db.commit()


async def start(hub: hubs.Hub, name: str = "alice") -> hubs.Person:
    person = await hub.with_token(name)
    await hub.start(person, {"machine": "mini"})
    await hub.wait_until_ready(name)
    return person


async def fetch(hub: hubs.Hub, person: hubs.Person, path: str, **headers: str) -> tuple[int, bytes, Any]:
    """As an <img> of the hub's own page asks, or with a token."""
    mode = {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Site": "same-origin"} | headers
    if person.token:
        mode["Authorization"] = f"token {person.token}"
    # Joined by hand: the default server's name is empty.
    url = URL(f"{hub.url}api/users/alice/{path}", encoded=True)
    async with person.http.get(url, headers=mode) as answer:
        return answer.status, await answer.read(), answer.headers


def saved_path() -> str:
    return f"saved/{keeping.paths_of(Path('/'), 'alice').root.name}/{SAVED}/picture"


async def test_the_picture_of_a_desktop_that_runs_is_small(hub: hubs.Hub) -> None:
    alice = await start(hub)

    status, picture, headers = await fetch(hub, alice, "desktops//thumbnail")

    assert (status, headers["Content-Type"], headers["Cache-Control"]) == (200, "image/jpeg", "no-store")
    with Image.open(io.BytesIO(picture)) as image:
        assert (image.format, image.width <= 320, image.height <= 240) == ("JPEG", True, True)
    assert len(picture) < 30_000


async def test_who_may_see_a_desktop_that_runs_sees_its_picture_and_nobody_else(hub: hubs.Hub) -> None:
    """Staff wait for their owner's consent, here as at the desktop."""
    await start(hub)
    share(hub, user="carol")
    people = {
        "alice": await hub.log_in("alice"),
        "carol, who looks on": await hub.log_in("carol"),
        "bob": await hub.log_in("bob"),
        "bob's token": await hub.with_token("bob"),
        "staff": await hub.log_in("root", admin=True),
        "nobody": await hub.person("nobody"),
    }

    seen = {who: (await fetch(hub, person, "desktops//thumbnail"))[0] for who, person in people.items()}

    # To who has no access the hub does not say whether there is such a desktop.
    assert seen == {
        "alice": 200,
        "carol, who looks on": 200,
        "bob": 404,
        "bob's token": 404,
        "staff": 403,
        "nobody": 403,
    }


async def test_who_may_see_a_saved_desktop_sees_its_picture_and_nobody_else(hub: hubs.Hub) -> None:
    hub.user("dave", groups=("team",))
    keeping.keep(hub, "alice")
    share(hub, user="carol")
    share(hub, group="team")
    people = {
        "alice": await hub.log_in("alice"),
        "carol, who looks on": await hub.log_in("carol"),
        "dave, of a group": await hub.log_in("dave"),
        "bob": await hub.log_in("bob"),
        "staff": await hub.log_in("root", admin=True),
        "nobody": await hub.person("nobody"),
    }

    seen = {who: (await fetch(hub, person, saved_path()))[0] for who, person in people.items()}

    assert seen == {
        "alice": 200,
        "carol, who looks on": 200,
        "dave, of a group": 200,
        "bob": 404,
        "staff": 404,
        "nobody": 403,
    }


async def test_staff_see_saved_desktops_where_the_site_lets_them_see_any(start_hub: StartHub) -> None:
    hub = await start_hub(staff="view")
    hub.user("alice")
    keeping.keep(hub, "alice")

    status, _, _ = await fetch(hub, await hub.log_in("root", admin=True), saved_path())

    assert status == 200


async def test_the_page_of_another_site_gets_no_picture(hub: hubs.Hub) -> None:
    keeping.keep(hub, "alice")
    alice = await hub.log_in("alice")

    status, _, _ = await fetch(hub, alice, saved_path(), **{"Sec-Fetch-Site": "cross-site"})

    assert status == 403


async def test_a_saved_picture_is_sent_once(hub: hubs.Hub) -> None:
    """And asked for each time, as it is no longer shown when access has ended."""
    keeping.keep(hub, "alice")
    share(hub, user="carol")
    carol = await hub.log_in("carol")
    status, picture, headers = await fetch(hub, carol, saved_path())
    assert (status, picture, headers["Content-Type"]) == (200, keeping.PICTURE, "image/png")
    assert headers["Cache-Control"] == "private, no-cache"

    again = await fetch(hub, carol, saved_path(), **{"If-None-Match": headers["Etag"]})
    orm.Share.revoke(hub.app.db, hub.spawner("alice").orm_spawner, hub.user("carol").orm_user)
    hub.app.db.commit()
    after = await fetch(hub, carol, saved_path(), **{"If-None-Match": headers["Etag"]})

    assert again[:2] == (304, b"")
    assert after[0] == 404


@pytest.mark.parametrize("bad", ["link", "huge", "no picture", "missing"])
async def test_a_saved_picture_that_is_none_is_not_sent(hub: hubs.Hub, bad: str, tmp_path: Path) -> None:
    """The hub may be root, and read everything."""
    picture = keeping.keep(hub, "alice").picture
    if bad == "huge":
        picture.write_bytes(keeping.PICTURE.ljust(3 << 20, b"x"))
    elif bad == "no picture":
        picture.write_bytes(b"<script>")
    else:
        picture.unlink()
    if bad == "link":
        secret = tmp_path / "secret.png"
        secret.write_bytes(keeping.PICTURE)
        picture.symlink_to(secret)

    status, _, _ = await fetch(hub, await hub.log_in("alice"), saved_path())

    assert status == 404


async def test_to_look_at_pictures_is_no_use_of_a_desktop(hub: hubs.Hub) -> None:
    """It neither keeps it awake nor counts as somebody who looks on."""
    alice = await start(hub)
    server = hub.spawner("alice").server.url
    before = json.loads((await alice.request("GET", f"{server}api/status")).text)
    activity = hub.spawner("alice").orm_spawner.last_activity
    await asyncio.sleep(1.1)

    for _ in range(3):
        assert (await fetch(hub, alice, "desktops//thumbnail"))[0] == 200

    after = json.loads((await alice.request("GET", f"{server}api/status")).text)
    assert (after["last_activity"], after["idle_deadline"]) == pytest.approx(
        (before["last_activity"], before["idle_deadline"]), abs=0.5
    )
    assert after["viewers"] == 0
    assert hub.spawner("alice").orm_spawner.last_activity == activity


async def test_no_more_sessions_are_asked_at_a_time_than_the_hub_can_bear(
    hub: hubs.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await start(hub)
    monkeypatch.setattr("qemuspawner.hub.desktops.pictures._AT_A_TIME", 0)

    status, _, _ = await fetch(hub, alice, "desktops//thumbnail")

    assert status == 503
    assert ThumbnailHandler._under_way == 0


async def test_no_tokens_are_left(hub: hubs.Hub) -> None:
    await start(hub)
    share(hub, user="carol")
    carol = await hub.log_in("carol")
    before = hub.app.db.query(orm.APIToken).count()

    await fetch(hub, carol, "desktops//thumbnail")

    assert hub.app.db.query(orm.APIToken).count() == before


async def test_a_desktop_that_does_not_run_has_no_picture(hub: hubs.Hub) -> None:
    alice = await hub.with_token("alice")

    assert (await fetch(hub, alice, "desktops//thumbnail"))[0] == 404
    assert (await fetch(hub, alice, "desktops/none/thumbnail"))[0] == 404


async def test_the_hub_is_told_why_a_session_ended(hub: hubs.Hub) -> None:
    """By itself, while it still can; the card says it then."""
    alice = await start(hub)
    async with aiohttp.ClientSession(headers={"Authorization": f"token {alice.token}"}) as http:
        url = f"{hub.spawner('alice').server.url}api/power"
        async with http.post(url, json={"action": "poweroff"}) as answer:
            assert answer.status == 200
    await hub.wait_until_stopped("alice")

    _, text, _ = await fetch(hub, alice, "desktop-cards")

    [card] = json.loads(text)["cards"]
    assert (card["state"], card["end"]["why"]) == ("off", "The desktop was switched off.")
    assert card["can_repeat"] is True
