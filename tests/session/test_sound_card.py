"""A guest's sound card through the life of its VM."""

import asyncio
from pathlib import Path

import guests
import pytest
import vms
from listening import NEAR_TONE, listen, loudest_hz

from qemuspawner.session.vm.keep import Keeper
from qemuspawner.spec import SessionSpec


def tone(folder: Path, **keys: str) -> SessionSpec:
    """A session of the guest that plays a tone; short enough a path for its sockets."""
    disk = guests.make_disk(folder / "tone", sector=guests.TONE_SECTOR)
    machine = vms.make_machine(sound=True, image={"file": str(disk), "format": "raw"}, **keys)
    (folder / "s").mkdir()
    return vms.make_spec(folder / "s", machine)


@pytest.mark.parametrize("machine_type", ["q35", "pc"])
async def test_a_guest_is_heard(machine_type: str, tmp_path: Path) -> None:
    """By the real command line, from its jail, and no picture comes on that connection."""
    async with vms.running_guest(tone(tmp_path, machine_type=machine_type)) as (_, prepared):
        heard = await listen(prepared.paths.vnc_socket, seconds=1.2)

    assert loudest_hz(heard) == NEAR_TONE


async def test_a_tone_goes_on_after_sleep(tmp_path: Path) -> None:
    """Twice: the card, and the stream that it plays, are part of what is saved."""
    spec = tone(tmp_path)
    found = []
    for _ in range(3):
        async with vms.running_guest(spec) as (guest, prepared):
            heard = await listen(prepared.paths.vnc_socket, seconds=1.2)
            found.append((prepared.started.plan.way, loudest_hz(heard)))
            await vms.suspend(guest, prepared)

    assert found == [("cold", NEAR_TONE), ("woken", NEAR_TONE), ("woken", NEAR_TONE)]


async def test_a_checkpoint_is_made_while_somebody_listens(tmp_path: Path) -> None:
    """The VM pauses for it, and the tone goes on."""
    async with vms.running_guest(tone(tmp_path)) as (guest, prepared):
        listening = asyncio.create_task(listen(prepared.paths.vnc_socket, seconds=3))
        await asyncio.sleep(0.5)

        await Keeper.of(prepared).save_checkpoint(guest, title="heard", automatic=False)

        assert loudest_hz(await listening) == NEAR_TONE
