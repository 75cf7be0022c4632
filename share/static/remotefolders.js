// The menu of folders of servers: mounted with an account there, which only the session is told.

import { t } from "./i18n.js";
import { toast } from "./notice.js";

const byId = (id) => document.getElementById(id);

export class RemoteFolders {
  #api;
  #onStatus;
  #folders = []; // as the status has them
  #asked = ""; // the folder that the form is for
  #busy = ""; // the folder that this page waits for

  /** `onStatus` takes the status with which the session answers. */
  constructor({ api, onStatus }) {
    this.#api = api;
    this.#onStatus = onStatus;
    byId("remote-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#connect(this.#asked, { account: byId("remote-account").value.trim(), password: byId("remote-password").value });
    });
    byId("remote-cancel").addEventListener("click", () => this.#close());
  }

  /** Take a status that is new. */
  take({ remote_folders: folders = [], you }) {
    const news = folders.filter(({ name, problem }) => problem && problem !== this.#find(name)?.problem);
    const isFirst = this.#folders.length === 0;
    this.#folders = folders;
    this.#show();
    // What this page waits for is said where it was asked for.
    if (you.role === "owner" && !isFirst && byId("remote-menu").hidden) {
      news.filter(({ name }) => name !== this.#busy).forEach(({ problem }) => toast(problem));
    }
  }

  #find(name) {
    return this.#folders.find((folder) => folder.name === name);
  }

  #show() {
    // Made again, a button would lose the focus.
    const shown = JSON.stringify([this.#folders, this.#busy]);
    const list = byId("remote-list");
    if (list.dataset.shown === shown) {
      return;
    }
    const focused = document.activeElement?.dataset.folder;
    list.dataset.shown = shown;
    list.replaceChildren(...this.#folders.map((folder) => this.#row(folder)));
    if (focused) {
      [...list.querySelectorAll("button")].find(({ dataset }) => dataset.folder === focused)?.focus();
    }
  }

  #row(folder) {
    const { name, server, mount, read_only: isReadOnly, state, problem } = folder;
    const row = document.createElement("li");
    const about = document.createElement("div");
    about.className = "about";
    const where = isReadOnly ? t("{mount}, read only, from {server}", { mount, server }) : t("{mount}, from {server}", { mount, server });
    about.append(line("title", name), line("facts", where));
    if (problem) {
      about.append(line("facts bad", problem));
    }
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet";
    button.dataset.folder = name;
    const isWaiting = state === "connecting" || this.#busy === name;
    // Not `disabled`, which takes the focus away.
    button.setAttribute("aria-disabled", String(isWaiting));
    if (isWaiting) {
      button.textContent = t("Connecting…");
    } else if (state === "connected") {
      button.textContent = t("Disconnect");
    } else {
      button.textContent = problem ? t("Try again") : t("Connect");
    }
    button.setAttribute("aria-label", t("{action}: {name}", { action: button.textContent, name }));
    button.addEventListener("click", () => {
      if (!isWaiting) {
        this.#press(folder);
      }
    });
    row.append(about, button);
    return row;
  }

  #press({ name, server, state, asks }) {
    if (state === "connected") {
      this.#act(name, () => this.#api.disconnectFolder(name));
    } else if (asks) {
      this.#asked = name;
      byId("remote-who").textContent = t("Your account on {server}, for {name}", { server, name });
      byId("remote-form").hidden = false;
      this.#note("");
      byId(byId("remote-account").value ? "remote-password" : "remote-account").focus();
    } else {
      this.#connect(name, {});
    }
  }

  async #connect(name, login) {
    if (await this.#act(name, () => this.#api.connectFolder(name, login))) {
      this.#close();
    }
  }

  /** Ask the session for something; whether it was done. */
  async #act(name, request) {
    if (this.#busy) {
      return false;
    }
    this.#busy = name;
    this.#note("");
    this.#show();
    try {
      this.#onStatus(await request());
      return true;
    } catch (error) {
      this.#note(error.words ?? String(error));
      return false;
    } finally {
      this.#busy = "";
      this.#show();
    }
  }

  #close() {
    byId("remote-form").hidden = true;
    // No longer there than it is needed.
    byId("remote-password").value = "";
    [...byId("remote-list").querySelectorAll("button")].find(({ dataset }) => dataset.folder === this.#asked)?.focus();
  }

  #note(text) {
    byId("remote-note").textContent = text;
  }
}

function line(className, text) {
  const made = document.createElement("p");
  made.className = className;
  made.textContent = text;
  return made;
}
