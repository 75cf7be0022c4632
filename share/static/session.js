// The desktop page: connects, reconnects, and says what is going on.

import { Api, ApiError } from "./api.js";
import { Clipboard } from "./clipboard.js";
import { Clock, describe, describeExtended } from "./clock.js";
import { Desktop } from "./desktop.js";
import { Events } from "./events.js";
import { plural, t } from "./i18n.js";
import { Modifiers } from "./modifiers.js";
import { confirmAction, hideBanner, hideNotice, showBanner, showNotice, toast } from "./notice.js";
import { setUpPorts } from "./ports.js";
import { closeAll, closeMenus, setUpToolbar } from "./toolbar.js";
import { setUpView } from "./view.js";
import { describeClosing, describeWay, maySleep } from "./words.js";

const byId = (id) => document.getElementById(id);
const config = JSON.parse(byId("session-config").textContent);
const api = new Api(config);
const clock = new Clock();
const desktop = new Desktop(byId("screen"));
const clipboard = new Clipboard(desktop);
const events = new Events({ api, config });

// The relay's close codes; qemuspawner/session/screen/visitors.py has the same numbers.
const ENDED = 4001;
const ASLEEP = 4002;
const WITHDRAWN = 4403;
const REPLACED = 4409;
const AWAY = 4410;
const FULL = 4429;

const FIRST_RETRY_MS = 500;
const LAST_RETRY_MS = 30_000;
// The session itself waits for news; this is for the moments when there are many.
const STARTING_POLL_MS = 100;
const RUNNING_POLL_MS = 10_000;
// A ticket lasts 30 s, and part of that was the page's way here.
const BROUGHT_MS = 20_000;
const LONGEST_PICTURE_MS = 2000;
const LONGEST_WAY_BACK_MS = 15_000;
// A session that has fallen asleep answers for some seconds more, and some later the hub looks for it.
const LEAVING_POLL_MS = 500;
const LONGEST_LEAVE_MS = 15_000;
// The hub's proxy needs a moment to notice a session that restarts; after so many answers it is over.
const GONE_AFTER = 4;

const HUB = { label: t("Back to the hub"), href: config.hub_home };
const RETRY = { label: t("Try again"), run: () => start() };

let status = null;
let retries = 0;
let goneCount = 0;
let nextTry = null;
let nextPoll = null;
let pictureWait = null;
let wasConnected = false;
let isOver = false; // nothing happens by itself any more
let hiddenWarning = ""; // the warning that was closed
let knownVersion = null; // of the status that is waited to change
let errand = null; // {title, text}: what somebody asked for that takes the desktop away for a while
// The first status and ticket come with the page: the desktop is there two answers earlier.
let brought = config.status && config.ticket && performance.now() < BROUGHT_MS ? config : null;
let isFirstTry = false; // with that ticket
let isAway = false; // the owner has left, and nobody may stay without
let panels = null; // what the first picture need not wait for
let people = null; // what the session told last of them

// Connecting.

function setPhase(phase, text) {
  document.body.dataset.phase = phase;
  byId("connection-text").textContent = text;
}

/** Begin, or begin again because somebody asked for it. */
function start() {
  isOver = false;
  retries = 0;
  goneCount = 0;
  connect();
}

