// The pages of the site's staff: everybody's desktops, hosts, announcements. What the hub refuses, it refuses here, too.

import { decimal, plural, t } from "./i18n.js";

const config = JSON.parse(document.getElementById("config").textContent);
const byId = (id) => document.getElementById(id);

const LOOK_EVERY_MS = 10_000;
const PICTURE_EVERY_MS = 30_000;
// So many questions to the hub at a time.
const AT_ONCE = 6;
// As the hub and the session take.
const MAX_MESSAGE = 1000;
const MAX_REASON = 200;

const STATES = {
  starting: [t("Starting"), "text-bg-info"],
  preparing: [t("Starting"), "text-bg-info"],
  booting: [t("Starting"), "text-bg-info"],
  running: [t("Running"), "text-bg-success"],
  stopping: [t("Stopping"), "text-bg-warning"],
  suspending: [t("Falling asleep"), "text-bg-warning"],
};

// Asking the hub

class Problem extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Ask the service; each part of `path` is quoted. Resolves to the answer; throws Problem with a sentence. */
async function request(method, path, body) {
  let answer;
  try {
    answer = await fetch(config.prefix + ["api", ...path].map(encodeURIComponent).join("/"), {
      method,
      headers: { "X-XSRFToken": config.xsrf, ...(body && { "Content-Type": "application/json" }) },
      body: body && JSON.stringify(body),
    });
  } catch {
    throw new Problem(t("The hub does not answer. Try again in a moment."), 0);
  }
  if (answer.ok) {
    return answer;
  }
  const content = await answer.json().catch(() => null);
  throw new Problem(content?.message || t("The hub answers {status}.", { status: answer.status }), answer.status);
}

const askJson = async (...path) => (await request("GET", path)).json();

/** Do `work` for all of `items`, a few at a time; resolves to [item, error] of those that failed. */
async function forAll(items, work) {
  const waiting = [...items];
  const failed = [];
  const worker = async () => {
    for (let item; (item = waiting.shift()); ) {
      try {
        await work(item);
      } catch (error) {
        failed.push([item, error]);
      }
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  return failed;
}

// Saying things

function say(text) {
  byId("said").textContent = text;
}

function complain(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}

/** Ask before something is done. Resolves to true, or to the text of the field where there is one; else null. */
function ask({ title, text, label, isDangerous = false, field = "", maxLength = 0 }) {
  const dialog = byId("ask");
  const entry = byId("ask-field");
  byId("ask-title").textContent = title;
  byId("ask-text").textContent = text;
  byId("ask-entry").hidden = !field;
  byId("ask-label").textContent = field;
  entry.value = "";
  entry.required = Boolean(field);
  entry.maxLength = maxLength || 1;
  const yes = byId("ask-yes");
  yes.textContent = label;
  yes.className = `btn ${isDangerous ? "btn-danger" : "btn-primary"}`;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const close = () => resolve(dialog.returnValue !== "yes" ? null : field ? entry.value.trim() : true);
    dialog.addEventListener("close", close, { once: true });
  });
}

// Words

function span(seconds) {
  if (seconds === null) return "–";
  const minutes = Math.floor(seconds / 60);
  if (minutes < 1) return t("< 1 min");
  if (minutes < 60) return t("{minutes} min", { minutes });
  const hours = Math.floor(minutes / 60);
  const [larger, smaller] =
    hours < 48
      ? [t("{hours} h", { hours }), t("{minutes} min", { minutes: minutes % 60 })]
      : [t("{days} d", { days: Math.floor(hours / 24) }), t("{hours} h", { hours: hours % 24 })];
  return t("{larger} {smaller}", { larger, smaller });
}

function size(mib) {
  if (mib === null) return "–";
  return mib < 1024 ? t("{number} MiB", { number: decimal(mib) }) : t("{number} GiB", { number: short(mib / 1024) });
}

