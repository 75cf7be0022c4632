"""The scientific machine, really built and booted.

Run by `make test-builds`, and not with the others: its packages are gigabytes.
"""

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import hubs
import pytest
import pytest_asyncio
import vms

from qemuspawner.machines.catalogue import load_catalogue
from qemuspawner.machines.software import load_software
from qemuspawner.paths import EXAMPLE_MACHINES
from qemuspawner.session.vm.guest import Guest

pytestmark = pytest.mark.timeout(900)
in_one_loop = pytest.mark.asyncio(loop_scope="module")

IMAGES = Path(os.environ["QEMUSPAWNER_TEST_IMAGES"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guest() -> AsyncIterator[Guest]:
    machine = load_catalogue([EXAMPLE_MACHINES], IMAGES).machines["photon-science"]
    with hubs.state_folder() as state:
        spec = vms.make_spec(state, machine, memory_mib=2048)
        async with vms.running_guest(spec) as (guest, _):
            assert guest.agent is not None
            assert await guest.agent.wait_until_ready(timeout_s=400)
            yield guest


async def run(guest: Guest, *command: str, stdin: str = "") -> str:
    assert guest.agent is not None
    code, output = await guest.agent.run(*command, stdin=stdin.encode(), timeout_s=240)
    assert code == 0, output
    return output


ASK_JUPYTER = """
import time, urllib.request
for _ in range(90):
    try:
        print(urllib.request.urlopen("http://127.0.0.1:8888/api").read().decode())
        break
    except OSError:
        time.sleep(2)
"""


@in_one_loop
async def test_notebooks_are_served_to_the_browser(guest: Guest) -> None:
    answer = await run(guest, "python3", "-", stdin=ASK_JUPYTER)

    assert json.loads(answer)["version"].startswith("6.")


def test_what_the_image_has_is_known() -> None:
    packages = {program.package for program in load_software(IMAGES / "photon-science")}

    assert {"silx", "pymca", "pyfai", "vitables", "imagej", "gwyddion", "fityk"} <= packages
