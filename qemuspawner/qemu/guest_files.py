"""The files of a guest's user, by the guest agent.

Each operation is one short program in the guest that runs as the owner of the home folder and ends by
itself: nothing is open between two of them, so nothing is left behind when a browser leaves or the guest is
suspended, and all others get their turn with the agent in between. The agent's own commands for files would
be root's, wherever a link leads them.

Paths in the guest are bytes, as Linux has them.
"""

import re
import time
from dataclasses import dataclass, replace

from qemuspawner.errors import FilesError, FileTrouble, VmError, printable
from qemuspawner.paths import FILES_SCRIPT
from qemuspawner.qemu.agent import Ended, GuestAgent
from qemuspawner.qemu.owner import find_owner
from qemuspawner.texts import Text

# One operation's worth. Under emulation the agent takes 4 MiB a second in and gives 16 out, and a program
# costs it a tenth of a second: smaller ones would be slower, larger ones would keep others waiting.
WRITE_BYTES = 1 << 20
READ_BYTES = 2 << 20
# A slow disk may keep one waiting.
_PROGRAM_S = 30
# What dd counts in.
_BLOCK_BYTES = 64 << 10
# Of each part of a listing; some 80 bytes an entry.
_MAX_LISTING_BYTES = 512 << 10
# The home may be mounted, and then be somebody's, only after the desktop is there.
_OWNER_LIFE_S = 10

_NOT_PLAIN = re.compile(rb"[^A-Za-z0-9/._-]")
_ENTRY = re.compile(rb"([0-9a-f]{1,8}) (-?\d{1,19}) (-?\d{1,19})(?: \./([^/\0]{1,255}))?", re.DOTALL)


def _explain_exit(code: int, name: str) -> tuple[FileTrouble, Text] | None:
    """What one of our script's own exit codes says of a file; None for all others."""
    exits: dict[int, tuple[FileTrouble, Text]] = {
        10: ("missing", Text("{name} is not there any more.", name=name)),
        11: ("kind", Text("{name} is not a folder.", name=name)),
        12: ("denied", Text("{name} is closed to the desktop's user.", name=name)),
        13: ("exists", Text("{name} exists already.", name=name)),
        14: ("offset", Text("{name} has another size than was said.", name=name)),
        15: ("kind", Text("{name} is not a plain file.", name=name)),
    }
    return exits.get(code)


