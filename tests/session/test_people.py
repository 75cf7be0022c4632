"""Who may be at a desktop as what, with stand-ins for the hub."""

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from qemuspawner.errors import SessionError
from qemuspawner.machine import Image, Machine
from qemuspawner.policy import Least, Policy, Role
from qemuspawner.session.people import people as people_module
from qemuspawner.session.people.access import Person
from qemuspawner.session.people.audit import Audit
from qemuspawner.session.people.logins import Login
from qemuspawner.session.people.people import People, Request
from qemuspawner.session.screen import rfb
from qemuspawner.session.screen.relay import Viewer
from qemuspawner.session.screen.visitors import CloseCode, Visitor
from qemuspawner.spec import SessionSpec

SPEC = SessionSpec(
    session_id="x", user="alice", server_name="", state_dir="/x",
    machine=Machine(id="test", name="Test", image=Image(file="/x", format="raw")),
    cpus=1, memory_mib=64, lifetime_s=600, max_lifetime_s=1000,
)  # fmt: skip
ALICE = Person(name="alice", role="owner")
LOGIN = Login(token="t", session_id="")


class FakeShares:
    """The hub's list; a test changes it."""

    def __init__(self) -> None:
        self.users: dict[str, Role] = {}
        self.groups: dict[str, Role] = {}
        self.lately: set[str] = set()

    async def role_of(self, name: str, groups: Collection[str], *, by_group: bool = True) -> Role | None:
        if name in self.users:
            return self.users[name]
        return next((self.groups[group] for group in groups if by_group and group in self.groups), None)

    def forget(self) -> None:
        """It knows."""

    def had_lately(self, name: str, groups: Collection[str]) -> bool:
        return name in self.lately

    async def grant(self, kind: str, name: str, role: Role, *, expires_in_s: int = 0) -> None:
        self.users[name] = role


class FakeLogins:
    """Everybody is known; `access` says whom JupyterHub lets in."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, Any]] = {}

    async def find(self, login: Login) -> dict[str, Any] | None:
        return self.models.get(login.token)

    def lets_in(self, model: dict[str, Any]) -> bool:
        return "access:servers" in model["scopes"]


class Scene:
    """A desktop with people; clocks go on when a test says so."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, policy: Policy) -> None:
        self.now = 1000.0
        monkeypatch.setattr(people_module.time, "monotonic", lambda: self.now)
        self.shares, self.logins = FakeShares(), FakeLogins()
        spec = structs.replace(SPEC, policy=policy)
        self.people = People(
            spec,
            self.shares,  # type: ignore[arg-type]
            self.logins,  # type: ignore[arg-type]
            audit=Audit(folder / "audit", spec),
        )
        self.audit_folder = folder / "audit"

    def come(self, name: str, role: Role, **more: Any) -> Viewer:
        """Somebody opens the screen."""
        person = Person(name=name, role=role, **more)
        viewer = Viewer(name=name, allowed=self.people.kinds(person), is_owner=role == "owner")
        seat = self.people.seated(
            person, Login(token=name, session_id=""), is_browser=True, least="view",
            dismiss=viewer.dismiss, viewer=viewer,
        )  # fmt: skip
        viewer.stack = ExitStack()  # type: ignore[attr-defined]
        viewer.stack.enter_context(seat)  # type: ignore[attr-defined]
        self.logins.models[name] = {"name": name, "kind": "user", "groups": [], "scopes": ["access:servers"]}
        return viewer

    @contextmanager
    def listening(self, name: str, role: Role, *, least: Least, is_browser: bool = True) -> Iterator[Visitor]:
        """Somebody hears the desktop, for which the site asks for the role `least`."""
        listener = Visitor(name=name)
        with self.people.seated(
            Person(name=name, role=role), Login(token=name, session_id=""), is_browser=is_browser,
            least=least, dismiss=listener.dismiss,
        ):  # fmt: skip
            self.logins.models[name] = {"name": name, "kind": "user", "groups": [], "scopes": []}
            yield listener

    def leave(self, viewer: Viewer) -> None:
        viewer.stack.close()  # type: ignore[attr-defined]

    async def review(self, *, after_s: float = 30) -> None:
        self.now += after_s
        await self.people._review()

    def events(self) -> list[dict[str, Any]]:
        lines = [path.read_text().splitlines() for path in sorted(self.audit_folder.iterdir())]
        return [json.loads(line) for day in lines for line in day]


MakeScene = Callable[..., Scene]


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeScene:
    return lambda **policy: Scene(tmp_path, monkeypatch, Policy(**policy))


