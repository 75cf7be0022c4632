// The desktop: noVNC's RFB on a websocket of our own.

import "./cuttext.js";
import { keysymOf, pressChord, pressKey } from "./keys.js";
import { RFB } from "./vendor/novnc.js";

let updates = 0; // pictures, or parts of one, that were received: noVNC asks for the next one after each
const requestUpdate = RFB.messages.fbUpdateRequest;
RFB.messages.fbUpdateRequest = (sock, isIncremental, ...place) => {
  updates += isIncremental ? 1 : 0;
  requestUpdate(sock, isIncremental, ...place);
};

const awaited = new WeakMap(); // an RFB -> what to call with its first part of a picture
const handlePixels = RFB.prototype._handleDataRect;
RFB.prototype._handleDataRect = function handleDataRect() {
  const isComplete = handlePixels.call(this);
  if (isComplete) {
    awaited.get(this)?.();
    awaited.delete(this);
  }
  return isComplete;
};

const handleKey = RFB.prototype._handleKeyEvent;
/** With keys of its own, such as a pinch's Ctrl, noVNC forgets to say that it does not know how Caps Lock and Num
 *  Lock are here, and takes them for different from the guest's. */
RFB.prototype._handleKeyEvent = function handleKeyEvent(keysym, code, isDown, numLock = null, capsLock = null) {
  handleKey.call(this, keysym, code, isDown, numLock, capsLock);
};

/** Events: `connect`; `picture` when the first part of one has come; `close` with detail {code, reason}; `copied` with detail a promise of the guest's text, see
 *  cuttext.js; `used` when a key or a tap went there. */
export class Desktop extends EventTarget {
  #element;
  #rfb = null;
  #isConnected = false;
  #scale = "match";
  #quality = 6;
  #layout = "us";
  #compression = 2;
  #sizes = true;
  #bytes = 0;

  constructor(element) {
    super();
    this.#element = element;
  }

  get isConnected() {
    return this.#isConnected;
  }

  get isViewOnly() {
    return this.#rfb?.viewOnly ?? true;
  }

