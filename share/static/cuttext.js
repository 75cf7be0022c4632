// What noVNC does with the clipboards of guest and page, where that is not good enough.

import { RFB } from "./vendor/novnc.js";

const TEXT = 1;
const CAPS = 1 << 24; // lists the others, and is none of them
const NOTIFY = 1 << 27;
const PROVIDE = 1 << 28;
const HEAD_BYTES = 7; // padding and length

/** The longest text that is taken of the guest; twice of what the relay passes the other way. */
export const MAX_COPIED_BYTES = 512 * 1024;

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
  new DataView(message.buffer).setUint32(0, PROVIDE | TEXT);
  message.set(packed, 4);
  RFB.messages.clientCutText(sock, message, true);
};

/** Tell the guest's side that there is a text. Until it is known that QEMU takes UTF-8 noVNC would send Latin-1, with
 *  question marks for all else: so it waits for that. */
RFB.prototype.clipboardPasteFrom = function announce(text) {
  this._clipboardText = text;
  this._announces = !this._clipboardServerCapabilitiesFormats[TEXT];
  if (!this._announces) {
    RFB.messages.extendedClipboardNotify(this._sock, [TEXT]);
  }
};

const takeAllElse = RFB.prototype._handleServerCutText;

/** noVNC would unpack any size, and fail in the middle of a picture where the text is no UTF-8; a guest may send
 *  both. Dispatches `copied` with a promise of the text as detail: null where the guest's clipboard is empty.
 *
 *  View-only or not: whom the session does not let copy hears nothing of the guest's clipboard.
 *  Source: rfbproto.rst, "Extended Clipboard Pseudo-encoding".
 */
RFB.prototype._handleServerCutText = function takeCutText() {
  const sock = this._sock;
  if (sock.rQwait("ServerCutText header", HEAD_BYTES, 1)) {
    return false;
  }
  const head = sock.rQpeekBytes(HEAD_BYTES + 4);
  const view = new DataView(head.buffer, head.byteOffset);
  const length = view.getInt32(3);
  // 1 is the message's type, to which noVNC returns when more has come.
  if (length >= 0 || sock.rQwait("ServerCutText content", HEAD_BYTES - length, 1)) {
    return length >= 0 && takeAllElse.call(this);
  }
  const flags = view.getUint32(HEAD_BYTES);
  if (flags & CAPS || !(flags & (NOTIFY | PROVIDE))) {
    takeAllElse.call(this);
    if (this._announces && this._clipboardText !== null) {
      this.clipboardPasteFrom(this._clipboardText);
    }
    return true;
  }
  sock.rQskipBytes(HEAD_BYTES + 4);
  const packed = sock.rQshiftBytes(-length - 4);
  if (flags & PROVIDE) {
    this._clipboardText = null;
    this.dispatchEvent(new CustomEvent("copied", { detail: unpack(packed) }));
  } else if (flags & TEXT) {
    RFB.messages.extendedClipboardRequest(sock, [TEXT]);
  } else {
    this.dispatchEvent(new CustomEvent("copied", { detail: Promise.resolve(null) }));
  }
  return true;
};

/** The text of a Provide message. Raises RangeError for one that is too long. */
async function unpack(packed) {
  const reader = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  let bytes = new Uint8Array(0);
  let wanted = 4; // its size, which comes first
  while (bytes.length < wanted) {
    const { value, done } = await reader.read();
    if (done) {
      break;
    }
    bytes = join(bytes, value);
    if (wanted === 4 && bytes.length >= 4) {
      wanted += new DataView(bytes.buffer).getUint32(0);
      if (wanted > 4 + MAX_COPIED_BYTES) {
        await reader.cancel();
        throw new RangeError(`The copied text has ${wanted - 4} bytes.`);
      }
    }
  }
  // Some QEMUs leave out the end of the packed data, which would be an error if it were waited for.
  reader.cancel().catch(() => {});
  // As in C, a NUL ends it; no device's clipboard could hold one.
  const [text] = new TextDecoder().decode(bytes.subarray(4, wanted)).split("\0", 1);
  return text.replaceAll("\r\n", "\n");
}

function join(first, second) {
  const both = new Uint8Array(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}
