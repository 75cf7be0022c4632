"""Who the guest's user is: the owner of their home folder, asked for by its agent."""

import re

from qemuspawner.errors import FilesError
from qemuspawner.qemu.agent import GuestAgent
from qemuspawner.texts import Text

_OWNER = re.compile(rb"(\d{1,10}) (\d{1,10}) ([a-z_][a-z0-9_.-]{0,31}|UNKNOWN)\s*", re.ASCII | re.IGNORECASE)


async def find_owner(agent: GuestAgent, home: str) -> tuple[str, ...]:
    """The command that runs another one as the owner of `home`, with all of the account's groups.

    Raises:
        FilesError: There is no such folder.
        VmError: The agent is silent.
    """
    ended = await agent.run_program("stat", "-L", "-c", "%u %g %U", home)
    match = _OWNER.fullmatch(ended.stdout)
    if ended.code or match is None:
        raise FilesError(
            "missing",
            Text("The machine has no folder '{home}'.", home=home),
            hint=Text("The administrator sets `home` in machine.toml to the user's own."),
        )
    uid, gid, account = (part.decode() for part in match.groups())
    groups = "--clear-groups"
    if account != "UNKNOWN":
        ended = await agent.run_program("id", "-G", account)
        numbers = ended.stdout.split()[:100]
        if not ended.code and numbers and all(number.isdigit() for number in numbers):
            groups = f"--groups={b','.join(numbers).decode()}"
    return ("setpriv", f"--reuid={uid}", f"--regid={gid}", groups)
