"""Files of the desktop's user: folders, downloads, and uploads by the core of the tus protocol.

Source: https://tus.io/protocols/resumable-upload, version 1.0.0, with creation and termination.
"""

import asyncio
import base64
import binascii
import contextlib
import re
import unicodedata
from collections.abc import Iterator
from typing import Any, ClassVar, get_args
from urllib.parse import quote as percent_encode

from tornado import web
from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError

from qemuspawner.errors import FilesError, FileTrouble, QemuSpawnerError, VmError
from qemuspawner.policy import Least
from qemuspawner.qemu.guest_files import READ_BYTES, WRITE_BYTES, Entry
from qemuspawner.session.web.files import Files, Stored, Taken, Upload, parse_path, quote, show, unquote
from qemuspawner.session.web.routes.base import Handler, Refusal
from qemuspawner.texts import Text

_STATUS: dict[FileTrouble, int] = {
    "missing": 404,
    "exists": 409,
    "kind": 409,
    "denied": 403,
    "offset": 409,
    "size": 413,
    "name": 400,
    "busy": 429,
    "failed": 507,
}
# So long either side may be silent before a transfer is broken off; it can be resumed.
_SILENCE_S = 120
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)
# What is read of a part that is refused, so that its sender reads why: a part as our page sends them.
_MAX_DROPPED_BYTES = 16 << 20
_NUMBER = re.compile(r"\d{1,18}", re.ASCII)

_TUS = "1.0.0"
_PART = "application/offset+octet-stream"


class _FilesRoute(Handler):
    """`direction` is which of the policy's two bars it has to pass."""

    direction: ClassVar[str] = "out"

    @property
    def files(self) -> Files:
        files: Files = self.settings["files"]
        return files

    @property
    def bar(self) -> Least:
        policy = self.supervisor.spec.policy
        return policy.files_in if self.direction == "in" else policy.files_out

    @contextlib.contextmanager
    def transfer(self) -> Iterator[None]:
        """While a file is on its way; it is broken off when who asked for it may no longer."""
        seat = self.people.seated(
            self.person,
            self.login,
            is_browser=self.is_browser,
            least=self.bar,
            dismiss=lambda _code, _reason: self.connection.close(),
        )
        with self.files.transfer(), seat:
            yield

    @property
    def connection(self) -> HTTP1Connection:
        connection = self.request.connection
        assert isinstance(connection, HTTP1Connection)
        return connection

    async def prepare(self) -> None:
        await super().prepare()
        least = self.bar
        if not self.person.may(least):
            raise Refusal(403, self._explain_bar(least))

    def _explain_bar(self, least: str) -> Text:
        role = self.person.role
        match self.direction, least:
            case "in", "nobody":
                return Text("Uploads are for nobody here; your role is '{role}'.", role=role)
            case "in", _:
                return Text(
                    "Uploads are for the role '{least}' here; yours is '{role}'.", least=least, role=role
                )
            case _, "nobody":
                return Text(
                    "Looking at files and downloads are for nobody here; your role is '{role}'.", role=role
                )
        return Text(
            "Looking at files and downloads are for the role '{least}' here; yours is '{role}'.",
            least=least,
            role=role,
        )

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        match kwargs.get("exc_info", (None, None, None))[1]:
            case FilesError(trouble=trouble):
                status_code = _STATUS[trouble]
        super().send_error(status_code, **kwargs)

    def path(self) -> bytes:
        """The argument `path`, which may be no text."""
        return parse_path(self.request.query_arguments.get("path", [b""])[-1])


class FilesHandler(_FilesRoute):
    """What is in a folder."""

    async def get(self) -> None:
        self.finish(await self.files.list_folder(self.path()))


class FoldersHandler(_FilesRoute):
    direction = "in"

    async def post(self) -> None:
        """Make a folder."""
        body = self.body()
        folder, name = body.get("folder", ""), body.get("name")
        if not isinstance(folder, str) or not isinstance(name, str):
            raise web.HTTPError(400, "'folder' and 'name' must be texts.")
        await self.files.make_folder(parse_path(unquote(folder)), name.encode(errors="surrogatepass"))
        self.set_status(201)
        self.finish({})