function rate(kib) {
  if (kib === null) return "–";
  return kib < 1024 ? t("{number} KiB/s", { number: decimal(kib) }) : t("{number} MiB/s", { number: short(kib / 1024) });
}

/** Both ways of a guest's network. */
function traffic(load) {
  const [received, sent] = [load?.received_kib_s ?? null, load?.sent_kib_s ?? null];
  return received === null || sent === null ? "–" : t("{received} in, {sent} out", { received: rate(received), sent: rate(sent) });
}

const short = (number) => decimal(number, number % 1 < 0.05 ? 0 : 1);
const percent = (value) => (value === null ? "–" : t("{number} %", { number: decimal(value) }));
const nameOf = ({ server }) => server || t("default desktop");
const stateOf = ({ state, answers }) => {
  const [label, colour] = STATES[state] ?? [state, "text-bg-secondary"];
  return answers || state === "starting" ? [label, colour] : [t("Does not answer"), "text-bg-danger"];
};

/** Whose they are: the first ones by name. */
function owners(desktops) {
  const names = [...new Set(desktops.map(({ user }) => user))].sort();
  const [first, others] = [names.slice(0, 3).join(", "), names.length - 3];
  const whose = names.length > 4 ? t("{names} and {count} others", { names: first, count: others }) : names.join(", ");
  return desktops.length === 1 ? t("It belongs to {names}.", { names: whose }) : t("They belong to {names}.", { names: whose });
}

// The desktops

const keyOf = ({ user, server }) => JSON.stringify([user, server]);
const desktops = new Map(); // by key: what the hub said last
const rows = new Map(); // by key: its row
const selected = new Set();
let sorting = { key: "user", isDown: false };

const { compare: inOrder } = new Intl.Collator(document.documentElement.lang, { numeric: true });

// What a column is sorted by.
const VALUES = {
  cpu: ({ load }) => load?.cpu_percent ?? null,
  gpu: ({ load }) => load?.gpu_percent ?? null,
  disk: ({ load }) => load?.disk_kib_s ?? null,
  memory: ({ load }) => load?.memory_mib ?? null,
  network: ({ load }) => (load?.received_kib_s == null ? null : load.received_kib_s + load.sent_kib_s),
  state: (desktop) => stateOf(desktop)[0],
};

function compare(one, other) {
  const value = VALUES[sorting.key] ?? ((desktop) => desktop[sorting.key]);
  const [a, b] = [value(one), value(other)];
  // What is not known comes last, whichever way.
  if (a === null || b === null) return (a === null) - (b === null);
  const order = typeof a === "string" ? inOrder(a, b) : a - b;
  return (sorting.isDown ? -order : order) || inOrder(one.user, other.user) || inOrder(one.server, other.server);
}

function matches(desktop, words) {
  const text = [desktop.user, nameOf(desktop), desktop.machine, desktop.node, stateOf(desktop)[0]].join("\n").toLowerCase();
  return words.every((word) => text.includes(word));
}

function shownDesktops() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  return [...desktops.values()].filter((desktop) => matches(desktop, words)).sort(compare);
}

function cell(tag = "td", className = "") {
  const made = document.createElement(tag);
  made.className = className;
  return made;
}

/** A new row, whose cells `fill` writes. */
function makeRow(desktop) {
  const row = document.createElement("tr");
  const box = document.createElement("input");
  box.type = "checkbox";
  box.className = "form-check-input";
  box.setAttribute("aria-label", t("Select {name} of {owner}", { name: nameOf(desktop), owner: desktop.user }));
  const key = keyOf(desktop);
  box.addEventListener("change", () => {
    box.checked ? selected.add(key) : selected.delete(key);
    showSelection();
  });
  const choice = cell();
  choice.append(box);
  const picture = cell("div", "screen");
  const screen = cell();
  screen.append(picture);
  const owner = cell("th", "name");
  owner.scope = "row";
  const link = document.createElement("a");
  link.href = desktop.url;
  const name = cell("td", "name");
  name.append(link);
  const badge = document.createElement("span");
  const state = cell();
  state.append(badge);
  const facts = Array.from({ length: 11 }, () => cell("td", "text-end"));
  const [machine, node] = [cell("td", "name"), cell()];
  row.append(choice, screen, owner, name, machine, node, state, ...facts);
  row.dataset.key = key;
  const parts = { row, box, picture, pictureKey: key, owner, link, machine, node, badge, facts, lookedAt: -Infinity };
  picture.dataset.key = key;
  seen.observe(picture);
  return parts;
}

