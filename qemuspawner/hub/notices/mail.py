"""Mails about desktops to their users: an implementation of the hook `notify`, by any SMTP server.

    c.QemuSpawnerMixin.notify = "qemuspawner.hub.notices.mail.Mailer"
    c.Mailer.host = "smtp.example.org"
    c.Mailer.sender = "Desktops <desktops@example.org>"
    c.Mailer.address = "{username}@example.org"

What users, guests and machines are called may be anything: it stands in subjects and texts as one line, and
an address that is made of a name is checked before a mail goes anywhere.
"""

import re
import smtplib
import ssl
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from email.message import EmailMessage
from email.utils import formatdate, make_msgid, parseaddr
from pathlib import Path
from threading import Lock
from typing import Any

from traitlets import Bool, Callable, Enum, Integer, List, TraitError, Unicode, Union, validate
from traitlets.config import LoggingConfigurable

from qemuspawner.errors import printable
from qemuspawner.hub.notices.notify import Event, Kind
from qemuspawner.languages import Language, load_languages
from qemuspawner.texts import Text
from qemuspawner.units import render_seconds

_TIMEOUT_S = 10
_HOUR_S = 3600
_MAX_NAME = 100
_MAX_REASON = 1000
# Of whom it is remembered how many mails they got.
_MAX_USERS = 10_000
# No quotes, no comments, no routes: what could be read as more than one address is none.
_ADDRESS = re.compile(r"[^\s@<>()\[\]\\,;:\"]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")

# Each is filled in for its event.
_SUBJECTS: dict[Kind, Text] = {
    "started": Text("{desktop} is ready"),
    "ends-soon": Text("{desktop} ends in {left}"),
    "ended": Text("{desktop} has ended"),
    "asleep": Text("{desktop} is asleep"),
    "failed": Text("{desktop} has failed"),
    "more-time-asked": Text("{by} asks for more time at {desktop} of {user}"),
}
_TEXTS: dict[Kind, Text] = {
    "started": Text("{desktop} ({machine}) is ready.\n\nOpen it: {url}"),
    "ends-soon": Text(
        "{desktop} ({machine}) ends in {left}. {what_then}\n\n"
        "Save your work, or extend its time on its page: {url}"
    ),
    "ended": Text("{desktop} ({machine}) has ended.\n\n{reason}\n\nStart a new one: {url}"),
    "asleep": Text("{desktop} ({machine}) is asleep.\n\n{reason}\n\nWake it: {url}"),
    "failed": Text("{desktop} ({machine}) has failed.\n\n{reason}\n\nStart it again: {url}"),
    "more-time-asked": Text(
        "{by} asks for {asked} more at {desktop} ({machine}) of {user}:\n\n{reason}\n\n"
        "Answer on the hub's home page or on the desktop's: {url}"
    ),
}
_SLEEPS = Text("It will be asleep then, and can be woken as it was.")
_IS_DELETED = Text("Everything on it is deleted then.")
_FOOTER = Text("You can switch these mails off on the hub's home page.")


