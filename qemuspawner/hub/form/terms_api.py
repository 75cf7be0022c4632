"""The REST route of the terms of use."""

import json
from typing import Any

from jupyterhub import apihandlers
from jupyterhub.scopes import needs_scope

from qemuspawner.hub.desktops.api import DesktopsHandler
from qemuspawner.hub.form.terms import list_acceptances


class TermsHandler(DesktopsHandler):
    @needs_scope("read:servers")  # type: ignore[untyped-decorator]
    async def get(self, user_name: str) -> None:
        """The terms of use, and when the user accepted which version; a start accepts them."""
        spawner: Any = self.find_spawner(user_name)
        terms = {
            "version": spawner.terms_version,
            "text": spawner.terms,
            "accepted": list_acceptances(spawner.records, user=user_name),
        }
        self.write(json.dumps(terms))


apihandlers.default_handlers += [(r"/api/users/([^/]+)/terms", TermsHandler)]
