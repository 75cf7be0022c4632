// The keyboard layout of the guest: what it has, what this person's own probably is, and setting it.

import { t } from "./i18n.js";
import { LAYOUTS, guessByLanguage, matchLayout } from "./layouts.js";
import { remember, remembered } from "./settings.js";

const byId = (id) => document.getElementById(id);

const NAMES = {
  us: t("English (US)"),
  gb: t("English (UK)"),
  de: t("German"),
  fr: t("French"),
  es: t("Spanish"),
  ch: t("German (Switzerland)"),
  "ch-fr": t("French (Switzerland)"),
};

export class Keyboard {
  #api;
  #desktop;
  #onStatus;
  #status = null;
  #chosen = remembered("keyboard", LAYOUTS) ?? "";
  #guess = { layout: guessByLanguage(navigator.language), isSure: false };
  #isOffered = false; // of itself, once a page
  #obstacle = "";
  #ready; // when the browser has told what it knows

  /** `config.keyboard` was chosen before the start; `onStatus` takes the status with which the session answers. */
  constructor({ api, config, desktop, onStatus }) {
    this.#api = api;
    this.#isOffered = !!config.keyboard;
    this.#desktop = desktop;
    this.#onStatus = onStatus;
    const select = byId("keyboard-layout");
    for (const layout of LAYOUTS) {
      select.add(new Option(NAMES[layout], layout));
    }
    select.addEventListener("change", () => this.#choose(select.value));
    this.#ready = this.#look();
  }

  /** Ask the browser, where it tells. */
  async #look() {
    const map = await navigator.keyboard?.getLayoutMap?.().catch(() => null);
    const layout = map && matchLayout(map);
    if (layout) {
      this.#guess = { layout, isSure: true };
    }
  }

  /** Take a status that is new. */
  take(status) {
    this.#status = status;
    this.#desktop.layout = status.keyboard || "us";
    this.#show();
    if (status.state === "running") {
      this.#offer();
    }
  }

  /** Have the owner's layout when the desktop is there, if it is sure which one that is. */
  async #offer() {
    if (this.#isOffered || this.#status.you.role !== "owner") {
      return;
    }
    this.#isOffered = true;
    await this.#ready;
    this.#show();
    const wanted = this.#chosen || (this.#guess.isSure ? this.#guess.layout : "");
    if (wanted && wanted !== this.#status.keyboard) {
      await this.#set(wanted);
    }
  }

  async #choose(layout) {
    this.#chosen = layout;
    remember("keyboard", layout || undefined);
    if (layout) {
      await this.#set(layout);
    }
    this.#show();
  }

  async #set(layout) {
    try {
      this.#obstacle = "";
      this.#onStatus(await this.#api.setKeyboard(layout));
    } catch (error) {
      this.#obstacle = error.words ?? String(error);
      this.#show();
    }
  }

  #show() {
    const { keyboard } = this.#status;
    const select = byId("keyboard-layout");
    if (document.activeElement !== select) {
      select.value = keyboard || (this.#obstacle ? "" : this.#chosen);
    }
    const guess = NAMES[this.#guess.layout];
    let has = t("The desktop has a layout of its own.");
    if (keyboard) {
      has = t("The desktop has: {layout}.", { layout: NAMES[keyboard] ?? keyboard });
    } else if (guess) {
      has += ` ${t("Yours may be: {layout}.", { layout: guess })}`;
    }
    byId("keyboard-hint").textContent = this.#obstacle || has;
  }
}