async function connect() {
  clearTimeout(nextTry);
  if (!wasConnected && !errand) {
    setPhase("starting", t("Connecting"));
  }
  try {
    let ticket = await arrive();
    goneCount = 0;
    if (isOver) {
      return;
    }
    if (status.you.role === "waiting") {
      showWaiting();
      return;
    }
    if (status.state !== "booting" && status.state !== "running") {
      showProgress();
      knownVersion = status.version ?? null;
      clearTimeout(nextTry);
      nextTry = setTimeout(connect, STARTING_POLL_MS);
      return;
    }
    ticket ||= await api.ticket();
    if (isOver) {
      return;
    }
    const url = new URL(`${config.prefix}vnc`, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    desktop.connect(url, ticket, { viewOnly: RANK[status.you.role] < RANK.control });
  } catch (error) {
    onFailedRequest(error);
  }
}

/** Take a status that is new; returns a ticket where there is one already. */
async function arrive() {
  const version = knownVersion;
  knownVersion = null;
  if (brought) {
    const { status: first, ticket } = brought;
    brought = null;
    isFirstTry = true;
    take(first);
    return ticket;
  }
  if (version !== null) {
    take(await api.status(version));
    return "";
  }
  // In most cases both are wanted; a ticket that is not used is forgotten.
  const ticket = api.ticket();
  // Where the session has left, the hub forbids the ticket, but sends the status astray: only that one tells
  // a desktop that is gone from a lost login.
  ticket.catch(() => {});
  take(await api.status());
  return isOver ? "" : await ticket;
}

function onFailedRequest(error) {
  if (!(error instanceof ApiError)) {
    throw error;
  }
  if (isOver) {
    // Asked before the last notice, which stays.
    return;
  }
  if (error.kind === "login") {
    finish({
      kind: "lock",
      title: t("You are logged out"),
      text: t("The hub no longer knows this browser, or the desktop is no longer shared with you. The desktop itself keeps running."),
      actions: [{ label: t("Log in again"), run: () => location.reload() }, HUB],
    });
    return;
  }
  goneCount = error.kind === "gone" || error.kind === "astray" ? goneCount + 1 : 0;
  if (goneCount < GONE_AFTER) {
    retry();
  } else if (status && maySleep(status)) {
    // The hub's page would wake it by itself, and nobody may be looking.
    showPerhapsAsleep();
  } else if (error.kind === "astray") {
    // The hub knows: it repairs the way and sends us back here, or shows that nothing runs.
    location.reload();
  } else {
    showEnded(t("The session is not running any more."));
  }
}

function retry() {
  const longest_ms = Math.min(LAST_RETRY_MS, FIRST_RETRY_MS * 2 ** retries);
  // Spread out, so that a hundred pages do not come back in the same instant.
  const wait_ms = longest_ms * (0.5 + Math.random() / 2);
  retries += 1;
  clearTimeout(nextTry);
  nextTry = setTimeout(connect, wait_ms);
  setPhase("reconnecting", navigator.onLine ? t("Reconnecting") : t("No network"));
  if (errand) {
    setPhase("starting", errand.title);
    showErrand();
    return;
  }
  showNotice({
    kind: "busy",
    title: wasConnected ? t("Connection lost") : t("Connecting to the desktop"),
    text: navigator.onLine
      ? t("Trying to reach the desktop. It keeps running meanwhile.")
      : t("This device has no network. The desktop keeps running meanwhile."),
    actions: retries > 2 ? [{ label: t("Try now"), run: connect }, HUB] : [],
  });
}

/** Show a last notice and stop all by itself. */
function finish(notice) {
  isOver = true;
  clearTimeout(nextTry);
  clearTimeout(nextPoll);
  desktop.disconnect();
  events.stop();
  byId("asking").hidden = true;
  panels?.pause();
  closeAll();
  hideBanner();
  byId("time").hidden = true;
  document.title = config.session_title;
  setPhase("over", notice.title);
  showNotice(notice);
  byId("notice-actions").firstElementChild?.focus();
}

function showEnded(reason, hint = "") {
  finish({ kind: "done", title: t("This session has ended"), text: reason, hint, actions: [HUB] });
}

/** Nobody is left to say why it is gone. */
function showPerhapsAsleep() {
  finish({
    kind: "asleep",
    title: t("The desktop does not answer"),
    text: t("It may have fallen asleep while this page was away."),
    actions: [{ label: t("Open it again"), run: () => location.reload() }, HUB],
  });
}

/** Show that it sleeps, and how to wake it. */
function showAsleep(reason) {
  const isOwner = status?.you.role === "owner";
  finish({
    kind: "asleep",
    title: t("The desktop is asleep"),
    text: reason || t("It is saved as it was, with everything that is open."),
    hint: isOwner ? "" : t("Its owner can wake it."),
    actions: [isOwner ? { label: t("Wake it"), run: wake } : { label: t("Look again"), run: () => location.reload() }, HUB],
  });
}

/** Load the page anew as soon as the hub has noticed that the old session has left: then it wakes the desktop. */
async function wake() {
  setPhase("over", t("Waking"));
  showNotice({ kind: "busy", title: t("Waking the desktop") });
  const until_ms = performance.now() + LONGEST_LEAVE_MS;
  while (performance.now() < until_ms && (await isLeaving())) {
    await new Promise((resolve) => setTimeout(resolve, LEAVING_POLL_MS));
  }
  location.reload();
}

async function isLeaving() {
  try {
    return ["suspending", "suspended"].includes((await api.status()).state);
  } catch (error) {
    // The proxy still leads to it; from then on requests go astray to the hub.
    return error.kind === "gone" || error.kind === "network";
  }
}

/** Site staff, whom the owner has to let in. */
function showWaiting(text = "") {
  setPhase("starting", t("Waiting"));
  const name = config.owner;
  showNotice({
    kind: "lock",
    title: t("{name} has not let you in", { name }),
    text: text || t("You may ask to see this desktop. What you do here is logged."),
    actions: text ? [HUB] : [
      { label: t("Ask to look on"), run: () => askToCome("view") },
      { label: t("Ask for control"), run: () => askToCome("control") },
      HUB,
    ],
  });
  events.start();
}

async function askToCome(wants) {
  await (await loadPanels()).ask(wants);
  showWaiting(t("{name} is asked. This page opens the desktop when you are let in.", { name: config.owner }));
}

events.addEventListener("people", ({ detail }) => {
  people = detail;
  panels?.show(detail);
  const { role, drives, sizes } = detail.you;
  clipboard.allow(detail.you, { isAlone: detail.people.length < 2 });
  applyRole(role);
  desktop.viewOnly = !drives;
  desktop.sizes = sizes;
  if (status) {
    const wasWaiting = status.you.role === "waiting";
    status.you = { ...status.you, role };
    const ownerIsBack = isAway && detail.people.some((person) => person.role === "owner");
    if (!isOver && ((wasWaiting && role !== "waiting") || ownerIsBack)) {
      isAway = false;
      connect();
    } else if (desktop.isConnected) {
      showConnection();
    }
  }
});
events.addEventListener("pointers", ({ detail }) => panels?.point(detail));
events.addEventListener("status", ({ detail }) => {
  if (!isOver && detail.session_id && desktop.isConnected) {
    take(detail);
  }
});

desktop.addEventListener("connect", () => {
  wasConnected = true;
  isAway = false;
  events.start();
  retries = 0;
  isFirstTry = false;
  if (errand?.isSent) {
    toast(errand.done);
    errand = null;
  }
  showConnection();
  clearTimeout(pictureWait);
  pictureWait = setTimeout(resumePanels, LONGEST_PICTURE_MS);
  if (!document.querySelector("dialog[open]") && !byId("bar").contains(document.activeElement)) {
    desktop.focus();
  }
});

// Sooner they would be in the picture's way. A tab that is not shown draws nothing, and waits its time.
desktop.addEventListener("picture", () => {
  requestAnimationFrame(() => {
    clearTimeout(pictureWait);
    resumePanels();
  });
});

desktop.addEventListener("close", ({ detail: { code, reason } }) => {
  clearTimeout(pictureWait);
  panels?.pause();
  if (isOver) {
    return;
  }
  if (code === ENDED) {
    showEnded(reason || t("Its time was over."));
  } else if (code === ASLEEP) {
    showAsleep(reason);
  } else if (code === WITHDRAWN) {
    finish({ kind: "lock", title: t("No longer shared with you"), text: reason, actions: [HUB] });
  } else if (code === AWAY) {
    isAway = true;
    events.start();
    setPhase("starting", t("Waiting for the owner"));
    showNotice({ kind: "lock", title: t("{name} is not here", { name: config.owner }), text: reason, actions: [HUB] });
  } else if (code === REPLACED) {
    finish({
      kind: "done",
      title: t("Open in another window"),
      text: t("You opened this desktop once more, so this window let go of it."),
      actions: [{ label: t("Use it here"), run: () => start() }, HUB],
    });
  } else if (code === FULL) {
    finish({ kind: "alert", title: t("Too many viewers"), text: reason, actions: [RETRY, HUB] });
  } else if (isFirstTry || status?.state === "suspending") {
    // The page's own ticket was too old; or the machine has stopped, and its session knows why.
    isFirstTry = false;
    connect();
  } else {
    retry();
  }
});

window.addEventListener("online", () => {
  if (!isOver && !desktop.isConnected) {
    retries = 0;
    connect();
  }
});

// Status.

/** Take a status of the session and show what follows from it. */
function take(newStatus) {
  status = newStatus;
  clock.set(status);
  applyRole(status.you.role);
  if (status.state === "failed") {
    finish({
      kind: "alert",
      title: t("The desktop failed"),
      text: status.message,
      hint: status.hint,
      actions: [HUB],
    });
  } else if (status.state === "ended") {
    showEnded(status.message || t("The session is over."), status.hint);
  } else if (status.state === "suspended") {
    showAsleep(status.message);
  } else {
    describeDesktop();
    panels?.take(status);
    tick();
    schedulePoll();
    if (desktop.isConnected) {
      showConnection();
    }
  }
}

const UNTIL = {
  sleeps: t("Until the desktop falls asleep"),
  keeps: t("Until the desktop shuts down"),
  ends: t("Until the desktop ends"),
};

/** What the page says about this desktop beside its picture. */
function describeDesktop() {
  const way = describeWay(status);
  const obstacle = status.suspend_obstacle ?? "";
  byId("name").title = way;
  byId("help-way").textContent = way;
  byId("help-closing").textContent = describeClosing(status);
  byId("time-about").title = UNTIL[clock.fate];
  const suspendButton = byId("suspend");
  suspendButton.disabled = Boolean(obstacle);
  suspendButton.title = obstacle;
  byId("suspend-about").textContent =
    obstacle || t("Sleep: everything stays as it is and comes back when you open it again.");
}

function schedulePoll() {
  clearTimeout(nextPoll);
  const wait_ms = status.state === "running" ? RUNNING_POLL_MS : STARTING_POLL_MS;
  nextPoll = setTimeout(poll, wait_ms);
}

async function poll() {
  if (!desktop.isConnected || document.hidden) {
    nextPoll = setTimeout(poll, RUNNING_POLL_MS);
    return;
  }
  try {
    // What is about to change is told when it does; a calm desktop is not worth a request that waits.
    const newStatus = await api.status(status.state === "running" ? null : status.version);
    if (!isOver) {
      take(newStatus);
    }
  } catch {
    // The websocket knows better whether the session is there.
    clearTimeout(nextPoll);
    nextPoll = setTimeout(poll, RUNNING_POLL_MS);
  }
}

function showProgress() {
  if (status.state === "suspending") {
    showSaving();
    return;
  }
  const isStopping = status.state === "stopping";
  setPhase("starting", isStopping ? t("Stopping") : t("Starting"));
  showNotice({
    kind: "busy",
    title: isStopping ? t("The desktop is shutting down") : t("The desktop is starting"),
    text: status.message,
    steps: status.steps,
    progress: isStopping ? null : status.progress,
  });
}

const SAVING = {
  title: t("Saving…"),
  text: t("The desktop falls asleep when its memory and its disk are saved. That takes some seconds."),
};

function showSaving() {
  setPhase("starting", SAVING.title);
  showNotice({ kind: "busy", ...SAVING });
}

/** The desktop is connected, which is not all there is to say. */
function showConnection() {
  if (status.state === "suspending") {
    showSaving();
    return;
  }
  if (errand) {
    showErrand();
    return;
  }
  hideNotice();
  const words = {
    booting: status.steps.at(-1)?.text ?? t("Starting"),
    stopping: t("Shutting down"),
  };
  const calm = desktop.isViewOnly ? t("View only") : t("Connected");
  const others = status.viewers > 1 ? ` · ${plural(status.viewers, "{count} viewer", "{count} viewers")}` : "";
  setPhase("connected", words[status.state] ?? calm + others);
}

const RANK = { waiting: 0, view: 1, control: 2, owner: 3 };

function applyRole(role) {
  for (const element of document.querySelectorAll("[data-needs]")) {
    element.hidden = RANK[role] < RANK[element.dataset.needs];
  }
  if (panels) {
    panels.role = role;
  }
}

async function loadPanels() {
  if (!panels) {
    const { Panels } = await import("./panels.js");
    panels ??= new Panels({ api, config, desktop, clipboard, events, onGoBack: goBack, onPower: changePower, onStatus: take });
    panels.role = status.you.role;
    panels.take(status);
    if (people) {
      panels.show(people);
    }
    byId("bar").ariaBusy = "false";
  }
  return panels;
}

async function resumePanels() {
  await loadPanels();
  if (desktop.isConnected) {
    panels.resume();
  }
}

// The clock.

function tick() {
  const left_s = clock.left_s;
  if (isOver || left_s === Infinity) {
    return;
  }
  const mayExtend = RANK[status.you.role] >= RANK.control && (clock.canExtend || !panels?.isWaiting);
  const extendLabel = clock.canExtend ? t("Extend") : t("Ask for more time");
  byId("time").hidden = false;
  byId("time-left").textContent = describe(left_s);
  byId("extend").hidden = !mayExtend;
  byId("extend").textContent = extendLabel;
  const warning = clock.warning;
  byId("time").dataset.level = warning?.cause === "time" ? warning.level : "";
  document.title = warning ? t("{span} left – {title}", { span: describe(left_s), title: config.session_title }) : config.session_title;
  if (!warning || hiddenWarning === warning.cause + warning.level) {
    hideBanner();
    return;
  }
  let action = null;
  if (warning.cause === "idle" && status.you.role !== "view") {
    action = { label: t("I am here"), run: stir };
  } else if (warning.cause === "time" && mayExtend) {
    action = { label: extendLabel, run: extend };
  }
  showBanner({
    ...warning,
    action,
    onClose: () => {
      hiddenWarning = warning.cause + warning.level;
      hideBanner();
      desktop.focus();
    },
  });
}

async function stir() {
  desktop.stir();
  desktop.focus();
  hideBanner();
  await poll();
}

async function extend() {
  if (!clock.canExtend) {
    await (await loadPanels()).askForTime();
    desktop.focus();
    return;
  }
  try {
    take(await api.extend());
  } catch (error) {
    toast(error.message || t("The session did not answer; its time is unchanged."));
    return;
  }
  hiddenWarning = "";
  toast(describeExtended(clock.fate, describe(clock.left_s)));
  desktop.focus();
}

setInterval(tick, 1000);
byId("extend").addEventListener("click", extend);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && !isOver) {
    poll();
  }
});