def user(name: str, *groups: str) -> dict[str, Any]:
    return {"name": name, "kind": "user", "groups": list(groups)}


# Who may come in


async def test_the_owner_is_the_user_of_that_name(scene: MakeScene) -> None:
    people = scene().people

    assert await people.find(user("alice"), has_access=True, is_browser=True) == ALICE


async def test_a_token_of_the_owner_that_may_not_open_servers_opens_nothing(scene: MakeScene) -> None:
    """Such as one that may only read the owner's name."""
    people = scene().people

    assert await people.find(user("alice"), has_access=False, is_browser=False) is None


async def test_a_token_for_a_program_neither_ends_nor_shares_the_desktop(scene: MakeScene) -> None:
    """It has the scope of the hand and not that of control; a token with all scopes is its owner."""
    people = scene().people
    hand = ["access:servers!server=alice/", "custom:qemuspawner:agent!server=alice/"]
    all_ = [*hand, "custom:qemuspawner:control!user=alice"]

    roles = [
        (await people.find(user("alice") | {"scopes": granted}, has_access=True, is_browser=False)).role  # type: ignore[union-attr]
        for granted in (hand, all_)
    ]

    assert roles == ["control", "owner"]


async def test_a_service_with_the_owners_name_is_not_the_owner(scene: MakeScene) -> None:
    """Nor is it taken for them anywhere by its name."""
    service = {"name": "alice", "kind": "service"}

    person = await scene(staff="control").people.find(service, has_access=True, is_browser=False)

    assert person == Person(name="service alice", role="control", is_staff=True)


@pytest.mark.parametrize("role", ["view", "control"])
async def test_a_share_says_the_role(scene: MakeScene, role: Role) -> None:
    at = scene()
    at.shares.users["bob"] = role

    person = await at.people.find(user("bob"), has_access=True, is_browser=True)

    assert person == Person(name="bob", role=role)


async def test_a_groups_member_comes_in_with_the_browser_only(scene: MakeScene) -> None:
    """JupyterHub gives no token access by a group, and what a token is for only the hub can say."""
    at = scene()
    at.shares.groups["team"] = "control"

    with_browser = await at.people.find(user("bob", "team"), has_access=False, is_browser=True)
    with_token = await at.people.find(user("bob", "team"), has_access=False, is_browser=False)

    assert (with_browser, with_token) == (Person(name="bob", role="control"), None)


async def test_a_token_without_access_is_not_helped_by_a_share(scene: MakeScene) -> None:
    """It was made to do less than its owner may."""
    at = scene()
    at.shares.users["bob"] = "control"

    assert await at.people.find(user("bob"), has_access=False, is_browser=False) is None


@pytest.mark.parametrize(
    ("staff", "expected"), [("ask", "waiting"), ("view", "view"), ("control", "control"), ("nobody", None)]
)
async def test_site_staff_see_what_the_site_has_decided(
    scene: MakeScene, staff: str, expected: str | None
) -> None:
    """Who has access by a role of the hub."""
    person = await scene(staff=staff).people.find(user("admin"), has_access=True, is_browser=True)

    assert (person and (person.role, person.is_staff)) == (expected and (expected, True))


async def test_who_lost_a_share_does_not_become_staff(scene: MakeScene) -> None:
    """While the hub's older answer still says that they have access."""
    at = scene(staff="control")
    at.shares.lately.add("bob")

    assert await at.people.find(user("bob"), has_access=True, is_browser=True) is None


# What changes while they are there


async def test_a_share_that_is_taken_back_closes_the_window(scene: MakeScene) -> None:
    at = scene()
    at.shares.users["bob"] = "control"
    bob = at.come("bob", "control")
    await at.review()
    assert not bob.dismissed

    del at.shares.users["bob"]
    at.shares.lately.add("bob")
    await at.review()

    assert bob.dismissal.result().code == CloseCode.WITHDRAWN


async def test_a_role_that_is_lowered_is_lowered_at_the_open_window(scene: MakeScene) -> None:
    at = scene()
    at.shares.users["bob"] = "control"
    bob = at.come("bob", "control")

    at.shares.users["bob"] = "view"
    await at.review()

    assert (bob.dismissed, bob.allowed) == (False, rfb.VIEW)


async def test_a_login_that_the_hub_forgot_closes_the_window(scene: MakeScene) -> None:
    """The owner's, too."""
    at = scene()
    alice = at.come("alice", "owner")

    at.logins.models.clear()
    await at.review()

    assert alice.dismissal.result().code == CloseCode.WITHDRAWN


