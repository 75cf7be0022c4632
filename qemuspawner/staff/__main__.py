"""The service's process; JupyterHub starts it, and tells it in its environment where and who it is."""

import asyncio
import logging
import os
import signal
import ssl
import sys
from urllib.parse import urlparse

from jupyterhub.utils import make_ssl_context
from tornado import httpserver

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
        ssl_options=_ssl_context(),
        max_body_size=_MAX_BODY_BYTES,
    )
    server.listen(address.port or 80, address.hostname or "127.0.0.1")
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    server.stop()


def _ssl_context() -> ssl.SSLContext | None:
    """The hub's internal TLS, where it is switched on: both sides show a certificate."""
    key, certificate, authority = (
        os.environ.get(f"JUPYTERHUB_SSL_{name}") for name in ("KEYFILE", "CERTFILE", "CLIENT_CA")
    )
    if not key:
        return None
    context: ssl.SSLContext = make_ssl_context(
        key, certificate, cafile=authority, purpose=ssl.Purpose.CLIENT_AUTH
    )
    return context


if __name__ == "__main__":
    sys.exit(main())
