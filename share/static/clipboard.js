// The clipboard: a panel that always works, and sharing by itself where the browser allows it.

import { toast } from "./notice.js";
import { remember, remembered } from "./settings.js";

// The relay passes no longer text on.
const MAX_BYTES = 200 * 1024;
const MAX_TYPED = 2000;

const byId = (id) => document.getElementById(id);

export class Clipboard {
  #desktop;
  #last = ""; // what both sides have
  #canShare = Boolean(navigator.clipboard?.readText);

  constructor(desktop) {
    this.#desktop = desktop;
    byId("clipboard-send").addEventListener("click", () => this.#send(byId("clipboard-text").value));
    byId("clipboard-type").addEventListener("click", () => this.#type(byId("clipboard-text").value));
    byId("clipboard-take").addEventListener("click", () => this.#take());
    const auto = byId("clipboard-auto");
    auto.checked = this.#canShare && remembered("clipboard") === "auto";
    auto.disabled = !this.#canShare;
    auto.addEventListener("change", () => this.#setAuto(auto));
    byId("clipboard-hint").textContent = this.#canShare ? "" : "This browser shares no clipboard with this page.";
    desktop.addEventListener("clipboard", ({ detail }) => this.#onGuestText(detail));
    window.addEventListener("focus", () => this.#share());
    byId("screen").addEventListener("focusin", () => this.#share());
  }

  async #onGuestText(text) {
    this.#last = text;
    byId("clipboard-text").value = text;
    if (byId("clipboard-auto").checked && document.hasFocus()) {
      // Refused without focus or permission: the panel has the text then.
      await navigator.clipboard.writeText(text).catch(() => {});
    }
  }

  /** Hand this device's clipboard to the desktop if it is new. */
  async #share() {
    if (!byId("clipboard-auto").checked || !this.#desktop.isConnected || this.#desktop.isViewOnly) {
      return;
    }
    const text = await navigator.clipboard.readText().catch(() => "");
    if (text && text !== this.#last) {
      this.#send(text, { quietly: true });
    }
  }

  async #setAuto(auto) {
    if (auto.checked) {
      // The browser asks now, while it is clear why.
      const isAllowed = await navigator.clipboard.readText().then(() => true, () => false);
      if (!isAllowed) {
        auto.checked = false;
        toast("The browser does not allow this page to read the clipboard.");
      }
    }
    remember("clipboard", auto.checked ? "auto" : "");
  }

  #send(text, { quietly = false } = {}) {
    if (!this.#desktop.isConnected) {
      return;
    }
    if (new TextEncoder().encode(text).length > MAX_BYTES) {
      toast(`The text is too long for the clipboard: at most ${MAX_BYTES / 1024} KiB.`);
      return;
    }
    this.#last = text;
    byId("clipboard-text").value = text;
    this.#desktop.paste(text);
    if (!quietly) {
      toast("Copied. Paste it in the desktop.");
    }
  }

  async #type(text) {
    if (!this.#desktop.isConnected) {
      return;
    }
    if (text.length > MAX_TYPED) {
      toast(`The text is too long to be typed: at most ${MAX_TYPED} characters.`);
      return;
    }
    this.#desktop.focus();
    const missing = await this.#desktop.type(text);
    if (missing) {
      toast(`Left out: ${missing} characters that the desktop’s keyboard does not have.`);
    }
  }

  async #take() {
    const area = byId("clipboard-text");
    try {
      await navigator.clipboard.writeText(area.value);
    } catch {
      area.select();
      toast("Press Ctrl+C to copy the selected text.");
      return;
    }
    toast("Copied to this device.");
  }
}