// Tools.

const DELETED = t("Everything on it that is not in a checkpoint is deleted.");

const POWER = {
  shutdown: {
    title: t("Shut the desktop down?"),
    text: `${t("The machine is asked to shut down, and the session ends with it.")} ${DELETED}`,
    label: t("Shut down"),
    isDangerous: true,
    isEnd: true,
  },
  reset: {
    title: t("Reset the machine?"),
    text: t("It restarts at once, as by the button on its case. What is not saved is lost."),
    label: t("Reset"),
    isDangerous: true,
  },
  poweroff: {
    title: t("Force the machine off?"),
    text: `${t("As if its plug was pulled, and the session ends with it.")} ${DELETED}`,
    label: t("Force off"),
    isDangerous: true,
    isEnd: true,
  },
};

async function changePower(action) {
  closeAll();
  const { isEnd = false, text, ...question } = POWER[action];
  const instead = isEnd && !status.suspend_obstacle ? ` ${t("To keep it as it is, choose Suspend.")}` : "";
  if (await confirmAction({ ...question, text: text + instead })) {
    try {
      take(await api.power(action));
      toast({ shutdown: t("Asked to shut down."), reset: t("Reset."), poweroff: t("Switched off.") }[action]);
    } catch (error) {
      toast(error.words ?? String(error));
    }
  }
  desktop.focus();
}

