// Keys by their place, which is what QEMU passes on: the guest's layout decides what they write.

import { findStrokes } from "./layouts.js";

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

// A PS/2 keyboard remembers 16 bytes that the guest has not fetched; faster typing loses keys.
const BETWEEN_KEYS_MS = 15;

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

// QEMU goes by the place, but sets the guest's Caps Lock by the case of a letter.
function keysymFor(character) {
  const point = character.codePointAt(0);
  return point < 0x100 ? point : 0x01000000 | point;
}

function strokesFor(character, layout) {
  if (character === "\n") {
    return [{ code: "Enter", keysym: KEYSYMS.Enter }];
  }
  if (character === "\t") {
    return [{ code: "Tab", keysym: KEYSYMS.Tab }];
  }
  return findStrokes(layout, character)?.map((stroke) => ({ ...stroke, keysym: keysymFor(stroke.character) }));
}

/** Whether keys of this layout make a character. */
export function canType(character, layout) {
  return Boolean(strokesFor(character, layout));
}

/** Type a text on a guest with this layout; resolves to the number of characters that were left out, as none
 *  of its keys make them. */
export async function typeText(rfb, text, layout) {
  let missing = 0;
  for (const character of text.replaceAll("\r\n", "\n").normalize("NFC")) {
    const strokes = strokesFor(character, layout);
    if (!strokes) {
      missing += 1;
      continue;
    }
    for (const { code, keysym, shift, altgr } of strokes) {
      const modifiers = [shift && "ShiftLeft", altgr && "AltRight"].filter(Boolean);
      for (const modifier of modifiers) {
        rfb.sendKey(KEYSYMS[modifier], modifier, true);
      }
      rfb.sendKey(keysym, code);
      for (const modifier of modifiers) {
        rfb.sendKey(KEYSYMS[modifier], modifier, false);
      }
      await new Promise((resolve) => setTimeout(resolve, BETWEEN_KEYS_MS));
    }
  }
  return missing;
}
