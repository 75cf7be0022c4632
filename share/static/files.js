// The menu of files: what lies in the user's home on the desktop, and what is dropped onto the page.

import { moment, plural, t } from "./i18n.js";
import { askText, toast } from "./notice.js";
import { remember, remembered } from "./settings.js";
import { Uploads } from "./uploads.js";
import { describeSize } from "./words.js";

const byId = (id) => document.getElementById(id);

const ROLES = ["waiting", "view", "control", "owner"];
const MAX_NAME = 255;

export class Files {
  #api;
  #policy;
  #uploads;
  #mayLook = false;
  #maySend = false;
  #shown = null; // the folder, as the session told it last
  #loads = 0; // how many were asked for

  constructor({ api, config }) {
    this.#api = api;
    this.#policy = config.files;
    this.#uploads = new Uploads({ api, prefix: config.prefix, onDone: () => this.#onUploaded() });
    byId("files-menu").addEventListener("open", () => this.#load(this.#shown?.path ?? ""));
    byId("files-upload").addEventListener("click", () => byId("files-input").click());
    byId("files-input").addEventListener("change", ({ target }) => {
      this.#send([...target.files]);
      // Or the same file could not be chosen again.
      target.value = "";
    });
    byId("files-new-folder").addEventListener("click", () => this.#makeFolder());
    byId("files-hidden").checked = remembered("hidden", [true, false]) ?? false;
    byId("files-hidden").addEventListener("change", ({ target }) => {
      remember("hidden", target.checked);
      this.#show();
    });
    for (const type of ["dragenter", "dragover"]) {
      window.addEventListener(type, (event) => this.#onDrag(event));
    }
    window.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) {
        byId("drop").hidden = true;
      }
    });
    window.addEventListener("drop", (event) => this.#onDrop(event));
  }

  /** What somebody in this role may do is offered. */
  set role(role) {
    const may = (least) => this.#policy.has_home && least !== "nobody" && ROLES.indexOf(role) >= ROLES.indexOf(least);
    this.#mayLook = may(this.#policy.out);
    this.#maySend = may(this.#policy.in);
    byId("files").hidden = !this.#mayLook && !this.#maySend;
    byId("files-actions").hidden = !this.#maySend;
    byId("files-new-folder").hidden = !this.#mayLook;
    byId("files-path").hidden = byId("files-show-hidden").hidden = !this.#mayLook;
  }

  /** Where uploads go: null, which is the desktop, while no folder is shown. */
  get #folder() {
    return this.#shown?.path ?? null;
  }

