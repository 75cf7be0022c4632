// What the site's staff said last to everybody at the desktop.

import { t } from "./i18n.js";

const byId = (id) => document.getElementById(id);

export class StaffMessage {
  #words = "";
  #closed = ""; // what was said and hidden

  constructor() {
    byId("staff-message-close").addEventListener("click", () => {
      this.#closed = this.#words;
      this.#show();
    });
  }

  /** Take a status that is new. */
  take({ staff_message: message }) {
    this.#words = message ? t("From the administrators ({name}): {text}", { name: message.by, text: message.text }) : "";
    this.#show();
  }

  #show() {
    byId("staff-message").hidden = !this.#words || this.#words === this.#closed;
    const text = byId("staff-message-text");
    // Set again, the same text would be read aloud again.
    if (text.textContent !== this.#words) {
      text.textContent = this.#words;
    }
  }
}
