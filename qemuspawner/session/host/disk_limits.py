"""How large the file may become that a desktop's disk is written to.

The limit is of each file: what a checkpoint has frozen stays beside it, and is counted as what is kept.
"""

from qemuspawner.qemu.image import read_disk_mib
from qemuspawner.qemu.vm import Vm
from qemuspawner.spec import SessionSpec

# A qcow2 that holds every sector of its disk is larger than that by its tables: a hundredth, and a little.
_TABLES_SHARE = 64
_TABLES_MIB = 64
# What is saved holds the guest's memory, the screen's and the devices' state.
_STATE_MIB = 1024


def disk_limit_mib(spec: SessionSpec, vm: Vm) -> int:
    """What the desktop begins with: the administrator's limit, or all that its disk can take."""
    own = sum(_largest_mib(read_disk_mib(disk.path)) for disk in vm.disks if not disk.cdrom)
    largest = own or _TABLES_MIB
    return min(spec.disk_limit_mib, largest) if spec.disk_limit_mib else largest


def max_file_mib(spec: SessionSpec, limit_mib: int) -> int:
    """What QEMU can be allowed later: no file of its is larger than that, whoever is in control of it."""
    return max(limit_mib, spec.max_disk_limit_mib, spec.memory_mib + _STATE_MIB)


def next_limit_mib(spec: SessionSpec, limit_mib: int) -> int:
    """The limit after it was extended; the same where no more is allowed."""
    if not spec.disk_limit_mib:
        return limit_mib
    return max(limit_mib, min(limit_mib + spec.disk_limit_mib, spec.max_disk_limit_mib))


def _largest_mib(disk_mib: int) -> int:
    return disk_mib + disk_mib // _TABLES_SHARE + _TABLES_MIB
