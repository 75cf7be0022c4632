"""JupyterHub's internal TLS, as what it starts finds it in its environment."""

import os
import ssl

from jupyterhub.utils import make_ssl_context

# Paths of the own key, the own certificate, and those that are trusted.
VARIABLES = ("JUPYTERHUB_SSL_KEYFILE", "JUPYTERHUB_SSL_CERTFILE", "JUPYTERHUB_SSL_CLIENT_CA")


def find_ssl_context() -> ssl.SSLContext | None:
    """For a server that the hub asks; None where it is not switched on. Both sides show a certificate."""
    return _find_context(ssl.Purpose.CLIENT_AUTH)


def find_client_ssl_context() -> ssl.SSLContext | None:
    """For what asks the hub; None where it is not switched on."""
    return _find_context(ssl.Purpose.SERVER_AUTH)


def _find_context(purpose: ssl.Purpose) -> ssl.SSLContext | None:
    key, certificate, authority = (os.environ.get(name) for name in VARIABLES)
    if not key:
        return None
    context: ssl.SSLContext = make_ssl_context(key, certificate, cafile=authority, purpose=purpose)
    return context