  get #folderName() {
    return this.#shown ? ["~", ...this.#shown.folders.map(({ name }) => name)].join("/") : t("the desktop");
  }

  // Looking

  async #load(path, { focus = null } = {}) {
    if (!this.#mayLook) {
      this.#note(t("Files of this desktop cannot be looked at by you, only sent to it."));
      return;
    }
    this.#loads += 1;
    const load = this.#loads;
    if (path !== this.#shown?.path) {
      this.#note(t("Looking…"));
    }
    try {
      const shown = await this.#api.files(path);
      if (load !== this.#loads) {
        return; // somebody has gone on
      }
      this.#shown = shown;
      this.#note("");
      this.#show();
      focus?.();
    } catch (error) {
      if (load === this.#loads) {
        this.#note(error.words ?? String(error), { isBad: true });
        if (error.status === 404 && path) {
          this.#shown = null;
        }
      }
    }
  }

  #note(text, { isBad = false } = {}) {
    byId("files-note").textContent = text;
    byId("files-note").classList.toggle("bad", isBad);
  }

  #show() {
    if (!this.#shown) {
      return;
    }
    const { folders, entries, is_whole } = this.#shown;
    const focused = byId("files-menu").contains(document.activeElement) ? document.activeElement.dataset.path : undefined;
    const crumbs = [{ name: t("Home"), path: "" }, ...folders].map((folder, at, all) => this.#crumb(folder, at === all.length - 1));
    byId("files-path").replaceChildren(...crumbs);
    const isShown = ({ name }) => byId("files-hidden").checked || !name.startsWith(".");
    const rows = entries.filter(isShown).map((entry) => this.#row(entry));
    byId("files-list").replaceChildren(...rows);
    byId("files-list").hidden = rows.length === 0;
    // What had the keyboard has been made anew.
    [...byId("files-menu").querySelectorAll("[data-path]")].find(({ dataset }) => dataset.path === focused)?.focus();
    if (!is_whole) {
      this.#note(plural(entries.length, "Only {count} entry of this folder is shown.", "Only {count} entries of this folder are shown."));
    } else if (rows.length === 0) {
      this.#note(entries.length ? t("Only hidden files are here.") : t("This folder is empty."));
    }
  }

  #crumb({ name, path }, isLast) {
    const button = element("button", "crumb", name);
    button.type = "button";
    button.dataset.path = path;
    if (isLast) {
      button.setAttribute("aria-current", "location");
    }
    button.addEventListener("click", () => this.#load(path, { focus: focusPath }));
    return button;
  }

  #row(entry) {
    const row = document.createElement("li");
    const isTooLarge = entry.kind === "file" && entry.size_bytes > this.#policy.max_mib * 1024 ** 2;
    const item = this.#item(entry, isTooLarge);
    item.classList.add("item");
    item.dataset.path = entry.path;
    const icon = byId(entry.kind === "folder" ? "folder-icon" : "file-icon").content.cloneNode(true);
    const about = entry.kind === "folder" ? "" : entry.kind === "file" ? describeSize(entry.size_bytes) : t("no plain file");
    // Names may be written from right to left, and shall not turn what stands beside them.
    const name = element("bdi", "file-name", entry.name);
    item.append(icon, name, element("span", "facts", isTooLarge ? t("{size}, too large", { size: about }) : about));
    item.title = `${entry.name}\n${moment(entry.modified * 1000)}`;
    row.append(item);
    return row;
  }

  #item({ kind, path }, isTooLarge) {
    if (kind === "folder") {
      const button = document.createElement("button");
      button.type = "button";
      button.addEventListener("click", () => this.#load(path, { focus: focusPath }));
      return button;
    }
    const link = document.createElement("a");
    if (kind === "file" && !isTooLarge) {
      link.href = this.#api.fileUrl(path);
      link.download = "";
    } else {
      link.setAttribute("aria-disabled", "true");
    }
    return link;
  }

  async #makeFolder() {
    const name = await askText({
      title: t("New folder"),
      text: t("It is made in {folder}.", { folder: this.#folderName }),
      field: t("Name"),
      label: t("Make"),
      rule: t("Any name without “/”."),
      pattern: /^[^/]+$/,
      maxLength: MAX_NAME,
    });
    if (name === null || !this.#shown) {
      return;
    }
    try {
      await this.#api.makeFolder(this.#shown.path, name);
    } catch (error) {
      this.#note(error.words ?? String(error), { isBad: true });
      return;
    }
    await this.#load(this.#shown.path);
    this.#note(t("The folder “{name}” is made.", { name }));
  }

  // Sending

  #send(files) {
    if (files.length) {
      this.#uploads.add(files, { folder: this.#folder, folderName: this.#folderName });
    }
  }

  #onUploaded() {
    if (!byId("files-menu").hidden) {
      this.#load(this.#shown?.path ?? "");
    }
  }

  #onDrag(event) {
    if (!event.dataTransfer.types.includes("Files")) {
      return;
    }
    // Without this the browser would leave the page and show the file.
    event.preventDefault();
    const isWelcome = this.#maySend && document.body.dataset.phase === "connected";
    event.dataTransfer.dropEffect = isWelcome ? "copy" : "none";
    byId("drop").hidden = !isWelcome;
    byId("drop-text").textContent = this.#shown ? t("Drop to upload to {folder}", { folder: this.#folderName }) : t("Drop to upload to the desktop");
  }

  #onDrop(event) {
    if (!event.dataTransfer.types.includes("Files")) {
      return;
    }
    event.preventDefault();
    const isWelcome = !byId("drop").hidden;
    byId("drop").hidden = true;
    if (!isWelcome) {
      return;
    }
    const items = [...event.dataTransfer.items].filter(({ kind }) => kind === "file");
    const files = items.filter((item) => !item.webkitGetAsEntry?.()?.isDirectory).map((item) => item.getAsFile());
    if (files.length < items.length) {
      toast(t("Folders cannot be uploaded: drop the files that are in them, or a zip file."));
    }
    this.#send(files);
  }
}

function focusPath() {
  byId("files-path").lastElementChild?.focus();
}

function element(name, className, text) {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}
