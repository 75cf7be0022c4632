"""Files between browsers and the desktop's user: which names and sizes pass, and uploads that can be resumed.

What is known of an upload is in its URL and in the guest's hidden file, and nowhere else: it can be resumed
after the session slept or was taken back to a checkpoint. The URL needs no seal, as everything in it is
checked again and its holder may upload anyway.
"""

import asyncio
import base64
import binascii
import contextlib
import re
import secrets
import unicodedata
from collections import OrderedDict
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote_from_bytes, unquote_to_bytes
from weakref import WeakValueDictionary

import msgspec

from qemuspawner.errors import FilesError, VmError
from qemuspawner.qemu.guest_files import Entry, GuestFiles
from qemuspawner.session.life.supervisor import Supervisor
from qemuspawner.session.vm.guest import Guest
from qemuspawner.texts import Text
from qemuspawner.units import render_mib

Taken = Literal["refuse", "rename", "replace"]

_MIB = 1 << 20
# Linux has 255 for a name; a path must fit into a URL, with all that proxies allow for one.
_MAX_NAME_BYTES = 255
_MAX_PATH_BYTES = 2000
_MAX_SHOWN = 2000
_MAX_AT_ONCE = 8
# Uploads whose last answer may have been lost.
_MAX_REMEMBERED = 100
# Where an upload goes that names no folder.
_DESKTOP = "Desktop"

# They turn the reading direction of what follows: "exe.fdp" would be read as "pdf.exe" (Unicode TR36).
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Control characters, lone surrogates, line and paragraph separators.
_UNSHOWN = frozenset({"Cc", "Cs", "Zl", "Zp"})
_ID = re.compile("[0-9a-f]{32}")


def parse_path(path: bytes) -> bytes:
    """A path below the home, which itself is b"".

    Raises:
        FilesError: It is none.
    """
    if len(path) > _MAX_PATH_BYTES:
        raise FilesError(
            "name",
            Text(
                "The path has {count} bytes; at most {max_path_bytes} can be used here.",
                count=len(path),
                max_path_bytes=_MAX_PATH_BYTES,
            ),
        )
    for part in path.split(b"/") if path else ():
        if not part or part in (b".", b"..") or b"\0" in part or len(part) > _MAX_NAME_BYTES:
            raise FilesError(
                "name", Text("'{path}' is not a path below the home folder.", path=show(path)[:200])
            )
    return path


def check_new_name(name: bytes) -> bytes:
    """The name of a new file or folder.

    Raises:
        FilesError: It is none, or would be read as another one.
    """
    shown = show(name)[:200]
    if not name or name in (b".", b"..") or b"/" in name or not name.strip():
        raise FilesError(
            "name",
            Text("'{shown}' is not a name for a file.", shown=shown),
            hint=Text("Choose another name."),
        )
    if len(name) > _MAX_NAME_BYTES:
        raise FilesError(
            "name",
            Text(
                "The name has {count} bytes; a file's name has at most {max_name_bytes}.",
                count=len(name),
                max_name_bytes=_MAX_NAME_BYTES,
            ),
        )
    try:
        text = name.decode()
    except UnicodeDecodeError:
        raise FilesError("name", Text("The name '{shown}' is not Unicode (UTF-8).", shown=shown)) from None
    if any(map(_is_hidden, text)):
        raise FilesError(
            "name",
            Text(
                "The name '{shown}' has control characters or such that turn the reading direction.",
                shown=shown,
            ),
            hint=Text("Choose a name without them."),
        )
    return name


def show(name: bytes) -> str:
    """A guest's name as people may see it: what cannot be shown becomes U+FFFD."""
    return "".join("\ufffd" if _is_hidden(char) else char for char in name.decode(errors="replace"))


def _is_hidden(char: str) -> bool:
    return char in _BIDI or unicodedata.category(char) in _UNSHOWN


