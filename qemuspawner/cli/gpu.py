"""`qemuspawner gpu`: the GPUs of this host, and what keeps them from being passed on to desktops."""

import json
import os
import pwd
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qemuspawner.cli.diagnosis import Finding, Level
from qemuspawner.cli.tables import print_table
from qemuspawner.gpus import Gpu, find_gpus
from qemuspawner.mediated import MediatedType, find_types
from qemuspawner.qemu.passing import MAX_LATE_BAR_MIB
from qemuspawner.units import render_mib
from qemuspawner.vfio import Obstacle, find_lack_of_rights, find_obstacles, lockable_mib, node_of

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from qemuspawner.paths import StatePaths

# What a small desktop needs locked; whoever has less cannot start one with a GPU.
_LEAST_LOCKABLE_MIB = 4096


def add_commands(commands: "_SubParsersAction[ArgumentParser]") -> None:
    parser = commands.add_parser("gpu", help="GPUs that desktops may have: list them, check this host")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="list GPUs and the parts that can be made of them")
    listing.add_argument("--json", action="store_true", help="for programs")
    listing.set_defaults(command=list_gpus)
    check = actions.add_parser(
        "check", help="say what keeps GPUs from desktops; exit 1 where one cannot be passed on"
    )
    check.add_argument("--json", action="store_true", help="for programs")
    check.set_defaults(command=check_gpus)


def list_gpus(arguments: Namespace, *, state: "StatePaths", folders: list[Path]) -> int:
    del state, folders
    gpus, types = find_gpus(), find_types()
    if arguments.json:
        print(
            json.dumps(
                {"gpus": list(map(_describe, gpus)), "parts": list(map(_describe_type, types))}, indent=2
            )
        )
        return 0
    if not gpus and not types:
        print("This host has no GPUs.")
        return 0
    print_table(
        ("ADDRESS", "MODEL", "VENDOR", "MEMORY", "GROUP", "WITH", "NODE", "DRIVER", "DESKTOPS"),
        [_row(gpu) for gpu in gpus],
    )
    if types:
        print()
        print_table(
            ("OF", "MODEL", "TYPE", "MADE", "FREE"),
            [(one.parent, one.name, one.id, str(one.made), str(one.free)) for one in types],
        )
    return 0


def _row(gpu: Gpu) -> tuple[str, ...]:
    return (
        gpu.address,
        gpu.model,
        gpu.vendor,
        _memory(gpu),
        "-" if gpu.iommu_group is None else str(gpu.iommu_group),
        " ".join(companion.address for companion in gpu.companions) or "-",
        "-" if gpu.numa_node is None else str(gpu.numa_node),
        gpu.driver or "-",
        "no" if find_obstacles(gpu) else "yes",
    )


def _memory(gpu: Gpu) -> str:
    """What the driver says; else the largest window, which may show a part of it alone."""
    if gpu.memory_mib is not None:
        return render_mib(gpu.memory_mib)
    return f"window {render_mib(gpu.bar_mib)}" if gpu.bar_mib else "-"


def _describe(gpu: Gpu) -> dict[str, object]:
    return {
        "address": gpu.address,
        "vendor": gpu.vendor,
        "model": gpu.model,
        "memory_mib": gpu.memory_mib,
        "bar_mib": gpu.bar_mib,
        "iommu_group": gpu.iommu_group,
        "with": [companion.address for companion in gpu.companions],
        "numa_node": gpu.numa_node,
        "driver": gpu.driver,
        "obstacles": [obstacle.text for obstacle in find_obstacles(gpu)],
    }


def _describe_type(one: MediatedType) -> dict[str, object]:
    return {"of": one.parent, "model": one.name, "type": one.id, "made": one.made, "free": one.free}


@dataclass(frozen=True, kw_only=True)
class _GpuFinding(Finding):
    gpu: str = ""  # its address; "" where it is of all


def check_gpus(arguments: Namespace, *, state: "StatePaths", folders: list[Path]) -> int:
    """Print what is missing for each GPU, for the account that asks; 1 where something is."""
    del state, folders
    findings = list(_find_all())
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        account = pwd.getpwuid(os.geteuid()).pw_name
        print(f"For the account '{account}', whose sessions would use them:")
        for finding in findings:
            print(f"{finding.level:8} {finding.text}")
            if finding.hint:
                print(f"{'':8} {finding.hint}")
    return 1 if any(finding.level == "error" for finding in findings) else 0


def _find_all() -> Iterator[_GpuFinding]:
    gpus = find_gpus()
    if not gpus:
        yield _GpuFinding(
            level="error",
            text="This host has no GPUs.",
            hint="'lspci' lists what the kernel sees: look whether they are switched on in the firmware.",
        )
        return
    for obstacle in _find_in_limits():
        yield _GpuFinding(level="error", text=obstacle.text, hint=obstacle.hint)
    for gpu in gpus:
        obstacles = list(_find_in_gpu(gpu))
        for obstacle in obstacles:
            yield _tell("error", gpu, obstacle)
        if not obstacles:
            yield _tell("ok", gpu, Obstacle(text="It can be passed on.", hint=""))
        for warning in _find_warnings(gpu):
            yield _tell("warning", gpu, warning)


def _tell(level: Level, gpu: Gpu, obstacle: Obstacle) -> _GpuFinding:
    about = f"{gpu.address} ({gpu.model}): "
    return _GpuFinding(level=level, text=f"{about}{obstacle.text}", hint=obstacle.hint, gpu=gpu.address)


def _find_in_limits() -> Iterator[Obstacle]:
    most_mib = lockable_mib()
    if most_mib is not None and most_mib < _LEAST_LOCKABLE_MIB:
        yield Obstacle(
            text=f"{render_mib(most_mib)} of memory may be locked; one with a GPU locks all of its own.",
            hint="Set LimitMEMLOCK=infinity in the hub's systemd unit; for a shell, 'ulimit -l unlimited'.",
        )


def _find_in_gpu(gpu: Gpu) -> Iterator[Obstacle]:
    yield from find_obstacles(gpu)
    if gpu.iommu_group is not None:
        yield from find_lack_of_rights([node_of(gpu.iommu_group)])


def _find_warnings(gpu: Gpu) -> Iterator[Obstacle]:
    if gpu.iommu_group is not None and not gpu.can_reset:
        yield Obstacle(
            text="The kernel cannot reset it.",
            hint="The next desktop may find what the last one left in it, or a GPU that does not work.",
        )
    if gpu.bar_mib > MAX_LATE_BAR_MIB:
        yield Obstacle(
            text=f"Its memory window of {render_mib(gpu.bar_mib)} fits no desktop that runs already.",
            hint="Desktops with it boot instead of being restored from their template.",
        )
