"""A program that looks at all processes of the host, again and again, as far as its account may.

It ends with its standard input, and then writes all that it has read: each command line, and each environment
of a process that is not its own.
"""

import contextlib
import os
import select
import sys
from pathlib import Path

_PAUSE_S = 0.01


def main() -> None:
    seen: set[bytes] = set()
    print("ready", flush=True)
    while not select.select([0], [], [], _PAUSE_S)[0]:
        for entry in Path("/proc").glob("[0-9]*"):
            if int(entry.name) == os.getpid():
                continue
            for name in ("cmdline", "environ"):
                with contextlib.suppress(OSError):
                    seen.add((entry / name).read_bytes())
    sys.stdout.buffer.write(b"\n".join(seen))


if __name__ == "__main__":
    main()