// Errands.

function showErrand() {
  showNotice({ kind: "busy", title: errand.title, text: errand.text });
}

/** Ask for something that takes the desktop away; returns whether it was done. Its notice stays until the
 *  desktop is back, or gives way to the last one.
 *
 *  newErrand  {title, text} of the notice, and `done`: what to say when the desktop is back
 */
async function runErrand(newErrand, request) {
  if (errand || isOver) {
    return false;
  }
  closeAll();
  errand = newErrand;
  setPhase("starting", errand.title);
  showErrand();
  try {
    await request();
  } catch (error) {
    errand = null;
    if (!isOver) {
      toast(error.words ?? String(error));
      // Whether it goes on, or is being saved all the same.
      await poll();
      desktop.focus();
    }
    return false;
  }
  newErrand.isSent = true;
  return !isOver;
}

async function suspend() {
  if (await runErrand({ ...SAVING }, () => api.suspend())) {
    showAsleep("");
  }
}

async function goBack(checkpoint, title) {
  const notice = {
    title: t("Going back to “{title}”", { title }),
    text: t("First, the desktop is saved as it is now."),
    done: t("The desktop is back at “{title}”.", { title }),
  };
  if (await runErrand(notice, () => api.goBack(checkpoint.name))) {
    setTimeout(() => settle(notice), LONGEST_WAY_BACK_MS);
  }
}

