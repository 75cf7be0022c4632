"""Mails as an SMTP server gets them, with whatever names there are."""

import asyncio
import smtplib
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from smtp_server import SmtpServer, Taken, make_certificate, smtp_server
from traitlets import TraitError

from qemuspawner.hub.notices.mail import Mailer
from qemuspawner.hub.notices.notify import Event
from qemuspawner.hub.runs.advice import Advice
from qemuspawner.texts import Text
from qemuspawner.units import render_seconds

HOSTILE = "x\r\nBcc: victim@example.org\r\n\r\n<b>\u202eevil</b> 🦆 \x00" + "y" * 5000


@pytest.fixture
async def server() -> AsyncIterator[SmtpServer]:
    async with smtp_server() as server:
        yield server


def make_mailer(server: SmtpServer, **traits: Any) -> Mailer:
    usual = {
        "host": "localhost",
        "port": server.port,
        "security": "none",
        "sender": "Desktops <desktops@example.org>",
        "address": "{username}@example.org",
    }
    return Mailer(**usual | traits)


def make_event(kind: str = "ended", **facts: Any) -> Event:
    usual = {
        **{
            "user": "alice",
            "server": "desk",
            "machine": "Debian",
            "url": "https://hub.example.org/user/alice/desk/",
        },
        **{"at": time.time(), "reason": "Nobody used the desktop for 2 h."},
    }
    return Event(kind=kind, **usual | facts)  # type: ignore[arg-type]


async def mail(server: SmtpServer, event: Event, **traits: Any) -> Taken | None:
    """What the server has got when the mailer is done, which then is all; None for nothing."""
    await asyncio.to_thread(make_mailer(server, **traits), event)
    return None if server.mails.empty() else server.mails.get_nowait()


async def mail_of(server: SmtpServer, event: Event, **traits: Any) -> Taken:
    taken = await mail(server, event, **traits)
    assert taken is not None
    return taken


async def test_an_end_is_told_with_its_reason(server: SmtpServer) -> None:
    taken = await mail_of(server, make_event())

    message = taken.message
    assert (taken.sender, taken.to) == ("desktops@example.org", ["alice@example.org"])
    assert message["From"] == "Desktops <desktops@example.org>"
    assert message["Subject"] == "Your desktop “desk” has ended"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["Message-ID"].endswith("@example.org>")
    assert message.get_content_type() == "text/plain"
    text = message.get_content()
    assert "Your desktop “desk” (Debian) has ended.\n\nNobody used the desktop for 2 h.\n" in text
    assert "https://hub.example.org/user/alice/desk/" in text


@pytest.mark.parametrize(
    ("event", "subject", "words"),
    [
        (make_event("started", server=""), "Your desktop is ready", "Open it: https://"),
        (make_event("ends-soon", left_s=890), "Your desktop “desk” ends in 15 min", "is deleted then"),
        (make_event("ends-soon", left_s=20, sleeps=True), "Your desktop “desk” ends in 1 min", "asleep then"),
        (make_event("asleep"), "Your desktop “desk” is asleep", "Wake it: https://"),
        (make_event("failed"), "Your desktop “desk” has failed", "Nobody used"),
    ],
)
async def test_each_kind_has_its_words(server: SmtpServer, event: Event, subject: str, words: str) -> None:
    taken = await mail_of(server, event, kinds=[event.kind])

    assert taken.message["Subject"] == subject
    assert words in taken.message.get_content()


async def test_an_end_says_what_was_used_and_leads_to_a_start_that_would_do(server: SmtpServer) -> None:
    advice = Advice(
        used=Text(
            "The last time this desktop used at most {used_cpus} of {cpus}.", used_cpus=1.6, cpus="8 CPUs"
        ),
        hints=(Text("Its GPU was hardly used."),),
        preset={"machine": "debian"},
        label=Text("Use {cpus}, {memory} and no GPU", cpus="2 CPUs", memory="4 GiB"),
    )
    link = "/hub/spawn/alice/desk?opt-machine=debian"

    whole = await mail_of(
        server, make_event(advice=advice, advice_url=link), hub_url="https://hub.example.org/"
    )
    alone = await mail_of(server, make_event(advice=advice, language="de"))

    assert (
        "The last time this desktop used at most 1.6 of 8 CPUs. Its GPU was hardly used.\n\n"
        f"Use 2 CPUs, 4 GiB and no GPU: https://hub.example.org{link}\n" in whole.message.get_content()
    )
    german = alone.message.get_content()
    assert "höchstens 1,6 von 8 CPUs genutzt. Seine GPU wurde kaum benutzt.\n" in german
    assert "opt-" not in german


async def test_a_mail_is_in_the_language_of_its_reader(server: SmtpServer) -> None:
    """Else in the site's, as mails to staff are; a reason goes along."""
    reason = Text("Nobody used the desktop for {span}.", span=render_seconds(7200))

    french = await mail_of(server, make_event(language="fr", reason=reason), language="de")
    unknown = await mail_of(server, make_event("ends-soon", language="tlh", left_s=890), language="de")
    event = make_event("more-time-asked", by="bob", asked_s=7200, language="fr")
    staff = await mail_of(server, event, language="de", staff_address="staff@example.org")

    assert french.message["Subject"] == "Votre bureau «\xa0desk\xa0» s\u2019est terminé"
    assert french.message["Content-Language"] == "fr"
    assert "n\u2019a utilisé le bureau" in french.message.get_content()
    assert "page d\u2019accueil du hub" in french.message.get_content()
    assert unknown.message["Subject"] == "Ihr Desktop „desk“ endet in 15 min"
    assert staff.message["Subject"] == "bob bittet um mehr Zeit für den Desktop „desk“ von alice"
    with pytest.raises(TraitError, match="there are en, de, fr"):
        make_mailer(server, language="tlh")


