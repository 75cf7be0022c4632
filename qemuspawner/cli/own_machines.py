"""`qemuspawner machines add | copy | edit | hide | unhide | history | undo | remove | restore`."""

import json
import os
import pwd
import shlex
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from qemuspawner.cli.tables import print_table
from qemuspawner.errors import MachineError
from qemuspawner.machine import ImageFormat
from qemuspawner.machines.own import Entry, OwnMachines, describe_new
from qemuspawner.machines.removed import list_removed, remove_machine, restore_machine, size_of_removed
from qemuspawner.machines.uses import find_uses
from qemuspawner.paths import StatePaths
from qemuspawner.units import render_mib

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_actions(actions: "_SubParsersAction[ArgumentParser]") -> None:
    parser = actions.add_parser("add", help="add a machine, which is hidden at first")
    parser.add_argument("id", help="1 to 40 of a-z, 0-9 and '-', a letter first")
    parser.add_argument("--name", required=True, help="what users read")
    parser.add_argument("--format", required=True, choices=get_args(ImageFormat), help="of its image")
    parser.add_argument("--firmware", choices=("bios", "uefi"), default="", help="how it starts")
    parser.add_argument("--url", default="", help="where `fetch` takes its image from")
    parser.add_argument("--digest", default="", metavar="sha256:HEX", help="of its image")
    parser.set_defaults(command=add)

    parser = actions.add_parser("copy", help="make a new machine, which is hidden at first, from another one")
    parser.add_argument("id")
    parser.add_argument("new_id", metavar="NEW-ID")
    parser.add_argument("--name", default="", help="what users read")
    parser.set_defaults(command=copy)

    parser = actions.add_parser("edit", help="change a machine.toml with your editor, by keys or from a file")
    parser.add_argument("id")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--set",
        action="append",
        metavar="KEY=VALUE",
        help="such as cpus.default=2; may be given more than once",
    )
    how.add_argument("--file", type=Path, help="take the whole text from here; - is the standard input")
    parser.set_defaults(command=edit)

    for action, hidden, text in (
        ("hide", True, "offer a machine to nobody but administrators"),
        ("unhide", False, "offer a hidden machine"),
    ):
        parser = actions.add_parser(action, help=text)
        parser.add_argument("id")
        parser.set_defaults(command=hide, hidden=hidden)

    parser = actions.add_parser("history", help="who changed a machine, and when")
    parser.add_argument("id")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(command=show_history)

    parser = actions.add_parser("undo", help="take the last change back, or go back to a version")
    parser.add_argument("id")
    parser.add_argument("version", type=int, nargs="?", help="as `history` numbers them")
    parser.set_defaults(command=undo)

    parser = actions.add_parser("remove", help="remove a machine that nobody uses; it is kept for a week")
    parser.add_argument("id")
    parser.set_defaults(command=remove)

    parser = actions.add_parser("removed", help="list the machines that were removed and can be restored")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(command=show_removed)

    parser = actions.add_parser("restore", help="put a removed machine back")
    parser.add_argument("name", help="as `removed` lists it")
    parser.set_defaults(command=restore)