/** The desktop was connected again before its session had answered, as unlikely as that is. */
function settle(notice) {
  if (errand === notice && desktop.isConnected) {
    errand = null;
    showConnection();
  }
}

async function saveScreenshot() {
  if (!desktop.isConnected) {
    return;
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await desktop.picture());
  const moment = new Date().toISOString().slice(0, 19).replaceAll(":", "-");
  link.download = `${config.session_title.replaceAll(/[^\p{L}\p{N}]+/gu, "-")}-${moment}.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  toast(t("The screenshot was saved."));
}

function setUpTools() {
  for (const item of document.querySelectorAll("[data-chord]")) {
    item.addEventListener("click", () => {
      closeAll();
      if (desktop.isConnected) {
        desktop.chord(item.dataset.chord.split(" "));
        desktop.focus();
      }
    });
  }
  for (const item of document.querySelectorAll("[data-power]")) {
    item.addEventListener("click", () => changePower(item.dataset.power));
  }
  byId("suspend").addEventListener("click", suspend);
  byId("screenshot").addEventListener("click", saveScreenshot);
  byId("screen").addEventListener("focusin", closeMenus);
}

setUpToolbar({ onLeave: () => desktop.focus() });
setUpTools();
setUpPorts({ onLeave: () => desktop.focus() });
setUpView(desktop, { ping: () => events.ping() });
new Modifiers(desktop);
start();
