// How the start script of a new desktop went, and what it wrote.

import { t } from "./i18n.js";

const byId = (id) => document.getElementById(id);

export class Script {
  #api;
  #state = ""; // as the status has it

  constructor({ api }) {
    this.#api = api;
    byId("script-menu").addEventListener("open", () => this.#load());
  }

  /** Take a status that is new. */
  take(status) {
    byId("script").hidden = !status.script || status.you.role !== "owner";
    if (status.script !== this.#state) {
      this.#state = status.script;
      if (!byId("script-menu").hidden) {
        this.#load();
      }
    }
  }

  async #load() {
    try {
      this.#show(await this.#api.script());
    } catch (error) {
      byId("script-end").textContent = error.words ?? String(error);
    }
  }

  #show({ state, code, output }) {
    const words = {
      running: t("It is running."),
      done: t("It is done."),
      interrupted: t("It was interrupted, as the machine booted anew."),
      failed: code === null ? t("It could not be carried out.") : t("It failed with exit code {code}.", { code }),
    };
    byId("script-end").textContent = words[state];
    // What the desktop says is text, whatever it looks like.
    byId("script-output").textContent = output;
    byId("script-output").hidden = !output;
  }
}
