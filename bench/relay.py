"""The relay against websockify and a bare socket copy, all in one run, interleaved.

    python bench/relay.py [--rounds N]

Prints a Markdown table: the median of the rounds, and their smallest and largest; in the last columns the
median of the rounds' ratios. Absolute figures are this machine's; what carries over are the ratios within a
line, as each round measures all paths, in an order of its own. The order matters: what an idle CPU takes to
wake depends on what it did a millisecond ago. So pings too go around, one on each path.
Needs websockify 0.13, QEMU and the project itself; uvloop is measured too where it is installed.
"""

import argparse
import importlib.util
import random
import statistics
import struct
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from figures import record
from guests import GREEN, RED
from relay_peers import BLOCK, PICTURE, PONG, Channel, RunningPath, Source, connect_unix, start_path
from tiny_guest import HEIGHT, WIDTH, tiny_guest

from qemuspawner.session.screen import rfb

STREAM_MIB = 256
UPSTREAM_MIB = 128
TEXT_BYTES = 128 * 1024
VIEWERS = 20
CROWD_S = 3
PINGS = 300
REST_S = 0.3  # a stream's last work, such as closing, is no part of a ping
KEYS = 12
KEY_ROUNDS = 7  # each takes seconds
STALL_S = 1.5

_ORDER = random.Random(1)
_KEY_DOWN = struct.pack(">BBxxI", 4, 1, 0x61)
_POINTER = bytes([5, 0, 0, 0, 0, 0])
_KEY_UP = struct.pack(">BBxxI", 4, 0, 0x61)
_COLOURS = {bytes(reversed(colour)) for colour in (GREEN, RED)}  # blue comes first

MEASURES = (
    "throughput, MiB/s",
    "CPU, s/GiB",
    "upstream, MiB/s",
    "upstream CPU, s/GiB",
    "ping p50, µs",
    "ping p99, µs",
    "ping p50 beside a stalled client, µs",
    "growth with a stalled client, MiB",
    "20 viewers, 10 updates a second each: CPU, % of a core",
    "the same: update p50, ms",
    "key to frame p50, ms",
)
Results = dict[str, dict[str, list[float]]]  # measure -> path -> one value a round


def ask_for(blocks: int) -> bytes:
    return struct.pack(">BBxxI", 4, 1, blocks)


def throughput_mib_s(channel: Channel) -> float:
    blocks = STREAM_MIB * 2**20 // len(BLOCK)
    started = time.perf_counter()
    channel.send(ask_for(blocks))
    channel.read_to_end()
    return STREAM_MIB / (time.perf_counter() - started)


def ping_us(channels: dict[str, Channel]) -> dict[str, tuple[float, float]]:
    """Median and 99th percentile of a pointer event's round trip, on each channel in turn."""
    times: dict[str, list[float]] = {name: [] for name in channels}
    for _ in range(PINGS):
        for name in shuffled(channels):
            started = time.perf_counter()
            channels[name].send(_POINTER)
            assert channels[name].read(len(PONG)) == PONG
            times[name].append((time.perf_counter() - started) * 1e6)
    return {
        name: (statistics.median(taken), sorted(taken)[int(len(taken) * 0.99)])
        for name, taken in times.items()
    }


def shuffled(names: Iterable[str]) -> list[str]:
    order = list(names)
    _ORDER.shuffle(order)
    return order


