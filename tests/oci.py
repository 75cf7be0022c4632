"""A container image that a test makes with Debian's own tools: a static busybox that serves a page."""

import shutil
import subprocess
from pathlib import Path

PAGE = "hello from the container\n"


def make_image(layout: Path, *command: str, tag: str = "web", architecture: str = "amd64") -> None:
    """An image in the OCI layout; it runs `command`."""
    image = f"{layout}:{tag}"
    bundle = layout.with_name(f"{layout.name}-bundle")
    _run("init", "--layout", str(layout))
    _run("new", "--image", image)
    _run("unpack", "--image", image, str(bundle))
    (bundle / "rootfs/bin").mkdir()
    shutil.copy("/bin/busybox", bundle / "rootfs/bin/busybox")
    (bundle / "rootfs/www").mkdir()
    (bundle / "rootfs/www/index.html").write_text(PAGE)
    _run("repack", "--image", image, str(bundle))
    words = [word for argument in command for word in ("--config.cmd", argument)]
    _run("config", "--image", image, "--architecture", architecture, *words)
    shutil.rmtree(bundle)


def _run(*arguments: str) -> None:
    subprocess.run(["umoci", *arguments], check=True, capture_output=True)
