// Keys by their place, which is what QEMU passes on: the guest's layout decides what they write.

const KEYSYMS = {
  AltLeft: 0xffe9,
  AltRight: 0xfe03, // AltGr
  ArrowDown: 0xff54,
  ArrowLeft: 0xff51,
  ArrowRight: 0xff53,
  ArrowUp: 0xff52,
  Backspace: 0xff08,
  ControlLeft: 0xffe3,
  Delete: 0xffff,
  End: 0xff57,
  Enter: 0xff0d,
  Escape: 0xff1b,
  Home: 0xff50,
  Insert: 0xff63,
  MetaLeft: 0xffeb,
  PageDown: 0xff56,
  PageUp: 0xff55,
  PrintScreen: 0xff61,
  ShiftLeft: 0xffe1,
  Tab: 0xff09,
};
for (let number = 1; number <= 24; number += 1) {
  KEYSYMS[`F${number}`] = 0xffbe + number - 1;
}
for (const letter of "abcdefghijklmnopqrstuvwxyz") {
  KEYSYMS[`Key${letter.toUpperCase()}`] = letter.charCodeAt(0);
}

/** The keysym that goes with a `KeyboardEvent.code`. */
export function keysymOf(code) {
  return KEYSYMS[code];
}

/** Press and release one key by its code. */
export function pressKey(rfb, code) {
  rfb.sendKey(KEYSYMS[code], code);
}

/** Press keys one after the other and release them in reverse. */
export function pressChord(rfb, codes) {
  for (const code of codes) {
    rfb.sendKey(KEYSYMS[code], code, true);
  }
  for (const code of [...codes].reverse()) {
    rfb.sendKey(KEYSYMS[code], code, false);
  }
}
