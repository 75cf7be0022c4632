"""The demo machine, really booted in the jail: its desktop, its agent, and what it cannot reach."""

import asyncio
import http.server
import itertools
import os
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import vms

from qemuspawner.machines.catalogue import load_machine
from qemuspawner.paths import EXAMPLE_MACHINES
from qemuspawner.session.screen.hand import BETWEEN_KEYS_S, Hand, Watcher
from qemuspawner.session.screen.keyboard import parse_chord, parse_text
from qemuspawner.session.screen.updates import Changes
from qemuspawner.session.vm.guest import Guest
from qemuspawner.session.vm.hooks import run_hook
from qemuspawner.session.vm.personal import personalise
from qemuspawner.spec import SessionSpec

# QEMU's user network gives it to the first guest, and to no other.
GUEST_ADDRESS = "10.0.2.15"
# Within the terminal that is open at the start.
TERMINAL = (400, 300)
LEFT = 165  # its first column


class Desktop:
    """A booted demo machine."""

    def __init__(self, guest: Guest, spec: SessionSpec, vnc_socket: Path) -> None:
        assert guest.agent is not None
        self.guest = guest
        self.spec = spec
        self.vnc_socket = vnc_socket
        self.agent = guest.agent

    async def run(self, command: str) -> tuple[int, str]:
        """Run a shell command in the guest as root."""
        return await self.agent.run("/bin/sh", "-c", command, timeout_s=60)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desktop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Desktop]:
    """One boot for all tests here."""
    machine = load_machine(EXAMPLE_MACHINES / "debian-desktop", Path(os.environ["QEMUSPAWNER_TEST_IMAGES"]))
    spec = vms.make_spec(tmp_path_factory.mktemp("state"), machine, memory_mib=1024)
    async with vms.running_guest(spec) as (guest, prepared):
        desktop = Desktop(guest, spec, prepared.paths.vnc_socket)
        assert await desktop.agent.wait_until_ready(timeout_s=240)
        yield desktop


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_the_desktop_is_drawn_when_the_agent_answers(desktop: Desktop) -> None:
    """More than a black console: a picture of many colours, kept for people to look at."""
    picture = await vms.screen(desktop.guest)

    colours = picture.getcolors(1 << 20) or []
    assert picture.size >= (1024, 768)
    assert len(colours) > 50


async def test_the_guest_has_the_size_that_was_asked_for(desktop: Desktop) -> None:
    _, cpus = await desktop.run("nproc")
    _, memory_kib = await desktop.run("awk '/MemTotal/ {print $2}' /proc/meminfo")

    assert int(cpus) == 1
    assert 0.9 * 1024 < int(memory_kib) / 1024 <= 1024


async def test_the_session_user_owns_his_machine(desktop: Desktop) -> None:
    """The host says so, as the machine has it."""
    await personalise(desktop.guest, desktop.spec)

    code, output = await desktop.run("runuser -u user -- sudo -n id -u")

    assert (code, output.strip()) == (0, "0")


@pytest.fixture(scope="module")
def host_service() -> Iterator[int]:
    """A web server on every address of the host, as a hub would be; its port."""
    server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), http.server.SimpleHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()


# Bash's own client; the last line says that it was not cut short.
PROBE = """
for address in {addresses}; do
    timeout 5 bash -c "exec 3<>/dev/tcp/$address/{port}" 2>/dev/null && echo "REACHED $address"
done
echo END
"""


async def test_the_guest_cannot_reach_the_host(desktop: Desktop, host_service: int) -> None:
    """Not over QEMU's gateway and name server, not over IPv6, not at the host's own address.

    The guest has its address, and the same probe reaches what listens there on the same port.
    """
    await listen_in_guest(desktop, port=host_service)
    addresses = ["10.0.2.2", "10.0.2.3", "fec0::2", "fec0::3", "192.0.2.1", "169.254.169.254"]
    addresses += [address for address in host_addresses() if address != "127.0.0.1"]
    script = PROBE.format(addresses=" ".join([GUEST_ADDRESS, *addresses]), port=host_service)

    _, output = await desktop.agent.run("/bin/bash", "-c", script, timeout_s=90)

    assert output.splitlines() == [f"REACHED {GUEST_ADDRESS}", "END"]


