// More time than extending gains: asking the site's staff for it, and their answer.

import { t } from "./i18n.js";
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
      title: t("Ask for more time"),
      text: t("This desktop has reached its longest lifetime. The site’s staff can grant more."),
      field: t("What do you need it for?"),
      label: t("Ask"),
      rule: t("They see your name and this sentence."),
      pattern: /\S/,
      maxLength: MAX_TEXT,
    });
    if (reason !== null) {
      await this.#act(() => this.#api.extend(reason));
    }
  }

  async #answer(grant) {
    const comment = await askText({
      title: grant ? t("Grant {span} more?", { span: describeSpan(grant) }) : t("Refuse more time?"),
      text: this.#words(),
      field: t("A word to them, if you like"),
      label: grant ? t("Grant") : t("Refuse"),
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
      "": t("{name} asks the site’s staff for {span} more: {reason}", { name: by, span: describeSpan(seconds), reason }),
      granted: t("{name} has granted {span} more.", { name: staff, span: describeSpan(granted_s) }),
      refused: t("{name} has refused more time.", { name: staff }),
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
