"""The REST route of where on a cluster a desktop fits, which the form asks while it is filled in."""

import json
from typing import Any

from jupyterhub import apihandlers
from jupyterhub.scopes import needs_scope

from qemuspawner.hub.desktops.api import DesktopsHandler
from qemuspawner.languages import choose_language


class PartitionsHandler(DesktopsHandler):
    @needs_scope("read:servers")  # type: ignore[untyped-decorator]
    async def get(self, user_name: str, server_name: str) -> None:
        """Partitions with what is free there, and the form's choices with how many nodes have room for them.

        The query has the form's fields. Those that a start would be refused for are left out.
        """
        spawner: Any = self.find_spawner(user_name)
        await spawner.look_around()
        fields = {name: self.get_query_arguments(name) for name in self.request.query_arguments}
        described = spawner.describe_partitions(fields, server_name=server_name)
        self.write(json.dumps(choose_language(self.request).say(described)))


apihandlers.default_handlers += [(r"/api/users/([^/]+)/desktops/([^/]*)/partitions", PartitionsHandler)]
