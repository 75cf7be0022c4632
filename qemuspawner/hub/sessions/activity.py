"""When a desktop was used last: its session says so, and the proxy is not asked.

The proxy takes any byte from a browser for activity, and an open tab asks for pictures and answers pings for
ever. The hub takes the later of what the proxy and what the session says, so the proxy must say nothing:
a proxy that does not know of activity leaves `last_activity` out of a route's data, and the hub heeds that.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from jupyterhub.proxy import Proxy

Routes = dict[str, dict[str, Any]]


class RoutesWithoutActivity:
    """In the place of a proxy's `get_all_routes`: the same without the activity of users' servers."""

    def __init__(self, get_all_routes: Callable[[], Awaitable[Routes]]) -> None:
        self._get_all_routes = get_all_routes

    async def __call__(self) -> Routes:
        routes = await self._get_all_routes()
        return {spec: self._without(route) for spec, route in routes.items()}

    def _without(self, route: dict[str, Any]) -> dict[str, Any]:
        data = route["data"]
        # Services may go by what the proxy saw. A hub has one spawner class: all servers are desktops.
        if "server_name" not in data:
            return route
        return {**route, "data": {key: value for key, value in data.items() if key != "last_activity"}}


def trust_sessions(proxy: Proxy) -> None:
    """Have the hub no longer hear from `proxy` when users' servers were used; harmless when done already."""
    if not isinstance(proxy.get_all_routes, RoutesWithoutActivity):
        proxy.get_all_routes = RoutesWithoutActivity(proxy.get_all_routes)
