"""How soon a change of a share takes effect at a window that is open, through hub, proxy and a real session.

    PATH and environment as `make test` sets them: python bench/sharing.py [--rounds N]

Prints a Markdown table: the median of the rounds, and their smallest and largest. The share is changed by
JupyterHub's own API, of which the session is not told: it has to find out.
"""

import argparse
import asyncio
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import hubs
import live
from figures import record
from rfb_client import RfbClient
from yarl import URL

from qemuspawner import scopes

LIMIT_S = 3.0
_KEY = 0x61


async def share(alice: hubs.Person, shares: URL, role: str) -> None:
    """As the hub's own API does: what is to go first, then what is to come."""
    here = "!server=alice/desk"
    other = scopes.VIEW if role == scopes.CONTROL else scopes.CONTROL
    for method, wanted in (("PATCH", [other + here]), ("POST", ["access:servers" + here, role + here])):
        answer = await alice.request(method, shares, json={"user": "bob", "scopes": wanted})
        assert answer.status == 200, answer.text


async def revoked_after_s(alice: hubs.Person, bob: hubs.Person, shares: URL, desktop: URL) -> float:
    await share(alice, shares, scopes.VIEW)
    async with RfbClient(bob, desktop) as guest:
        started = time.perf_counter()
        await alice.request("PATCH", shares, json={"user": "bob"})
        code, reason = await guest.wait_for_close()
        assert code == 4403, reason
        return time.perf_counter() - started


async def raised_after_s(alice: hubs.Person, bob: hubs.Person, shares: URL, desktop: URL) -> float:
    await share(alice, shares, scopes.VIEW)
    async with RfbClient(bob, desktop) as guest:
        before = await guest.pixel(10, 10)
        started = time.perf_counter()
        await share(alice, shares, scopes.CONTROL)
        while await guest.pixel(10, 10) == before:
            await guest.press(_KEY)
            await asyncio.sleep(0.05)
        return time.perf_counter() - started


async def measure(rounds: int) -> dict[str, list[float]]:
    results: dict[str, list[float]] = {"taken back: window closed": [], "raised to control: key answered": []}
    async with live.live_hub() as hub:
        await hub.ask("POST", "users/bob")
        desktop = await hub.start_server("alice", "desk", machine="painter")
        shares = hub.url / "hub/api/shares/alice/desk"
        async with (
            hub.person("alice", token=await hub.new_token("alice")) as alice,
            hub.person("bob", token=await hub.new_token("bob")) as bob,
        ):
            for _ in range(rounds):
                for name, take in zip(results, (revoked_after_s, raised_after_s), strict=True):
                    results[name].append(await take(alice, bob, shares, desktop))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print("| a share is changed on the hub | seconds | rounds | limit |\n|---|---|---|---|")
    for name, seconds in asyncio.run(measure(rounds)).items():
        spread = f"{min(seconds):.2f}..{max(seconds):.2f}"
        print(f"| {name} | {statistics.median(seconds):.2f} ({spread}) | {len(seconds)} | {LIMIT_S:g} |")
        record(name, "s", seconds, limit_p90=LIMIT_S)


if __name__ == "__main__":
    main()
