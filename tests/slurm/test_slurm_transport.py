"""A desktop on a node as a browser has it: by the proxy, and with TLS between proxy, hub and node."""

import ssl
from collections.abc import Awaitable, Callable

import aiohttp
import hubs
import pytest
from jupyterhub.proxy import ConfigurableHTTPProxy
from jupyterhub.utils import make_ssl_context, random_port
from rfb_client import RfbClient
from slurm_cluster import SlurmCluster
from yarl import URL

from qemuspawner.scopes import CUSTOM_SCOPES, USER_SCOPES


async def test_pictures_come_through_the_proxy_and_nobody_on_the_clusters_network_sees_them(
    start_slurm_hub: Callable[..., Awaitable[hubs.Hub]], cluster: SlurmCluster
) -> None:
    """A websocket too is passed on with the proxy's certificate; another session's is not enough."""
    hub = await start_slurm_hub(
        jupyterhub={
            "internal_ssl": True,
            "trusted_alt_names": [f"IP:{cluster.hub_address}"],
            "proxy_class": ConfigurableHTTPProxy,
            "custom_scopes": CUSTOM_SCOPES,
            "extra_user_scopes": set(USER_SCOPES),
        },
        more={"ConfigurableHTTPProxy": {"api_url": f"https://127.0.0.1:{random_port()}"}},
    )
    alice = hub.user("alice")
    await alice.spawn()
    await hub.app.proxy.add_user(alice)
    session = URL(alice.spawner.server.url, encoded=True)
    person = await hub.person("alice", token=alice.new_api_token())

    desktop = URL(hub.app.proxy.public_url, encoded=True).with_path(session.raw_path, encoded=True)
    guest = await hub.with_token("bob")
    answer = await person.request("POST", desktop / "api/shares", json={"user": "bob", "role": "view"})
    async with RfbClient(person, desktop) as client, RfbClient(guest, desktop) as other_client:
        name, size = client.name, client.size
        await client.pixel(0, 0)
        await other_client.pixel(0, 0)
    other = await hub.spawner("bob").create_certs()
    neighbour = make_ssl_context(other["keyfile"], other["certfile"], cafile=other["cafile"])
    neighbour.check_hostname, neighbour.verify_mode = False, ssl.CERT_NONE
    async with aiohttp.ClientSession() as stranger:
        for context in (False, neighbour):
            with pytest.raises(aiohttp.ClientError):
                await stranger.get(session / "api", ssl=context)
        with pytest.raises(aiohttp.ClientError):
            await stranger.ws_connect(
                session / "vnc", ssl=False, headers={"Authorization": f"token {person.token}"}
            )

    assert answer.status == 200, answer.text
    assert session.scheme == "https"
    assert str(session.host).startswith("198.18.77.1")
    assert (name, size > (0, 0)) == ("Mini", True)
