// Keys by their place on a US keyboard, which is what QEMU passes on to the guest.

const KEYSYMS = {
  AltLeft: 0xffe9,
  Backspace: 0xff08,
  ControlLeft: 0xffe3,
  Delete: 0xffff,
  Enter: 0xff0d,
  Escape: 0xff1b,
  F1: 0xffbe,
  F4: 0xffc1,
  F7: 0xffc4,
  F24: 0xffd5,
  MetaLeft: 0xffeb,
  PrintScreen: 0xff61,
  ShiftLeft: 0xffe1,
  Tab: 0xff09,
};

// Which key, with Shift or without, makes which character.
const CHARACTERS = new Map([
  ["\n", { code: "Enter", keysym: KEYSYMS.Enter, shift: false }],
  ["\t", { code: "Tab", keysym: KEYSYMS.Tab, shift: false }],
]);

function addKeys(codes, plain, shifted) {
  codes.forEach((code, at) => {
    CHARACTERS.set(plain[at], { code, keysym: plain.charCodeAt(at), shift: false });
    CHARACTERS.set(shifted[at], { code, keysym: shifted.charCodeAt(at), shift: true });
  });
}

const LETTERS = "abcdefghijklmnopqrstuvwxyz";
addKeys([...LETTERS.toUpperCase()].map((letter) => `Key${letter}`), LETTERS, LETTERS.toUpperCase());
addKeys([..."1234567890"].map((digit) => `Digit${digit}`), "1234567890", "!@#$%^&*()");
addKeys(
  ["Space", "Backquote", "Minus", "Equal", "BracketLeft", "BracketRight", "Backslash", "Semicolon", "Quote", "Comma", "Period", "Slash"],
  " `-=[]\\;',./",
  " ~_+{}|:\"<>?",
);
CHARACTERS.set(" ", { code: "Space", keysym: 0x20, shift: false });

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

/** Type a text; resolves to the number of characters that are on no US keyboard and were left out. */
export async function typeText(rfb, text) {
  let missing = 0;
  for (const character of text.replaceAll("\r\n", "\n")) {
    const key = CHARACTERS.get(character);
    if (!key) {
      missing += 1;
      continue;
    }
    if (key.shift) {
      rfb.sendKey(KEYSYMS.ShiftLeft, "ShiftLeft", true);
    }
    rfb.sendKey(key.keysym, key.code);
    if (key.shift) {
      rfb.sendKey(KEYSYMS.ShiftLeft, "ShiftLeft", false);
    }
    await new Promise((resolve) => setTimeout(resolve, BETWEEN_KEYS_MS));
  }
  return missing;
}
