"""A guest that writes to its disk all the time, and what shows whether anything of it was lost."""

import subprocess
from pathlib import Path

import vms

from qemuspawner.session.vm.guest import Guest

# Changes all the time. A file's name is its checksum, and it gets that in one step: a lost write shows, and
# being stopped in the middle of one does not.
WRITE = """
mkdir -p /home/user/rounds
cat > /root/writer << 'END'
cd /home/user/rounds
n=0
while :; do
    n=$((n + 1)); head -c 20000 /dev/urandom > new; sum=$(sha256sum < new); mv new "part-${sum%% *}"
    echo $n >> log; ls -t part-* | tail -n +50 | xargs -r rm; sync; sleep 0.02
done
END
systemd-run --unit=writer --quiet /bin/bash /root/writer
"""
CHECK = """
systemctl stop writer
cd /home/user/rounds
bad=0
for part in part-*; do
    sum=$(sha256sum < "$part")
    [ "part-${sum%% *}" = "$part" ] || bad=$((bad + 1))
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
