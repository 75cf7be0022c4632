// The pages of the site's staff: everybody's desktops, hosts, announcements. What the hub refuses, it refuses here, too.

const config = JSON.parse(document.getElementById("config").textContent);
const byId = (id) => document.getElementById(id);

const LOOK_EVERY_MS = 10_000;
const PICTURE_EVERY_MS = 30_000;
// So many questions to the hub at a time.
const AT_ONCE = 6;
const MAX_MESSAGE = 300;
const MAX_REASON = 200;

const STATES = {
  starting: ["Starting", "text-bg-info"],
  preparing: ["Starting", "text-bg-info"],
  booting: ["Starting", "text-bg-info"],
  running: ["Running", "text-bg-success"],
  stopping: ["Stopping", "text-bg-warning"],
  suspending: ["Falling asleep", "text-bg-warning"],
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
    throw new Problem("The hub does not answer. Try again in a moment.", 0);
  }
  if (answer.ok) {
    return answer;
  }
  const content = await answer.json().catch(() => null);
  throw new Problem(content?.message || `The hub answers ${answer.status}.`, answer.status);
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
  if (minutes < 1) return "< 1 min";
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

function size(mib) {
  if (mib === null) return "–";
  return mib < 1024 ? `${mib} MiB` : `${Math.round((mib / 1024) * 10) / 10} GiB`;
}

const percent = (value) => (value === null ? "–" : `${value} %`);
const rate = (kib) => (kib === null ? "–" : kib < 1024 ? `${kib} KiB/s` : `${Math.round(kib / 102.4) / 10} MiB/s`);
const many = (count, one, more) => (count === 1 ? one : more.replace("#", count));
const nameOf = ({ server }) => server || "default desktop";
const stateOf = ({ state, answers }) => {
  const [label, colour] = STATES[state] ?? [state, "text-bg-secondary"];
  return answers || state === "starting" ? [label, colour] : ["Does not answer", "text-bg-danger"];
};

/** Whose they are: the first ones by name. */
function owners(desktops) {
  const names = [...new Set(desktops.map(({ user }) => user))].sort();
  const whose = names.length > 4 ? `${names.slice(0, 3).join(", ")} and ${names.length - 3} others` : names.join(", ");
  return desktops.length === 1 ? `It belongs to ${whose}.` : `They belong to ${whose}.`;
}

// The desktops

const keyOf = ({ user, server }) => JSON.stringify([user, server]);
const desktops = new Map(); // by key: what the hub said last
const rows = new Map(); // by key: its row
const selected = new Set();
let sorting = { key: "user", isDown: false };

const { compare: inOrder } = new Intl.Collator(undefined, { numeric: true });

// What a column is sorted by.
const VALUES = {
  cpu: ({ load }) => load?.cpu_percent ?? null,
  gpu: ({ load }) => load?.gpu_percent ?? null,
  disk: ({ load }) => load?.disk_kib_s ?? null,
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
  box.setAttribute("aria-label", `Select ${nameOf(desktop)} of ${desktop.user}`);
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
  const facts = Array.from({ length: 9 }, () => cell("td", "text-end"));
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
    percent(load?.gpu_percent ?? null),
    rate(load?.disk_kib_s ?? null),
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
  byId("none").textContent = desktops.size ? "No desktop matches this." : "No desktop runs at the moment.";
  byId("none").hidden = shown.length > 0;
  const total = many(desktops.size, "1 desktop", "# desktops");
  byId("count").textContent = shown.length === desktops.size ? total : `${shown.length} of ${total}`;
  showSelection();
}

