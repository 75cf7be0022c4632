// What the site's staff said last to everybody at the desktop.

import { t } from "./i18n.js";

const byId = (id) => document.getElementById(id);

export class StaffMessage {
  #words = "";
  #number = null;
  #closed = null; // the number of what was said and hidden

  constructor() {
    byId("staff-message-close").addEventListener("click", () => {
      this.#closed = this.#number;
      this.#show();
    });
  }

  /** Take a status that is new. */
  take({ staff_message: message }) {
    const isNew = this.#number !== (message?.number ?? null);
    this.#number = message?.number ?? null;
    this.#words = message ? t("From the administrators ({name}): {text}", { name: message.by, text: message.text }) : "";
    // Set again, the same text is read aloud again.
    if (isNew) {
      byId("staff-message-text").textContent = this.#words;
    }
    this.#show();
  }

  #show() {
    byId("staff-message").hidden = !this.#words || this.#number === this.#closed;
  }
}