class Mailer(LoggingConfigurable):
    """Sends a mail for each event that somebody wants to hear of."""

    host = Unicode("localhost", help="The SMTP server.").tag(config=True)
    port = Integer(587, min=1, max=65535, help="Its port.").tag(config=True)
    security = Enum(
        ["starttls", "tls", "none"],
        default_value="starttls",
        help="""How the connection is encrypted: "starttls", "tls" from its beginning, or "none".

        The server's certificate is checked. Without encryption there is no login.
        """,
    ).tag(config=True)
    login = Unicode("", help="The account at the SMTP server; empty: without a login.").tag(config=True)
    password_file = Unicode("", help="The file with its password, which only the hub can read.").tag(
        config=True
    )
    ca_file = Unicode("", help="Certificates to check the server's with; empty: the system's.").tag(
        config=True
    )
    sender = Unicode("", help="""Who sends, such as "Desktops <desktops@example.org>".""").tag(config=True)
    address = Union(
        [Unicode(), Callable()],
        default_value="{email}",
        help="""To whom: "{username}@example.org", "{email}" as the authenticator knows it; or a function.

        The function is called with the Event and returns the address, or "" for no mail.
        """,
    ).tag(config=True)
    kinds = List(
        Enum(list(_SUBJECTS)),
        default_value=["ends-soon", "ended", "asleep", "failed", "more-time-asked"],
        help="Of what there are mails.",
    ).tag(config=True)
    when_asked = Bool(False, help="Whether there is a mail of an end, too, that somebody asked for.").tag(
        config=True
    )
    staff_address = Unicode(
        "", help="Who is told that somebody asks for more time: an address; empty: nobody."
    ).tag(config=True)
    hub_url = Unicode(
        "", help="""The beginning of links, such as "https://hub.example.org", without public_url."""
    ).tag(config=True)
    language = Unicode(
        "en",
        help="""The language of mails to staff, and to who has opened no page of the hub yet, such as "de".

        All others read them in the language of the hub's page that they opened last.
        """,
    ).tag(config=True)
    most_per_hour = Integer(
        20, min=1, help="How many mails an address gets in an hour; what is more is in the log alone."
    ).tag(config=True)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._rate = _Rate(self.most_per_hour)
        if not self.sender:
            self.log.error("No mails are sent: Mailer.sender is not set.")

    @validate("language")
    def _is_language(self, proposal: Any) -> str:
        tags = load_languages()
        if proposal["value"] not in tags:
            raise TraitError(f"Mailer.language is {proposal['value']!r}; there are {', '.join(tags)}.")
        return str(proposal["value"])

    @validate("sender", "staff_address")
    def _is_address(self, proposal: Any) -> str:
        name, value = proposal["trait"].name, proposal["value"]
        if value and not (value.isprintable() and is_address(parseaddr(value)[1])):
            raise TraitError(f"Mailer.{name} is {value!r}, which is no address.")
        return str(value)

    def __call__(self, event: Event) -> None:
        """Send the mail, where there is one to be sent; it takes as long as the server does.

        Raises:
            OSError, smtplib.SMTPException: The server cannot be reached, or refuses.
        """
        if not self.sender or event.kind not in self.kinds or (event.asked and not self.when_asked):
            return
        to = self.staff_address if event.kind == "more-time-asked" else self._address_of(event)
        if not to:
            return
        if not is_address(parseaddr(to)[1] if to == self.staff_address else to):
            self.log.warning("No mail to %r: %r is no address.", event.user, to)
            return
        if not self._rate.allows(to):
            self.log.warning(
                "No mail of '%s' to %r: they had %d in the last hour.", event.kind, to, self.most_per_hour
            )
            return
        self._send(self._make(event, to))

    def _address_of(self, event: Event) -> str:
        if not event.wants_mail:
            return ""
        if callable(self.address):
            return str(self.address(event) or "")
        return str(self.address).replace("{username}", event.user).replace("{email}", event.email)

    def _make(self, event: Event, to: str) -> EmailMessage:
        is_for_staff = event.kind == "more-time-asked"
        languages = load_languages()
        tag = "" if is_for_staff else event.language
        language = languages.get(tag) or languages[self.language]
        server = _line(event.server)
        facts = {
            "desktop": Text("Your desktop “{name}”", name=server) if server else Text("Your desktop"),
            "user": _line(event.user),
            "machine": _line(event.machine),
            "url": self._link(event.url),
            "reason": _line(language.say(event.reason), _MAX_REASON),
            "by": _line(event.by),
            "left": render_seconds(_whole_minutes(event.left_s)),
            "asked": render_seconds(event.asked_s),
            "what_then": _SLEEPS if event.sleeps else _IS_DELETED,
        }
        if is_for_staff:
            facts["desktop"] = (
                Text("the desktop “{name}”", name=server) if server else Text("the default desktop")
            )
        message = EmailMessage()
        message["From"] = self.sender
        message["To"] = to
        message["Subject"] = language.say(_SUBJECTS[event.kind].filled(facts))
        message["Date"] = formatdate(event.at)
        message["Message-ID"] = make_msgid(domain=parseaddr(self.sender)[1].rpartition("@")[2])
        # Nobody's holiday is answered to it. Source: RFC 3834.
        message["Auto-Submitted"] = "auto-generated"
        footer = "" if is_for_staff else f"\n\n-- \n{language.say(_FOOTER)}"
        paragraphs = [language.say(_TEXTS[event.kind].filled(facts)), *self._advise(event, language)]
        message.set_content("\n\n".join(paragraphs) + f"{footer}\n")
        message["Content-Language"] = language.tag
        return message

    def _advise(self, event: Event, language: Language) -> Iterator[str]:
        """What the desktop used, and a link to a start that does with it, a paragraph each."""
        if event.advice is None:
            return
        advice = language.say(event.advice)
        yield " ".join((advice.used, *advice.hints))
        if event.advice_url:
            label, url = advice.label, self._link(event.advice_url)
            yield language.say(Text("{what}: {which}", what=label, which=url))

    def _link(self, url: str) -> str:
        return _line(url if "://" in url or not self.hub_url else self.hub_url.rstrip("/") + url, 2000)

    def _send(self, message: EmailMessage) -> None:
        context = ssl.create_default_context(cafile=self.ca_file or None)
        server: smtplib.SMTP
        if self.security == "tls":
            server = smtplib.SMTP_SSL(self.host, self.port, timeout=_TIMEOUT_S, context=context)
        else:
            server = smtplib.SMTP(self.host, self.port, timeout=_TIMEOUT_S)
        with server:
            if self.security == "starttls":
                server.starttls(context=context)
            if self.login and self.security != "none":
                server.login(self.login, Path(self.password_file).read_text().strip())
            server.send_message(message)


def is_address(text: str) -> bool:
    """Whether it is one plain address, without a name."""
    return _ADDRESS.fullmatch(text) is not None and text.isprintable()


class _Rate:
    """How many mails each address had in the last hour."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._sent: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = Lock()

    def allows(self, address: str) -> bool:
        """Whether one more may go now, which counts then."""
        now = time.monotonic()
        with self._lock:
            sent = self._sent.setdefault(address, deque(maxlen=self._most))
            self._sent.move_to_end(address)
            if len(self._sent) > _MAX_USERS:
                self._sent.popitem(last=False)
            if len(sent) == self._most and now - sent[0] < _HOUR_S:
                return False
            sent.append(now)
            return True


def _line(text: str, most: int = _MAX_NAME) -> str:
    """In one line, with nothing that could be a command to whoever shows it."""
    line = " ".join(printable(text).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def _whole_minutes(seconds: int) -> int:
    return max(round(seconds / 60), 1) * 60
