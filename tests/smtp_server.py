"""An SMTP server for tests: takes every mail, with STARTTLS and a login where it is given a certificate."""

import asyncio
import contextlib
import email
import email.policy
import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path


@dataclass(kw_only=True)
class Taken:
    """A mail as it was delivered."""

    sender: str
    to: list[str]
    message: EmailMessage
    was_encrypted: bool
    login: str = ""  # in base64, as it was sent


@dataclass(kw_only=True)
class SmtpServer:
    """Source: RFC 5321 and RFC 3207."""

    port: int = 0
    context: ssl.SSLContext | None = None
    silent: bool = False  # says nothing at all
    mails: "asyncio.Queue[Taken]" = field(default_factory=asyncio.Queue)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):
            if self.silent:
                await reader.read()
                return
            await self._talk(reader, writer)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        encrypted, login, sender, to = False, "", "", []
        writer.write(b"220 test\r\n")
        while line := await reader.readline():
            words = line.decode().strip()
            match words.partition(" ")[0].upper():
                case "EHLO":
                    starttls = b"250-STARTTLS\r\n" if self.context and not encrypted else b""
                    writer.write(b"250-test\r\n" + starttls + b"250-AUTH PLAIN\r\n250 SMTPUTF8\r\n")
                case "STARTTLS":
                    writer.write(b"220 go on\r\n")
                    assert self.context is not None
                    await writer.start_tls(self.context)
                    encrypted = True
                case "AUTH":
                    login = words.split()[-1]
                    writer.write(b"235 welcome\r\n")
                case "MAIL":
                    sender, to = words.partition("<")[2].partition(">")[0], []
                    writer.write(b"250 ok\r\n")
                case "RCPT":
                    to.append(words.partition("<")[2].partition(">")[0])
                    writer.write(b"250 ok\r\n")
                case "DATA":
                    writer.write(b"354 go on\r\n")
                    data = await reader.readuntil(b"\r\n.\r\n")
                    message = email.message_from_bytes(
                        data[:-3].replace(b"\r\n", b"\n"), policy=email.policy.default
                    )
                    assert isinstance(message, EmailMessage)
                    taken = Taken(sender=sender, to=to, message=message, was_encrypted=encrypted, login=login)
                    self.mails.put_nowait(taken)
                    writer.write(b"250 ok\r\n")
                case "QUIT":
                    writer.write(b"221 bye\r\n")
                    return
                case _:
                    writer.write(b"250 ok\r\n")


@contextlib.asynccontextmanager
async def smtp_server(*, context: ssl.SSLContext | None = None) -> AsyncIterator[SmtpServer]:
    server = SmtpServer(context=context)
    listener = await asyncio.start_server(server.talk, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()


def make_certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for "localhost" that vouches for itself, and a server's context with it."""
    key, certificate = folder / "key.pem", folder / "cert.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += ["-keyout", str(key), "-out", str(certificate), "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return certificate, context
