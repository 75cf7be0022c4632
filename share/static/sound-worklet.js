// Plays the desktop's sound in the browser's audio thread, a little behind what arrives.
//
// Takes {rate_hz}, then pieces of it as ArrayBuffers of signed 16 bits, left and right in turn; an empty one says
// that the guest has stopped playing, null that the connection has gone. Tells four times a second how it goes.

// Between what arrives and what is heard: network and page may be late by so much. Where that was not enough it
// grows, and slowly goes back.
const LEAST_TARGET_S = 0.06;
const MOST_TARGET_S = 0.09;
const RAISE_S = 0.01; // with each underrun
const LOWER_S = 0.0001; // each time that is told
const MOST_S = 0.12; // beyond that, what is oldest is left out
// Two clocks never run alike. So much slower or faster nobody hears, and the buffer stays near its target.
const MOST_BEND = 0.005;
const SMOOTHING = 0.01; // a hundred quanta, a quarter of a second
const RING_FRAMES = 1 << 15;
const TELL_EVERY_S = 0.25;

class Player extends AudioWorkletProcessor {
  #ring = new Float32Array(2 * RING_FRAMES);
  #rate_hz = 48_000;
  #written = 0; // frames since the beginning
  #read = 0; // also between two frames
  #level = 0; // frames that wait, smoothed
  #target_s = LEAST_TARGET_S;
  #isPlaying = false; // else: waits until there is enough
  #isEnding = false; // the guest has stopped: running dry is no fault
  #underruns = 0;
  #dropped_ms = 0;
  #most = 0; // frames that waited since it was last told
  #told_s = 0;

  constructor() {
    super();
    this.port.onmessage = ({ data }) => this.#take(data);
  }

  #take(data) {
    if (data instanceof ArrayBuffer) {
      this.#isEnding = data.byteLength === 0;
      this.#append(data);
    } else if (data) {
      this.#rate_hz = data.rate_hz;
    } else {
      this.#isPlaying = false;
      this.#isEnding = false;
      this.#read = this.#written;
    }
  }

  #append(data) {
    const samples = new Int16Array(data, 0, 2 * Math.floor(data.byteLength / 4));
    for (let i = 0; i < samples.length; i += 2) {
      const at = 2 * (this.#written % RING_FRAMES);
      this.#ring[at] = samples[i] / 32_768;
      this.#ring[at + 1] = samples[i + 1] / 32_768;
      this.#written += 1;
    }
    const waiting = this.#written - this.#read;
    if (waiting > MOST_S * this.#rate_hz) {
      // Not down to the target: what came in a burst was late before, and may be again.
      const kept = ((this.#target_s + MOST_S) / 2) * this.#rate_hz;
      this.#dropped_ms += (1000 * (waiting - kept)) / this.#rate_hz;
      this.#read = this.#written - kept;
      this.#level = kept;
    }
    this.#most = Math.max(this.#most, this.#written - this.#read);
  }

  process(_inputs, [[left, right]]) {
    const target = this.#target_s * this.#rate_hz;
    const waiting = this.#written - this.#read;
    if (!this.#isPlaying && waiting > 0 && (waiting >= target || this.#isEnding)) {
      this.#isPlaying = true;
      this.#level = waiting;
    }
    if (this.#isPlaying) {
      this.#level += SMOOTHING * (waiting - this.#level);
      const bend = Math.max(-1, Math.min(1, this.#level / target - 1));
      this.#play(left, right, (this.#rate_hz / sampleRate) * (1 + MOST_BEND * bend));
    }
    if (currentTime - this.#told_s >= TELL_EVERY_S) {
      this.#tell();
    }
    return true;
  }

  /** Fill both channels, going on by `step` frames for each sample. */
  #play(left, right, step) {
    for (let i = 0; i < left.length; i += 1) {
      const whole = Math.floor(this.#read);
      if (whole + 1 >= this.#written) {
        this.#runDry();
        return;
      }
      const part = this.#read - whole;
      const at = 2 * (whole % RING_FRAMES);
      const next = 2 * ((whole + 1) % RING_FRAMES);
      left[i] = this.#ring[at] + part * (this.#ring[next] - this.#ring[at]);
      right[i] = this.#ring[at + 1] + part * (this.#ring[next + 1] - this.#ring[at + 1]);
      this.#read += step;
    }
  }

  #runDry() {
    this.#isPlaying = false;
    if (this.#isEnding) {
      this.#read = this.#written;
    } else {
      this.#underruns += 1;
      this.#target_s = Math.min(MOST_TARGET_S, this.#target_s + RAISE_S);
    }
  }

  #tell() {
    this.port.postMessage({
      isPlaying: this.#isPlaying,
      most_ms: (1000 * this.#most) / this.#rate_hz,
      underruns: this.#underruns,
      dropped_ms: this.#dropped_ms,
    });
    this.#most = this.#written - this.#read;
    this.#told_s = currentTime;
    this.#target_s = Math.max(LEAST_TARGET_S, this.#target_s - LOWER_S);
  }
}

registerProcessor("desktop-sound", Player);
