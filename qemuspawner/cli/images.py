"""`qemuspawner machines fetch` and `import`: images taken from elsewhere, for people and for the hub."""

import json
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from qemuspawner.cli.finding import find_machine
from qemuspawner.errors import MachineError
from qemuspawner.machines.image_files import Progress, Step, import_image
from qemuspawner.paths import StatePaths
from qemuspawner.units import parse_mib, render_mib

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_WORDS = {"fetching": "Fetching", "copying": "Copying", "checking": "Checking", "converting": "Converting"}
# Where nobody looks at a line that changes.
_TELL_EVERY_S = 10.0


def add_actions(actions: "_SubParsersAction[ArgumentParser]") -> None:
    parser = actions.add_parser("fetch", help="fetch a machine's image from its image.url, or another one")
    parser.add_argument("id")
    parser.add_argument("--url", default="", help="instead of image.url")
    parser.add_argument("--max-size", default="256 GiB", metavar="SIZE", help="of the file (%(default)s)")
    _add_common(parser)
    parser.set_defaults(command=fetch)

    parser = actions.add_parser("import", help="take a file of this host as a machine's image")
    parser.add_argument("id")
    parser.add_argument("file", type=Path)
    parser.add_argument("--move", action="store_true", help="do not keep the file where it is")
    _add_common(parser)
    parser.set_defaults(command=import_file)


def _add_common(parser: ArgumentParser) -> None:
    parser.add_argument("--digest", default="", metavar="sha256:HEX", help="instead of image.digest")
    parser.add_argument(
        "--convert", action="store_true", help="take another format, too, and convert it into image.format"
    )
    parser.add_argument("--json", action="store_true", help="tell programs how far it is, in lines")


def fetch(arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    # An HTTP client takes a third of a second to import.
    from qemuspawner.machines.fetch import fetch_image

    machine = find_machine(arguments.id, folders, state)
    try:
        max_mib = parse_mib(arguments.max_size)
    except ValueError as exc:
        raise MachineError(f"--max-size is '{arguments.max_size}': {exc}.") from exc
    fetch_image(
        machine,
        state=state,
        progress=_progress(as_json=arguments.json),
        url=arguments.url,
        digest=arguments.digest,
        max_mib=max_mib,
        convert=arguments.convert,
    )
    return 0


def import_file(arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    import_image(
        find_machine(arguments.id, folders, state),
        arguments.file.absolute(),
        state=state,
        progress=_progress(as_json=arguments.json),
        digest=arguments.digest,
        move=arguments.move,
        convert=arguments.convert,
    )
    return 0


def _progress(*, as_json: bool) -> Progress:
    return _tell_programs if as_json else _Bar()


def _tell_programs(step: Step) -> None:
    print(json.dumps({"step": step.step, "done": step.done, "total": step.total}), flush=True)


class _Bar:
    """A line that changes on a terminal, and a line now and then elsewhere."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._told = ("", float("-inf"))

    def __call__(self, step: Step) -> None:
        if step.step == "done":
            print(f"{self._clear}The image is in place: {render_mib(-(-step.done >> 20))}.", flush=True)
            return
        what, at = self._told
        if not self._is_terminal and what == step.step and time.monotonic() - at < _TELL_EVERY_S:
            return
        self._told = step.step, time.monotonic()
        share = f" ({100 * step.done // step.total} %)" if step.total else ""
        text = f"{_WORDS[step.step]}: {render_mib(step.done >> 20)}{share}"
        print(f"{self._clear}{text}", end="" if self._is_terminal else "\n", flush=True)

    @property
    def _clear(self) -> str:
        # ECMA-48: to the line's begin, and delete it.
        return "\r\x1b[K" if self._is_terminal else ""