  connect(url, ticket, { viewOnly }) {
    this.disconnect();
    const socket = new WebSocket(url, ["binary", `qs.ticket.${ticket}`]);
    let farewell = { code: 1006, reason: "" };
    socket.addEventListener("close", ({ code, reason }) => {
      farewell = { code, reason };
    });
    const rfb = new RFB(this.#element, socket, { shared: true });
    this.#rfb = rfb;
    rfb.viewOnly = viewOnly;
    rfb.background = "transparent";
    socket.addEventListener("message", ({ data }) => {
      this.#bytes += data.byteLength;
    });
    this.#apply();
    rfb.addEventListener("connect", () => {
      this.#isConnected = true;
      const canvas = this.#element.querySelector("canvas");
      canvas.tabIndex = 0;
      // What is held when the keyboard goes elsewhere would stay down in the guest: noVNC lets go at `blur`.
      canvas.addEventListener("blur", () => window.dispatchEvent(new Event("blur")));
      for (const use of ["keyup", "gestureend"]) {
        canvas.addEventListener(use, () => this.dispatchEvent(new Event("used")));
      }
      this.dispatchEvent(new Event("connect"));
    });
    awaited.set(rfb, () => this.dispatchEvent(new Event("picture")));
    rfb.addEventListener("disconnect", () => {
      if (this.#rfb === rfb) {
        this.#rfb = null;
        this.#isConnected = false;
        this.dispatchEvent(new CustomEvent("close", { detail: farewell }));
      }
    });
    rfb.addEventListener("copied", ({ detail }) => this.dispatchEvent(new CustomEvent("copied", { detail })));
  }

  /** Let go without a `close` event. */
  disconnect() {
    const rfb = this.#rfb;
    this.#rfb = null;
    this.#isConnected = false;
    rfb?.disconnect();
  }

  focus() {
    this.#rfb?.focus({ preventScroll: true });
  }

  /** How the desktop fills the window: match (the guest follows), fit (scaled) or actual. */
  set scale(scale) {
    this.#scale = scale;
    this.#apply();
  }

  /** 0 to 8; at 9 QEMU would give up JPEG and with it two thirds of the frames. */
  set quality(quality) {
    this.#quality = quality;
    this.#apply();
  }

  /** 0 to 9: how hard QEMU works to make what it sends smaller. */
  set compression(compression) {
    this.#compression = compression;
    this.#apply();
  }

  /** Whether the guest's size follows this window, of all those that are open. */
  set sizes(sizes) {
    if (sizes === this.#sizes) {
      return;
    }
    this.#sizes = sizes;
    if (this.#rfb) {
      // noVNC may still wait for an answer to what the relay has dropped meanwhile.
      this.#rfb._pendingRemoteResize = false;
    }
    this.#apply();
  }

  get sizes() {
    return this.#sizes;
  }

  /** Whether the guest has the window's size; some round it. */
  get isMatched() {
    const canvas = this.#element.querySelector("canvas");
    const { clientWidth, clientHeight } = this.#element;
    return Math.abs(canvas?.width - clientWidth) < 8 && Math.abs(canvas?.height - clientHeight) < 8;
  }

  /** {bytes, updates}: what was received so far, in all connections. */
  get traffic() {
    return { bytes: this.#bytes, updates };
  }

  #apply() {
    const rfb = this.#rfb;
    if (!rfb) {
      return;
    }
    // Where the guest does not follow the window, matching falls back to scaling.
    rfb.scaleViewport = this.#scale !== "actual";
    rfb.resizeSession = this.#scale === "match" && this.#sizes && !rfb.viewOnly;
    rfb.qualityLevel = this.#quality;
    rfb.compressionLevel = this.#compression;
  }

  /** The guest's keyboard layout, for texts that are typed as keys. */
  set layout(layout) {
    this.#layout = layout;
  }

  get layout() {
    return this.#layout;
  }

  chord(codes) {
    pressChord(this.#rfb, codes);
    this.dispatchEvent(new Event("used"));
  }

  /** The same while a Mac's Cmd is down, which is no part of it in the guest. */
  chordWithoutMeta(codes) {
    // A key between, as Super alone would open a menu there.
    this.hold(codes[0], true);
    for (const code of ["MetaLeft", "MetaRight"]) {
      this.replay([new KeyboardEvent("keyup", { key: "Meta", code })]);
    }
    this.chord(codes);
  }

  press(code) {
    pressKey(this.#rfb, code);
    this.dispatchEvent(new Event("used"));
  }

  /** Press a key, or let go of it. */
  hold(code, isDown) {
    this.#rfb.sendKey(keysymOf(code), code, isDown);
  }

  /** Have key events happen that were held back. */
  replay(events) {
    const canvas = this.#element.querySelector("canvas");
    for (const event of events) {
      const modifiers = Object.fromEntries(
        ["AltGraph", "CapsLock", "NumLock"].map((name) => [`modifier${name}`, event.getModifierState(name)]),
      );
      const { type, key, code, location, ctrlKey, shiftKey, altKey, metaKey } = event;
      const init = { key, code, location, ctrlKey, shiftKey, altKey, metaKey, ...modifiers };
      canvas?.dispatchEvent(new KeyboardEvent(type, init));
    }
  }

  /** Type a text; resolves to the number of characters that no key makes. */
  async type(text) {
    const rfb = this.#rfb; // which may be gone when the text is typed
    const { typeText } = await import("./strokes.js");
    const [first = "", ...rest] = text.replaceAll("\r\n", "\n").normalize("NFC");
    const missing = await typeText(rfb, first, this.#layout);
    this.dispatchEvent(new Event("used"));
    return missing + (await typeText(rfb, rest.join(""), this.#layout));
  }

  /** A key event that reaches no guest (QEMU drops a release without a press) but counts as a sign of life. */
  stir() {
    this.#rfb?.sendKey(keysymOf("F24"), "F24", false);
  }

  paste(text) {
    this.#rfb.clipboardPasteFrom(text);
  }

  /** Whether what a person does reaches the desktop; the session has the last word. */
  set viewOnly(viewOnly) {
    if (this.#rfb && this.#rfb.viewOnly !== viewOnly) {
      this.#rfb.viewOnly = viewOnly;
      this.#apply();
    }
  }

  /** A place of the window as pixels of the screen, [x, y]; null outside of it. */
  placeOf(clientX, clientY) {
    const canvas = this.#element.querySelector("canvas");
    const box = canvas?.getBoundingClientRect();
    if (!box?.width) {
      return null;
    }
    const x = Math.round(((clientX - box.left) * canvas.width) / box.width);
    const y = Math.round(((clientY - box.top) * canvas.height) / box.height);
    return x >= 0 && y >= 0 && x < canvas.width && y < canvas.height ? [x, y] : null;
  }

  /** Where a pixel of the screen is in the window, [clientX, clientY]; null where no screen is shown. */
  whereIs(x, y) {
    const canvas = this.#element.querySelector("canvas");
    const box = canvas?.getBoundingClientRect();
    if (!box?.width || x >= canvas.width || y >= canvas.height) {
      return null;
    }
    return [box.left + (x * box.width) / canvas.width, box.top + (y * box.height) / canvas.height];
  }

  /** The picture as a PNG blob. */
  picture() {
    return new Promise((resolve) => this.#rfb.toBlob(resolve, "image/png"));
  }
}
