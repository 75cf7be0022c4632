"""Whose processes sessions are, and the folders that such an account needs."""

import contextlib
import logging
import os
import pwd
import shutil
import stat
from pathlib import Path

from qemuspawner.errors import HostError
from qemuspawner.paths import StatePaths
from qemuspawner.texts import Text

log = logging.getLogger(__name__)

_OWN_MODE = 0o711
# Every account makes directories of its own here, and cannot list the others'.
_SHARED_MODE = 0o1733
_PRIVATE_MODE = 0o700

Account = pwd.struct_passwd


def find_account(run_as: str, *, user: str, allow_root: bool) -> Account:
    """The host's account for the sessions of `user`; `run_as` is a name, "" or "{username}".

    Raises:
        HostError: There is no such account, or it may not be used.
    """
    name = run_as.replace("{username}", user)
    try:
        account = pwd.getpwnam(name) if name else _own_account()
    except (KeyError, ValueError):
        raise HostError(
            Text("This host has no account '{name}' to run the desktop.", name=name),
            hint=Text("The administrator makes that account, or sets run_as to another one."),
        ) from None
    if account.pw_uid == 0 and not allow_root:
        raise HostError(
            Text("Desktops do not run as root."),
            hint=Text("The administrator sets run_as to an account without rights, such as 'qemuspawner'."),
        )
    if os.geteuid() not in (0, account.pw_uid):
        raise HostError(
            Text(
                "The hub cannot run desktops as '{name}', since it does not run as root.",
                name=account.pw_name,
            ),
            hint=Text("The administrator sets run_as to '', the hub's own account."),
        )
    return account


def prepare_folders(state: StatePaths, account: Account, *, session_id: str, shared: bool) -> None:
    """Make the folder that sessions write to; `shared`: by several accounts, one a user.

    What the account needs in a shared folder is made for it: whoever came first could else keep it out.
    """
    if not state.root.is_dir():
        _make_folder(state.root, _own_account(), _OWN_MODE)
    if not shared:
        for folder in (state.sessions, state.gpus):
            _make_folder(folder, account, _OWN_MODE)
        return
    for folder in (state.sessions, state.gpus):
        _make_folder(folder, _own_account(), _SHARED_MODE)
    for folder in (state.probes_of(account.pw_uid), state.session(session_id).root):
        _make_private(folder, account)


def prepare_jobs(state: StatePaths, name: str, *, shared: bool) -> None:
    """Make the folder of what jobs are given: the account `name`'s; `shared`: of jobs of several accounts.

    Raises:
        OSError: It cannot be made here.
        KeyError: This host has no such account.
    """
    if shared:
        owner, mode = _own_account(), _SHARED_MODE
    elif state.jobs.is_dir():
        return
    else:
        owner, mode = pwd.getpwnam(name), _PRIVATE_MODE
    # Who can neither give it away nor be its owner leaves it to the administrator.
    if os.geteuid() in (0, owner.pw_uid):
        _make_folder(state.jobs, owner, mode)


def give_certificates(files: dict[str, str], folder: Path, account: Account) -> dict[str, str]:
    """Move a session's key and certificate, and copy the authority's, to where only `account` reads them."""
    remove_certificates(folder)
    _make_folder(folder.parent, _own_account(), _OWN_MODE)
    # It is the account's only when it is filled: before that nobody else can put links into it.
    folder.mkdir(mode=_PRIVATE_MODE)
    given = {}
    for kind, source in files.items():
        target = folder / Path(source).name
        # The authority's certificate belongs to all sessions.
        if kind == "cafile":
            shutil.copy(source, target, follow_symlinks=False)
        else:
            shutil.move(source, target)
        _give(target, account)
        given[kind] = str(target)
    _give(folder, account)
    return given


def remove_certificates(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _own_account() -> Account:
    return pwd.getpwuid(os.geteuid())


def _make_folder(path: Path, owner: Account, mode: int) -> None:
    path.mkdir(parents=True, exist_ok=True)
    _give(path, owner)
    path.chmod(mode)


def _make_private(path: Path, owner: Account) -> None:
    """Make a folder of `owner`'s own in a sticky one, in place of what somebody else put there."""
    with contextlib.suppress(FileNotFoundError):
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == owner.pw_uid:
            return
        log.warning("%s belongs to account %s, not '%s': deleted.", path, status.st_uid, owner.pw_name)
        if stat.S_ISDIR(status.st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()
    path.mkdir(mode=_PRIVATE_MODE)
    _give(path, owner)


def _give(path: Path, owner: Account) -> None:
    if os.geteuid() == 0:
        os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)
