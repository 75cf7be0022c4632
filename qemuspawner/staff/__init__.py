"""The pages of the site's staff: a service that JupyterHub starts, and shows to staff in its menu.

It has no rights of its own. Whatever somebody does there it asks of the hub's REST API with their own login:
the hub decides, and logs, as if they had asked it themselves. `jupyterhub_config.py` says:

    from qemuspawner import staff
    c.JupyterHub.services = [staff.service()]
"""

import sys
from typing import Any

# What a login lends the pages, of what its person has. The second one is for pictures of the screens, where
# the site or the owner allows them.
_LENT_SCOPES = ("admin:servers", "access:servers")


def service(*, name: str = "desktops", url: str = "http://127.0.0.1:10200") -> dict[str, Any]:
    """An entry of `c.JupyterHub.services`; at `url` it listens, for the hub's proxy.

    Who may come in has the scope `access:services!service=NAME`, as administrators have for all services; for
    what they see and do there they need `admin:servers`.
    """
    return {
        "name": name,
        "url": url,
        "command": [sys.executable, "-m", "qemuspawner.staff"],
        "oauth_client_allowed_scopes": list(_LENT_SCOPES),
        # It is a part of the hub: there is nothing to consent to.
        "oauth_no_confirm": True,
    }