async def listen_in_guest(desktop: Desktop, *, port: int) -> None:
    """Open a port at the address that the guest got; systemd-run returns when it listens."""
    _, configured = await desktop.run("ip -4 -oneline address show")
    assert f" {GUEST_ADDRESS}/24 " in configured
    stream = f"--socket-property=ListenStream={GUEST_ADDRESS}:{port}"
    code, output = await desktop.run(f"systemd-run --unit=listener {stream} sleep infinity")
    assert code == 0, output


def host_addresses() -> list[str]:
    """The host's IPv4 addresses, as the kernel's table of local routes has them."""
    lines = Path("/proc/net/fib_trie").read_text().splitlines()
    pairs = itertools.pairwise(lines)
    return sorted({line.split()[-1] for line, kind in pairs if "/32 host LOCAL" in kind})


async def wait_until_still(hand: Hand) -> None:
    """The agent answers when the desktop is drawn; its windows come a little later."""

    async def go_on() -> None:
        """Nobody objects."""

    still = Watcher(Changes(await hand.screen(), least_px=1024), still_s=3)
    assert await hand.watch(still, timeout_s=60, go_on=go_on)


async def test_what_a_program_types_is_what_the_guest_reads(desktop: Desktop) -> None:
    """Every character of a US keyboard, into the terminal that a click has put in front."""
    hand = Hand(desktop.vnc_socket)
    await wait_until_still(hand)
    text = "".join(chr(code) for code in range(0x20, 0x7F)) + "\tend\n"

    await hand.click(*TERMINAL, button="left", times=1)
    # Untouched by the terminal: a tab is a tab, and Ctrl-D alone ends it.
    for chord in [*parse_text(f"cat > /tmp/typed\n{text}"), parse_chord("ctrl+d")]:
        await hand.press(chord)
        await asyncio.sleep(BETWEEN_KEYS_S)

    async with asyncio.timeout(60):
        while (await desktop.run("cat /tmp/typed"))[1] != text:
            await asyncio.sleep(0.5)


# Reaches the display as the terminal does.
XCLIP = """
environ=$(tr '\\0' '\\n' < /proc/$(pgrep -o xterm)/environ | grep -E '^(DISPLAY|XAUTHORITY)=')
runuser -u user -- env $environ xclip -selection clipboard -o
"""


async def test_a_program_selects_by_dragging_and_by_a_double_click(desktop: Desktop) -> None:
    """The terminal copies what is selected in it; once more where an emulated guest was too slow for it."""
    hand = Hand(desktop.vnc_socket)
    x, y = TERMINAL
    for chord in parse_text("clear; yes word | head -n 40\n"):
        await hand.press(chord)
        await asyncio.sleep(BETWEEN_KEYS_S)
    await wait_until_still(hand)

    async def select(act: Callable[[], Awaitable[None]], pattern: str) -> None:
        async with asyncio.timeout(90):
            copied = ""
            while not re.fullmatch(pattern, copied):
                await act()
                await asyncio.sleep(1)
                copied = (await desktop.run(XCLIP))[1]

    await select(lambda: hand.drag(x, y, (x + 100, y + 60), button="left"), r"\n?(word\n){2,5}(word)?")
    await select(lambda: hand.click(LEFT, y, button="left", times=2), "word")


async def test_its_keyboard_follows_and_stays_when_x_starts_again(desktop: Desktop) -> None:
    query = "DISPLAY=:0 XAUTHORITY=/run/desktop/cookie setxkbmap -query"

    await run_hook(desktop.guest, "keyboard", {"LAYOUT": "ch", "VARIANT": "fr"})
    _, now = await desktop.run(query)
    await desktop.run("systemctl restart desktop.service && systemctl restart desktop-ready.service")
    _, later = await desktop.run(query)

    for output in (now, later):
        assert "layout:     ch\n" in output
        assert "variant:    fr\n" in output


async def test_a_notice_is_shown_and_costs_nothing_before_the_first_one(desktop: Desktop) -> None:
    """The text may begin as an option does."""
    count = "pgrep --count --exact dunst"
    assert (await desktop.run(count))[1].strip() == "0"

    await run_hook(desktop.guest, "notify", {"TITLE": "--help", "TEXT": "This desktop ends in 10 min."})

    assert (await desktop.run(count))[1].strip() == "1"


async def test_the_power_button_shuts_the_guest_down(desktop: Desktop) -> None:
    """Last: it ends the machine."""
    await desktop.guest.qemu.execute("system_powerdown")

    async with asyncio.timeout(60):
        assert await desktop.guest.qemu.wait() == 0
