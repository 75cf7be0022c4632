"""`qemuspawner completion` and `man`: what a shell and a manual's reader want of the command."""

import functools
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from qemuspawner.paths import StatePaths

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_SHELLS = ("bash", "zsh", "tcsh")


def add_commands(commands: "_SubParsersAction[ArgumentParser]", whole: ArgumentParser) -> None:
    parser = commands.add_parser("completion", help="print what completes this command in a shell")
    parser.add_argument("shell", choices=_SHELLS)
    parser.set_defaults(command=functools.partial(print_completion, whole))

    parser = commands.add_parser("man", help="print the manual page: qemuspawner man > qemuspawner.1")
    parser.set_defaults(command=functools.partial(print_manual, whole))


def print_completion(
    whole: ArgumentParser, arguments: Namespace, *, state: StatePaths, folders: list[Path]
) -> int:
    import shtab

    del state, folders
    print(shtab.complete(whole, arguments.shell))
    return 0


def print_manual(
    whole: ArgumentParser, arguments: Namespace, *, state: StatePaths, folders: list[Path]
) -> int:
    from argparse_manpage.manpage import Manpage

    del arguments, state, folders
    print(Manpage(whole))
    return 0
