"""A session on a node whose GPUs are those of a made-up host: `fake_gpu_session.py ROOT --job DESCRIPTOR`.

QEMU is a program that writes down its arguments before it becomes QEMU, which then finds no such device.
"""

import functools
import os
import sys
from pathlib import Path

from qemuspawner.machine import Architecture
from qemuspawner.qemu import host
from qemuspawner.qemu.host import Qemu
from qemuspawner.session import main
from qemuspawner.session.host import gpus, job_gpus
from qemuspawner.session.vm import prepare


def run(root: Path) -> None:
    prepare.take_gpus = functools.partial(gpus.take_gpus, sysfs=root / "sys", dev=root / "dev")
    # How much memory may be locked is this host's, and no node's of a cluster.
    gpus.allow_locking = lambda _memory_mib: None
    prepare.find_job_devices = functools.partial(job_gpus.find_job_devices, file=root / "gpus.toml")

    def find_qemu(architecture: Architecture) -> Qemu:
        # The environment is the session's only now; a job has no PATH.
        os.environ["PATH"] = f"{root}/bin:{os.environ.get('PATH', os.defpath)}"
        return host.find_qemu(architecture)

    prepare.find_qemu = find_qemu
    main()


if __name__ == "__main__":
    folder = Path(sys.argv.pop(1))
    run(folder)
