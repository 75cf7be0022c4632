"""What a machine with cloud-init and no guest agent is told at its first boot: the files of a NoCloud volume.

What is the site's is vendor-data, over which cloud-init lets the user's own user-data go. The work is done by
share/guest/first-boot.sh, with the scripts that the agent runs elsewhere, so that the result is the same.
"""

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

from qemuspawner.errors import VmError
from qemuspawner.given_texts import is_cloud_config
from qemuspawner.keyboards import KEYBOARDS
from qemuspawner.paths import FIRST_BOOT_SCRIPT, PACKAGES_SCRIPT, PERSONALISE_SCRIPT, START_SCRIPT
from qemuspawner.session.inside.gifts import read_gift
from qemuspawner.session.inside.identity import host_name, make_environment
from qemuspawner.spec import SessionSpec
from qemuspawner.texts import Text

_NO_CLOUD_CONFIG = "#cloud-config\n{}\n"


def make_seed(spec: SessionSpec, report: Callable[[Text], None]) -> dict[str, bytes]:
    """The volume's files by their names; `report` is told what of the site's cannot be given."""
    files = {
        "meta-data": _json(
            {"instance-id": f"qemuspawner-{spec.session_id}", "local-hostname": host_name(spec)}
        ),
        "vendor-data": _vendor_data(spec),
        "user-data": (spec.script if is_cloud_config(spec.script) else _NO_CLOUD_CONFIG).encode(),
        "environment": _environment(spec),
        "first-boot": FIRST_BOOT_SCRIPT.read_bytes(),
        "personalise": PERSONALISE_SCRIPT.read_bytes(),
        "start-script": START_SCRIPT.read_bytes(),
        "install-packages": PACKAGES_SCRIPT.read_bytes(),
    }
    for number, folder in enumerate(spec.gifts):
        files |= _gift(spec, Path(folder), f"gift-{number:03}", report)
    if spec.script and not is_cloud_config(spec.script):
        files["script"] = spec.script.encode()
    return files


def _json(value: object) -> bytes:
    """What cloud-init reads as YAML, which JSON is."""
    return f"{json.dumps(value)}\n".encode()


def _vendor_data(spec: SessionSpec) -> bytes:
    """Nobody logs in from outside: the image's user has no password and no keys, as its cloud-init has it."""
    config: dict[str, object] = {"ssh_pwauth": False, "disable_root": True, "manage_etc_hosts": "localhost"}
    if spec.account is not None and spec.account.language:
        # No: the script of ours sets it.
        config["locale"] = "false"
    if spec.keyboard:
        keyboard = KEYBOARDS[spec.keyboard]
        config["keyboard"] = {"layout": keyboard.layout, "variant": keyboard.variant}
    parts = [
        {"type": "text/cloud-config", "content": f"#cloud-config\n{json.dumps(config)}\n"},
        # A script, since the user's own runcmd would take the place of one of ours.
        {"type": "text/x-shellscript", "filename": "qemuspawner", "content": _BEGIN},
    ]
    return b"#cloud-config-archive\n" + _json(parts)


# The volume is in the guest until it has been copied.
_BEGIN = """#!/bin/sh
set -eu
umask 077
folder=/var/lib/qemuspawner/first-boot
mkdir -p "$folder/volume"
mount -o ro -L cidata "$folder/volume"
cp "$folder"/volume/* "$folder/"
umount "$folder/volume"
exec /bin/sh "$folder/first-boot" "$folder"
"""


def _environment(spec: SessionSpec) -> bytes:
    """For a shell to read. Whatever is in a value, it stays one word."""
    told: Mapping[str, str] = make_environment(spec, way="seed") | {
        "QEMUSPAWNER_CLOUD_CONFIG": "yes" if is_cloud_config(spec.script) else ""
    }
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in told.items()).encode()


def _gift(spec: SessionSpec, folder: Path, name: str, report: Callable[[Text], None]) -> dict[str, bytes]:
    try:
        gift = read_gift(folder)
    except VmError as exc:
        report(Text("What your site gives to new desktops cannot be read: {message}", message=exc.message))
        return {}
    packages = "".join(f"{package}\n" for package in gift.packages).encode()
    if packages and spec.network.mode == "none":
        report(Text("The packages of your site are not installed: the machine has no network"))
        packages = b""
    given = {"files": gift.files, "packages": packages, "program": gift.program}
    return {f"{name}-{kind}": content for kind, content in given.items() if content}
