"""A container image in a machine: unpacked when the machine is built, run in it beside the desktop.

skopeo takes the image from where it is, umoci unpacks it to a bundle, crun runs that in the guest. The
container has the guest's network, so that its ports are the machine's, and its screen.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qemuspawner.errors import MachineError

TOOLS = {"skopeo": "skopeo", "umoci": "umoci"}
# In the guest.
PACKAGE = "crun"
BUNDLE = Path("srv/container")

_UNIT = """\
[Unit]
Description=The machine's container
Wants=desktop-ready.service
After=desktop-ready.service systemd-networkd.service

[Service]
ExecStartPre=/bin/mkdir -p {binds}
ExecStart=/usr/bin/crun --cgroup-manager=disabled run --bundle /srv/container container
Restart=on-failure
RestartSec=2

[Install]
WantedBy=multi-user.target
"""
# What the container sees of the desktop: the screen's socket and its cookie, the names, the user's home.
_BINDS = ("/tmp/.X11-unix", "/run/desktop", "/etc/resolv.conf", "/home/user")  # noqa: S108 - the guest's
_SCREEN = ("DISPLAY=:0", "XAUTHORITY=/run/desktop/cookie")
# Of the machine, not of the container.
_SHARED = ("network", "ipc", "uts")
_PINNED = re.compile(r"docker://[\w./:-]+@sha256:[0-9a-f]{64}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")

Run = Callable[[list[str]], None]


def find_container_problem(text: str, folder: Path) -> str:
    """Why this names no container image, as half a sentence; "" where it does.

    Either docker://NAME@sha256:DIGEST, or beside machine.toml a folder in the OCI layout or an archive of it,
    with :TAG where it has several.
    """
    if text.startswith("docker://"):
        if _PINNED.fullmatch(text):
            return ""
        return f"'{text}' does not say which image it is: docker://NAME@sha256:DIGEST does"
    path, tag = split_tag(text)
    if tag and not _TAG.fullmatch(tag):
        return f"'{tag}' is no tag of an image"
    if Path(path).is_absolute() or ".." in Path(path).parts or "\0" in path:
        return f"'{text}' is not beside machine.toml"
    if not (folder / path / "index.json").is_file() and not (folder / path).is_file():
        return f"'{text}' is neither a folder in the OCI layout nor an archive of one beside machine.toml"
    return ""


def split_tag(text: str) -> tuple[str, str]:
    path, _, tag = text.partition(":")
    return path, tag


def add_container(root: Path, source: Path | str, tag: str, work: Path, run: Run) -> None:
    """Unpack the image into the root folder of a machine, whose systemd then runs it.

    `run` runs a tool. `work` is a folder for what is needed meanwhile.

    Raises:
        MachineError: A tool failed, or the image is for other processors.
    """
    layout, bundle = work / "layout", root / BUNDLE
    if isinstance(source, Path):
        kind = "oci" if source.is_dir() else "oci-archive"
        where = f"{kind}:{source}" + (f":{tag}" if tag else "")
    else:
        where = source
    run(["skopeo", "copy", "--quiet", where, f"oci:{layout}:image"])
    bundle.parent.mkdir(parents=True, exist_ok=True)
    run(["umoci", "unpack", "--image", f"{layout}:image", str(bundle)])
    shutil.rmtree(layout)
    bundle.chmod(0o755)
    config = bundle / "config.json"
    config.write_text(json.dumps(adapt(json.loads(config.read_text())), indent=2))
    unit = root / "etc/systemd/system/container.service"
    unit.write_text(_UNIT.format(binds=" ".join(path for path in _BINDS if "." not in Path(path).name)))
    wanted = unit.parent / "multi-user.target.wants" / unit.name
    wanted.parent.mkdir(exist_ok=True)
    wanted.symlink_to(f"/etc/systemd/system/{unit.name}")


def adapt(config: dict[str, Any]) -> dict[str, Any]:
    """A bundle's config.json for a container that is a program of the machine.

    Raises:
        MachineError: It is for other processors.
    """
    process, linux = config["process"], config["linux"]
    architecture = config.get("annotations", {}).get("org.opencontainers.image.architecture", "amd64")
    if architecture != "amd64":
        raise MachineError(
            f"The container image is for {architecture}.", hint="Name one for amd64, which machines are."
        )
    return {
        # The machine's own name is the container's.
        **{key: value for key, value in config.items() if key != "hostname"},
        "process": {**process, "terminal": False, "env": [*process.get("env", []), *_SCREEN]},
        "mounts": [
            *config["mounts"],
            *(
                {"destination": path, "type": "bind", "source": path, "options": ["rbind", "rw"]}
                for path in _BINDS
            ),
        ],
        "linux": {
            **linux,
            "namespaces": [space for space in linux["namespaces"] if space["type"] not in _SHARED],
        },
    }
