"""The command `qemuspawner`, for the administrator of a host."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from qemuspawner import __version__
from qemuspawner.cli import audit, config, darts, doctor, gpu, machines, sessions, shell, start, warm
from qemuspawner.errors import QemuSpawnerError
from qemuspawner.paths import EXAMPLE_MACHINES, StatePaths, default_state

STATE_VARIABLE = "QEMUSPAWNER_STATE"


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 failed or problems found, 2 wrong usage, 130 interrupted."""
    # Being ended is no other than Ctrl-C: what was begun is put away first.
    signal.signal(signal.SIGTERM, _interrupt)
    arguments = _parser().parse_args(argv)
    state = StatePaths(root=arguments.state.absolute())
    folders = [folder.absolute() for folder in arguments.machines] or [EXAMPLE_MACHINES]
    try:
        code = arguments.command(arguments, state=state, folders=folders)
    except QemuSpawnerError as exc:
        print(f"error: {exc.message}", file=sys.stderr)
        if exc.hint:
            print(f"hint: {exc.hint}", file=sys.stderr)
        code = 1
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough. Python would complain once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as exc:
        # Such as a full disk, or a folder of another account.
        where = f"{exc.filename}: " if exc.filename else ""
        print(f"error: {where}{exc.strerror or exc}.", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qemuspawner", description="Desktops of virtual machines for JupyterHub."
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "--state",
        type=Path,
        metavar="DIR",
        default=os.environ.get(STATE_VARIABLE) or default_state(),
        help=f"the state folder, with images/ and sessions/ (default: ${STATE_VARIABLE}, else %(default)s)",
    )
    parser.add_argument(
        "--machines",
        type=Path,
        metavar="DIR",
        action="append",
        default=[],
        help="a folder of machines; may be given more than once, the first wins (default: the examples)",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    machines.add_commands(commands)
    sessions.add_commands(commands)
    start.add_command(commands)
    warm.add_commands(commands)
    doctor.add_command(commands)
    config.add_command(commands)
    gpu.add_commands(commands)
    audit.add_command(commands)
    darts.add_command(commands)
    shell.add_commands(commands, parser)
    return parser
