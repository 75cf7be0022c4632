// Characters by the keys that make them in the guest.

import { keysymOf } from "./keys.js";
import { findStrokes } from "./layouts.js";

// A PS/2 keyboard remembers 16 bytes that the guest has not fetched; faster typing loses keys.
const BETWEEN_KEYS_MS = 15;

// QEMU goes by the place, but sets the guest's Caps Lock by the case of a letter.
function keysymFor(character) {
  const point = character.codePointAt(0);
  return point < 0x100 ? point : 0x01000000 | point;
}

function strokesFor(character, layout) {
  if (character === "\n") {
    return [{ code: "Enter", keysym: keysymOf("Enter") }];
  }
  if (character === "\t") {
    return [{ code: "Tab", keysym: keysymOf("Tab") }];
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
        rfb.sendKey(keysymOf(modifier), modifier, true);
      }
      rfb.sendKey(keysym, code);
      for (const modifier of modifiers) {
        rfb.sendKey(keysymOf(modifier), modifier, false);
      }
      await new Promise((resolve) => setTimeout(resolve, BETWEEN_KEYS_MS));
    }
  }
  return missing;
}
