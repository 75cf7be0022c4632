// Uploads, one after the other, by the tus protocol: after a lost connection they go on where they were.

import { ApiError } from "./api.js";
import { plural, t } from "./i18n.js";
import { toast } from "./notice.js";
import { describeSize } from "./words.js";

const byId = (id) => document.getElementById(id);

// A part takes about this long: often enough to show how it goes, seldom enough to cost nothing.
const PART_MS = 1000;
const SMALLEST_PART = 512 * 1024;
// The session reads no longer part that it refuses.
const LARGEST_PART = 16 * 1024 ** 2;
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 10_000;
// How often the session may say something else than before without any progress.
const MOST_SURPRISES = 3;
const STORED = "qemuspawner.uploads";

export class Uploads {
  #api;
  #prefix;
  #onDone;
  #all = [];
  #isRunning = false;
  #takenForAll = null;
  #part = SMALLEST_PART;
  #largestPart = LARGEST_PART;

  /** `onDone` is called after each file that has arrived. */
  constructor({ api, prefix, onDone }) {
    this.#api = api;
    this.#prefix = prefix;
    this.#onDone = onDone;
    byId("uploads-close").addEventListener("click", () => this.#hide());
  }

  /** Upload `files` to `folder`, a percent-encoded path, or null for the desktop. */
  add(files, { folder, folderName }) {
    for (const file of files) {
      const upload = { file, folder, folderName, abort: new AbortController(), url: null, sent: 0, state: "waiting" };
      upload.row = this.#makeRow(upload);
      this.#all.push(upload);
      byId("uploads-list").append(upload.row.item);
    }
    byId("uploads").hidden = false;
    toast(sayUploading(files, folder, folderName));
    this.#showTitle();
    if (!this.#isRunning) {
      this.#run();
    }
  }

  async #run() {
    this.#isRunning = true;
    this.#takenForAll = null;
    const done = [];
    for (let next; (next = this.#all.find(({ state }) => state === "waiting")); ) {
      await this.#upload(next);
      if (next.state === "done") {
        done.push(next);
        this.#onDone();
      }
    }
    this.#isRunning = false;
    if (done.length) {
      toast(sayUploaded(done));
    }
  }

  /** Until it is done, failed or stopped; a connection that is lost is waited for. */
  async #upload(upload) {
    this.#set(upload, "running", t("Starting"));
    upload.url = this.#recall(upload);
    let wait_ms = FIRST_WAIT_MS;
    let surprises = 0;
    for (;;) {
      const before = upload.sent;
      try {
        if (!(await this.#begin(upload))) {
          return;
        }
        await this.#sendParts(upload);
        this.#forget(upload);
        this.#set(upload, "done", t("Done, {size}", { size: describeSize(upload.file.size) }));
        return;
      } catch (error) {
        if (upload.abort.signal.aborted) {
          await this.#giveUp(upload);
          return;
        }
        if (!(error instanceof ApiError)) {
          // Such as a file that was changed or deleted on this device.
          this.#fail(upload, t("The file cannot be read: {reason}", { reason: error.message }));
          return;
        }
        surprises = upload.sent > before ? 0 : surprises + 1;
        if (!this.#settle(upload, error) || (!isAway(error) && surprises > MOST_SURPRISES)) {
          // An answer to HEAD has no words.
          this.#fail(upload, error.message || error.status !== 403 ? error.words : t("You may not upload here any more."));
          return;
        }
        if (document.body.dataset.phase === "over") {
          this.#fail(upload, t("The desktop has left. Choose the file again when it is back: it goes on where it was."));
          return;
        }
        wait_ms = upload.sent > before ? FIRST_WAIT_MS : Math.min(LONGEST_WAIT_MS, wait_ms * 2);
        if (isAway(error)) {
          this.#set(upload, "running", t("Waiting for the connection"));
        }
        await pause(wait_ms, upload.abort.signal);
      }
    }
  }

  /** Whether it is worth another try; what is known of the upload is changed so that it may succeed. */
  #settle(upload, error) {
    if (error.status === 404 || error.status === 410) {
      // Gone from the desktop, such as by going back to a checkpoint: from the beginning, once.
      const isNew = upload.url !== null;
      this.#forget(upload);
      upload.sent = 0;
      return isNew;
    }
    if (error.status === 413 && !error.message && this.#largestPart > SMALLEST_PART) {
      // A proxy in between takes no such large parts.
      this.#largestPart = this.#part = SMALLEST_PART;
      return true;
    }
    return isAway(error) || error.status === 429 || (error.status === 409 && upload.url !== null);
  }

