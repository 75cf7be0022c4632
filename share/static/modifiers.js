// Ctrl, Alt, Shift and Super by buttons: held until they are pressed again, or just for the next key.

/** Buttons with `data-hold` hold a key, those with `data-latch` press it for the next key, and twice hold it. */
export class Modifiers {
  #desktop;
  #states = new Map(); // code -> "latched" or "held"

  constructor(desktop) {
    this.#desktop = desktop;
    for (const button of document.querySelectorAll("[data-hold]")) {
      button.addEventListener("click", () => this.#set(button.dataset.hold, this.#states.has(button.dataset.hold) ? null : "held"));
    }
    for (const button of document.querySelectorAll("[data-latch]")) {
      button.addEventListener("click", () => {
        const next = { latched: "held", held: null }[this.#states.get(button.dataset.latch)];
        this.#set(button.dataset.latch, next === undefined ? "latched" : next);
      });
    }
    desktop.addEventListener("used", () => this.#release());
    desktop.addEventListener("close", () => {
      this.#states.clear();
      this.#show();
    });
  }

  #set(code, state) {
    if (!this.#desktop.isConnected) {
      return;
    }
    if (Boolean(state) !== this.#states.has(code)) {
      this.#desktop.hold(code, Boolean(state));
    }
    if (state) {
      this.#states.set(code, state);
    } else {
      this.#states.delete(code);
    }
    this.#show();
  }

  /** The next key was pressed. */
  #release() {
    for (const [code, state] of this.#states) {
      if (state === "latched") {
        this.#set(code, null);
      }
    }
  }

  #show() {
    for (const button of document.querySelectorAll("[data-hold], [data-latch]")) {
      const state = this.#states.get(button.dataset.hold ?? button.dataset.latch);
      button.setAttribute("aria-pressed", String(Boolean(state)));
      button.classList.toggle("held", state === "held");
    }
  }
}
