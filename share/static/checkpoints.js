// The menu of checkpoints: what was saved of the desktop, to go back to or to go on from elsewhere.

import { moment, t } from "./i18n.js";
import { askText, confirmAction } from "./notice.js";
import { describeAge, describeSize, describeSpan } from "./words.js";

const byId = (id) => document.getElementById(id);

const MAX_TITLE = 100;
// JupyterHub's rule for the name of a new server: is_valid_safe_slug in jupyterhub/slugs.py.
const SERVER_NAME = /^[a-z][a-z0-9]*(-[a-z0-9]+)*$/;
const MAX_SERVER_NAME = 30;

export class Checkpoints {
  #api;
  #config;
  #onGoBack;
  #obstacle = "";
  #shown = { checkpoints: [], most: Infinity }; // until the session has told
  #isBusy = false;

  /** `onGoBack` is called with the checkpoint that somebody wants back, and means it. */
  constructor({ api, config, onGoBack }) {
    this.#api = api;
    this.#config = config;
    this.#onGoBack = onGoBack;
    byId("checkpoints-menu").addEventListener("open", () => this.#load());
    byId("checkpoint-save").addEventListener("click", () => this.#save());
  }

  /** Why the desktop cannot be saved; "" where it can. */
  set obstacle(text) {
    if (text !== this.#obstacle) {
      this.#obstacle = text;
      this.#show(this.#shown);
    }
  }

  async #load() {
    if (!this.#shown.checkpoints.length) {
      this.#note(t("Looking for checkpoints…"));
    }
    await this.#request(() => this.#api.checkpoints(), "");
  }

  async #save() {
    if (byId("checkpoint-save").getAttribute("aria-disabled") === "true") {
      return;
    }
    const title = await askText({
      title: t("Save a checkpoint"),
      text: t("Everything is saved as it is now, with what is open. The desktop pauses for about a second."),
      field: t("Title"),
      placeholder: t("Optional, such as “before the update”"),
      label: t("Save"),
      maxLength: MAX_TITLE,
    });
    if (title !== null) {
      this.#note(t("Saving…"));
      await this.#request(() => this.#api.saveCheckpoint(title), t("The checkpoint is saved."));
    }
  }

