// The people at the desktop: who is here, who asks, who drives, and with whom it is shared.

import { toast } from "./notice.js";
import { hueOf } from "./pointers.js";
import { describeSpan } from "./words.js";

const byId = (id) => document.getElementById(id);

const ROLES = { owner: "owner", control: "controls", view: "looks on", waiting: "waits" };
const WISHES = {
  view: "asks to look on",
  control: "asks for control",
  drive: "asks for mouse and keyboard",
};
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
    byId("links-revoke").addEventListener("click", () => this.#changeShares(() => api.revokeLinks(), "No link is good any more."));
  }

  /** Take what the session told. */
  show(now) {
    const before = this.#now;
    this.#now = now;
    const others = now.people.length - 1;
    byId("people-count").textContent = others > 0 ? String(now.people.length) : "";
    byId("people-button").title = others > 0 ? `People: ${now.people.length} are here` : "People";
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
      toast(wants === "drive" ? `${this.#now.driver || "The driver"} is asked.` : `${this.#config.owner} is asked.`);
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
      element("p", "title", isYou ? `${person.name} (you)` : person.name),
      element("p", "facts", this.#factsOf(person)),
    );
    row.append(mark, about);
    if (you.role === "owner" && !isYou) {
      row.append(button("Send away", `Close the windows of ${person.name}`, () => this.#act(() => this.#api.drop(person.name))));
    }
    const mayGive = this.#now.one_driver && person.role !== "view" && !person.drives;
    if (mayGive && !isYou && (you.role === "owner" || you.drives)) {
      const label = `Give mouse and keyboard to ${person.name}`;
      row.append(button("Give mouse", label, () => this.#act(() => this.#api.handOver(person.name))));
    }
    return row;
  }

  #factsOf(person) {
    return [
      person.staff ? "site staff" : "",
      ROLES[person.role],
      this.#now.one_driver && person.drives ? "has mouse and keyboard" : "",
      person.windows > 1 ? `${person.windows} windows` : "",
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
    byId("drive-about").textContent = driver ? `${driver} has mouse and keyboard.` : "";
    byId("drive").textContent = you.role === "owner" ? "Take mouse and keyboard" : "Ask for mouse and keyboard";
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
    const reason = request.reason ? `: “${request.reason}”` : "";
    const text = `${request.name} ${WISHES[request.wants]}${reason}.`;
    // Set again, the same text would be read aloud again.
    if (byId("asking-text").textContent !== text) {
      byId("asking-text").textContent = text;
    }
    const answers =
      request.wants === "drive"
        ? [["Give it", "control"]]
        : [
            ["Allow control", "control"],
            ["View only", "view"],
          ];
    byId("asking-actions").replaceChildren(
      ...answers.map(([label, grant]) =>
        button(label, `${label}: ${request.name}`, () => this.#act(() => this.#api.answer(request.name, grant))),
      ),
      button("Refuse", `Refuse ${request.name}`, () => this.#act(() => this.#api.answer(request.name, null))),
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
    toast(isGranted ? "Granted." : "It was refused.");
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
      `Shared with ${name}. They find it on the hub's home page.`,
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
    byId("links-about").textContent = codes.length === 1 ? "One link can be used." : `${codes.length} links can be used.`;
  }

  #shareRow({ kind, name, role, expires_in_s }) {
    const row = document.createElement("li");
    const about = element("div", "about", "");
    about.append(
      element("p", "title", kind === "group" ? `Group ${name}` : name),
      element("p", "facts", expires_in_s ? `for ${describeSpan(expires_in_s)} more` : "until it is taken back"),
    );
    const select = document.createElement("select");
    select.setAttribute("aria-label", `What ${name} may do`);
    select.append(new Option("View only", "view"), new Option("Control", "control"));
    select.value = role;
    select.addEventListener("change", () =>
      this.#changeShares(() => this.#api.share(kind, name, select.value, expires_in_s), `Changed for ${name}.`),
    );
    const remove = button("Remove", `Take it back from ${name}`, () =>
      this.#changeShares(() => this.#api.unshare(kind, name), `Not shared with ${name} any more.`),
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
      await this.#changeShares(() => this.#api.shares(), "Whoever opens this link can accept it. It is shown only now.");
    } catch (error) {
      this.#note(error.words ?? String(error), true);
    }
  }

  async #copyLink() {
    byId("link").select();
    try {
      await navigator.clipboard.writeText(byId("link").value);
      this.#note("The link is copied.", false);
    } catch {
      this.#note("Press Ctrl+C to copy the link.", false);
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