def upstream_mib_s(channel: Channel) -> float:
    """Copied texts, the only long messages that a viewer may send."""
    text = struct.pack(">BxxxI", 6, TEXT_BYTES) + BLOCK * (TEXT_BYTES // len(BLOCK))
    started = time.perf_counter()
    for _ in range(UPSTREAM_MIB * 2**20 // TEXT_BYTES):
        channel.send(text)
    channel.send(_POINTER)
    assert channel.read(len(PONG)) == PONG
    return UPSTREAM_MIB / (time.perf_counter() - started)


def stall(path: RunningPath) -> tuple[float, float]:
    """While a client reads nothing of a fast stream: what the path's processes grow, and another's ping."""
    other = path.connect()
    channel = path.connect()
    before = path.rss_mib()
    channel.send(ask_for(1024 * 2**20 // len(BLOCK)))
    time.sleep(STALL_S)
    grown = path.rss_mib() - before
    median, _ = ping_us({"other": other})["other"]
    channel.close()
    other.close()
    return grown, median


def crowd(path: RunningPath) -> tuple[float, float]:
    """Viewers who each ask for a small picture ten times a second: CPU, and a picture's time."""
    channels = [path.connect() for _ in range(VIEWERS)]
    request = struct.pack(">BBHHHH", 3, 1, 0, 0, 640, 480)
    times = []
    cpu, started = path.cpu(), time.perf_counter()
    for tick in range(CROWD_S * 10):
        for number, channel in enumerate(channels):
            # Spread over the tenth, as people are.
            due = started + (tick + number / VIEWERS) / 10
            time.sleep(max(0, due - time.perf_counter()))
            asked = time.perf_counter()
            channel.send(request)
            channel.read(len(PICTURE))
            times.append((time.perf_counter() - asked) * 1000)
    used = path.cpu_s_since(cpu) / (time.perf_counter() - started)
    for channel in channels:
        channel.close()
    return used * 100, statistics.median(times)


def key_to_frame_ms(channel: Channel) -> float:
    """Median time from a key to the picture that it changed, on the guest that paints at each key."""
    channel.send(rfb.set_encodings([0]))
    request = struct.pack(">BBHHHH", 3, 1, 0, 0, WIDTH, HEIGHT)
    channel.send(struct.pack(">BBHHHH", 3, 0, 0, 0, WIDTH, HEIGHT))
    while (seen := read_update(channel)) not in _COLOURS:  # the guest is still starting
        channel.send(request)
    times = []
    for number in range(KEYS):
        channel.send(request)
        # Rest for different times, so that keys meet QEMU's timer at every phase.
        time.sleep(0.15 + 0.013 * (number % 7))
        started = time.perf_counter()
        channel.send(_KEY_DOWN)
        while (colour := read_update(channel)) == seen:
            channel.send(request)
        times.append((time.perf_counter() - started) * 1000)
        seen = colour
        channel.send(_KEY_UP)
    return statistics.median(times)


def read_update(channel: Channel) -> bytes:
    """The last pixel of the next update, as blue, green, red."""
    pixel = b""
    count = int.from_bytes(channel.read(4)[2:], "big")
    for _ in range(count):
        *_, width, height, _ = struct.unpack(">HHHHi", channel.read(12))
        pixel = channel.read(width * height * 4)[-4:-1]
    return pixel


@contextmanager
def connected(path: RunningPath | None, target: Path) -> Iterator[Channel]:
    """A channel through a path, or straight to the target."""
    channel = path.connect() if path else connect_unix(target)
    yield channel
    channel.close()


@contextmanager
def spent(path: RunningPath | None, mib: int) -> Iterator[list[float]]:
    """Yields a list that holds, afterwards, the CPU seconds a GiB that the path's processes took, if any."""
    cpu: list[float] = []
    before = path.cpu() if path else {}
    yield cpu
    if path:
        cpu.append(path.cpu_s_since(before) * 1024 / mib)


def measure_streams(folder: Path, results: Results, rounds: int) -> None:
    target = folder / "source"
    Source(target)
    names = ["relay", "websockify", "copy"]
    if importlib.util.find_spec("uvloop"):
        names.insert(1, "uvloop")
    with ExitStack() as stack:
        paths = {name: stack.enter_context(start_path(name, target)) for name in names}
        for _ in range(rounds):
            for name in shuffled([*paths, "direct"]):
                path = paths.get(name)
                with connected(path, target) as channel, spent(path, STREAM_MIB) as cpu:
                    results["throughput, MiB/s"][name].append(throughput_mib_s(channel))
                results["CPU, s/GiB"][name] += cpu
                with connected(path, target) as channel, spent(path, UPSTREAM_MIB) as cpu:
                    results["upstream, MiB/s"][name].append(upstream_mib_s(channel))
                results["upstream CPU, s/GiB"][name] += cpu
            time.sleep(REST_S)
            with ExitStack() as open_channels:
                channels = {
                    name: open_channels.enter_context(connected(paths.get(name), target))
                    for name in [*paths, "direct"]
                }
                for name, (median, slow) in ping_us(channels).items():
                    results["ping p50, µs"][name].append(median)
                    results["ping p99, µs"][name].append(slow)
        for name, path in paths.items():
            grown, median = stall(path)
            results["growth with a stalled client, MiB"][name].append(grown)
            results["ping p50 beside a stalled client, µs"][name].append(median)
            used, median = crowd(path)
            results["20 viewers, 10 updates a second each: CPU, % of a core"][name].append(used)
            results["the same: update p50, ms"][name].append(median)


def measure_keys(folder: Path, results: Results, rounds: int) -> None:
    with tiny_guest(folder) as vnc:
        for _ in range(rounds):
            channel = connect_unix(vnc)
            results["key to frame p50, ms"]["direct"].append(key_to_frame_ms(channel))
            channel.close()
            for name, keepalive_ms in (("websockify", 0), ("relay", 15)):
                with start_path(name, vnc, keepalive_ms=keepalive_ms) as path:
                    channel = path.connect()
                    results["key to frame p50, ms"][name].append(key_to_frame_ms(channel))
                    channel.close()


# Of what more is better; and how many times better than websockify the rest has to be, as far as that is set.
_MORE = ("throughput, MiB/s", "upstream, MiB/s")
_TIMES = {"throughput, MiB/s": 1.3, "CPU, s/GiB": 1 / 0.8, "upstream, MiB/s": 3, "ping p50, µs": 1}
_TIMES_UVLOOP = {"throughput, MiB/s": 1.6, "CPU, s/GiB": 1 / 0.65}
_LIMITS = {
    "growth with a stalled client, MiB": 2,
    "20 viewers, 10 updates a second each: CPU, % of a core": 50,
}
_MOST_ADDED_US = 50
_NAMES = {"uvloop": "relay with uvloop, for comparison", "copy": "bare copy", "direct": "no path at all"}


def hand_over(results: Results) -> None:
    for measure, row in results.items():
        name, unit = measure.rsplit(", ", 1)
        peers = ("websockify", *(peer for peer in _NAMES if row.get(peer)))
        record(
            name,
            unit,
            row["relay"],
            more_is_better=measure in _MORE,
            peers={_NAMES.get(peer, peer): row[peer] for peer in peers},
            limit=_LIMITS.get(measure),
            times_better=_TIMES.get(measure),
        )
        if measure in _TIMES_UVLOOP and row.get("uvloop"):
            record(
                f"with uvloop: {name}",
                unit,
                row["uvloop"],
                more_is_better=measure in _MORE,
                peers={"websockify": row["websockify"]},
                times_better=_TIMES_UVLOOP[measure],
            )
    ping = results["ping p50, µs"]
    added = [ours - without for ours, without in zip(ping["relay"], ping["direct"], strict=True)]
    record("ping p50, more than without any path", "µs", added, limit=_MOST_ADDED_US)


def render(results: Results) -> str:
    columns = [("relay", "relay"), ("uvloop", "relay, uvloop"), ("websockify", "websockify")]
    columns += [("copy", "bare copy"), ("direct", "no path at all")]
    columns = [column for column in columns if any(row.get(column[0]) for row in results.values())]
    ours = [name for name in ("relay", "uvloop") if any(row.get(name) for row in results.values())]
    titles = ["measure", *(title for _, title in columns), *(f"{name} : websockify" for name in ours)]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for measure, row in results.items():
        cells = [summary(row[name]) if row.get(name) else "" for name, _ in columns]
        lines.append(f"| {measure} | " + " | ".join([*cells, *(ratio(row, name) for name in ours)]) + " |")
    return "\n".join(lines)


def ratio(row: dict[str, list[float]], name: str) -> str:
    """The median of the rounds' ratios."""
    pairs = zip(row.get(name, []), row["websockify"], strict=False)
    ratios = [ours / theirs for ours, theirs in pairs if theirs]
    return f"{statistics.median(ratios):.2f}" if ratios else ""


def summary(values: list[float]) -> str:
    def short(value: float) -> str:
        return f"{value:.0f}" if abs(value) >= 20 else f"{value:.2f}"

    if len(values) == 1:
        return short(values[0])
    return f"{short(statistics.median(values))} ({short(min(values))}..{short(max(values))})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    results: Results = {measure: defaultdict(list) for measure in MEASURES}
    with tempfile.TemporaryDirectory() as folder:
        measure_streams(Path(folder), results, rounds)
        measure_keys(Path(folder), results, min(rounds, KEY_ROUNDS))
    print(render(results))
    hand_over(results)


if __name__ == "__main__":
    main()