def join(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name


def quote(path: bytes) -> str:
    """A path as the API has it: percent-encoded, as it may be no text."""
    return quote_from_bytes(path)


def unquote(path: str) -> bytes:
    return unquote_to_bytes(path)


class Upload(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A file that comes in parts; all of it is in the URL."""

    id: str
    folder: bytes
    name: bytes
    size: int
    taken: Taken

    @property
    def partial(self) -> bytes:
        """The hidden file that it grows in."""
        return join(self.folder, self.hidden_name)

    @property
    def hidden_name(self) -> bytes:
        return f".upload-{self.id}.part".encode()

    @property
    def token(self) -> str:
        return base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).decode().rstrip("=")

    @classmethod
    def from_token(cls, token: str) -> "Upload":
        """Raises FilesError where it was not made by us."""
        try:
            data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
            upload = msgspec.msgpack.decode(data, type=cls)
        except (binascii.Error, msgspec.DecodeError, ValueError):
            upload = None
        if upload is None or not _ID.fullmatch(upload.id) or upload.size < 0:
            raise FilesError("missing", Text("There is no such upload."))
        parse_path(upload.folder)
        check_new_name(upload.name)
        return upload


@dataclass(frozen=True, kw_only=True)
class Stored:
    """How far an upload is; `path` is where the file is that has just become whole."""

    offset: int
    path: bytes | None = None


class Files:
    """What can be done with files, in one session."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._of: tuple[Guest, GuestFiles] | None = None
        self._transfers = 0
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._finished: OrderedDict[str, int] = OrderedDict()  # sizes by upload
        self._works: set[asyncio.Task[None]] = set()

    @property
    def max_bytes(self) -> int:
        return self._supervisor.spec.policy.max_file_mib * _MIB

    @property
    def guest(self) -> GuestFiles:
        """Raises QemuSpawnerError where there are none, or the machine does not run."""
        home = self._supervisor.spec.machine.home
        guest = self._supervisor.running_guest()
        if self._supervisor.state != "running":
            raise VmError(Text("The desktop is not ready yet."), hint=Text("Try again in a moment."))
        if not home or guest.agent is None:
            raise FilesError("missing", Text("Files cannot be exchanged with this machine."))
        if self._of is None or self._of[0] is not guest:
            # Each VM has an agent of its own.
            self._of = guest, GuestFiles(guest.agent, home)
        return self._of[1]

    @contextlib.contextmanager
    def transfer(self) -> Iterator[None]:
        """While one goes on; raises FilesError where there are too many."""
        if self._transfers >= _MAX_AT_ONCE:
            raise FilesError(
                "busy",
                Text("{max_at_once} files are being transferred already.", max_at_once=_MAX_AT_ONCE),
                hint=Text("Wait until one is done."),
            )
        self._transfers += 1
        try:
            yield
        finally:
            self._transfers -= 1

    def go_on(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what nobody waits for any more."""
        task = asyncio.create_task(work)
        self._works.add(task)
        task.add_done_callback(self._works.discard)

    def note_activity(self) -> None:
        """Somebody who transfers files is there."""
        self._supervisor.clocks.note_input()

    def check_size(self, size: int, name: bytes) -> None:
        if size > self.max_bytes:
            most = render_mib(self._supervisor.spec.policy.max_file_mib)
            raise FilesError(
                "size",
                Text(
                    "'{name}' has {size}; at most {most} can be transferred.",
                    name=show(name),
                    size=render_mib(-(-size // _MIB)),
                    most=most,
                ),
                hint=Text("Split it, or ask the administrator."),
            )

    async def list_folder(self, folder: bytes) -> dict[str, Any]:
        """What the API tells of a folder."""
        listing = await self.guest.list_folder(folder)
        entries = sorted(listing.entries, key=_order)[:_MAX_SHOWN]
        return {
            "path": quote(folder),
            "folders": [
                {"name": show(part), "path": quote(b"/".join(folder.split(b"/")[: at + 1]))}
                for at, part in enumerate(folder.split(b"/") if folder else ())
            ],
            "entries": [
                {
                    "name": show(entry.name),
                    "path": quote(join(folder, entry.name)),
                    "kind": entry.kind,
                    "size_bytes": entry.size_bytes,
                    "modified": entry.modified,
                }
                for entry in entries
            ],
            "is_whole": listing.is_whole and len(entries) == len(listing.entries),
        }

    async def make_folder(self, folder: bytes, name: bytes) -> None:
        await self.guest.make_folder(join(folder, check_new_name(name)))

    # Uploads

    async def start_upload(
        self, *, folder: bytes | None, name: bytes, size: int, taken: Taken
    ) -> tuple[Upload, Stored]:
        """Where no folder is named, the file goes to the desktop, or where there is none to the home."""
        check_new_name(name)
        self.check_size(size, name)
        upload = Upload(id=secrets.token_hex(16), folder=folder or b"", name=name, size=size, taken=taken)
        where = await self.guest.start_upload(
            upload.folder,
            name,
            partial=upload.hidden_name,
            taken=taken,
            fallback=_DESKTOP if folder is None else "",
        )
        upload = msgspec.structs.replace(upload, folder=where)
        return upload, Stored(offset=0) if size else await self.look_at(upload)

    async def look_at(self, upload: Upload) -> Stored:
        """How far it is. A whole one is finished, where that failed before."""
        async with self._lock(upload):
            if upload.id in self._finished:
                return Stored(offset=self._finished[upload.id])
            entry = await self.guest.look_at(upload.partial)
            return await self._finish_if_whole(upload, entry.size_bytes)

    async def append(self, upload: Upload, data: bytes, *, offset: int) -> Stored:
        """Add at most WRITE_BYTES to what is there, which must be `offset` bytes."""
        self.note_activity()
        async with self._lock(upload):
            if offset + len(data) > upload.size:
                raise FilesError("size", Text("'{name}' is longer than was said.", name=show(upload.name)))
            await self.guest.append(upload.partial, data, offset=offset, about=upload.name)
            return await self._finish_if_whole(upload, offset + len(data))

    async def give_up(self, upload: Upload) -> None:
        async with self._lock(upload):
            await self.guest.give_up(upload.partial)

    def _lock(self, upload: Upload) -> asyncio.Lock:
        """Of one upload: a request that is believed dead may still bring its last bytes."""
        return self._locks.setdefault(upload.id, asyncio.Lock())

    async def _finish_if_whole(self, upload: Upload, offset: int) -> Stored:
        if offset != upload.size:
            return Stored(offset=offset)
        name = await self.guest.finish_upload(
            upload.partial, size=upload.size, name=upload.name, taken=upload.taken
        )
        self._finished[upload.id] = offset
        if len(self._finished) > _MAX_REMEMBERED:
            self._finished.popitem(last=False)
        return Stored(offset=offset, path=join(upload.folder, name))


def _order(entry: Entry) -> tuple[bool, bool, str]:
    """Hidden ones last, so that they are left out first; folders before files."""
    return entry.name.startswith(b"."), entry.kind != "folder", show(entry.name).casefold()
