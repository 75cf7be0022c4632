// The people at the desktop: who is here, who asks, who drives, and with whom it is shared.

import { plural, t } from "./i18n.js";
import { toast } from "./notice.js";
import { hueOf } from "./pointers.js";
import { describeSpan } from "./words.js";

const byId = (id) => document.getElementById(id);

const ROLES = { owner: t("owner"), control: t("controls"), view: t("looks on"), waiting: t("waits") };

function describeWish({ name, wants, reason }) {
  const wish = {
    view: t("{name} asks to look on", { name }),
    control: t("{name} asks for control", { name }),
    drive: t("{name} asks for mouse and keyboard", { name }),
  }[wants];
  return reason ? t("{wish}: “{reason}”.", { wish, reason }) : t("{wish}.", { wish });
}

const NOBODY = { people: [], requests: [], one_driver: false, driver: "", you: { role: "waiting" } };

export class People {
  #api;
  #config;
  #now = NOBODY;
  #shares = null; // until the session has told
  #before = Promise.resolve(); // one request after the other: each answers with the whole list

  constructor({ api, config }) {
    this.#api = api;
    this.#config = config;
    byId("people-menu").addEventListener("open", () => this.#open());
    byId("one-driver").addEventListener("change", ({ target }) => this.#act(() => api.letOneDrive(target.checked)));
    byId("drive").addEventListener("click", () => this.#drive());
    byId("ask-control").addEventListener("click", () => this.ask("control"));
    byId("share-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#share();
    });
    byId("link-make").addEventListener("click", () => this.#makeLink());
    byId("link-copy").addEventListener("click", () => this.#copyLink());
    byId("links-revoke").addEventListener("click", () => this.#changeShares(() => api.revokeLinks(), t("No link is good any more.")));
  }

  /** Take what the session told. */
  show(now) {
    const before = this.#now;
    this.#now = now;
    const others = now.people.length - 1;
    byId("people-count").textContent = others > 0 ? String(now.people.length) : "";
    byId("people-button").title = others > 0 ? t("People: {count} are here", { count: now.people.length }) : t("People");
    this.#showHere();
    this.#showDriving();
    this.#showAsking(before);
  }

  /** Whether anybody else is here, to show a pointer to. */
  get isAlone() {
    return this.#now.people.length < 2;
  }

  /** Ask the owner for more; wants: view, control or drive. */
  async ask(wants) {
    await this.#act(() => this.#api.askFor(wants));
    if (this.#now.requests.some(({ name }) => name === this.#now.you.name)) {
      const asked = wants === "drive" ? this.#now.driver : this.#config.owner;
      toast(asked ? t("{name} is asked.", { name: asked }) : t("Who has mouse and keyboard is asked."));
    }
  }

  async #act(request) {
    try {
      this.show(await request());
    } catch (error) {
      toast(error.words ?? String(error));
      this.show(this.#now);
    }
  }

  // Who is here

  #showHere() {
    const { people, you } = this.#now;
    byId("people-list").replaceChildren(...people.map((person) => this.#row(person, you)));
    byId("ask-control").hidden = you.role !== "view";
    byId("ask-control").disabled = this.#asks("control");
  }

  #asks(wants) {
    const { requests, you } = this.#now;
    return requests.some((request) => request.name === you.name && request.wants === wants);
  }

  #row(person, you) {
    const row = document.createElement("li");
    const mark = element("span", "mark-of", "");
    mark.style.setProperty("--hue", hueOf(person.name));
    const about = element("div", "about", "");
    const isYou = person.name === you.name;
    about.append(
      element("p", "title", isYou ? t("{name} (you)", { name: person.name }) : person.name),
      element("p", "facts", this.#factsOf(person)),
    );
    row.append(mark, about);
    if (you.role === "owner" && !isYou) {
      row.append(button(t("Send away"), t("Close the windows of {name}", { name: person.name }), () => this.#act(() => this.#api.drop(person.name))));
    }
    const mayGive = this.#now.one_driver && person.role !== "view" && !person.drives;
    if (mayGive && !isYou && (you.role === "owner" || you.drives)) {
      const label = t("Give mouse and keyboard to {name}", { name: person.name });
      row.append(button(t("Give mouse"), label, () => this.#act(() => this.#api.handOver(person.name))));
    }
    return row;
  }

  #factsOf(person) {
    return [
      person.staff ? t("site staff") : "",
      ROLES[person.role],
      this.#now.one_driver && person.drives ? t("has mouse and keyboard") : "",
      person.windows > 1 ? plural(person.windows, "{count} window", "{count} windows") : "",
    ]
      .filter(Boolean)
      .join(" · ");
  }

  // Mouse and keyboard

  #showDriving() {
    const { one_driver, driver, you } = this.#now;
    byId("one-driver").checked = one_driver;
    byId("one-driver-row").hidden = you.role !== "owner";
    byId("drive-row").hidden = !one_driver || you.role === "view" || you.role === "waiting" || you.drives;
    byId("drive-about").textContent = driver ? t("{name} has mouse and keyboard.", { name: driver }) : "";
    byId("drive").textContent = you.role === "owner" ? t("Take mouse and keyboard") : t("Ask for mouse and keyboard");
    byId("drive").disabled = this.#asks("drive");
  }

  #drive() {
    const { you } = this.#now;
    if (you.role === "owner") {
      this.#act(() => this.#api.handOver(you.name));
    } else {
      this.ask("drive");
    }
  }

  // Who asks

  /** The newest request that this person can answer, in a strip below the bar. */
  #showAsking(before) {
    const { you } = this.#now;
    const request = this.#now.requests.find(({ name }) => name !== you.name);
    byId("asking").hidden = !request;
    this.#tellAnswer(before);
    if (!request) {
      return;
    }
    const text = describeWish(request);
    // Set again, the same text would be read aloud again.
    if (byId("asking-text").textContent !== text) {
      byId("asking-text").textContent = text;
    }
    const answers =
      request.wants === "drive"
        ? [[t("Give it"), "control"]]
        : [
            [t("Allow control"), "control"],
            [t("View only"), "view"],
          ];
    byId("asking-actions").replaceChildren(
      ...answers.map(([label, grant]) =>
        button(label, t("{action}: {name}", { action: label, name: request.name }), () => this.#act(() => this.#api.answer(request.name, grant))),
      ),
      button(t("Refuse"), t("Refuse {name}", { name: request.name }), () => this.#act(() => this.#api.answer(request.name, null))),
    );
  }

  /** Say so where somebody has answered what this person asked. */
  #tellAnswer(before) {
    const { you } = this.#now;
    const asked = before.requests.find(({ name }) => name === you.name);
    if (!asked || this.#asks(asked.wants)) {
      return;
    }
    const isGranted = asked.wants === "drive" ? you.drives : you.role !== before.you.role;
    toast(isGranted ? t("Granted.") : t("It was refused."));
  }

  // With whom it is shared

  async #open() {
    if (this.#now.you.role === "owner") {
      await this.#changeShares(() => this.#api.shares(), "");
    }
  }

  async #share() {
    const name = byId("share-name").value.trim();
    if (!name) {
      byId("share-name").focus();
      return;
    }
    const [kind, role] = [byId("share-kind").value, byId("share-role").value];
    const isShared = await this.#changeShares(
      () => this.#api.share(kind, name, role, Number(byId("share-expiry").value)),
      t("Shared with {name}. They find it on the hub's home page.", { name }),
    );
    if (isShared) {
      byId("share-name").value = "";
    }
  }

  /** Ask for something that answers with the shares; whether it was done. */
  #changeShares(request, done) {
    this.#before = this.#before.then(() => this.#changeNow(request, done));
    return this.#before;
  }

  async #changeNow(request, done) {
    try {
      this.#shares = await request();
      this.#note(this.#shares.problem || done, Boolean(this.#shares.problem));
      this.#showShares();
      return true;
    } catch (error) {
      this.#note(error.words ?? String(error), true);
      return false;
    }
  }

  #note(text, isBad) {
    byId("share-note").textContent = text;
    byId("share-note").classList.toggle("bad", isBad);
  }