class ContentHandler(_FilesRoute):
    """A download: all of a file, or from somewhere on where it was broken off."""

    async def get(self) -> None:
        path = self.path()
        with self.transfer():
            about = await self.files.guest.look_at(path)
            if about.kind != "file":
                name = f"'{show(about.name)}'"
                raise FilesError("kind", Text("{name} is not a plain file.", name=name))
            self.files.check_size(about.size_bytes, about.name)
            first, end = self._range(about)
            if (first, end) != (0, about.size_bytes) and first >= end:
                self.set_status(416)
                self.set_header("Content-Range", f"bytes */{about.size_bytes}")
                self.finish({"message": "The file is shorter than that.", "hint": ""})
                return
            self._describe(about, first, end)
            await self._send(path, about, first, end)

    def _range(self, about: Entry) -> tuple[int, int]:
        """The bytes that are asked for: the first, and the one behind the last; none where that is first."""
        whole = 0, about.size_bytes
        match = _RANGE.fullmatch(self.request.headers.get("Range", ""))
        if match is None or self.request.headers.get("If-Range", _tag(about)) != _tag(about):
            return whole
        first, last = match.groups()
        if first:
            return int(first), min(int(last) + 1 if last else about.size_bytes, about.size_bytes)
        if last:
            return max(0, about.size_bytes - int(last)), about.size_bytes
        return whole

    def _describe(self, about: Entry, first: int, end: int) -> None:
        if (first, end) != (0, about.size_bytes):
            self.set_status(206)
            self.set_header("Content-Range", f"bytes {first}-{end - 1}/{about.size_bytes}")
        self.set_header("Accept-Ranges", "bytes")
        self.set_header("ETag", _tag(about))
        self.set_header("Content-Length", str(end - first))
        self.set_header("Content-Type", "application/octet-stream")
        self.set_header("Content-Disposition", _attachment(show(about.name)))
        # Whatever it is, it is nobody's page.
        self.set_header("Content-Security-Policy", "default-src 'none'; sandbox")

    async def _send(self, path: bytes, about: Entry, first: int, end: int) -> None:
        at = first
        try:
            while at < end:
                data = await self.files.guest.read(path, offset=at, size=min(READ_BYTES, end - at))
                if not data:
                    raise VmError(Text("The file has become shorter meanwhile."))
                self.files.note_activity()
                self.write(data)
                async with asyncio.timeout(_SILENCE_S):
                    await self.flush()
                at += len(data)
        except StreamClosedError:
            pass  # the browser has left; it may come back for the rest
        except (QemuSpawnerError, TimeoutError):
            if at == first:
                raise
            # Headers are out: a shorter body is how it is told.
            self.detach().close()
        finally:
            if at > first or first == end:
                self.audit("download", path=show(path), size_bytes=at - first, of_bytes=about.size_bytes)


def _tag(about: Entry) -> str:
    return f'"{about.size_bytes:x}-{about.modified:x}"'


