"""Scripts that an image runs itself, once, when it boots for the first time."""

import shutil
from collections.abc import Sequence
from pathlib import Path

# In the guest.
_FOLDER = Path("usr/local/lib/qemuspawner-first-boot")
_UNIT_NAME = "qemuspawner-first-boot.service"

# The agent answers only after it, so that a template is saved, and a desktop counts as ready, with all done.
# What failed or took too long is tried again at the next boot.
_UNIT = """\
[Unit]
Description=What the image does at its first boot
ConditionPathExists=!/var/lib/qemuspawner/first-boot-done
Before=qemu-guest-agent.service

[Service]
Type=oneshot
StateDirectory=qemuspawner
TimeoutStartSec=120
{runs}
ExecStartPost=/bin/touch /var/lib/qemuspawner/first-boot-done

[Install]
WantedBy=multi-user.target
"""


def find_first_boot_problem(path: Path) -> str:
    """Why the guest could not run this file, as half a sentence; "" where it could."""
    try:
        with path.open("rb") as file:
            begins_well = file.read(2) == b"#!"
    except OSError as exc:
        return f"it cannot be read: {exc.strerror}"
    return "" if begins_well else f"'{path.name}' is a script for the guest and must begin with #!"


def add_first_boot(root: Path, scripts: Sequence[Path]) -> None:
    """Put the scripts into the root folder of a machine, whose systemd then runs them in this order."""
    folder = root / _FOLDER
    folder.mkdir(parents=True)
    # Whatever the administrator's umask is.
    folder.chmod(0o755)
    runs = []
    for number, script in enumerate(scripts, start=1):
        target = folder / str(number)
        shutil.copyfile(script, target)
        target.chmod(0o755)
        runs.append(f"ExecStart=/{target.relative_to(root)}")
    unit = root / "etc/systemd/system" / _UNIT_NAME
    wanted = unit.parent / "multi-user.target.wants" / unit.name
    wanted.parent.mkdir(parents=True, exist_ok=True)
    unit.write_text(_UNIT.format(runs="\n".join(runs)))
    unit.chmod(0o644)
    wanted.symlink_to(f"/etc/systemd/system/{unit.name}")
