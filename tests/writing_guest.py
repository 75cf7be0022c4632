"""A guest that writes to its disk all the time, and what shows whether anything of it was lost."""

import subprocess
from pathlib import Path

import vms

from qemuspawner.session.guest import Guest

# Changes all the time; every line carries its own number, so that a lost write shows.
WRITE = """
mkdir -p /home/user/rounds
systemd-run --unit=writer --quiet /bin/bash -c 'cd /home/user/rounds; n=0; while :; do
    n=$((n + 1)); head -c 20000 /dev/urandom > part.new; sha256sum < part.new > sum.new
    mv part.new part-$((n % 50)); mv sum.new sum-$((n % 50)); echo $n >> log; sync; sleep 0.05
done'
"""
CHECK = """
systemctl stop writer
cd /home/user/rounds
bad=0
for part in part-*; do
    sha256sum < "$part" | cmp -s - "sum-${part#part-}" || bad=$((bad + 1))
done
seq 1 "$(tail -n 1 log)" | cmp -s - log || bad=$((bad + 1000))
echo "bad=$bad lines=$(wc -l < log)"
"""


def fsck(guest: Guest, folder: Path) -> str:
    """What e2fsck says of the disk of a guest that was shut down: exit code and its last line."""
    disk = folder / "whole.raw"
    vms.write_whole_disk(guest, disk)
    done = subprocess.run(["e2fsck", "-f", "-n", str(disk)], capture_output=True, text=True)
    disk.unlink()
    return f"exit code {done.returncode}: {done.stdout.strip().splitlines()[-1]}"
