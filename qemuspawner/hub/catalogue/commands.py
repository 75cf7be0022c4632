"""The command `qemuspawner` as a process of the hub: what is heavy or touches images runs outside of it."""

import asyncio
import os
import subprocess
from collections.abc import Sequence

# What the command needs. The hub's own environment holds its proxy's token and its users' secrets.
ENVIRONMENT = (
    "PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV",
    "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "SLURM_CONF",
)  # fmt: skip


async def start_command(
    command: Sequence[str], *, stdout: int, stderr: int | None = None, max_line_bytes: int = 64 << 10
) -> asyncio.subprocess.Process:
    """Start it with the hub's account; raises OSError."""
    return await asyncio.create_subprocess_exec(
        *command,
        cwd="/",
        env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        # The terminal's Ctrl-C is for the hub, which ends it.
        start_new_session=True,
        limit=max_line_bytes,
    )
