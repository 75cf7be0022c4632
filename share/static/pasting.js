// Ctrl+V on the desktop: the device's text goes there ahead of the key.
//
// With the key the browser hands over the text, in a `paste` event, and asks nobody. So the key is held back
// from the desktop until that text is there, and whatever is typed meanwhile waits behind it.

import { IS_MAC } from "./device.js";

// A Mac's browser goes through its own menu for it; others have it at once.
const PASTE_EVENT_MS = 200;

export class Pasting {
  #desktop;
  #screen;
  #isOn;
  #give;
  #read;
  #held = null; // {key, later, isLost, onText}

  /** isOn()      whether such keys are to be held back
   *  give(text)  resolves when the desktop has it: to whether the key shall follow
   *  read()      the device's text where no `paste` event came, or null
   */
  constructor({ desktop, screen, isOn, give, read }) {
    this.#desktop = desktop;
    this.#screen = screen;
    this.#isOn = isOn;
    this.#give = give;
    this.#read = read;
    for (const kind of ["keydown", "keyup"]) {
      window.addEventListener(kind, (event) => this.#onKey(event), { capture: true });
    }
    window.addEventListener("paste", (event) => this.#onPaste(event), { capture: true });
    window.addEventListener("blur", () => this.#loseKeys());
    desktop.addEventListener("close", () => this.#loseKeys());
  }

  #onKey(event) {
    // Those that are let go again are not trusted.
    if (!event.isTrusted || !this.#screen.contains(event.target)) {
      return;
    }
    if (this.#held) {
      event.preventDefault();
      event.stopImmediatePropagation();
      if (!event.repeat) {
        this.#held.later.push(event);
      }
    } else if (event.type === "keydown" && !event.repeat && pastes(event) && this.#isOn()) {
      // Not prevented: that makes the browser paste.
      event.stopImmediatePropagation();
      this.#hold(event);
    }
  }

  #onPaste(event) {
    if (this.#held && this.#screen.contains(event.target)) {
      event.preventDefault();
      this.#held.onText(event.clipboardData.getData("text/plain"));
    }
  }

  async #hold(key) {
    const held = { key, later: [], isLost: false, onText: null };
    this.#held = held;
    const text = await new Promise((resolve) => {
      held.onText = resolve;
      setTimeout(() => resolve(this.#read()), PASTE_EVENT_MS);
    });
    const follows = !text || (await this.#give(text));
    this.#held = null;
    this.#letGo(held, follows);
  }

  /** The keyboard went elsewhere, where the keys came up again. */
  #loseKeys() {
    if (this.#held) {
      this.#held.isLost = true;
      this.#held.later = [];
    }
  }

  #letGo({ key, later, isLost }, follows) {
    if (!follows || !this.#desktop.isConnected) {
      this.#desktop.replay(later);
    } else if (isLost) {
      this.#desktop.chord(chordOf(key));
    } else if (key.metaKey) {
      this.#desktop.chordWithoutMeta(chordOf(key));
      this.#desktop.replay(later);
    } else {
      this.#desktop.replay([key, ...later]);
    }
  }
}

/** Whether this key pastes, here and in the desktop. */
function pastes({ key, code, ctrlKey, shiftKey, altKey, metaKey }) {
  if (altKey) {
    return false;
  }
  if (key === "Insert") {
    return shiftKey && !ctrlKey && !metaKey;
  }
  // On a Dvorak keyboard V is elsewhere; on a Cyrillic one it is where it was.
  const isV = /^[a-z]$/i.test(key) ? key.toLowerCase() === "v" : code === "KeyV";
  return isV && (IS_MAC ? ctrlKey !== metaKey : ctrlKey && !metaKey);
}

/** The keys of the desktop that paste as this one does here. */
function chordOf({ code, key, shiftKey }) {
  return [...(key === "Insert" ? [] : ["ControlLeft"]), ...(shiftKey ? ["ShiftLeft"] : []), code];
}
