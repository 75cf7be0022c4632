"""The player in the browser's audio thread, run by Node on a clock that a test sets."""

import json
import math
import random
import struct
import subprocess
from dataclasses import dataclass
from typing import Any

from listening import FRAME_BYTES, RATE_HZ, loudest_hz

from qemuspawner.paths import STATIC

# What a worklet finds in a browser; each piece is handed over when it is due, and every quantum is played.
HARNESS = """
const { worklet, events, seconds } = JSON.parse(require("fs").readFileSync(0, "utf8"));
const told = [];
let Player;
globalThis.sampleRate = 48000;
globalThis.currentTime = 0;
globalThis.AudioWorkletProcessor = class { port = { postMessage: (message) => told.push(message) }; };
globalThis.registerProcessor = (_name, kind) => { Player = kind; };
require(worklet);
const player = new Player();
const played = [];
for (let quantum = 0; quantum * 128 < seconds * sampleRate; quantum += 1) {
  globalThis.currentTime = (quantum * 128) / sampleRate;
  while (events.length && events[0].at_s <= currentTime) {
    const { data } = events.shift();
    const bytes = typeof data === "string" ? Uint8Array.from(Buffer.from(data, "hex")).buffer : data;
    player.port.onmessage({ data: bytes });
  }
  const outputs = [[new Float32Array(128), new Float32Array(128)]];
  player.process([], outputs);
  played.push(...Int16Array.from(outputs[0][0], (value) => value * 32767));
}
console.log(JSON.stringify({ told, played }));
"""

PIECE_S = 0.01
# One second of 440 Hz in both channels, cut into pieces; a whole number of periods.
TONE = b"".join(
    struct.pack("<hh", *[round(8000 * math.sin(2 * math.pi * 440 * at / RATE_HZ))] * 2)
    for at in range(RATE_HZ)
)
PIECES = [
    TONE[at : at + RATE_HZ * FRAME_BYTES // 100] for at in range(0, len(TONE), RATE_HZ * FRAME_BYTES // 100)
]


@dataclass(frozen=True, kw_only=True)
class Played:
    told: list[dict[str, Any]]
    left: list[int]

    @property
    def last(self) -> dict[str, Any]:
        return self.told[-1]

    @property
    def most_ms(self) -> float:
        return max(float(one["most_ms"]) for one in self.told)


def play(events: list[tuple[float, object]], *, seconds: float) -> Played:
    """Hand `events` over, pairs of a moment in seconds and bytes (or what else the page sends)."""
    request = {
        "worklet": str(STATIC / "sound-worklet.js"),
        "events": [
            {"at_s": at, "data": data.hex() if isinstance(data, bytes) else data}
            for at, data in sorted(events, key=lambda event: event[0])
        ],
        "seconds": seconds,
    }
    done = subprocess.run(["node", "-e", HARNESS], input=json.dumps(request), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    return Played(told=answer["told"], left=answer["played"])


def tone(seconds: float, *, begin: float = 0, speed: float = 1) -> list[tuple[float, object]]:
    """Pieces as they come from a clock that is faster than the browser's by `speed`."""
    count = round(seconds * speed / PIECE_S)
    return [(begin + number * PIECE_S / speed, PIECES[number % 100]) for number in range(count)]


def test_a_steady_tone_is_played_as_it_is() -> None:
    """About 60 ms behind, without a gap."""
    played = play(tone(20), seconds=20)

    assert (played.last["underruns"], played.last["dropped_ms"]) == (0, 0)
    assert 55 <= played.last["most_ms"] <= 80
    sound = b"".join(struct.pack("<hh", value, value) for value in played.left[-RATE_HZ:])
    assert loudest_hz(sound) == 440


def test_nothing_is_heard_before_there_is_enough() -> None:
    played = play(tone(0.05), seconds=1)

    assert set(played.left) == {0}


def test_clocks_that_differ_are_made_up_for() -> None:
    """A thousandth is ten times what real ones differ; nothing is left out, nothing runs dry."""
    for speed in (0.999, 1.001):
        played = play(tone(40, speed=speed), seconds=40)

        assert (played.last["underruns"], played.last["dropped_ms"]) == (0, 0)
        assert played.most_ms < 120


def test_what_comes_up_to_40_ms_late_is_in_time() -> None:
    chance = random.Random(1)
    late, before = [], 0.0
    for at, piece in tone(30):
        # What is late holds up what follows, as in one connection.
        before = max(before, at + chance.uniform(0, 0.04))
        late.append((before, piece))

    played = play(late, seconds=30)

    assert (played.last["underruns"], played.last["dropped_ms"]) == (0, 0)


def test_a_connection_that_stalls_is_one_underrun_and_no_longer_delay() -> None:
    """All that was held up comes in one burst: the oldest of it is left out."""
    events = [(4.0 if 3 < at < 4 else at, piece) for at, piece in tone(8)]

    played = play(events, seconds=8)

    assert played.last["underruns"] == 1
    assert played.last["dropped_ms"] > 800
    assert played.most_ms <= 120
    assert played.last["most_ms"] < 100


def test_a_connection_that_is_late_again_and_again_is_waited_for_longer() -> None:
    """Gaps of 80 ms, one each second: the first few are heard, the others are not; still within 120 ms."""
    events = [(max(at, int(at) + 0.08) if at >= 1 else at, piece) for at, piece in tone(30)]

    played = play(events, seconds=30)

    assert 0 < played.last["underruns"] <= 4
    assert played.told[-40]["underruns"] == played.last["underruns"]
    assert played.most_ms <= 120


def test_a_short_sound_is_played_to_its_end() -> None:
    """Shorter than what is waited for otherwise; and its end is no underrun."""
    played = play([*tone(0.03), (0.04, b"")], seconds=1)

    heard = [at for at, value in enumerate(played.left) if value]
    assert 0.025 < (heard[-1] - heard[0]) / RATE_HZ < 0.035
    assert played.last["underruns"] == 0
    assert played.last["isPlaying"] is False


def test_a_guest_that_plays_again_is_heard_again() -> None:
    played = play([*tone(1), (1.01, b""), *tone(1, begin=2)], seconds=3)

    assert played.last["underruns"] == 0
    assert any(played.left[int(2.2 * RATE_HZ) :])
    assert not any(played.left[int(1.2 * RATE_HZ) : 2 * RATE_HZ])


def test_a_lost_connection_is_silent_at_once() -> None:
    """What was left of it does not begin the next one."""
    played = play([*tone(1), (1.0, None), *tone(0.05, begin=1.5)], seconds=2)

    assert played.last["underruns"] == 0
    assert not any(played.left[int(1.01 * RATE_HZ) :])


def test_another_rate_is_played_at_its_own_pitch() -> None:
    """A session may say 24 kHz: half as much, heard an octave lower."""
    events = [(0.0, {"rate_hz": 24000}), *[(0.001 + 2 * at, piece) for at, piece in tone(2)]]

    played = play(events, seconds=4)

    sound = b"".join(struct.pack("<hh", value, value) for value in played.left[-RATE_HZ:])
    assert loudest_hz(sound) == 220
    assert played.last["underruns"] == 0


def test_a_piece_cut_within_a_frame_does_no_harm() -> None:
    """The session hands on whatever QEMU says."""
    played = play([(0.0, b"\1\2\3"), *tone(1, begin=0.01)], seconds=1)

    assert any(played.left)
    assert played.last["underruns"] == 0