  async #goBack(checkpoint) {
    const isWanted = await confirmAction({
      title: t("Go back to “{title}”?", { title: titleOf(checkpoint) }),
      text: t("The desktop will be as it was {age}. As it is now, it is saved first, as the checkpoint “Before going back”.", { age: describeAge(checkpoint.age_s) }),
      label: t("Go back"),
      isDangerous: false,
    });
    if (isWanted) {
      this.#onGoBack(checkpoint, titleOf(checkpoint));
    }
  }

  async #branch(checkpoint) {
    const name = await askText({
      title: t("Start another desktop from here"),
      text: t("A new desktop goes on from “{title}”; this one stays as it is.", { title: titleOf(checkpoint) }),
      field: t("Name of the new desktop"),
      rule: t("Small letters and digits, beginning with a letter, with single - between them; at most {most} characters.", { most: MAX_SERVER_NAME }),
      pattern: SERVER_NAME,
      label: t("Continue"),
      maxLength: MAX_SERVER_NAME,
    });
    if (name !== null) {
      const { hub_home, owner, server_name } = this.#config;
      const hub = hub_home.replace(/home$/, "");
      const query = new URLSearchParams({ "opt-branch": `${server_name}/${checkpoint.name}` });
      location.assign(`${hub}spawn/${encodeURIComponent(owner)}/${name}?${query}`);
    }
  }

  async #delete(checkpoint) {
    const isWanted = await confirmAction({
      title: t("Delete “{title}”?", { title: titleOf(checkpoint) }),
      text: t("This checkpoint is gone then. The desktop itself stays as it is."),
      label: t("Delete"),
      isDangerous: true,
    });
    if (isWanted) {
      const at = this.#shown.checkpoints.indexOf(checkpoint);
      await this.#request(() => this.#api.deleteCheckpoint(checkpoint.name), t("Deleted."));
      // The button that had the keyboard is gone with its checkpoint.
      const rows = byId("checkpoint-list").children;
      const next = rows[Math.min(at, rows.length - 1)]?.querySelector("[data-do=delete]");
      (next ?? byId("checkpoint-save")).focus();
    }
  }

  /** Ask the session for something that answers with the list; `done` is what to say then. */
  async #request(request, done) {
    if (this.#isBusy) {
      return;
    }
    this.#isBusy = true;
    this.#showSave();
    try {
      this.#show(await request());
      this.#note(done);
    } catch (error) {
      this.#note(error.words ?? String(error), { isBad: true });
    } finally {
      this.#isBusy = false;
      this.#showSave();
    }
  }

  #note(text, { isBad = false } = {}) {
    const note = byId("checkpoint-note");
    note.textContent = text;
    note.classList.toggle("bad", isBad);
  }

  #showSave() {
    const { checkpoints, most } = this.#shown;
    const isFull = checkpoints.length >= most;
    const full = most === 0 ? t("No checkpoints are kept here.") : t("All {most} are in use: delete one to save another.", { most });
    const why = this.#obstacle || (isFull ? full : "");
    const button = byId("checkpoint-save");
    // Not `disabled`: it would lose the keyboard's focus while it works.
    button.setAttribute("aria-disabled", String(this.#isBusy || Boolean(why)));
    button.title = why;
    byId("checkpoint-why").textContent = why;
    byId("checkpoint-count").textContent = checkpoints.length && !isFull ? t("{count} of {most}", { count: checkpoints.length, most }) : "";
  }

  #show(shown) {
    this.#shown = shown;
    const rows = shown.checkpoints.map((checkpoint) => this.#row(checkpoint));
    byId("checkpoint-list").replaceChildren(...rows);
    byId("checkpoint-list").hidden = rows.length === 0;
    byId("checkpoint-none").hidden = rows.length > 0 || !shown.most || shown.most === Infinity;
    this.#showSave();
  }

  #row(checkpoint) {
    const row = document.createElement("li");
    const about = document.createElement("div");
    about.className = "about";
    const title = element("p", "title", titleOf(checkpoint));
    title.title = titleOf(checkpoint);
    const facts = element("p", "facts", factsOf(checkpoint));
    facts.title = moment(Date.now() - checkpoint.age_s * 1000);
    const actions = document.createElement("div");
    actions.className = "actions";
    actions.append(
      this.#action("go-back", t("Go back"), checkpoint, t("Put this desktop back to it"), () => this.#goBack(checkpoint)),
      this.#action("branch", t("Branch…"), checkpoint, t("Start another desktop from it"), () => this.#branch(checkpoint)),
      this.#action("delete", t("Delete"), checkpoint, "", () => this.#delete(checkpoint)),
    );
    actions.firstElementChild.disabled = Boolean(this.#obstacle);
    about.append(title, facts, actions);
    row.append(this.#picture(checkpoint), about);
    return row;
  }

  #picture({ name }) {
    const frame = document.createElement("div");
    frame.className = "picture";
    const image = document.createElement("img");
    image.alt = "";
    image.loading = "lazy";
    image.decoding = "async";
    // Some have none; the frame shows that.
    image.addEventListener("error", () => image.remove());
    image.src = this.#api.picture(name);
    frame.append(byId("no-picture").content.cloneNode(true), image);
    return frame;
  }

  #action(what, label, checkpoint, about, run) {
    const button = element("button", "quiet", label);
    button.type = "button";
    button.dataset.do = what;
    button.title = about;
    button.setAttribute("aria-label", t("{action}: {title}, {age}", { action: label.replace("…", ""), title: titleOf(checkpoint), age: describeAge(checkpoint.age_s) }));
    button.addEventListener("click", run);
    return button;
  }
}

// What the session itself calls the one that it saves on the way back; see supervisor.py.
const BEFORE = "Before going back";

function titleOf({ title, automatic }) {
  if (automatic && title === BEFORE) {
    return t("Before going back");
  }
  return title || (automatic ? t("Automatic") : t("Untitled"));
}

function factsOf({ title, automatic, age_s, size_bytes, expires_in_s }) {
  return [
    title && automatic ? t("Automatic") : "",
    describeAge(age_s),
    describeSize(size_bytes),
    expires_in_s ? t("kept for {span}", { span: describeSpan(expires_in_s) }) : "",
  ]
    .filter(Boolean)
    .join(" · ");
}

function element(name, className, text) {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}