function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function fill(parts, desktop) {
  const [label, colour] = stateOf(desktop);
  const { load } = desktop;
  set(parts.owner, desktop.user);
  set(parts.link, nameOf(desktop));
  set(parts.machine, desktop.machine);
  set(parts.node, desktop.node || "–");
  set(parts.badge, label);
  parts.badge.className = `badge ${colour}`;
  const texts = [
    span(desktop.age_s),
    span(desktop.left_s),
    span(desktop.idle_s),
    desktop.cpus === null ? "–" : String(desktop.cpus),
    percent(load?.cpu_percent ?? null),
    size(desktop.memory_mib),
    size(load?.memory_mib ?? null),
    percent(load?.gpu_percent ?? null),
    rate(load?.disk_kib_s ?? null),
    traffic(load),
    desktop.viewers === null ? "–" : String(desktop.viewers),
  ];
  texts.forEach((text, at) => set(parts.facts[at], text));
  parts.box.checked = selected.has(parts.pictureKey);
}

function draw() {
  const shown = shownDesktops();
  const keys = new Set(shown.map(keyOf));
  // What nobody sees is not acted upon.
  for (const key of selected) if (!keys.has(key)) selected.delete(key);
  for (const [key, parts] of rows) {
    if (!desktops.has(key)) {
      seen.unobserve(parts.picture);
      forgetPicture(parts);
      rows.delete(key);
    }
  }
  const wanted = shown.map((desktop) => {
    const key = keyOf(desktop);
    if (!rows.has(key)) rows.set(key, makeRow(desktop));
    fill(rows.get(key), desktop);
    return rows.get(key).row;
  });
  const body = byId("rows");
  const isSame = body.children.length === wanted.length && wanted.every((row, at) => body.children[at] === row);
  if (!isSame) {
    const focused = body.contains(document.activeElement) ? document.activeElement : null;
    body.replaceChildren(...wanted);
    focused?.focus();
  }
  byId("none").textContent = desktops.size ? t("No desktop matches this.") : t("No desktop runs at the moment.");
  byId("none").hidden = shown.length > 0;
  const total = plural(desktops.size, "{count} desktop", "{count} desktops");
  byId("count").textContent = shown.length === desktops.size ? total : t("{some} of {total}", { some: decimal(shown.length), total });
  showSelection();
}

function showSelection() {
  const shown = byId("rows").children.length;
  const all = byId("all");
  all.checked = shown > 0 && selected.size === shown;
  all.indeterminate = selected.size > 0 && selected.size < shown;
  const count = selected.size;
  byId("message").textContent = count ? plural(count, "Message {count} desktop…", "Message {count} desktops…") : t("Message…");
  byId("stop").textContent = count ? plural(count, "Stop {count} desktop…", "Stop {count} desktops…") : t("Stop…");
  for (const id of ["message", "stop"]) byId(id).disabled = !count;
}

async function look() {
  try {
    const { desktops: found } = await askJson("desktops");
    desktops.clear();
    for (const desktop of found) desktops.set(keyOf(desktop), desktop);
    if (byId("problem").dataset.kind === "look") complain("");
  } catch (error) {
    byId("problem").dataset.kind = "look";
    complain(error.message);
    return;
  }
  draw();
  refreshPictures();
}

// Pictures, of those rows only that somebody sees

const inView = new Set();
const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    isIntersecting ? inView.add(target.dataset.key) : inView.delete(target.dataset.key);
  }
  refreshPictures();
});
let isLooking = false;

