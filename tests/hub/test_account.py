"""Who sessions run as."""

import os
import pwd
import stat
from pathlib import Path

import hubs
import pytest

from qemuspawner.errors import HostError
from qemuspawner.hub.sessions import account
from qemuspawner.paths import StatePaths

NOBODY = pwd.getpwnam("nobody")
ID = "0123456789abcdef0123"


def as_user(monkeypatch: pytest.MonkeyPatch, uid: int) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_hub_without_rights_runs_sessions_as_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    as_user(monkeypatch, NOBODY.pw_uid)

    assert account.find_account("", user="alice", allow_root=False).pw_name == "nobody"


def test_a_hub_of_root_does_not_run_sessions_as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    as_user(monkeypatch, 0)

    with pytest.raises(HostError, match="Desktops do not run as root"):
        account.find_account("", user="alice", allow_root=False)


def test_a_user_named_root_does_not_become_root(monkeypatch: pytest.MonkeyPatch) -> None:
    as_user(monkeypatch, 0)

    with pytest.raises(HostError, match="Desktops do not run as root"):
        account.find_account("{username}", user="root", allow_root=False)


def test_each_users_own_account_is_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    as_user(monkeypatch, 0)

    assert account.find_account("{username}", user="nobody", allow_root=False) == NOBODY


@pytest.mark.parametrize("user", ["no such account", "../root", "a\0b", "{username}"])
def test_a_missing_account_is_named(monkeypatch: pytest.MonkeyPatch, user: str) -> None:
    as_user(monkeypatch, 0)

    with pytest.raises(HostError, match="This host has no account"):
        account.find_account("{username}", user=user, allow_root=False)


def test_only_root_runs_sessions_as_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    as_user(monkeypatch, 12345)

    with pytest.raises(HostError, match="cannot run desktops as 'nobody'"):
        account.find_account("nobody", user="alice", allow_root=False)


def test_the_sessions_folder_belongs_to_their_account(state_dir: Path) -> None:
    owner = pwd.getpwnam(hubs.sessions_account()) if hubs.sessions_account() else pwd.getpwuid(os.getuid())
    state = StatePaths(root=state_dir)

    account.prepare_folders(state, owner, session_id=ID, shared=False)

    assert (state.sessions.stat().st_uid, mode(state.sessions)) == (owner.pw_uid, 0o711)


def test_with_an_account_for_each_user_all_may_add_to_the_folder(state_dir: Path) -> None:
    state = StatePaths(root=state_dir)
    account.prepare_folders(state, NOBODY, session_id=ID, shared=False)

    account.prepare_folders(state, NOBODY, session_id=ID, shared=True)

    assert (state.sessions.stat().st_uid, mode(state.sessions)) == (os.getuid(), 0o1733)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("squat", ["folder", "link", "file"])
def test_nobody_keeps_another_account_out_of_a_shared_folder(state_dir: Path, squat: str) -> None:
    """Every account may make directories there, also with the name of somebody else's session."""
    state = StatePaths(root=state_dir)
    account.prepare_folders(state, NOBODY, session_id="another", shared=True)
    elsewhere = state_dir / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    squatted = state.session(ID).root
    match squat:
        case "folder":
            squatted.mkdir()
            (squatted / "lock").symlink_to(elsewhere / "file")
        case "link":
            squatted.symlink_to(elsewhere)
        case "file":
            squatted.touch()

    account.prepare_folders(state, NOBODY, session_id=ID, shared=True)

    for folder in (squatted, state.probes_of(NOBODY.pw_uid)):
        assert (folder.lstat().st_uid, mode(folder)) == (NOBODY.pw_uid, 0o700)
    assert list(squatted.iterdir()) == []
    assert ((elsewhere / "file").stat().st_uid, elsewhere.stat().st_uid) == (0, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_session_that_still_runs_keeps_its_directory(state_dir: Path) -> None:
    state = StatePaths(root=state_dir)
    account.prepare_folders(state, NOBODY, session_id=ID, shared=True)
    state.session(ID).lock.touch()

    account.prepare_folders(state, NOBODY, session_id=ID, shared=True)

    assert state.session(ID).lock.exists()


def certificate_files(folder: Path) -> dict[str, str]:
    files = {}
    for kind in ("keyfile", "certfile", "cafile"):
        path = folder / f"{kind}.pem"
        path.write_text(kind)
        path.chmod(0o600)
        files[kind] = str(path)
    return files


def test_a_folder_of_certificates_is_given_away_last_and_no_link_is_followed(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root that fills a folder of somebody else's can be led by links to give other files away."""
    given: list[tuple[str, bool]] = []

    def chown(path: Path, uid: int, _gid: int, *, follow_symlinks: bool = True) -> None:
        if uid == NOBODY.pw_uid:
            given.append((path.name, follow_symlinks))

    monkeypatch.setattr(os, "chown", chown)
    as_user(monkeypatch, 0)

    account.give_certificates(
        certificate_files(tmp_path), StatePaths(root=state_dir).certificates("0123"), NOBODY
    )

    names = ["keyfile.pem", "certfile.pem", "cafile.pem", "0123"]
    assert given == [(name, False) for name in names]


def test_certificates_are_for_the_sessions_account_alone(state_dir: Path, tmp_path: Path) -> None:
    files = certificate_files(tmp_path)
    owner = NOBODY if os.geteuid() == 0 else pwd.getpwuid(os.getuid())
    folder = StatePaths(root=state_dir).certificates("0123")

    given = account.give_certificates(files, folder, owner)

    assert {kind: Path(path).read_text() for kind, path in given.items()} == {kind: kind for kind in files}
    assert (mode(folder), folder.stat().st_uid) == (0o700, owner.pw_uid)
    assert {Path(path).stat().st_uid for path in given.values()} == {owner.pw_uid}
    assert Path(files["cafile"]).exists()
    assert not Path(files["keyfile"]).exists()
