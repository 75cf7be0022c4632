"""What an administrator gives to new desktops: a folder of the host with files, packages and a program.

The folder is the administrator's; the guest is not to be trusted. Files are put into the home by the home's
owner, who cannot be led to anything that is not theirs.
"""

import io
import re
import secrets
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path

from qemuspawner.errors import VmError, printable
from qemuspawner.paths import PACKAGES_SCRIPT
from qemuspawner.qemu.agent import ENVIRONMENT, Ended, GuestAgent
from qemuspawner.qemu.guest_files import WRITE_BYTES
from qemuspawner.qemu.owner import find_owner
from qemuspawner.texts import Text

FILES, PACKAGES, PROGRAM = "home", "packages", "run"

_MAX_MIB = 32
_MAX_FILES = 5000
_MAX_PACKAGES = 200
_MAX_TEXT_BYTES = 1 << 20
_UNPACK_S = 120
# No option of the programs that take it, and nothing of a shell's.
_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._:-]{0,99}", re.ASCII)

_INSTALL = PACKAGES_SCRIPT.read_text()
# Where the home has a file of that name, it stays: the home may be the user's from elsewhere.
_UNPACK = """
tar --extract --skip-old-files --no-same-owner --directory="$2" --file="$1"
code=$?
rm -f "$1"
exit "$code"
"""


@dataclass(frozen=True, kw_only=True)
class Gift:
    """What one folder has."""

    files: bytes = b""  # a tar archive of what goes into the home
    packages: tuple[str, ...] = ()
    program: bytes = b""  # begins with #!


def read_gift(folder: Path) -> Gift:
    """What is in `folder`; what it lacks is empty.

    Raises:
        VmError: It is not there, cannot be read, or has too much.
    """
    try:
        if not folder.is_dir():
            raise VmError(Text("this host has no folder for it"))
        files = _pack(folder / FILES) if (folder / FILES).is_dir() else b""
        packages = _read(folder / PACKAGES).decode(errors="replace").splitlines()
        program = _read(folder / PROGRAM)
    except OSError as exc:
        raise VmError(Text("the host says {strerror}", strerror=exc.strerror)) from exc
    names = tuple(name for line in packages if (name := line.partition("#")[0].strip()))
    for name in names:
        if not _PACKAGE.fullmatch(name):
            raise VmError(Text("'{name}' is not the name of a package", name=printable(name)[:60]))
    if len(names) > _MAX_PACKAGES:
        raise VmError(Text("there are more than {count} packages", count=_MAX_PACKAGES))
    return Gift(files=files, packages=names, program=program)


def _read(path: Path) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        content = file.read(_MAX_TEXT_BYTES + 1)
    if len(content) > _MAX_TEXT_BYTES:
        raise VmError(Text("'{name}' has more than {mib} MiB", name=path.name, mib=_MAX_TEXT_BYTES >> 20))
    return content


def _pack(folder: Path) -> bytes:
    """Plain files, folders and links, with their modes and nobody's names."""
    packed = io.BytesIO()
    total = 0
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for count, path in enumerate(sorted(folder.rglob("*"))):
            entry = archive.gettarinfo(str(path), arcname=str(path.relative_to(folder)))
            if entry is None or not (entry.isfile() or entry.isdir() or entry.issym()):
                continue
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mode = stat.S_IMODE(entry.mode) & 0o777
            total += entry.size
            if total > _MAX_MIB << 20 or count >= _MAX_FILES:
                raise VmError(
                    Text("it has more than {mib} MiB or {count} files", mib=_MAX_MIB, count=_MAX_FILES)
                )
            if entry.isfile():
                with path.open("rb") as file:
                    archive.addfile(entry, file)
            else:
                archive.addfile(entry)
    return packed.getvalue()


async def put_files(agent: GuestAgent, archive: bytes, *, home: str) -> None:
    """Unpack an archive in the user's home, as the user. Raises VmError where that fails."""
    become = await find_owner(agent, home)
    environment = ENVIRONMENT | {"HOME": home}
    name = f"{home.rstrip('/')}/.given-{secrets.token_hex(8)}.tar"
    for start in range(0, len(archive), WRITE_BYTES):
        appended = await agent.run_program(
            *(*become, "/bin/sh", "-c", 'exec cat >> "$1"', "sh", name),
            stdin=archive[start : start + WRITE_BYTES],
            env=environment,
        )
        if appended.code:
            raise VmError(Text("the machine has no room for a file"))
    unpacked = await agent.run_program(
        *(*become, "/bin/sh", "-c", _UNPACK, "sh", name, home), env=environment, timeout_s=_UNPACK_S
    )
    if unpacked.code:
        words = printable(unpacked.stderr[-1000:].decode(errors="replace").strip().rpartition("\n")[2])
        raise VmError(Text("the machine says '{words}'", words=words[:200]))


async def start_installing(agent: GuestAgent, packages: tuple[str, ...]) -> int:
    """Have the guest install packages; the number of what does so, for `GuestAgent.wait_for_program`."""
    return await agent.start_program("/bin/sh", "-c", _INSTALL, "qemuspawner", *packages, env=ENVIRONMENT)


def check_installed(ended: Ended) -> None:
    """Raises VmError where the packages were not installed."""
    if ended.code:
        words = printable((ended.stdout + ended.stderr).decode(errors="replace").strip().rpartition("\n")[2])
        raise VmError(Text("the machine says '{words}'", words=words[:200]))