async def test_staff_are_asked_for_more_time(server: SmtpServer) -> None:
    event = make_event("more-time-asked", by="bob", asked_s=7200, reason="It still computes.")

    taken = await mail_of(server, event, staff_address="Staff <staff@example.org>")

    assert taken.to == ["staff@example.org"]
    assert taken.message["Subject"] == "bob asks for more time at the desktop “desk” of alice"
    assert "bob asks for 2 h more" in taken.message.get_content()
    assert await mail(server, event) is None


@pytest.mark.parametrize("kind", ["ended", "ends-soon", "more-time-asked"])
async def test_hostile_names_are_one_line_of_text(server: SmtpServer, kind: str) -> None:
    event = make_event(kind, server=HOSTILE, machine=HOSTILE, reason=HOSTILE, by=HOSTILE, url="/" + HOSTILE)

    taken = await mail_of(server, event, staff_address="staff@example.org")

    message = taken.message
    assert taken.to == ["alice@example.org"] or taken.to == ["staff@example.org"]
    assert message["Bcc"] is None
    assert message.get_content_type() == "text/plain"
    assert "🦆" in message["Subject"]
    assert len(message["Subject"]) < 400
    assert all(char.isprintable() for char in message["Subject"])
    text = message.get_content()
    assert "\nBcc" not in text
    assert all(char.isprintable() for char in text.replace("\n", ""))
    assert len(text) < 10_000
    assert message.defects == []


@pytest.mark.parametrize(
    "name",
    [
        *("a@evil.org", "a,b", "a b", "a\r\nRCPT TO:<v@example.org>", "a>", "<a", '"a', "a;b", "", "a" * 65),
        *("a\u202eb", "a\x00", "(a)", "[a]", "a\\", "a:b", "évil@x"),
    ],
)
async def test_a_name_that_makes_no_plain_address_gets_no_mail(server: SmtpServer, name: str) -> None:
    assert await mail(server, make_event(user=name)) is None


async def test_names_beyond_ascii_get_their_mails(server: SmtpServer) -> None:
    assert (await mail_of(server, make_event(user="zoë"))).to == ["zoë@example.org"]


async def test_addresses_come_from_the_authenticator_or_a_function(server: SmtpServer) -> None:
    known = make_event(email="alice@home.example")

    assert (await mail_of(server, known, address="{email}")).to == ["alice@home.example"]
    assert await mail(server, make_event(), address="{email}") is None
    assert (await mail_of(server, known, address=lambda event: f"{event.user}@f.example")).to == [
        "alice@f.example"
    ]
    assert await mail(server, known, address=lambda _event: "") is None


async def test_who_said_no_gets_none(server: SmtpServer) -> None:
    assert await mail(server, make_event(wants_mail=False)) is None


async def test_an_end_that_somebody_asked_for_is_no_news(server: SmtpServer) -> None:
    assert await mail(server, make_event(asked=True)) is None
    assert await mail(server, make_event(asked=True), when_asked=True) is not None


async def test_only_the_chosen_kinds_are_sent(server: SmtpServer) -> None:
    assert await mail(server, make_event("started")) is None
    assert await mail(server, make_event("ended"), kinds=["failed"]) is None


async def test_links_begin_with_the_hubs_address(server: SmtpServer) -> None:
    event = make_event(url="/user/alice/desk/")

    taken = await mail_of(server, event, hub_url="https://desktops.example.org/")

    assert "https://desktops.example.org/user/alice/desk/" in taken.message.get_content()


async def test_nobody_gets_more_than_so_many_in_an_hour(server: SmtpServer) -> None:
    mailer = make_mailer(server, most_per_hour=3)

    for _ in range(5):
        await asyncio.to_thread(mailer, make_event())
    await asyncio.to_thread(mailer, make_event(user="bob"))

    to = [server.mails.get_nowait().to[0] for _ in range(server.mails.qsize())]
    assert to == ["alice@example.org"] * 3 + ["bob@example.org"]


async def test_mails_and_passwords_go_encrypted_to_who_has_the_right_certificate(tmp_path: Path) -> None:
    certificate, context = make_certificate(tmp_path)
    (tmp_path / "password").write_text("secret\n")
    encrypted = {"security": "starttls", "login": "hub", "password_file": str(tmp_path / "password")}
    async with smtp_server(context=context) as server:
        taken = await mail_of(server, make_event(), **encrypted, ca_file=str(certificate))
        assert (taken.was_encrypted, bool(taken.login)) == (True, True)
        with pytest.raises(ssl.SSLCertVerificationError):
            await mail(server, make_event(), **encrypted)
    async with smtp_server() as plain:
        with pytest.raises(smtplib.SMTPNotSupportedError):
            await mail(plain, make_event(), **encrypted)
        taken = await mail_of(plain, make_event(), **encrypted | {"security": "none"})
        assert taken.login == ""


def test_a_sender_is_an_address() -> None:
    with pytest.raises(TraitError, match="no address"):
        Mailer(sender="Desktops")
    with pytest.raises(TraitError, match="no address"):
        Mailer(sender="a@example.org", staff_address="x\r\n@example.org")