# What `stat` tells of a file's type.
_TYPE, _FOLDER, _FILE, _LINK = 0o170000, 0o040000, 0o100000, 0o120000


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is known of a file; all of it as the guest says."""

    name: bytes
    kind: str  # folder, file, or other: a device, a socket, a link that leads nowhere
    size_bytes: int
    modified: int  # Unix seconds by the guest's clock
    is_link: bool = False


@dataclass(frozen=True, kw_only=True)
class Listing:
    entries: tuple[Entry, ...]
    is_whole: bool  # else the folder has more than was asked for


class GuestFiles:
    """The files that the owner of the folder `home` may see and change."""

    def __init__(self, agent: GuestAgent, home: str) -> None:
        self._agent = agent
        self._home = home
        self._script = FILES_SCRIPT.read_text()
        self._become: tuple[str, ...] = ()
        self._becoming_ends = 0.0

    async def list_folder(self, folder: bytes) -> Listing:
        """What is in a folder; half a mebibyte of it, some thousand entries."""
        output = await self._do("list", folder, str(_MAX_LISTING_BYTES), about=folder)
        return _parse_listing(output)

    async def look_at(self, path: bytes) -> Entry:
        """A single file, through links."""
        output = await self._do("about", path, about=path)
        match = _ENTRY.fullmatch(output.strip())
        if match is None:
            raise _not_understood()
        return _entry(match, name=path.rpartition(b"/")[2])

    async def read(self, path: bytes, *, offset: int, size: int) -> bytes:
        """At most `size` bytes of a file, which is at most READ_BYTES; fewer at its end."""
        first, lead = divmod(offset, _BLOCK_BYTES)
        blocks = -(-(lead + size) // _BLOCK_BYTES)
        output = await self._do("read", path, str(_BLOCK_BYTES), str(first), str(blocks), about=path)
        return output[lead : lead + size]

    async def make_folder(self, path: bytes) -> None:
        await self._do("make-folder", path, about=path)

    async def start_upload(
        self, folder: bytes, name: bytes, *, partial: bytes, taken: str, fallback: str = ""
    ) -> bytes:
        """Make the empty hidden file `partial` for an upload; the folder that it is in.

        That is `fallback` in `folder` where there is such a folder, else `folder` itself. `taken` is what to
        do where `name` is taken: "refuse", "rename" or "replace".
        """
        given = (_escape(name), partial.decode(), taken, fallback)
        used = await self._do("start", folder, *given, about=name)
        if not fallback or used != fallback.encode():
            return folder
        return folder + b"/" + used if folder else used

    async def append(self, partial: bytes, data: bytes, *, offset: int, about: bytes) -> None:
        """Add at most WRITE_BYTES to a file whose size must be `offset`."""
        await self._do("append", partial, str(offset), stdin=data, about=about)

    async def finish_upload(self, partial: bytes, *, size: int, name: bytes, taken: str) -> bytes:
        """Give a whole upload its name, or a free one like it where that is not to be replaced; which one."""
        given = await self._do("finish", partial, str(size), _escape(name), taken, about=name)
        return given[:255]

    async def give_up(self, partial: bytes) -> None:
        await self._do("give-up", partial, about=partial)

    async def _do(self, what: str, path: bytes, *arguments: str, stdin: bytes = b"", about: bytes) -> bytes:
        """Run the script as the home's owner; what it wrote. `about` is named where that fails."""
        command = [*await self._become_owner(), "sh", "-c", 'eval "$FILES_SCRIPT"', "files"]
        ended = await self._agent.run_program(
            *command,
            what,
            _escape(self._absolute(path)),
            *arguments,
            stdin=stdin,
            env=self._environment(),
            timeout_s=_PROGRAM_S,
        )
        if ended.code:
            raise _trouble(ended, about)
        return ended.stdout

    def _absolute(self, path: bytes) -> bytes:
        return self._home.rstrip("/").encode() + b"/" + path

    def _environment(self) -> dict[str, str]:
        return {
            "FILES_SCRIPT": self._script,
            "HOME": self._home,
            "LC_ALL": "C",
            "PATH": "/usr/local/bin:/usr/bin:/bin",
        }

    async def _become_owner(self) -> tuple[str, ...]:
        """The command that runs another one as the owner of the home, with all of the account's groups."""
        now = time.monotonic()
        if now >= self._becoming_ends:
            self._become = await find_owner(self._agent, self._home)
            self._becoming_ends = now + _OWNER_LIFE_S
        return self._become


def _escape(path: bytes) -> str:
    r"""What printf's %b turns into `path` again: b"a b" -> "a\0040b"."""
    return _NOT_PLAIN.sub(lambda match: b"\\0%03o" % match[0][0], path).decode()


def _parse_listing(output: bytes) -> Listing:
    entries, _, targets = output.partition(b"//\n")
    targets_by_name = {entry.name: entry for entry in _parse_entries(targets)}
    found = [
        replace(targets_by_name.get(entry.name, entry), is_link=True) if entry.is_link else entry
        for entry in _parse_entries(entries)
    ]
    return Listing(entries=tuple(found), is_whole=len(entries) < _MAX_LISTING_BYTES)


def _parse_entries(output: bytes) -> list[Entry]:
    """Those that are understood, less the one that is cut off where the listing is too long."""
    records = (b"\n" + output.removesuffix(b"\n")).split(b"\n/")
    if len(output) >= _MAX_LISTING_BYTES:
        records.pop()
    matches = (_ENTRY.fullmatch(record) for record in records)
    return [_entry(match, name=match[4]) for match in matches if match and match[4]]


def _entry(match: re.Match[bytes], *, name: bytes) -> Entry:
    type_ = int(match[1], 16) & _TYPE
    return Entry(
        name=name,
        kind={_FOLDER: "folder", _FILE: "file"}.get(type_, "other"),
        size_bytes=max(0, int(match[2])),
        modified=int(match[3]),
        is_link=type_ == _LINK,
    )


def _trouble(ended: Ended, about: bytes) -> FilesError:
    shown = printable(about.rpartition(b"/")[2].decode(errors="replace"))
    name = f"'{shown}'" if about else Text("The home folder")
    if explained := _explain_exit(ended.code, name):
        return FilesError(*explained)
    said = printable(ended.stderr[:1000].decode(errors="replace").partition("\n")[0])
    reason = said.rpartition(": ")[2][:200] or Text("exit code {code}", code=ended.code)
    return FilesError("failed", Text("{name}: the machine says '{reason}'.", name=name, reason=reason))


def _not_understood() -> VmError:
    return VmError(Text("The machine's answer about its files is not understood."))
