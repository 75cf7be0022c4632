"""The scientific machine, really built and used: a file of data in a viewer on its desktop.

Run by `make test-builds`, and not with the others: its packages are gigabytes.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import hubs
import live
import pytest
import pytest_asyncio
import vms
from PIL import Image

from qemuspawner.machines.catalogue import load_catalogue
from qemuspawner.machines.software import load_software
from qemuspawner.paths import EXAMPLE_MACHINES
from qemuspawner.session.vm.guest import Guest

pytestmark = pytest.mark.timeout(900)
in_one_loop = pytest.mark.asyncio(loop_scope="module")

IMAGES = Path(os.environ["QEMUSPAWNER_TEST_IMAGES"])

# NeXus says by attributes what is to be shown first. Left dark, right bright: that is found on any screen.
WRITE_DATA = """
import h5py, numpy
with h5py.File("/home/user/scan.h5", "w") as file:
    entry = file.create_group("entry")
    entry.attrs.update(NX_class="NXentry", default="data")
    file.attrs["default"] = "entry"
    data = entry.create_group("data")
    data.attrs.update(NX_class="NXdata", signal="frame")
    frame = numpy.zeros((256, 256), "uint16")
    frame[:, 128:] = 60000
    data.create_dataset("frame", data=frame, chunks=(64, 64), compression="gzip")
"""


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


def has_halves(screen: Image.Image) -> bool:
    """Whether somewhere a dark square of 64 pixels has a bright one as its neighbour, each of one colour."""
    grey = screen.convert("L").resize((screen.width // 16, screen.height // 16), Image.Resampling.NEAREST)
    size = 4
    for y in range(grey.height - size):
        for x in range(grey.width - 2 * size):
            left = grey.crop((x, y, x + size, y + size)).getextrema()
            right = grey.crop((x + size, y, x + 2 * size, y + size)).getextrema()
            if left[0] == left[1] and right[0] == right[1] and right[0] - left[0] > 150:
                return True
    return False


@in_one_loop
async def test_a_file_of_data_is_seen_in_its_viewer(guest: Guest) -> None:
    await run(guest, "/usr/local/lib/desktop/as-user", "python3", "-", stdin=WRITE_DATA)
    assert not has_halves(await vms.screen(guest))

    # As the file manager opens it. silx 1.1 shows the first file by itself, unless a "::PATH" is behind it.
    viewer = 'setsid silx view "$HOME/scan.h5" > "$HOME/viewer.log" 2>&1 &'
    await run(guest, "/usr/local/lib/desktop/as-user", "sh", "-c", viewer)

    for _ in range(80):
        screen = await vms.screen(guest)
        if has_halves(screen):
            break
        await asyncio.sleep(5)
    folder = live.PROJECT / "screenshots"
    folder.mkdir(exist_ok=True)
    screen.save(folder / "photon-science.png")
    assert has_halves(screen), await run(guest, "cat", "/home/user/viewer.log")


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
