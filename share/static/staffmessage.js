// What the site's staff said last to everybody at the desktop.

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
    this.#words = message ? `From the administrators (${message.by}): ${message.text}` : "";
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