  #showShares() {
    const { shares, codes } = this.#shares;
    byId("share-list").replaceChildren(...shares.map((share) => this.#shareRow(share)));
    byId("links").hidden = codes.length === 0;
    byId("links-about").textContent = plural(codes.length, "One link can be used.", "{count} links can be used.");
  }

  #shareRow({ kind, name, role, expires_in_s }) {
    const row = document.createElement("li");
    const about = element("div", "about", "");
    about.append(
      element("p", "title", kind === "group" ? t("Group {name}", { name }) : name),
      element("p", "facts", expires_in_s ? t("for {span} more", { span: describeSpan(expires_in_s) }) : t("until it is taken back")),
    );
    const select = document.createElement("select");
    select.setAttribute("aria-label", t("What {name} may do", { name }));
    select.append(new Option(t("View only"), "view"), new Option(t("Control"), "control"));
    select.value = role;
    select.addEventListener("change", () =>
      this.#changeShares(() => this.#api.share(kind, name, select.value, expires_in_s), t("Changed for {name}.", { name })),
    );
    const remove = button(t("Remove"), t("Take it back from {name}", { name }), () =>
      this.#changeShares(() => this.#api.unshare(kind, name), t("Not shared with {name} any more.", { name })),
    );
    row.append(about, select, remove);
    return row;
  }

  async #makeLink() {
    try {
      const { path } = await this.#api.makeLink(byId("link-role").value, Number(byId("link-expiry").value));
      byId("link").value = new URL(path, location.href).href;
      byId("link-row").hidden = false;
      byId("link").select();
      await this.#changeShares(() => this.#api.shares(), t("Whoever opens this link can accept it. It is shown only now."));
    } catch (error) {
      this.#note(error.words ?? String(error), true);
    }
  }

  async #copyLink() {
    byId("link").select();
    try {
      await navigator.clipboard.writeText(byId("link").value);
      this.#note(t("The link is copied."), false);
    } catch {
      this.#note(t("Press Ctrl+C to copy the link."), false);
    }
  }
}

function button(label, about, run) {
  const made = element("button", "quiet", label);
  made.type = "button";
  made.setAttribute("aria-label", about);
  made.addEventListener("click", run);
  return made;
}

function element(name, className, text) {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}