async def test_a_hub_that_is_away_closes_nothing(scene: MakeScene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Desktops live on without it."""
    at = scene()
    at.shares.users["bob"] = "view"
    bob = at.come("bob", "view")

    async def fail(_login: Login) -> None:
        raise OSError

    monkeypatch.setattr(at.logins, "find", fail)
    await at.review()

    assert not bob.dismissed


# The owner leaves


@pytest.mark.parametrize("owner_away", ["stay", "view", "leave"])
async def test_what_becomes_of_others_when_the_owner_leaves(scene: MakeScene, owner_away: str) -> None:
    at = scene(owner_away=owner_away)
    at.shares.users["bob"] = "control"
    alice, bob = at.come("alice", "owner"), at.come("bob", "control")
    await at.review()

    at.leave(alice)
    await at.review(after_s=5)
    assert (bob.dismissed, rfb.Kind.INPUT in bob.allowed) == (False, True)  # she may be loading the page anew
    await at.review(after_s=30)

    assert {
        "stay": (bob.dismissed, rfb.Kind.INPUT in bob.allowed) == (False, True),
        "view": (bob.dismissed, bob.allowed) == (False, rfb.VIEW),
        "leave": bob.dismissed and bob.dismissal.result().code == CloseCode.AWAY,
    }[owner_away]
    assert (at.people.refuse_screen(Person(name="bob", role="control")) is not None) == (
        owner_away == "leave"
    )


async def test_a_program_of_the_owners_stays_where_others_have_to_leave(scene: MakeScene) -> None:
    """It is no guest, though it may not all that the owner may."""
    at = scene(owner_away="leave")
    hand = {"scopes": ["access:servers", "custom:qemuspawner:agent"]}
    with at.listening("alice", "control", least="view", is_browser=False) as program:
        at.logins.models["alice"] |= hand
        await at.review(after_s=60)

        assert not program.dismissed
    assert at.people.refuse_screen(Person(name="alice", role="control")) is None
    assert at.people.refuse_screen(Person(name="alice", role="control", is_staff=True)) is not None


@pytest.mark.parametrize("owner_away", ["stay", "view", "leave"])
async def test_who_only_listens_goes_with_the_viewers(scene: MakeScene, owner_away: str) -> None:
    """The site lets those hear the desktop who may control it, which bob may not while alice is away."""
    at = scene(owner_away=owner_away)
    at.shares.users["bob"] = "control"
    alice = at.come("alice", "owner")
    with at.listening("bob", "control", least="control") as bob:
        await at.review()
        assert not bob.dismissed

        at.leave(alice)
        await at.review(after_s=60)

        code = bob.dismissal.result().code if bob.dismissed else None
        assert code == {"stay": None, "view": CloseCode.WITHDRAWN, "leave": CloseCode.AWAY}[owner_away]


async def test_who_is_sent_away_hears_no_more_either(scene: MakeScene) -> None:
    at = scene()
    at.shares.users["bob"] = "control"
    with at.listening("bob", "control", least="view") as bob:
        at.people.drop("bob", by=ALICE)

        assert bob.dismissal.result().code == CloseCode.WITHDRAWN


async def test_control_comes_back_with_the_owner(scene: MakeScene) -> None:
    at = scene(owner_away="view")
    at.shares.users["bob"] = "control"
    bob = at.come("bob", "control")
    await at.review(after_s=60)
    assert rfb.Kind.INPUT not in bob.allowed

    at.come("alice", "owner")
    await at.review(after_s=1)

    assert rfb.Kind.INPUT in bob.allowed


# One driver


async def test_of_two_who_control_only_one_drives(scene: MakeScene) -> None:
    """The owner, where they are there first."""
    at = scene(one_driver=True)
    alice, bob = at.come("alice", "owner"), at.come("bob", "control")

    assert (rfb.Kind.INPUT in alice.allowed, rfb.Kind.INPUT in bob.allowed) == (True, False)
    assert not {rfb.Kind.COPY_IN, rfb.Kind.RESIZE} & bob.allowed


async def test_mouse_and_keyboard_are_handed_over(scene: MakeScene) -> None:
    """By who has them; to one who may control and is there."""
    at = scene(one_driver=True)
    alice, bob = at.come("alice", "owner"), at.come("bob", "control")
    at.come("carol", "view")

    at.people.hand_over("bob", by=ALICE)

    assert (rfb.Kind.INPUT in alice.allowed, rfb.Kind.INPUT in bob.allowed) == (False, True)
    for to in ("carol", "dave"):
        with pytest.raises(SessionError, match=to):
            at.people.hand_over(to, by=ALICE)


async def test_nobody_but_the_owner_takes_them_from_who_has_them(scene: MakeScene) -> None:
    at = scene(one_driver=True)
    bob = Person(name="bob", role="control")
    at.come("bob", "control")
    at.come("carol", "control")
    at.come("alice", "owner")

    with pytest.raises(SessionError, match="bob has mouse and keyboard"):
        at.people.hand_over("carol", by=Person(name="carol", role="control"))
    at.people.hand_over("alice", by=ALICE)

    assert (at.people.may_drive("alice"), at.people.may_drive(bob.name)) == (True, False)


async def test_when_the_driver_leaves_the_owner_drives(scene: MakeScene) -> None:
    at = scene(one_driver=True)
    bob = at.come("bob", "control")
    at.come("carol", "control")
    alice = at.come("alice", "owner")

    at.leave(bob)

    assert rfb.Kind.INPUT in alice.allowed


async def test_who_asks_to_drive_is_answered_by_who_drives(scene: MakeScene) -> None:
    """And the owner sees it too."""
    at = scene(one_driver=True)
    bob, carol = Person(name="bob", role="control"), Person(name="carol", role="control")
    at.come("bob", "control")
    viewer = at.come("carol", "control")
    at.people.ask(Request(name="carol", wants="drive", reason="", asked_at=at.now))

    assert [request.name for request in at.people.requests_for(bob)] == ["carol"]
    await at.people.answer("carol", "control", by=bob)

    assert rfb.Kind.INPUT in viewer.allowed
    assert at.people.requests_for(carol) == []


async def test_the_desktop_follows_the_size_of_one_window_only(scene: MakeScene) -> None:
    """The owner's newest, or else that of who came first."""
    at = scene()
    bob = at.come("bob", "control")
    assert rfb.Kind.RESIZE in bob.allowed

    first, second = at.come("alice", "owner"), at.come("alice", "owner")

    assert [rfb.Kind.RESIZE in one.allowed for one in (bob, first, second)] == [False, False, True]


# Clipboard


@pytest.mark.parametrize(
    ("policy", "role", "expected"),
    [
        ({}, "control", {rfb.Kind.COPY_IN, rfb.Kind.COPY_OUT}),
        ({}, "view", set()),
        ({"clipboard_in": "nobody"}, "owner", {rfb.Kind.COPY_OUT}),
        ({"clipboard_out": "nobody"}, "owner", {rfb.Kind.COPY_IN}),
        ({"clipboard_out": "owner"}, "control", {rfb.Kind.COPY_IN}),
        ({"clipboard_out": "view"}, "view", {rfb.Kind.COPY_OUT}),
        ({"clipboard_in": "view"}, "view", set()),  # text goes in with keys, or not at all
    ],
)
async def test_the_clipboard_is_open_by_direction_and_role(
    scene: MakeScene, policy: dict[str, Any], role: Role, expected: set[rfb.Kind]
) -> None:
    kinds = scene(**policy).people.kinds(Person(name="x", role=role))

    assert kinds & {rfb.Kind.COPY_IN, rfb.Kind.COPY_OUT} == expected


# Room


async def test_guests_who_take_every_place_do_not_keep_the_owner_out(scene: MakeScene) -> None:
    at = scene()
    with ExitStack() as stack:

        def crowd(name: str) -> int:
            """Connections, as many as there is room for; with that, how many."""
            count = 0
            with suppress(SessionError):
                while True:
                    stack.enter_context(at.listening(name, "view", least="view"))
                    count += 1
            return count

        assert [crowd(name) for name in ("bob", "carol", "dave", "eve")] == [40, 40, 20, 0]
        at.come("alice", "owner")

    assert at.people.windows_of("alice") == 1


# Requests


async def test_consent_lets_staff_in_until_they_are_sent_away(scene: MakeScene) -> None:
    at = scene()
    dismissals: list[int] = []
    waiting = Person(name="admin", role="waiting", is_staff=True)
    at.logins.models["admin"] = user("admin") | {"scopes": ["access:servers"]}
    with at.people.seated(
        waiting,
        Login(token="admin", session_id=""),
        is_browser=True,
        least="waiting",
        dismiss=lambda code, _reason: dismissals.append(code),
    ) as seat:
        at.people.ask(Request(name="admin", wants="control", reason="to help", asked_at=at.now))
        await at.people.answer("admin", "view", by=ALICE)
        assert (seat.person.role, at.shares.users) == ("view", {})

        at.people.drop("admin", by=ALICE)
        await at.review()
        assert seat.person.role == "waiting"
    assert dismissals == []


async def test_who_is_granted_more_gets_it_as_a_share(scene: MakeScene) -> None:
    """It lasts: the hub keeps it."""
    at = scene()
    at.shares.users["bob"] = "view"
    bob = at.come("bob", "view")
    at.people.ask(Request(name="bob", wants="control", reason="", asked_at=at.now))

    await at.people.answer("bob", "control", by=ALICE)

    assert at.shares.users == {"bob": "control"}
    assert rfb.Kind.INPUT in bob.allowed


async def test_only_the_owner_lets_others_in(scene: MakeScene) -> None:
    at = scene()
    at.people.ask(Request(name="bob", wants="control", reason="", asked_at=at.now))

    with pytest.raises(SessionError):
        await at.people.answer("bob", "control", by=Person(name="carol", role="control"))
    with pytest.raises(SessionError):
        await at.people.answer("bob", "control", by=Person(name="bob", role="control"))

    assert at.shares.users == {}


async def test_there_are_never_many_requests(scene: MakeScene) -> None:
    """The same person's newest one counts."""
    people = scene().people
    for number in range(20):
        for wants in ("view", "control"):
            people.ask(Request(name=f"user{number}", wants=wants, reason="", asked_at=0))

    with pytest.raises(SessionError, match="20 requests"):
        people.ask(Request(name="one more", wants="view", reason="", asked_at=0))
    assert {request.wants for request in people.requests_for(ALICE)} == {"control"}


async def test_who_waits_learns_nothing_of_others(scene: MakeScene) -> None:
    at = scene(one_driver=True)
    at.come("alice", "owner")
    at.people.ask(Request(name="bob", wants="view", reason="secret", asked_at=at.now))

    told = at.people.describe(Person(name="admin", role="waiting", is_staff=True))

    assert (told["people"], told["requests"], told["driver"]) == ([], [], "")


# Audit


async def test_the_audit_log_tells_who_came_drove_copied_and_left(scene: MakeScene) -> None:
    """One JSON line each, none with a word of what was typed or copied."""
    at = scene()
    at.shares.users["bob"] = "control"
    bob = at.come("bob", "control")
    for _ in range(3):
        at.people.note_forward(bob, rfb.Forward(data=b"", by_person=True, copied_in=11))
    at.people.note_forward(bob, rfb.Forward(data=b"", by_person=False, copied_out=True))
    at.now += 7
    at.leave(bob)

    events = at.events()

    assert [event["event"] for event in events] == [
        "joined",
        "copied-in",
        "drove",
        "copied-in",
        "copied-in",
        "copied-out",
        "left",
    ]
    assert {event["by"] for event in events} == {"bob"}
    assert (events[0]["role"], events[1]["bytes"], events[-1]["after_s"]) == ("control", 11, 7)
    assert {event["owner"] for event in events} == {"alice"}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in at.audit_folder.iterdir())


