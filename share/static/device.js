// The clipboard of the device that the page is shown on, as far as the browser lets the page at it.

export const IS_MAC = /mac/i.test(navigator.platform);

/** Event `change`: `permission` has changed. */
export class DeviceClipboard extends EventTarget {
  // Whether it may be read without a key press: "granted", "prompt", "denied", or "never" where the browser
  // would ask each time (Firefox, Safari) or the page was not opened by https.
  #permission = "never";
  #unwritten = null; // a text that the browser wants to see a key pressed for

  constructor() {
    super();
    this.#watch();
    for (const gesture of ["keydown", "pointerdown", "touchend"]) {
      window.addEventListener(gesture, () => this.#writeAgain(), { capture: true });
    }
  }

  get permission() {
    return this.#permission;
  }

  get canWrite() {
    return Boolean(navigator.clipboard?.writeText);
  }

  async #watch() {
    try {
      const status = await navigator.permissions.query({ name: "clipboard-read" });
      const take = () => {
        this.#permission = navigator.clipboard ? status.state : "never";
        this.dispatchEvent(new Event("change"));
      };
      status.addEventListener("change", take);
      take();
    } catch {
      // The browser has no such permission.
    }
  }

  /** Its text; null where the browser does not tell. With permission "prompt" or "never" it asks first. */
  async read() {
    try {
      return await navigator.clipboard.readText();
    } catch {
      return null;
    }
  }

  /** Put a text there, now or at the next key; whether it was now. */
  async write(text) {
    this.#unwritten = null;
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      this.#unwritten = text;
      return false;
    }
  }

  #writeAgain() {
    const text = this.#unwritten;
    this.#unwritten = null;
    if (text !== null) {
      navigator.clipboard?.writeText(text).catch(() => {});
    }
  }
}
