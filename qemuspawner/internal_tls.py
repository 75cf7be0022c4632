"""JupyterHub's internal TLS, as what it starts finds it in its environment."""

import os
import ssl

from jupyterhub.utils import make_ssl_context


def find_ssl_context() -> ssl.SSLContext | None:
    """For a server that the hub asks; None where it is not switched on. Both sides show a certificate."""
    key, certificate, authority = (
        os.environ.get(f"JUPYTERHUB_SSL_{name}") for name in ("KEYFILE", "CERTFILE", "CLIENT_CA")
    )
    if not key:
        return None
    context: ssl.SSLContext = make_ssl_context(
        key, certificate, cafile=authority, purpose=ssl.Purpose.CLIENT_AUTH
    )
    return context