async function refreshPictures() {
  if (isLooking || document.hidden) return;
  isLooking = true;
  try {
    const due = () =>
      [...inView]
        .map((key) => rows.get(key))
        .filter((parts) => parts && performance.now() - parts.lookedAt > PICTURE_EVERY_MS);
    for (let parts = due(); parts.length; parts = due()) {
      await forAll(parts.slice(0, 2 * AT_ONCE), showPicture);
    }
  } finally {
    isLooking = false;
  }
}

async function showPicture(parts) {
  parts.lookedAt = performance.now();
  const [user, server] = JSON.parse(parts.pictureKey);
  let words = "";
  try {
    const answer = await request("GET", ["desktops", user, server, "picture"]);
    const url = URL.createObjectURL(await answer.blob());
    const picture = document.createElement("img");
    picture.alt = server ? t("Screen of {desktop} of {owner}", { desktop: server, owner: user }) : t("Screen of the default desktop of {owner}", { owner: user });
    picture.src = url;
    forgetPicture(parts);
    parts.pictureUrl = url;
    parts.picture.replaceChildren(picture);
    return;
  } catch (error) {
    // The session decides that, for each desktop; its owner can be asked at the desktop itself.
    words = error.status === 403 ? t("Private: staff may not look") : t("No picture");
  }
  forgetPicture(parts);
  if (parts.picture.textContent !== words) parts.picture.replaceChildren(words);
}

function forgetPicture(parts) {
  if (parts.pictureUrl) URL.revokeObjectURL(parts.pictureUrl);
  parts.pictureUrl = "";
}

// Acting on many

const chosen = () => [...selected].map((key) => desktops.get(key));

/** Say what became of `all`, of which `failed` were refused; `done` and `undone` say it of so many. */
function report(all, failed, { done, undone }) {
  const good = all.length - failed.length;
  say(good ? done(good) : "");
  byId("problem").dataset.kind = "act";
  const reasons = failed.slice(0, 5).map(([desktop, error]) =>
    t("{owner}, {desktop}: {reason}", { owner: desktop.user, desktop: nameOf(desktop), reason: error.message }),
  );
  complain(failed.length ? [undone(failed.length), ...reasons].join(" ") : "");
}

byId("stop").addEventListener("click", async () => {
  const all = chosen();
  const asleep = all.filter(({ sleeps }) => sleeps).length;
  const fates = [
    asleep && plural(asleep, "{count} falls asleep as it is.", "{count} fall asleep as they are."),
    all.length - asleep &&
      plural(
        all.length - asleep,
        "{count} ends; what is not saved outside it is lost.",
        "{count} end; what is not saved outside them is lost.",
      ),
  ];
  const wanted = await ask({
    title: plural(all.length, "Stop {count} desktop?", "Stop {count} desktops?"),
    text: [owners(all), ...fates.filter(Boolean)].join(" "),
    label: plural(all.length, "Stop {count} desktop", "Stop {count} desktops"),
    isDangerous: true,
  });
  if (!wanted) return;
  const failed = await forAll(all, ({ user, server }) => request("DELETE", ["desktops", user, server]));
  report(all, failed, {
    done: (count) => plural(count, "{count} desktop is stopped.", "{count} desktops are stopped."),
    undone: (count) => plural(count, "{count} desktop could not be stopped.", "{count} desktops could not be stopped."),
  });
  selected.clear();
  await look();
});

byId("message").addEventListener("click", async () => {
  const all = chosen();
  const text = await ask({
    title: plural(all.length, "A message to {count} desktop", "A message to {count} desktops"),
    text: [owners(all), t("Everybody who is there reads it, with your name.")].join(" "),
    field: t("Message"),
    maxLength: MAX_MESSAGE,
    label: plural(all.length, "Send to {count} desktop", "Send to {count} desktops"),
  });
  if (!text) return;
  const failed = await forAll(all, ({ user, server }) => request("POST", ["desktops", user, server, "message"], { text }));
  report(all, failed, {
    done: (count) => plural(count, "The message is at {count} desktop.", "The message is at {count} desktops."),
    undone: (count) => plural(count, "{count} desktop did not take it.", "{count} desktops did not take it."),
  });
});

