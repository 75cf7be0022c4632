// The desktop's sound: its switch and volume in the bar, its websocket, and the worklet that plays it.

import { decimal, t } from "./i18n.js";
import { toast } from "./notice.js";
import { remember, remembered } from "./settings.js";

// The session's close codes; qemuspawner/session/screen/visitors.py has the same numbers.
const WITHDRAWN = 4403;
const REPLACED = 4409;

const FIRST_RETRY_MS = 1000;
const LAST_RETRY_MS = 30_000;
// What QEMU mixes at: a context at another rate would have to convert it.
const RATE_HZ = 48_000;

const byId = (id) => document.getElementById(id);

/** On a page whose machine has sound. session.js says when the desktop is there: `resume`, and not: `pause`. */
export class Sound {
  #api;
  #config;
  #button = byId("sound");
  #volume = byId("volume");
  #prepared = null; // a promise, once it was turned on
  #context = null;
  #player = null;
  #gain = null;
  #socket = null;
  #isOn = false;
  #isThere = false; // the desktop
  #attempt = 0; // counts connections that were begun or given up
  #retries = 0;
  #nextTry = null;

  constructor({ api, config }) {
    this.#api = api;
    this.#config = config;
    this.#button.addEventListener("click", () => (this.#isOn ? this.#turnOff() : this.#turnOn()));
    this.#volume.value = remembered("volume") ?? 100;
    this.#volume.addEventListener("input", () => {
      remember("volume", Number(this.#volume.value));
      this.#applyVolume();
    });
    this.#show();
    if (remembered("sound", [true]) && window.isSecureContext) {
      this.#awaitGesture();
    }
  }

  /** The desktop is connected. */
  resume() {
    this.#isThere = true;
    this.#retries = 0;
    this.#connect();
  }

  /** The desktop is gone, for now or for good. */
  pause() {
    this.#isThere = false;
    this.#disconnect();
  }

  /** It was on when it was last here. Browsers play nothing before somebody did something on the page. */
  #awaitGesture() {
    const given = new AbortController();
    const onGesture = ({ target }) => {
      given.abort();
      if (!this.#isOn && !this.#button.contains(target)) {
        this.#turnOn();
      }
    };
    for (const kind of ["pointerup", "keydown"]) {
      // Before the canvas, which takes every key.
      window.addEventListener(kind, onGesture, { capture: true, signal: given.signal });
    }
  }

  async #turnOn() {
    if (!window.isSecureContext) {
      toast(t("Browsers play the desktop’s sound only where this page is opened by https."));
      return;
    }
    this.#isOn = true;
    this.#retries = 0;
    this.#show();
    try {
      this.#prepared ??= this.#prepare();
      await this.#prepared;
      await this.#context.resume();
    } catch {
      this.#prepared = null;
      this.#turnOff();
      toast(t("This browser cannot play the desktop’s sound."));
      return;
    }
    // It may have been turned off meanwhile.
    if (this.#isOn) {
      remember("sound", true);
      this.#connect();
    }
  }

  #turnOff() {
    this.#isOn = false;
    remember("sound", false);
    this.#disconnect();
    this.#context?.suspend();
    this.#show();
  }

  async #prepare() {
    const context = new AudioContext({ sampleRate: RATE_HZ, latencyHint: "interactive" });
    this.#context = context;
    await context.audioWorklet.addModule(`${this.#config.static}sound-worklet.js`);
    this.#player = new AudioWorkletNode(context, "desktop-sound", { numberOfInputs: 0, outputChannelCount: [2] });
    this.#gain = context.createGain();
    this.#applyVolume();
    this.#player.connect(this.#gain).connect(context.destination);
    this.#player.port.onmessage = ({ data }) => this.#note(data);
  }

  async #connect() {
    clearTimeout(this.#nextTry);
    if (!this.#isOn || !this.#isThere || !this.#player || this.#socket) {
      return;
    }
    // Whoever may not listen any more does not see the button.
    if (!this.#button.checkVisibility()) {
      this.#retry();
      return;
    }
    this.#attempt += 1;
    const attempt = this.#attempt;
    let ticket;
    try {
      ticket = await this.#api.ticket();
    } catch {
      this.#retry();
      return;
    }
    if (attempt === this.#attempt) {
      this.#open(ticket);
    }
  }

  #open(ticket) {
    const url = new URL(`${this.#config.prefix}sound`, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url, ["binary", `qs.ticket.${ticket}`]);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    let isFirst = true; // says in which form the others are
    socket.addEventListener("message", ({ data }) => {
      if (isFirst) {
        isFirst = false;
        this.#retries = 0;
        this.#player.port.postMessage(JSON.parse(new TextDecoder().decode(data)));
      } else {
        this.#player.port.postMessage(data, [data]);
      }
    });
    socket.addEventListener("close", ({ code, reason }) => {
      if (this.#socket === socket) {
        this.#onClose(code, reason);
      }
    });
  }

  #onClose(code, reason) {
    this.#disconnect();
    if (code === WITHDRAWN || code === REPLACED) {
      this.#turnOff();
      toast(reason);
    } else {
      this.#retry();
    }
  }

  #disconnect() {
    clearTimeout(this.#nextTry);
    this.#attempt += 1;
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
    this.#player?.port.postMessage(null);
  }

  #retry() {
    const longest_ms = Math.min(LAST_RETRY_MS, FIRST_RETRY_MS * 2 ** this.#retries);
    this.#retries += 1;
    clearTimeout(this.#nextTry);
    this.#nextTry = setTimeout(() => this.#connect(), longest_ms * (0.5 + Math.random() / 2));
  }

  #applyVolume() {
    if (this.#gain) {
      // Ears hear in proportions.
      this.#gain.gain.value = (Number(this.#volume.value) / 100) ** 2;
    }
  }

  #show() {
    const icon = this.#isOn ? "sound" : "muted";
    this.#button.querySelector("use").setAttribute("href", `${this.#config.icons}#${icon}`);
    this.#button.setAttribute("aria-pressed", String(this.#isOn));
    this.#button.title = this.#isOn ? t("Sound is on") : t("Sound");
    this.#volume.hidden = !this.#isOn;
  }

  /** What the worklet tells of its buffer, for whoever wonders how well it works. */
  #note({ isPlaying, most_ms, underruns, dropped_ms }) {
    Object.assign(this.#button.dataset, {
      playing: isPlaying,
      bufferedMs: Math.round(most_ms),
      underruns,
      droppedMs: Math.round(dropped_ms),
    });
    if (this.#isOn) {
      this.#button.title = isPlaying ? t("Sound is on, {number} ms behind", { number: decimal(most_ms) }) : t("Sound is on");
    }
  }
}
