"""The demo machine as its hub's user: restored from a template, where another's desktop runs, and booted."""

import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hubs
import pytest
import pytest_asyncio
import vms
from msgspec import structs

from qemuspawner.account import Account, Group
from qemuspawner.errors import VmError
from qemuspawner.machines.catalogue import load_machine
from qemuspawner.paths import EXAMPLE_MACHINES
from qemuspawner.session.inside.first_start import FirstStart
from qemuspawner.session.vm.guest import Guest
from qemuspawner.session.vm.personal import personalise
from qemuspawner.spec import Folder, ScriptRun, SessionSpec

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]

ZOE = Account(
    name="zoe",
    uid=4711,
    gid=4712,
    groups=(Group(name="beamline", gid=5000), Group(name="audio", gid=5001)),
    full_name="Zoë O'Neill",
    language="fr_FR",
)


def make_spec(state: Path, *, account: Account = ZOE, **more: object) -> SessionSpec:
    machine = load_machine(EXAMPLE_MACHINES / "debian-desktop", state / "images")
    return vms.make_spec(
        state, structs.replace(machine, login="user"), memory_mib=1024, account=account, sudo="no", **more
    )


async def run(guest: Guest, command: str) -> str:
    """What a shell of root's writes in the guest."""
    assert guest.agent is not None
    return (await guest.agent.run("/bin/sh", "-c", command, timeout_s=120))[1].strip()


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A folder of the account's on the host."""
    with hubs.state_folder() as place:
        (place / "notebook.ipynb").write_text("from the hub")
        yield place


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["restored", "cold"])
async def guest(request: pytest.FixtureRequest, warm_state: Path, home: Path) -> AsyncIterator[Guest]:
    """Zoë's desktop."""
    way = request.param
    folders = (Folder(name="home", path=str(home), mount="/mnt/home", read_only=False),)
    spec = make_spec(warm_state, server_name=way, templates=way == "restored", folders=folders)
    async with vms.running_guest(spec) as (guest, prepared):
        assert prepared.started.plan.way == way
        assert guest.agent is not None
        assert await guest.agent.wait_until_ready(timeout_s=240)
        begin = time.monotonic()
        await personalise(guest, spec)
        logged_in_s = time.monotonic() - begin
        await run(guest, "DISPLAY=:0 XAUTHORITY=/run/desktop/cookie exec /usr/local/lib/desktop/wait-ready")
        drawn_s = time.monotonic() - begin
        print(f"{way}: logged in after {logged_in_s:.2f} s, drawn after {drawn_s:.2f} s")
        yield guest


async def test_the_account_has_the_users_name_and_numbers_and_no_password(guest: Guest) -> None:
    name, _, uid, gid, comment, home, _ = (await run(guest, "getent passwd zoe")).split(":")

    assert (name, uid, gid, comment.partition(",")[0], home) == (
        "zoe",
        "4711",
        "4712",
        "Zoë O'Neill",
        "/home/user",
    )
    assert (await run(guest, "getent shadow zoe")).split(":")[1] in ("!", "*")
    assert await run(guest, "getent passwd user") == ""
    # Not by the number of somebody else's group of that name.
    assert set((await run(guest, "id -Gn zoe")).split()) >= {"zoe", "beamline", "g5001"}


async def test_the_desktop_is_theirs(guest: Guest) -> None:
    """Nothing runs as who was there before, and no file is theirs."""
    assert await run(guest, "pgrep --uid 1000 | wc -l") == "0"
    assert await run(guest, "find / -xdev \\( -uid 1000 -o -gid 1000 \\) | head") == ""
    shown = await run(guest, "tr '\\0' '\\n' < /proc/$(pgrep --newest --uid 4711 jwm)/environ")
    assert {"USER=zoe", "LOGNAME=zoe", "LANG=fr_FR.utf8", "HOME=/home/user"} <= set(shown.split("\n"))


async def test_the_hosts_files_are_theirs(guest: Guest, home: Path) -> None:
    """By the number that they have in the guest; on the host they stay the account's."""
    assert guest.agent is not None
    await guest.folders.attach(guest.agent)
    (status,) = guest.folders.statuses
    assert status.way == {"restored": "9p", "cold": "virtiofs"}[guest.plan.way]

    owners = await run(
        guest, "stat -c '%u %g' /mnt/home/notebook.ipynb; cd /mnt/home; runuser -u zoe -- touch new"
    )

    assert owners == "4711 4712"
    assert (home / "new").stat().st_uid == os.geteuid()
    (home / "new").unlink()


async def test_the_terminal_is_open_and_its_window_has_the_name(guest: Guest) -> None:
    x = "env DISPLAY=:0 XAUTHORITY=/run/desktop/cookie"
    titles = await run(guest, f"{x} xprop -root -notype _NET_CLIENT_LIST | grep -o '0x[0-9a-f]*' | "
                       f"while read -r id; do {x} xprop -id $id -notype WM_NAME; done")  # fmt: skip

    assert '"zoe@' in titles
    picture = await vms.screen(guest)
    assert len(picture.getcolors(1 << 20) or []) > 50


async def test_what_the_site_gives_is_theirs_and_their_script_is_nobody_elses(
    guest: Guest, warm_state: Path, tmp_path: Path
) -> None:
    """The site's program is root's."""
    (tmp_path / "home/notes").mkdir(parents=True)
    (tmp_path / "home/notes/read me").write_text("given")
    (tmp_path / "run").write_text("#!/bin/sh\nid -u > /etc/site\n")
    script = "#!/bin/sh\nid -un; id -u; sudo -n id -u 2> /dev/null || echo nobody; pwd\n"
    spec = make_spec(warm_state, gifts=(str(tmp_path),), script=script)
    warnings: list[str] = []

    def report(text: str, *, level: str = "info") -> None:
        if level == "warning":
            warnings.append(text)

    assert guest.agent is not None
    await FirstStart(spec, guest, report, has_booted=False).do(guest.agent)

    assert warnings == []
    assert await run(guest, "stat -c '%U %G' '/home/user/notes/read me'") == "zoe zoe"
    assert await run(guest, "cat /etc/site") == "0"
    assert guest.first_steps is not None
    assert guest.first_steps.script == ScriptRun(
        state="done", code=0, output="zoe\n4711\nnobody\n/home/user\n"
    )


async def test_who_may_not_become_root_does_not(guest: Guest) -> None:
    """Neither by sudo nor by a group that others ask for; switching off is theirs."""
    assert "not allowed" in await run(guest, "runuser -u zoe -- sudo -n id 2>&1") or "password" in await run(
        guest, "runuser -u zoe -- sudo -n id 2>&1"
    )
    assert "sudo" not in (await run(guest, "id -Gn zoe")).split()
    assert "poweroff" in await run(guest, "runuser -u zoe -- sudo -n -l")


async def test_a_name_that_the_machine_needs_is_not_taken(warm_state: Path) -> None:
    """The desktop goes on as the machine's account."""
    spec = make_spec(warm_state, account=structs.replace(ZOE, name="daemon"), server_name="daemon")
    async with vms.running_guest(spec) as (guest, _):
        assert guest.agent is not None
        assert await guest.agent.wait_until_ready(timeout_s=60)
        with pytest.raises(VmError, match="login"):
            await personalise(guest, spec)

        assert (await run(guest, "getent passwd daemon")).split(":")[2] == "1"
        assert (await run(guest, "getent passwd user")).split(":")[2] == "1000"
        assert await run(guest, "pgrep --uid user jwm") != ""