byId("all").addEventListener("change", ({ target }) => {
  selected.clear();
  if (target.checked) for (const row of byId("rows").children) selected.add(row.dataset.key);
  draw();
});

byId("filter").addEventListener("input", draw);

for (const head of document.querySelectorAll("th[data-sort]")) {
  head.querySelector("button").addEventListener("click", () => {
    const { sort: key } = head.dataset;
    sorting = { key, isDown: sorting.key === key && !sorting.isDown };
    showSorting();
    draw();
  });
}

function showSorting() {
  for (const head of document.querySelectorAll("th[data-sort]")) {
    if (head.dataset.sort === sorting.key) head.setAttribute("aria-sort", sorting.isDown ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
}

// Hosts

function makeHost({ name, desktops: count, cpus, memory_mib: memory, walls, drain }) {
  const row = document.createElement("tr");
  const head = cell("th", "name");
  head.scope = "row";
  head.textContent = name;
  const takes = drain ? t("No, says {name}: {reason}", { name: drain.by, reason: drain.reason }) : t("Yes");
  const texts = [decimal(count), decimal(cpus), size(memory), describeWalls(walls), takes];
  const cells = texts.map((text, at) => {
    const made = cell("td", at >= 3 ? "name" : "");
    made.textContent = text;
    return made;
  });
  const button = document.createElement("button");
  button.type = "button";
  button.className = "btn btn-sm btn-outline-contrast";
  button.textContent = drain ? t("Take new desktops again") : t("Drain…");
  button.setAttribute("aria-label", drain ? t("Take new desktops again on {host}", { host: name }) : t("Drain {host}…", { host: name }));
  button.addEventListener("click", () => (drain ? undrain(name) : startDrain(name)));
  const action = cell("td", "text-end");
  action.append(button);
  row.append(head, ...cells, action);
  return row;
}

// In the order in which they are told; qemuspawner/spec.py has the same.
const WALLS = ["seccomp", "privileges", "core", "oom", "memory", "capabilities", "processes", "files", "network", "ipc", "users"];

/** The walls around the desktops of a host: all, or which of them are missing. */
function describeWalls(walls) {
  if (!walls) return "";
  const missing = WALLS.filter((wall) => !walls.includes(wall));
  return missing.length ? t("Without {walls}", { walls: missing.join(", ") }) : t("All");
}

async function startDrain(name) {
  const reason = await ask({
    title: t("Drain {host}?", { host: name }),
    text: t("Nothing new starts there from now on; what runs goes on. Who wants to start a desktop there reads the reason."),
    field: t("Reason"),
    maxLength: MAX_REASON,
    label: t("Drain"),
  });
  if (!reason) return;
  await change(() => request("POST", ["hosts", name, "drain"], { reason }), t("{host} is drained.", { host: name }));
}

const undrain = (name) =>
  change(() => request("DELETE", ["hosts", name, "drain"]), t("{host} takes new desktops again.", { host: name }));

/** Do something and say what became of it. */
async function act(work, done) {
  try {
    await work();
    say(done);
    complain("");
  } catch (error) {
    byId("problem").dataset.kind = "act";
    complain(error.message);
  }
}

async function change(work, done) {
  await act(work, done);
  await lookAtHosts();
  byId("hosts-title").focus();
}

let shownHosts = "";

async function lookAtHosts() {
  try {
    const { hosts } = await askJson("hosts");
    const news = JSON.stringify(hosts);
    if (news === shownHosts) return;
    shownHosts = news;
    byId("host-rows").replaceChildren(...hosts.map(makeHost));
    byId("hosts").hidden = false;
  } catch {
    // Whose staff role is for some users only has no hosts to see; and the desktops say what else is wrong.
  }
}

// Announcements

let shownAnnouncements = "";

function describeAnnouncement({ by, begins_in_s: begins, ends_in_s: ends, must_acknowledge: must, acknowledged, level }) {
  const said = [level === "warning" ? t("A warning by {name}.", { name: by }) : t("Information by {name}.", { name: by })];
  if (begins > 0) said.push(t("Begins in {span}.", { span: span(begins) }));
  if (ends !== null) said.push(ends > 0 ? t("Ends in {span}.", { span: span(ends) }) : t("It is over."));
  if (must) said.push(plural(acknowledged, "{count} person has acknowledged it.", "{count} people have acknowledged it."));
  return said.join(" ");
}

function makeAnnouncement(announcement) {
  const item = document.createElement("li");
  item.className = "list-group-item d-flex flex-wrap align-items-center gap-2";
  const words = cell("div", "flex-fill text-break");
  const text = cell("p", "mb-0");
  text.textContent = announcement.text;
  const facts = cell("p", "mb-0 text-body-secondary");
  facts.textContent = describeAnnouncement(announcement);
  words.append(text, facts);
  const button = cell("button", "btn btn-sm btn-outline-contrast");
  button.type = "button";
  button.textContent = t("Delete");
  button.setAttribute("aria-label", t("Delete: {name}", { name: announcement.text.slice(0, 60) }));
  button.addEventListener("click", async () => {
    await act(() => request("DELETE", ["announcements", String(announcement.id)]), t("The announcement is deleted."));
    await lookAtAnnouncements();
    byId("announcements-title").focus();
  });
  item.append(words, button);
  return item;
}

async function lookAtAnnouncements() {
  try {
    const { announcements } = await askJson("announcements");
    const news = JSON.stringify(announcements);
    if (news === shownAnnouncements) return;
    shownAnnouncements = news;
    const isInside = byId("announcement-rows").contains(document.activeElement);
    byId("announcement-rows").replaceChildren(...announcements.map(makeAnnouncement));
    byId("announcements").hidden = false;
    if (isInside) byId("announcements-title").focus();
  } catch {
    // As with hosts.
  }
}

/** Seconds from now until what a field says; null where it is empty. */
function secondsUntil(field) {
  return field.value ? Math.max(0, Math.round((new Date(field.value) - Date.now()) / 1000)) : null;
}

byId("announce").addEventListener("submit", async (event) => {
  event.preventDefault();
  const begins = secondsUntil(byId("announce-begins")) ?? 0;
  const ends = secondsUntil(byId("announce-ends"));
  const problem = byId("announce-problem");
  problem.hidden = true;
  try {
    if (ends !== null && ends <= begins) throw new Problem(t("It ends before it begins."), 400);
    await request("POST", ["announcements"], {
      text: byId("announce-text").value,
      level: byId("announce-level").value,
      begins_in: begins,
      lasts: ends === null ? null : ends - begins,
      must_acknowledge: byId("announce-must").checked,
    });
    byId("announce").reset();
    say(t("The announcement is made."));
  } catch (error) {
    // What was typed stays.
    problem.textContent = error.message;
    problem.hidden = false;
  }
  await lookAtAnnouncements();
});

// The language

// The same choice as the hub's own pages have; see qemuspawner/languages.py.
byId("language").addEventListener("change", ({ target: { value } }) => {
  document.cookie = `qemuspawner-language=${value}; path=${config.cookie_path}; max-age=31536000; samesite=lax`;
  location.reload();
});

// As long as somebody looks

let timer = 0;

async function turn() {
  clearTimeout(timer);
  if (document.hidden) return;
  await Promise.all([look(), lookAtHosts(), lookAtAnnouncements()]);
  clearTimeout(timer);
  timer = setTimeout(turn, LOOK_EVERY_MS);
}

document.addEventListener("visibilitychange", turn);
showSorting();
turn();