  /** Whether the upload may go on, as its name is free or somebody has said what to do. */
  async #begin(upload) {
    if (upload.url) {
      upload.sent = await this.#api.uploadOffset(upload.url, upload.abort.signal);
      return true;
    }
    let taken = this.#takenForAll ?? "refuse";
    for (;;) {
      if (taken === "skip") {
        this.#set(upload, "stopped", t("Skipped"));
        return false;
      }
      try {
        upload.url = await this.#api.beginUpload(upload.file.size, metadataOf(upload, taken));
        this.#store(upload);
        upload.sent = 0;
        return true;
      } catch (error) {
        if (error.status !== 409 || taken !== "refuse") {
          throw error;
        }
        taken = await this.#askWhatToDo(upload);
      }
    }
  }

  async #sendParts(upload) {
    let rate = 0;
    while (upload.sent < upload.file.size) {
      const part = upload.file.slice(upload.sent, upload.sent + this.#part);
      const began = performance.now();
      // Read now: what fails from here on is the connection.
      const bytes = await part.arrayBuffer();
      const sent = await this.#api.sendPart(upload.url, upload.sent, bytes, upload.abort.signal);
      const took_ms = performance.now() - began;
      const now = ((sent - upload.sent) * 1000) / took_ms;
      rate = rate ? rate * 0.7 + now * 0.3 : now;
      upload.sent = sent;
      this.#part = Math.round(Math.min(this.#largestPart, Math.max(SMALLEST_PART, (rate * PART_MS) / 1000)));
      const [done, size, speed] = [sent, upload.file.size, Math.round(rate)].map(describeSize);
      this.#set(upload, "running", t("{done} of {size}, {speed}/s", { done, size, speed }));
    }
  }

  async #giveUp(upload) {
    const url = upload.url;
    this.#forget(upload);
    this.#set(upload, "stopped", t("Cancelled"));
    if (url) {
      // What is left in the desktop otherwise is hidden, and deleted after a week.
      await this.#api.giveUpUpload(url).catch(() => {});
    }
  }

  #fail(upload, words) {
    this.#set(upload, "failed", words);
    toast(`${t("“{name}” was not uploaded.", { name: upload.file.name })} ${words}`);
  }

  #askWhatToDo(upload) {
    const dialog = byId("taken");
    byId("taken-title").textContent = t("“{name}” exists already", { name: upload.file.name });
    byId("taken-all").checked = false;
    byId("taken-for-all").hidden = !this.#all.some(({ state }) => state === "waiting");
    dialog.returnValue = "skip";
    dialog.showModal();
    return new Promise((resolve) => {
      const answer = () => {
        if (byId("taken-all").checked) {
          this.#takenForAll = dialog.returnValue;
        }
        resolve(dialog.returnValue);
      };
      dialog.addEventListener("close", answer, { once: true });
    });
  }

  // What outlives a reload of the page, in this tab: where unfinished uploads are.

  #key({ file, folder }) {
    return [this.#prefix, folder ?? "", file.name, file.size, file.lastModified].join("\n");
  }

  #recall(upload) {
    return load()[this.#key(upload)] ?? null;
  }

  #store(upload) {
    save({ ...load(), [this.#key(upload)]: upload.url });
  }

  #forget(upload) {
    upload.url = null;
    const stored = load();
    delete stored[this.#key(upload)];
    save(stored);
  }

  // The list

  #makeRow(upload) {
    const item = document.createElement("li");
    const name = document.createElement("bdi");
    name.className = "file-name";
    name.textContent = upload.file.name;
    const progress = document.createElement("progress");
    progress.max = Math.max(1, upload.file.size);
    progress.value = 0;
    progress.setAttribute("aria-label", t("Upload of {name}", { name: upload.file.name }));
    const facts = document.createElement("p");
    facts.className = "facts";
    facts.textContent = t("Waiting");
    const cancel = document.createElement("button");
    cancel.type = "button";
    cancel.className = "quiet";
    cancel.textContent = t("Cancel");
    cancel.setAttribute("aria-label", t("{action}: {name}", { action: t("Cancel"), name: upload.file.name }));
    cancel.addEventListener("click", () => {
      upload.abort.abort();
      if (upload.state === "waiting") {
        this.#set(upload, "stopped", t("Cancelled"));
      }
      byId("uploads-close").focus();
    });
    item.append(name, cancel, progress, facts);
    return { item, progress, facts, cancel };
  }

  #set(upload, state, words) {
    const { item, progress, facts, cancel } = upload.row;
    upload.state = state;
    item.dataset.state = state;
    facts.textContent = words;
    progress.value = state === "done" ? progress.max : upload.sent;
    progress.hidden = cancel.hidden = state !== "running" && state !== "waiting";
    this.#showTitle();
  }

  #showTitle() {
    const open = this.#all.filter(({ state }) => state === "waiting" || state === "running").length;
    byId("uploads-title").textContent = open ? plural(open, "{count} upload under way", "{count} uploads under way") : t("Uploads");
    byId("uploads-close").title = open ? t("Cancel all and hide") : t("Hide");
    byId("uploads-close").querySelector(".label").textContent = byId("uploads-close").title;
  }

  #hide() {
    for (const upload of this.#all) {
      if (upload.state === "waiting") {
        this.#set(upload, "stopped", t("Cancelled"));
      }
      upload.abort.abort();
      upload.row.item.remove();
    }
    this.#all = this.#all.filter(({ state }) => state === "running");
    byId("uploads").hidden = true;
  }
}

