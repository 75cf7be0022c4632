"""Dates in an image: those of its packages, and none that tells when it was built.

So two builds from the same packages give the same files, and with mke2fs 1.47.2 of Debian 13 the same disk.
That of Debian 12 takes over when each inode changed (ctime), which nobody can set, and the host's order.
"""

import os
from pathlib import Path

# 2025-08-09 00:00 UTC, the day of Debian 13: no older than most packages, and in the past for each host.
LATEST_S = 1754697600

# What tools go by that write dates into files: https://reproducible-builds.org/specs/source-date-epoch/, and
# mke2fs before it knew that.
ENVIRONMENT = {"SOURCE_DATE_EPOCH": str(LATEST_S), "E2FSPROGS_FAKE_TIME": str(LATEST_S)}


def date_back(root: Path) -> None:
    """Give whatever changed below `root` after LATEST_S that date, links and folders too."""
    # Found first: a folder that is read has a new date of access.
    for path in (root, *root.rglob("*")):
        date_ns = min(path.lstat().st_mtime_ns, LATEST_S * 1_000_000_000)
        os.utime(path, ns=(date_ns, date_ns), follow_symlinks=False)
