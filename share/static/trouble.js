// What is wrong with the desktop, and what can be done: a full disk, a crashed system, silence.

import { t } from "./i18n.js";
import { confirmAction, toast } from "./notice.js";

const byId = (id) => document.getElementById(id);

const LABELS = { retry: t("Try again now"), extend: t("Allow it more room"), reset: t("Restart the machine") };

/** A strip above the desktop that cannot be hidden: what it says goes on until something is done. */
export class Trouble {
  #api;
  #onPower;
  #onStatus;
  #strip = document.createElement("div");
  #text = document.createElement("p");
  #buttons = document.createElement("div");
  #shown = ""; // which buttons

  constructor({ api, onPower, onStatus }) {
    this.#api = api;
    this.#onPower = onPower;
    this.#onStatus = onStatus;
    this.#strip.id = "trouble";
    this.#strip.role = "alert";
    this.#strip.hidden = true;
    this.#buttons.className = "actions";
    this.#strip.append(this.#text, this.#buttons);
    byId("banner").after(this.#strip);
  }

  /** Take a status that is new. */
  take({ trouble, message, hint, you }) {
    const words = trouble ? `${message} ${hint}`.trim() : "";
    // Set again, the same text would be read aloud again.
    if (this.#text.textContent !== words) {
      this.#text.textContent = words;
    }
    this.#strip.hidden = !trouble;
    const mayAct = you.role === "owner" || you.role === "control";
    const acts = trouble && mayAct ? [...trouble.acts] : [];
    if (trouble && you.role === "owner") {
      acts.push("stop");
    }
    // Made again, a button would lose the focus.
    if (this.#shown !== acts.join()) {
      this.#shown = acts.join();
      this.#buttons.replaceChildren(...acts.map((act) => this.#makeButton(act)));
    }
  }

  #makeButton(act) {
    const button = document.createElement("button");
    button.type = "button";
    if (act === "stop") {
      button.className = "quiet";
      button.textContent = t("Stop the desktop");
      button.addEventListener("click", () => this.#onPower("poweroff"));
    } else {
      button.textContent = LABELS[act];
      button.addEventListener("click", () => this.#do(act));
    }
    return button;
  }

  async #do(act) {
    if (act === "reset" && !(await this.#isMeant())) {
      return;
    }
    try {
      this.#onStatus(await this.#api.actOnTrouble(act));
    } catch (error) {
      toast(error.words ?? String(error));
    }
  }

  #isMeant() {
    return confirmAction({
      title: t("Restart the machine?"),
      text: t("It starts anew, as by the button on its case. What is not saved in it is lost."),
      label: t("Restart"),
      isDangerous: true,
    });
  }
}