function showSelection() {
  const shown = byId("rows").children.length;
  const all = byId("all");
  all.checked = shown > 0 && selected.size === shown;
  all.indeterminate = selected.size > 0 && selected.size < shown;
  for (const [id, one, more] of [
    ["message", "Message 1 desktop…", "Message # desktops…"],
    ["stop", "Stop 1 desktop…", "Stop # desktops…"],
  ]) {
    byId(id).disabled = selected.size === 0;
    byId(id).textContent = selected.size ? many(selected.size, one, more) : more.replace(" # desktops", "");
  }
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
    picture.alt = `Screen of ${server || "the default desktop"} of ${user}`;
    picture.src = url;
    forgetPicture(parts);
    parts.pictureUrl = url;
    parts.picture.replaceChildren(picture);
    return;
  } catch (error) {
    // The session decides that, for each desktop; its owner can be asked at the desktop itself.
    words = error.status === 403 ? "Private: staff may not look" : "No picture";
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

/** Say what became of `all`, of which `failed` were refused. */
function report(all, failed, { done, undone }) {
  const good = all.length - failed.length;
  say(good ? many(good, done[0], done[1]) : "");
  byId("problem").dataset.kind = "act";
  const reasons = failed.slice(0, 5).map(([desktop, error]) => `${desktop.user}, ${nameOf(desktop)}: ${error.message}`);
  complain(failed.length ? [many(failed.length, undone[0], undone[1]), ...reasons].join(" ") : "");
}

byId("stop").addEventListener("click", async () => {
  const all = chosen();
  const asleep = all.filter(({ sleeps }) => sleeps).length;
  const fates = [
    asleep && many(asleep, "1 falls asleep as it is.", "# fall asleep as they are."),
    all.length - asleep && many(all.length - asleep, "1 ends; what is not saved outside it is lost.", "# end; what is not saved outside them is lost."),
  ];
  const wanted = await ask({
    title: many(all.length, "Stop 1 desktop?", "Stop # desktops?"),
    text: [owners(all), ...fates.filter(Boolean)].join(" "),
    label: many(all.length, "Stop 1 desktop", "Stop # desktops"),
    isDangerous: true,
  });
  if (!wanted) return;
  const failed = await forAll(all, ({ user, server }) => request("DELETE", ["desktops", user, server]));
  report(all, failed, {
    done: ["1 desktop is stopped.", "# desktops are stopped."],
    undone: ["1 desktop could not be stopped.", "# desktops could not be stopped."],
  });
  selected.clear();
  await look();
});

byId("message").addEventListener("click", async () => {
  const all = chosen();
  const text = await ask({
    title: many(all.length, "A message to 1 desktop", "A message to # desktops"),
    text: `${owners(all)} Everybody who is there reads it, with your name.`,
    field: "Message",
    maxLength: MAX_MESSAGE,
    label: many(all.length, "Send to 1 desktop", "Send to # desktops"),
  });
  if (!text) return;
  const failed = await forAll(all, ({ user, server }) => request("POST", ["desktops", user, server, "message"], { text }));
  report(all, failed, {
    done: ["The message is at 1 desktop.", "The message is at # desktops."],
    undone: ["1 desktop did not take it.", "# desktops did not take it."],
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

function makeHost({ name, desktops: count, cpus, memory_mib: memory, drain }) {
  const row = document.createElement("tr");
  const head = cell("th", "name");
  head.scope = "row";
  head.textContent = name;
  const texts = [String(count), String(cpus), size(memory), drain ? `No, says ${drain.by}: ${drain.reason}` : "Yes"];
  const cells = texts.map((text, at) => {
    const made = cell("td", at === 3 ? "name" : "");
    made.textContent = text;
    return made;
  });
  const button = document.createElement("button");
  button.type = "button";
  button.className = "btn btn-sm btn-outline-contrast";
  button.textContent = drain ? "Take new desktops again" : "Drain…";
  button.setAttribute("aria-label", drain ? `Take new desktops again on ${name}` : `Drain ${name}…`);
  button.addEventListener("click", () => (drain ? undrain(name) : startDrain(name)));
  const action = cell("td", "text-end");
  action.append(button);
  row.append(head, ...cells, action);
  return row;
}

async function startDrain(name) {
  const reason = await ask({
    title: `Drain ${name}?`,
    text: "Nothing new starts there from now on; what runs goes on. Who wants to start a desktop there reads the reason.",
    field: "Reason",
    maxLength: MAX_REASON,
    label: "Drain",
  });
  if (reason) await change(() => request("POST", ["hosts", name, "drain"], { reason }), `${name} is drained.`);
}

const undrain = (name) => change(() => request("DELETE", ["hosts", name, "drain"]), `${name} takes new desktops again.`);

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
  const said = [level === "warning" ? `A warning by ${by}.` : `Information by ${by}.`];
  if (begins > 0) said.push(`Begins in ${span(begins)}.`);
  if (ends !== null) said.push(ends > 0 ? `Ends in ${span(ends)}.` : "It is over.");
  if (must) said.push(many(acknowledged, "1 person has acknowledged it.", "# people have acknowledged it."));
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
  button.textContent = "Delete";
  button.setAttribute("aria-label", `Delete: ${announcement.text.slice(0, 60)}`);
  button.addEventListener("click", async () => {
    await act(() => request("DELETE", ["announcements", String(announcement.id)]), "The announcement is deleted.");
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
    if (ends !== null && ends <= begins) throw new Problem("It ends before it begins.", 400);
    await request("POST", ["announcements"], {
      text: byId("announce-text").value,
      level: byId("announce-level").value,
      begins_in: begins,
      lasts: ends === null ? null : ends - begins,
      must_acknowledge: byId("announce-must").checked,
    });
    byId("announce").reset();
    say("The announcement is made.");
  } catch (error) {
    // What was typed stays.
    problem.textContent = error.message;
    problem.hidden = false;
  }
  await lookAtAnnouncements();
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
