"""Which of its node's GPUs a job has: Slurm counts them, and the node's administrator says where each is.

Slurm tells a job its GPUs only where they are /dev/nvidiaN, which one that is bound to vfio-pci is not; so it
is asked. It counts a node's GPUs from 0, in the order of gres.conf.
"""

import re
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path

from qemuspawner.errors import SessionError
from qemuspawner.gpus import ADDRESS
from qemuspawner.texts import Text

JOB_VARIABLE = "SLURM_JOB_ID"
FILE = Path("/etc/qemuspawner/gpus.toml")
_KEY = "gpu"
_TIMEOUT_S = 30
_MOST_NUMBERS = 64
_GRES = re.compile(r"\bgpu(?::[\w.-]+)?:\d+\(IDX:([\d,-]+)\)", re.ASCII)
_RANGE = re.compile(r"(\d{1,3})(?:-(\d{1,3}))?", re.ASCII)


def find_job_devices(environ: Mapping[str, str], *, file: Path = FILE) -> tuple[str, ...]:
    """The PCI addresses of this job's GPUs; none where it has none.

    Raises:
        SessionError: Slurm does not tell, or the node's file does not say where they are.
    """
    numbers = parse_numbers(_ask_slurm(environ[JOB_VARIABLE]))
    if not numbers:
        return ()
    addresses = _load_addresses(file)
    if numbers[-1] >= len(addresses):
        raise SessionError(
            Text(
                "This node's GPU {number} has no address in {file}, which has {count}.",
                number=numbers[-1],
                file=file,
                count=len(addresses),
            ),
            hint=Text("The administrator lists all GPUs of gres.conf there, in its order."),
        )
    return tuple(addresses[number] for number in numbers)


def parse_numbers(described: str) -> list[int]:
    """ "... GRES=gpu:t4:3(IDX:0,2-3)" of `scontrol --details show job` as 0, 2, 3."""
    found: set[int] = set()
    for listed in _GRES.findall(described):
        for first, last in _RANGE.findall(listed):
            found.update(range(int(first), int(last or first) + 1))
    return sorted(found)[:_MOST_NUMBERS]


def _ask_slurm(job_id: str) -> str:
    command = ("scontrol", "--details", "--oneliner", "show", "job", job_id)
    try:
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError) as exc:
        raise SessionError(
            Text("Slurm does not tell which GPUs this desktop has: {why}.", why=exc),
            hint=Text("Try again; if it happens again, tell the administrator."),
        ) from exc
    return done.stdout


def _load_addresses(file: Path) -> list[str]:
    try:
        addresses = tomllib.loads(file.read_text()).get(_KEY)
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else exc
        raise SessionError(
            Text("The node's list of GPUs {file} cannot be read: {why}.", file=file, why=why),
            hint=Text("The administrator writes it, with the addresses in the order of gres.conf."),
        ) from exc
    if not isinstance(addresses, list) or not all(
        isinstance(address, str) and ADDRESS.fullmatch(address) for address in addresses
    ):
        raise SessionError(
            Text("The node's list of GPUs {file} has no list of addresses '{key}'.", file=file, key=_KEY),
            hint=Text('It is written like gpu = ["0000:41:00.0", "0000:c1:00.0"].'),
        )
    return addresses