async def test_who_looks_by_pictures_alone_is_in_the_audit_log_once_at_a_stretch(scene: MakeScene) -> None:
    """Not what the owner's own home page shows all the time."""
    at = scene()
    bob, admin = Person(name="bob", role="view"), Person(name="root", role="view", is_staff=True)
    for _ in range(3):
        at.people.note_look(ALICE, "thumbnail")
        at.people.note_look(ALICE, "screenshot")
        at.people.note_look(bob, "thumbnail")
        at.people.note_look(admin, "thumbnail")
        at.people.note_look(admin, "screenshot")
        at.now += 50
    at.now += 20
    at.people.note_look(bob, "thumbnail")

    assert [(line["event"], line["by"], line["staff"], line["picture"]) for line in at.events()] == [
        ("looked", "alice", False, "screenshot"),
        ("looked", "bob", False, "thumbnail"),
        ("looked", "root", True, "thumbnail"),
        ("looked", "root", True, "screenshot"),
        ("looked", "bob", False, "thumbnail"),
    ]


async def test_no_name_breaks_a_line_of_the_audit_log(scene: MakeScene) -> None:
    at = scene()
    name = 'bob"\n{"event": "forged"}\u2028' + "x" * 10_000

    at.come(name, "view")

    (event,) = at.events()
    assert event["event"] == "joined"
    assert event["by"] == name
