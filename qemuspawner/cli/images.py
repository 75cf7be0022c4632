"""`qemuspawner machines fetch` and `import`: images taken from elsewhere, for people and for the hub."""

import json
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tqdm import tqdm

from qemuspawner.cli.finding import find_machine
from qemuspawner.errors import MachineError
from qemuspawner.machines.export import export_machine
from qemuspawner.machines.image_files import Progress, Step, import_image
from qemuspawner.paths import StatePaths
from qemuspawner.units import parse_mib, render_mib

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_WORDS = {
    "fetching": "Fetching",
    "copying": "Copying",
    "checking": "Checking",
    "converting": "Converting",
    "comparing": "Comparing",
}
_EXPORTED = ("qcow2", "raw", "vmdk", "vdi", "vhd", "vhdx")
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

    parser = actions.add_parser(
        "export", help="write a machine with its image into a new folder, to take it elsewhere"
    )
    parser.add_argument("id")
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--format", choices=_EXPORTED, default=None, help="of the image there (default: as it is)"
    )
    parser.add_argument("--json", action="store_true", help="tell programs how far it is, in lines")
    parser.set_defaults(command=export)


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
        progress=make_progress(as_json=arguments.json),
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
        progress=make_progress(as_json=arguments.json),
        digest=arguments.digest,
        move=arguments.move,
        convert=arguments.convert,
    )
    return 0


def export(arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    export_machine(
        find_machine(arguments.id, folders, state),
        arguments.folder.absolute(),
        image_format=arguments.format,
        progress=make_progress(as_json=arguments.json),
    )
    return 0


def make_progress(*, as_json: bool) -> Progress:
    if as_json:
        return _tell_programs
    return _Bars() if sys.stdout.isatty() else _Lines()


def _tell_programs(step: Step) -> None:
    print(json.dumps({"step": step.step, "done": step.done, "total": step.total}), flush=True)


def _tell_done(step: Step) -> None:
    print(f"The image is in place: {render_mib(-(-step.done >> 20))}.", flush=True)


class _Bars:
    """A bar for each step, on a terminal."""

    def __init__(self) -> None:
        self._bar: tqdm[NoReturn] | None = None
        self._step = ""

    def __call__(self, step: Step) -> None:
        if step.step != self._step and self._bar is not None:
            self._bar.close()
            self._bar = None
        self._step = step.step
        if step.step == "done":
            _tell_done(step)
            return
        if self._bar is None:
            self._bar = tqdm(
                desc=_WORDS[step.step],
                total=step.total or None,
                # What came the last time says nothing of how quick it is.
                initial=step.done,
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
                file=sys.stdout,
            )
        self._bar.update(step.done - self._bar.n)


class _Lines:
    """A line now and then, elsewhere."""

    def __init__(self) -> None:
        self._told = ("", float("-inf"))

    def __call__(self, step: Step) -> None:
        if step.step == "done":
            _tell_done(step)
            return
        what, at = self._told
        if what == step.step and time.monotonic() - at < _TELL_EVERY_S:
            return
        self._told = step.step, time.monotonic()
        share = f" ({100 * step.done // step.total} %)" if step.total else ""
        print(f"{_WORDS[step.step]}: {render_mib(step.done >> 20)}{share}", flush=True)