def _attachment(name: str) -> str:
    """RFC 6266, with the name by RFC 5987 and for old programs in ASCII."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = re.sub(r'[\\"%;/]', "_", plain) or "file"
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{percent_encode(name, safe='')}"


class _TusRoute(_FilesRoute):
    direction = "in"

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Tus-Resumable", _TUS)

    async def prepare(self) -> None:
        await super().prepare()
        if self.request.method != "OPTIONS" and self.request.headers.get("Tus-Resumable") != _TUS:
            self.set_header("Tus-Version", _TUS)
            raise web.HTTPError(412, f"Uploads take the tus protocol, version {_TUS}.")

    async def options(self, *_: str) -> None:
        self.set_header("Tus-Version", _TUS)
        self.set_header("Tus-Extension", "creation,termination")
        self.set_header("Tus-Max-Size", str(self.files.max_bytes))
        self.set_status(204)

    def number(self, header: str) -> int:
        text = self.request.headers.get(header, "")
        if not _NUMBER.fullmatch(text):
            raise web.HTTPError(400, f"'{header}' must be a whole number of bytes.")
        return int(text)

    def note(self, stored: Stored) -> Stored:
        """Tell, and remember, where the whole file is as soon as it is there."""
        if stored.path is not None:
            self.set_header("Upload-Path", quote(stored.path))
            self.audit("upload", path=show(stored.path), size_bytes=stored.offset)
        return stored


class UploadsHandler(_TusRoute):
    async def post(self) -> None:
        """Begin an upload; metadata: filename, folder (where not to the desktop), and taken."""
        if "Upload-Defer-Length" in self.request.headers:
            raise web.HTTPError(400, "The size of an upload must be known when it begins.")
        size = self.number("Upload-Length")
        metadata = self._metadata()
        taken = metadata.get("taken", b"refuse").decode(errors="replace")
        if taken not in get_args(Taken):
            raise web.HTTPError(400, f"'taken' must be one of {', '.join(get_args(Taken))}.")
        folder = metadata.get("folder")
        upload, stored = await self.files.start_upload(
            folder=None if folder is None else parse_path(folder),
            name=metadata.get("filename", b""),
            size=size,
            taken=taken,  # type: ignore[arg-type]
        )
        self.note(stored)
        self.set_header("Location", f"{self.settings['prefix']}api/files/uploads/{upload.token}")
        self.set_status(201)

    def _metadata(self) -> dict[str, bytes]:
        """Upload-Metadata: pairs of a key and a value in base64, with commas between them."""
        metadata = {}
        for pair in self.request.headers.get("Upload-Metadata", "").split(","):
            key, _, value = pair.strip().partition(" ")
            try:
                metadata[key] = base64.b64decode(value, validate=True)
            except binascii.Error as exc:
                raise web.HTTPError(400, "'Upload-Metadata' is not as the tus protocol has it.") from exc
        return metadata


@web.stream_request_body
class UploadHandler(_TusRoute):
    """One upload. What comes is handed on in parts, and the browser waits while the guest takes them."""

    def initialize(self) -> None:
        self._buffer = bytearray()
        self._offset = 0  # of what the buffer begins with
        self._problem: QemuSpawnerError | web.HTTPError | None = None
        self._transfer = contextlib.ExitStack()
        self._silence: asyncio.TimerHandle | None = None

    async def prepare(self) -> None:
        await super().prepare()
        if self.request.method == "OPTIONS":
            return
        try:
            self._upload = Upload.from_token(self.path_args[0])
            if self.request.method == "PATCH":
                self._begin_part(self._upload)
        except (QemuSpawnerError, web.HTTPError) as exc:
            if self.request.method != "PATCH":
                raise
            # An answer before its body was read would be lost with the connection.
            self._problem = exc
            self.connection.set_max_body_size(_MAX_DROPPED_BYTES)

    def _begin_part(self, upload: Upload) -> None:
        if self.request.headers.get("Content-Type") != _PART:
            raise web.HTTPError(415, f"The body must be '{_PART}'.")
        self._offset = self.number("Upload-Offset")
        self.files.check_size(upload.size, upload.name)
        # Not what other routes may have: it is never held as a whole.
        self.connection.set_max_body_size(max(upload.size - self._offset, _MAX_DROPPED_BYTES))
        self._transfer.enter_context(self.transfer())
        self._expect_more()

    def _expect_more(self) -> None:
        self._silence = asyncio.get_running_loop().call_later(_SILENCE_S, self.connection.close)

    def _release(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
        self._transfer.close()

    async def data_received(self, chunk: bytes) -> None:
        if self._silence is None:
            return  # the body of a request that should have none
        self._silence.cancel()
        self._buffer += chunk
        while len(self._buffer) >= WRITE_BYTES:
            await self._store()
        self._expect_more()

    async def _store(self) -> None:
        """Hand on what is there; what comes after a failure is dropped, and the failure told at the end."""
        data = bytes(self._buffer[:WRITE_BYTES])
        del self._buffer[:WRITE_BYTES]
        if self._problem is not None:
            return
        try:
            self.note(await self.files.append(self._upload, data, offset=self._offset))
            self._offset += len(data)
        except QemuSpawnerError as exc:
            self._problem = exc

    async def patch(self, _: str) -> None:
        """Go on with it."""
        asked = self._offset
        while self._buffer:
            await self._store()
        if self._problem is not None:
            raise self._problem
        if self._offset == asked and self.note(await self.files.look_at(self._upload)).offset != asked:
            raise FilesError("offset", Text("The upload is at another place."))
        self.set_header("Upload-Offset", str(self._offset))
        self.set_status(204)

    async def head(self, _: str) -> None:
        """How far it is."""
        stored = self.note(await self.files.look_at(self._upload))
        self.set_header("Upload-Offset", str(stored.offset))
        self.set_header("Upload-Length", str(self._upload.size))

    async def delete(self, _: str) -> None:
        """Give it up."""
        await self.files.give_up(self._upload)
        self.set_status(204)

    def on_finish(self) -> None:
        self._release()

    def on_connection_close(self) -> None:
        """What has come is not sent again."""
        super().on_connection_close()
        self._release()
        if self._buffer:
            self.files.go_on(self._store())
