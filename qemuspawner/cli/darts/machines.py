"""An entry of DARTS's machines.conf as a machine.toml."""

import html
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import tomlkit

from qemuspawner.cli.darts.read import Entry, Left

_FORMATS = {
    ".iso": "iso", ".qcow2": "qcow2", ".vmdk": "vmdk", ".vdi": "vdi", ".raw": "raw", ".img": "raw",
    ".vhd": "vhd", ".vpc": "vhd", ".vhdx": "vhdx", ".qed": "qed",
}  # fmt: skip
_MAX_ID = 40
_MAX_NAME = 60
_MAX_DESCRIPTION = 2000


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What DARTS offers of every machine; empty or 0 where its configuration does not say."""

    cpus: int = 0
    offered_cpus: tuple[int, ...] = ()
    memory_mib: int = 0
    offered_memory_mib: tuple[int, ...] = ()
    lifetime_s: int = 0
    offered_lifetime_s: tuple[int, ...] = ()
    iso_disk_gib: int = 0
    display: str = ""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A machine to be."""

    id: str
    text: str  # of machine.toml
    image: str  # what is still to be done about its image; empty: nothing


def translate(
    entry: Entry, defaults: Defaults, *, images: Path, taken: set[str]
) -> tuple[Imported | None, list[Left]]:
    """The machine, or None; and what of the entry is not taken over.

    `images` is where DARTS has its images, `taken` the ids that are no longer free.
    """
    suffix = Path(entry.name).suffix.lower()
    if "mount" in entry.keys or entry.name.startswith("/"):
        reason = "folders of the host are the setting 'folders' of the spawner; see the manual"
        return None, [Left(place=entry.place, what=entry.name, reason=reason)]
    if suffix not in _FORMATS or "/" in entry.name:
        reason = f"its ending is none of {', '.join(_FORMATS)}"
        return None, [Left(place=entry.place, what=entry.name, reason=reason)]
    left = [
        Left(place=place, what=f"{entry.name}, {key}", reason="there is no such key")
        for key, (place, _) in entry.keys.items()
        if key not in ("url", "description")
    ]
    machine_id = _find_id(Path(entry.name).stem, taken)
    file = images / entry.name
    is_there = file.is_file()
    url = ""
    if "url" in entry.keys and not is_there:
        place, given = entry.keys["url"]
        url = given if urlsplit(given).scheme == "https" else ""
        if given and not url:
            reason = "only https:// is fetched without a digest; add image.url and image.digest yourself"
            left.append(Left(place=place, what=f"{entry.name}, url", reason=reason))
    image = ""
    if url:
        image = f"fetch its image: qemuspawner machines fetch {machine_id}"
    elif not is_there:
        image = f"bring its image: qemuspawner machines import {machine_id} {shlex.quote(entry.name)}"
    table = {"file": str(file.resolve()) if is_there else f"disk{suffix}", "format": _FORMATS[suffix]}
    text = _render(entry, defaults, table | ({"url": url} if url else {}))
    return Imported(id=machine_id, text=text, image=image), left


def _render(entry: Entry, defaults: Defaults, image: dict[str, str]) -> str:
    _, told = entry.keys.get("description", (None, ""))
    # DARTS puts it into its page as HTML.
    described = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", told)).split())
    document = tomlkit.document()
    document.add(tomlkit.comment(f"From [{_plain(entry.name)}] of DARTS's machines.conf."))
    stem = _plain(Path(entry.name).stem)
    name = described if 0 < len(described) <= _MAX_NAME else stem
    document["name"] = name
    if described and described != name:
        document["description"] = described[:_MAX_DESCRIPTION]
    document.add(tomlkit.comment("Until you have tried it: qemuspawner machines unhide"))
    document["hidden"] = True
    if defaults.display:
        document["display"] = defaults.display
    table = tomlkit.table()
    table.update(image)
    table.add(tomlkit.comment('DARTS had an IDE disk. "virtio" is quicker, where the guest has the driver.'))
    table["bus"] = "sata"
    if image["format"] == "iso" and defaults.iso_disk_gib:
        table["disk"] = f"{defaults.iso_disk_gib} GiB"
    document["image"] = table
    for name, keys in _sizes(defaults):
        if keys:
            document[name] = keys
    return tomlkit.dumps(document)


def _sizes(defaults: Defaults) -> Iterator[tuple[str, dict[str, object]]]:
    yield "cpus", _pick(default=defaults.cpus, offered=list(defaults.offered_cpus))
    memory = [_render_mib(size) for size in defaults.offered_memory_mib]
    yield "memory", _pick(default=_render_mib(defaults.memory_mib), offered=memory)
    longest_s = defaults.lifetime_s or max(defaults.offered_lifetime_s, default=0)
    spans = [span for span in defaults.offered_lifetime_s if span <= longest_s] or [longest_s]
    longest = _render_seconds(longest_s)
    yield (
        "lifetime",
        _pick(default=longest, offered=[_render_seconds(one) for one in spans if one], max=longest),
    )


def _pick(**keys: object) -> dict[str, object]:
    return {name: value for name, value in keys.items() if value}


def _render_mib(size: int) -> str:
    """As a person writes it; empty for 0."""
    return (f"{size} MiB" if size % 1024 else f"{size // 1024} GiB") if size else ""


def _render_seconds(span: int) -> str:
    """As a person writes it; empty for 0."""
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if span and span % length == 0:
            return f"{span // length} {unit}"
    return ""


def _find_id(stem: str, taken: set[str]) -> str:
    """Such as the catalogue takes it, and a new one."""
    wanted = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")
    if not re.match("[a-z]", wanted):
        wanted = f"machine-{wanted}".strip("-")
    wanted = wanted[:_MAX_ID].strip("-")
    found, count = wanted, 1
    while found in taken:
        count += 1
        found = f"{wanted[: _MAX_ID - 1 - len(str(count))]}-{count}"
    taken.add(found)
    return found


def _plain(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)
