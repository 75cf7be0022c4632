// The desktop: noVNC's RFB on a websocket of our own.

import { keysymOf, pressChord, pressKey, typeText } from "./keys.js";
import { RFB } from "./vendor/novnc.js";

const PROVIDE_TEXT = (1 << 28) | 1;

/** Send the clipboard's text as it is. noVNC's own adds a NUL and carriage returns, as the extension has it;
 *  QEMU passes both on, and a terminal shows them as ^@ and ^M. And the browser's own deflate marks the
 *  stream's end, which some QEMUs want. */
RFB.messages.extendedClipboardProvide = async (sock, _formats, [text]) => {
  const bytes = new TextEncoder().encode(text.replaceAll("\r\n", "\n"));
  const plain = new Uint8Array(4 + bytes.length);
  new DataView(plain.buffer).setUint32(0, bytes.length);
  plain.set(bytes, 4);
  const stream = new Blob([plain]).stream().pipeThrough(new CompressionStream("deflate"));
  const packed = new Uint8Array(await new Response(stream).arrayBuffer());
  const message = new Uint8Array(4 + packed.length);
  new DataView(message.buffer).setUint32(0, PROVIDE_TEXT);
  message.set(packed, 4);
  RFB.messages.clientCutText(sock, message, true);
};

/** Events: `connect`; `close` with detail {code, reason}; `clipboard` with detail text. */
export class Desktop extends EventTarget {
  #element;
  #rfb = null;
  #isConnected = false;
  #scale = "match";
  #quality = 6;
  #layout = "us";
  #held = new Set();

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
    rfb.compressionLevel = 2;
    this.#apply();
    rfb.addEventListener("connect", () => {
      this.#isConnected = true;
      const canvas = this.#element.querySelector("canvas");
      canvas.tabIndex = 0;
      // What is held when the keyboard goes elsewhere would stay down in the guest: noVNC lets go at `blur`.
      canvas.addEventListener("blur", () => window.dispatchEvent(new Event("blur")));
      this.dispatchEvent(new Event("connect"));
    });
    rfb.addEventListener("disconnect", () => {
      if (this.#rfb === rfb) {
        this.#rfb = null;
        this.#isConnected = false;
        this.#held.clear();
        this.dispatchEvent(new CustomEvent("close", { detail: farewell }));
      }
    });
    rfb.addEventListener("clipboard", ({ detail }) => {
      this.dispatchEvent(new CustomEvent("clipboard", { detail: detail.text }));
    });
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

  #apply() {
    const rfb = this.#rfb;
    if (!rfb) {
      return;
    }
    // Where the guest does not follow the window, matching falls back to scaling.
    rfb.scaleViewport = this.#scale !== "actual";
    rfb.resizeSession = this.#scale === "match" && !rfb.viewOnly;
    rfb.qualityLevel = this.#quality;
  }

  /** The guest's keyboard layout, for texts that are typed as keys. */
  set layout(layout) {
    this.#layout = layout;
  }

  chord(codes) {
    pressChord(this.#rfb, codes);
  }

  press(code) {
    pressKey(this.#rfb, code);
  }

  /** Press a modifier, or let go of it; returns whether it is held now. */
  toggleHeld(code) {
    const isHeld = !this.#held.has(code);
    this.#rfb.sendKey(keysymOf(code), code, isHeld);
    this.#held[isHeld ? "add" : "delete"](code);
    return isHeld;
  }

  type(text) {
    return typeText(this.#rfb, text, this.#layout);
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
