"""The service's process; JupyterHub starts it, and tells it in its environment where and who it is."""

import asyncio
import logging
import os
import signal
import sys
from urllib.parse import urlparse

from tornado import httpserver

from qemuspawner.internal_tls import find_ssl_context
from qemuspawner.staff.app import make_app

_MAX_BODY_BYTES = 64 * 1024


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="[%(levelname).1s %(asctime)s desktops] %(message)s")
    if "JUPYTERHUB_SERVICE_URL" not in os.environ:
        print("error: This program is started by JupyterHub.", file=sys.stderr)
        print("hint: Put staff.service() into c.JupyterHub.services.", file=sys.stderr)
        return 2
    asyncio.run(_serve())
    return 0


async def _serve() -> None:
    address = urlparse(os.environ["JUPYTERHUB_SERVICE_URL"])
    server = httpserver.HTTPServer(
        make_app(os.environ["JUPYTERHUB_SERVICE_PREFIX"]),
        ssl_options=find_ssl_context(),
        max_body_size=_MAX_BODY_BYTES,
    )
    server.listen(address.port or 80, address.hostname or "127.0.0.1")
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    server.stop()


if __name__ == "__main__":
    sys.exit(main())
