// More time than extending gains: asking the site's staff for it, and their answer.

import { describeSpan } from "./words.js";
import { askText, toast } from "./notice.js";

const byId = (id) => document.getElementById(id);
const MAX_TEXT = 300;

export class Extension {
  #api;
  #onStatus;
  #status = null;
  #closed = ""; // what was said and hidden

  /** `onStatus` takes the status with which the session answers. */
  constructor({ api, onStatus }) {
    this.#api = api;
    this.#onStatus = onStatus;
    byId("more-time-grant").addEventListener("click", () => this.#answer(this.#status.extension.seconds));
    byId("more-time-refuse").addEventListener("click", () => this.#answer(false));
    byId("more-time-close").addEventListener("click", () => {
      this.#closed = this.#words();
      this.#show();
    });
  }

  /** Whether somebody waits for an answer. */
  get isWaiting() {
    return Boolean(this.#status?.extension) && !this.#status.extension.answer;
  }

  /** Take a status that is new. */
  take(status) {
    this.#status = status;
    this.#show();
  }

  async ask() {
    const reason = await askText({
      title: "Ask for more time",
      text: "This desktop has reached its longest lifetime. The site’s staff can grant more.",
      field: "What do you need it for?",
      label: "Ask",
      rule: "They see your name and this sentence.",
      pattern: /\S/,
      maxLength: MAX_TEXT,
    });
    if (reason !== null) {
      await this.#act(() => this.#api.extend(reason));
    }
  }

  async #answer(grant) {
    const comment = await askText({
      title: grant ? `Grant ${describeSpan(grant)} more?` : "Refuse more time?",
      text: this.#words(),
      field: "A word to them, if you like",
      label: grant ? "Grant" : "Refuse",
      maxLength: MAX_TEXT,
    });
    if (comment !== null) {
      await this.#act(() => this.#api.answerExtension(grant, comment));
    }
  }

  async #act(request) {
    try {
      this.#onStatus(await request());
    } catch (error) {
      toast(error.words ?? String(error));
    }
  }

  #words() {
    const extension = this.#status?.extension;
    if (!extension) {
      return "";
    }
    const { by, reason, seconds, answer, answered_by: staff, granted_s: granted_s, comment } = extension;
    const words = {
      "": `${by} asks the site’s staff for ${describeSpan(seconds)} more: ${reason}`,
      granted: `${staff} has granted ${describeSpan(granted_s)} more.`,
      refused: `${staff} has refused more time.`,
    }[answer];
    return answer && comment ? `${words} ${comment}` : words;
  }

  #show() {
    const words = this.#words();
    const mayAnswer = this.isWaiting && this.#status.you.staff;
    byId("more-time").hidden = !words || (words === this.#closed && !mayAnswer);
    const text = byId("more-time-text");
    // Set again, the same text would be read aloud again.
    if (text.textContent !== words) {
      text.textContent = words;
    }
    byId("more-time-grant").hidden = byId("more-time-refuse").hidden = !mayAnswer;
    byId("more-time-close").hidden = mayAnswer;
  }
}