function sayUploading(files, folder, folderName) {
  const values = { name: files[0].name, folder: folderName };
  if (folder === null) {
    return plural(files.length, "Uploading “{name}” to the desktop.", "Uploading {count} files to the desktop.", values);
  }
  return plural(files.length, "Uploading “{name}” to {folder}.", "Uploading {count} files to {folder}.", values);
}

function sayUploaded(done) {
  const { file, folder, folderName } = done.at(-1);
  const values = { name: file.name, folder: folderName };
  if (folder === null) {
    return plural(done.length, "“{name}” was uploaded to the desktop.", "{count} files were uploaded to the desktop.", values);
  }
  return plural(done.length, "“{name}” was uploaded to {folder}.", "{count} files were uploaded to {folder}.", values);
}

/** Whether nobody who knows the upload has answered. */
function isAway({ kind, status }) {
  return kind === "network" || kind === "astray" || (kind === "gone" && status !== 413) || status === 503;
}

function metadataOf({ file, folder }, taken) {
  const metadata = { filename: toBase64(new TextEncoder().encode(file.name)), taken: btoa(taken) };
  if (folder !== null) {
    metadata.folder = toBase64(fromPercent(folder));
  }
  return metadata;
}

function toBase64(bytes) {
  return btoa(String.fromCharCode(...bytes));
}

/** The bytes of a percent-encoded path, which may be no text. */
function fromPercent(path) {
  return [...path.matchAll(/%([0-9A-F]{2})|[^%]/g)].map(([char, hex]) => (hex ? parseInt(hex, 16) : char.charCodeAt(0)));
}

/** Wait, less long when the network is back or nobody wants it any more. */
function pause(wait_ms, signal) {
  return new Promise((resolve) => {
    setTimeout(resolve, wait_ms);
    signal.addEventListener("abort", resolve, { once: true });
    window.addEventListener("online", resolve, { once: true });
  });
}

function load() {
  try {
    return JSON.parse(sessionStorage.getItem(STORED)) ?? {};
  } catch {
    return {};
  }
}

function save(stored) {
  try {
    sessionStorage.setItem(STORED, JSON.stringify(stored));
  } catch {
    // Storage is full or forbidden: after a reload an upload begins anew.
  }
}