def add(arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    text = describe_new(
        name=arguments.name,
        image_format=arguments.format,
        url=arguments.url,
        digest=arguments.digest,
        firmware=arguments.firmware,
    )
    entry = find_own(state, folders).add(arguments.id, text)
    print(f"'{entry.id}' was added in {entry.folder}. It is hidden until 'qemuspawner machines unhide'.")
    return 0


def copy(arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    entry = find_own(state, folders).copy(arguments.id, arguments.new_id, name=arguments.name)
    print(f"'{entry.id}' was made in {entry.folder}. It is hidden until 'qemuspawner machines unhide'.")
    return 0


def edit(arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    own = find_own(state, folders)
    entry = own.find(arguments.id)
    if arguments.set:
        values = dict(_parse_setting(text) for text in arguments.set)
        changed = own.change(entry.id, values, digest=entry.digest)
    else:
        if arguments.file is None:
            text = _ask_editor(entry)
        elif str(arguments.file) == "-":
            text = sys.stdin.read()
        else:
            text = _read(arguments.file)
        changed = own.save(entry.id, text, digest=entry.digest)
    print(f"'{entry.id}' was changed." if changed.text != entry.text else f"'{entry.id}' is as it was.")
    return 0


def hide(arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    own = find_own(state, folders)
    entry = own.find(arguments.id)
    what = "hide" if arguments.hidden else "unhide"
    own.change(entry.id, {"hidden": arguments.hidden}, digest=entry.digest, what=what)
    print(f"'{entry.id}' is {'hidden' if arguments.hidden else 'offered'}.")
    return 0


def show_history(arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    own = find_own(state, folders)
    digest = own.find(arguments.id).digest
    versions = own.versions(arguments.id)
    if arguments.json:
        rows = [
            {"number": one.number, "at": one.at, "by": one.by, "what": one.what, "digest": one.digest}
            for one in versions
        ]
        print(json.dumps(rows, indent=2))
        return 0
    print_table(
        ("VERSION", "WHEN", "WHO", "WHAT"),
        [
            (f"{one.number}{' *' if one.digest == digest else ''}", _render_moment(one.at), one.by, one.what)
            for one in versions
        ],
    )
    return 0


def undo(arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    own = find_own(state, folders)
    own.undo(arguments.id, digest=own.find(arguments.id).digest, number=arguments.version)
    print(f"'{arguments.id}': {own.versions(arguments.id)[0].what}.")
    return 0


def remove(arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    own = find_own(state, folders)
    digest = own.find(arguments.id).digest
    removed = remove_machine(own, arguments.id, digest=digest, uses=find_uses(state).get(arguments.id))
    if removed is None:
        print(f"'{arguments.id}' is again the one of another folder.")
    else:
        print(
            f"'{removed.id}' was removed. For a week 'qemuspawner machines restore {removed.name}' undoes it."
        )
    return 0


def show_removed(arguments: Namespace, *, state: StatePaths, **_: object) -> int:
    found = [(one, size_of_removed(state, one.name)) for one in list_removed(state)]
    if arguments.json:
        rows = [
            {
                "name": one.name,
                "id": one.id,
                "title": one.title,
                "at": one.at,
                "by": one.by,
                "size_bytes": size,
            }
            for one, size in found
        ]
        print(json.dumps(rows, indent=2))
        return 0
    print_table(
        ("NAME", "MACHINE", "WHEN", "WHO", "SIZE"),
        [
            (one.name, one.title, _render_moment(one.at), one.by, render_mib(size >> 20))
            for one, size in found
        ],
    )
    return 0


def restore(arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    entry = restore_machine(find_own(state, folders), arguments.name)
    print(f"'{entry.id}' is back.")
    return 0


def find_own(state: StatePaths, folders: list[Path], *, by: str = "") -> OwnMachines:
    """The machines as this account may change them; `by` is who has us do it, from the hub."""
    # Who called us with sudo did it, and not root.
    name = os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    return OwnMachines(state=state, folders=folders, by=by or f"{name} (host)", is_host_admin=True)


def _parse_setting(text: str) -> tuple[str, object]:
    """KEY=VALUE, where the value is JSON or else text; KEY= takes the key out."""
    key, is_setting, value = text.partition("=")
    if not is_setting:
        raise MachineError(f"--set is '{text}'.", hint="It is of the form KEY=VALUE; KEY= takes the key out.")
    if not value:
        return key, None
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _ask_editor(entry: Entry) -> str:
    """The text as the administrator leaves it."""
    editor = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "sensible-editor")
    with tempfile.TemporaryDirectory(prefix="qemuspawner-") as folder:
        path = Path(folder) / "machine.toml"
        path.write_text(entry.text)
        try:
            subprocess.run([*editor, str(path)], check=True)
        except (OSError, subprocess.CalledProcessError) as exc:
            raise MachineError(
                f"The editor '{editor[0]}' did not end well; nothing was changed.",
                hint="Set the variable EDITOR, or use --file.",
            ) from exc
        return _read(path)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise MachineError(f"The file {path} cannot be read: {reason}.") from exc


def _render_moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
