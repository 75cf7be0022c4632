"""`qemuspawner sessions`: which desktops run or are kept here; end one; clear away what dead ones left."""

import contextlib
import json
import os
import pwd
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qemuspawner.cli.tables import print_table
from qemuspawner.errors import HostError, SessionError, printable
from qemuspawner.locks import find_holder
from qemuspawner.machines.uses import load_spec, session_folders
from qemuspawner.paths import SessionPaths, StatePaths
from qemuspawner.saved import disk_usage, list_saved
from qemuspawner.spec import SessionSpec
from qemuspawner.units import parse_seconds, render_mib

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_SWEEP = "from qemuspawner.session import main; main()"
_SWEEP_TIMEOUT_S = 300
_LOOK_EVERY_S = 0.1


def add_commands(commands: "_SubParsersAction[ArgumentParser]") -> None:
    group = commands.add_parser("sessions", help="the desktops on this host")
    actions = group.add_subparsers(metavar="ACTION", required=True)

    parser = actions.add_parser(
        "list", help="list those that run, sleep or are kept, of accounts that we may see"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(command=list_sessions)

    parser = actions.add_parser("stop", help="end desktops as the hub does: asleep, or shut down")
    parser.add_argument(
        "name", nargs="+", help="the session as `list` shows it, USER for all of a user's, or USER/SERVER"
    )
    parser.add_argument("--wait", default="5 min", metavar="TIME", help="for so long (%(default)s); 0: not")
    parser.set_defaults(command=stop)

    parser = actions.add_parser(
        "sweep", help="delete what sessions that died have left, and end what runs of them"
    )
    parser.set_defaults(command=sweep)


@dataclass(frozen=True, kw_only=True)
class Found:
    """A session's folder."""

    paths: SessionPaths
    state: Literal["running", "asleep", "kept", "dead"]
    spec: SessionSpec | None  # None where nobody can tell
    pid: int  # 0: it does not run, or where we cannot see its process
    since: float  # Unix seconds; 0: not known
    saved_bytes: int

    @property
    def id(self) -> str:
        return self.paths.root.name

    @property
    def names(self) -> set[str]:
        """By which it is asked for."""
        if self.spec is None:
            return {self.id}
        return {self.id, self.spec.user, f"{self.spec.user}/{self.spec.server_name}"}


def list_sessions(arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    del folders
    found = list(find_sessions(state))
    if arguments.json:
        print(json.dumps([_describe(one) for one in found], indent=2))
        return 0
    print_table(
        ("SESSION", "USER", "SERVER", "MACHINE", "STATE", "SINCE", "CPUS", "MEMORY", "KEPT", "PID"),
        [_row(one) for one in found],
    )
    return 0


def find_sessions(state: StatePaths) -> Iterator[Found]:
    """All that this account may see into."""
    for root in session_folders(state.sessions):
        if not os.access(root, os.R_OK | os.X_OK):
            continue  # another account's: nobody can tell whether it runs
        paths = SessionPaths(root=root)
        holder = find_holder(paths.lock)
        saved = list_saved(paths.saved)
        spec, since = None, 0.0
        # ValueError: a file's name, which anybody may have written, may hold a NUL.
        with contextlib.suppress(OSError, SessionError, ValueError):
            spec, since = load_spec(paths.spec)
        if holder is None and saved:
            spec, since = saved[0].spec, saved[0].saved_at
        if holder is not None:
            what: Literal["running", "asleep", "kept", "dead"] = "running"
        elif any(one.kind == "suspended" for one in saved):
            what = "asleep"
        else:
            what = "kept" if saved else "dead"
        yield Found(
            paths=paths,
            state=what,
            spec=spec,
            pid=max(0, holder or 0),
            since=since,
            saved_bytes=disk_usage(paths.saved),
        )


def _row(one: Found) -> tuple[str, ...]:
    spec = one.spec
    return (
        one.id,
        printable(spec.user) if spec else "?",
        printable(spec.server_name) or "-" if spec else "?",
        printable(spec.machine.id) if spec else "?",
        one.state,
        datetime.fromtimestamp(one.since, UTC).astimezone().strftime("%Y-%m-%d %H:%M") if one.since else "-",
        str(spec.cpus) if spec else "?",
        render_mib(spec.memory_mib) if spec else "?",
        render_mib(one.saved_bytes >> 20) if one.saved_bytes else "-",
        str(one.pid) if one.pid else "-",
    )


def _describe(one: Found) -> dict[str, object]:
    spec = one.spec
    return {
        "session": one.id,
        "user": spec.user if spec else None,
        "server": spec.server_name if spec else None,
        "machine": spec.machine.id if spec else None,
        "state": one.state,
        "since": one.since or None,
        "cpus": spec.cpus if spec else None,
        "memory_mib": spec.memory_mib if spec else None,
        "kept_bytes": one.saved_bytes,
        "pid": one.pid or None,
    }


def stop(arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    """End each, and wait until they have; 1 where one has not."""
    del folders
    try:
        wait_s = parse_seconds(arguments.wait)
    except ValueError as exc:
        raise HostError(f"--wait is '{arguments.wait}': {exc}.") from exc
    running = [one for one in find_sessions(state) if one.state == "running"]
    chosen: dict[str, Found] = {}
    for name in arguments.name:
        named = [one for one in running if name in one.names]
        if not named:
            raise SessionError(
                f"No desktop '{name}' runs here.", hint="'qemuspawner sessions list' shows those that do."
            )
        chosen |= {one.id: one for one in named}
    for one in chosen.values():
        _ask_to_end(one)
    end = time.monotonic() + wait_s
    left = list(chosen.values())
    while left and time.monotonic() < end:
        time.sleep(_LOOK_EVERY_S)
        for one in [one for one in left if find_holder(one.paths.lock) != one.pid]:
            left.remove(one)
            print(f"{one.id} has ended.", flush=True)
    for one in left:
        print(f"{one.id} was told to end.", flush=True)
    return 1 if left and wait_s else 0


def _ask_to_end(one: Found) -> None:
    """As the hub does. Raises SessionError."""
    if not one.pid:
        raise SessionError(
            f"The process of {one.id} is not to be seen from here.", hint="It runs on another host: go there."
        )
    try:
        descriptor = os.pidfd_open(one.pid)
        try:
            # The descriptor stays with one process, also where another one is given its number.
            if find_holder(one.paths.lock) == one.pid:
                signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        finally:
            os.close(descriptor)
    except ProcessLookupError:
        return
    except PermissionError as exc:
        raise SessionError(
            f"The process of {one.id} belongs to another account.", hint="Try it with sudo."
        ) from exc


def sweep(_arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:
    """Each account's own by a process of that account: what lies there is theirs, links included."""
    del folders
    owners = {one.paths.root.lstat().st_uid for one in find_sessions(state)}
    mine = os.geteuid()
    swept = 0
    for uid in sorted(owners if mine == 0 else owners & {mine}):
        is_other = uid != mine
        done = subprocess.run(
            [sys.executable, "-c", _SWEEP, "--sweep", str(state.root)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SWEEP_TIMEOUT_S,
            cwd="/",
            check=False,
            env={name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ},
            user=uid if is_other else None,
            group=_group_of(uid) if is_other else None,
            extra_groups=[] if is_other else None,
        )
        if done.returncode:
            words = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise SessionError(f"What account {uid} has left cannot be swept: {printable(words[0])}.")
        swept += int(done.stdout)
    print(f"Swept what was left of {swept} sessions." if swept else "There is nothing to sweep.")
    return 0


def _group_of(uid: int) -> int:
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return uid
