// The desktop page: connects, reconnects, and says what is going on.

import { Api, ApiError } from "./api.js";
import { Clipboard } from "./clipboard.js";
import { Clock, describe } from "./clock.js";
import { Desktop } from "./desktop.js";
import { confirmAction, hideBanner, hideNotice, showBanner, showNotice, toast } from "./notice.js";
import { remember, remembered } from "./settings.js";
import { closeAll, closeMenus, setUpToolbar } from "./toolbar.js";
import { setUpTyping } from "./typing.js";

const byId = (id) => document.getElementById(id);
const config = JSON.parse(byId("session-config").textContent);
const api = new Api(config);
const clock = new Clock();
const desktop = new Desktop(byId("screen"));

// The relay's close codes; qemuspawner/session/relay.py has the same numbers.
const ENDED = 4001;
const WITHDRAWN = 4403;
const REPLACED = 4409;
const FULL = 4429;

const FIRST_RETRY_MS = 500;
const LAST_RETRY_MS = 30_000;
const STARTING_POLL_MS = 1000;
const RUNNING_POLL_MS = 10_000;
// The hub's proxy needs a moment to notice a session that restarts; after so many answers it is over.
const GONE_AFTER = 4;

const HUB = { label: "Back to the hub", href: config.hub_home };
const RETRY = { label: "Try again", run: () => start() };

let status = null;
let retries = 0;
let goneCount = 0;
let nextTry = null;
let nextPoll = null;
let wasConnected = false;
let isOver = false; // nothing happens by itself any more
let hiddenWarning = ""; // the warning that was closed

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
  if (!wasConnected) {
    setPhase("starting", "Connecting");
  }
  try {
    take(await api.status());
    goneCount = 0;
    if (isOver) {
      return;
    }
    if (status.state !== "booting" && status.state !== "running") {
      showProgress();
      nextTry = setTimeout(connect, STARTING_POLL_MS);
      return;
    }
    const url = new URL(`${config.prefix}vnc`, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    desktop.connect(url, await api.ticket(), { viewOnly: status.you.role === "view" });
  } catch (error) {
    onFailedRequest(error);
  }
}

function onFailedRequest(error) {
  if (!(error instanceof ApiError)) {
    throw error;
  }
  if (error.kind === "login") {
    finish({
      kind: "lock",
      title: "You are logged out",
      text: "The hub no longer knows this browser, or the desktop is no longer shared with you. The desktop itself keeps running.",
      actions: [{ label: "Log in again", run: () => location.reload() }, HUB],
    });
    return;
  }
  goneCount = error.kind === "gone" || error.kind === "astray" ? goneCount + 1 : 0;
  if (goneCount >= GONE_AFTER) {
    if (error.kind === "astray") {
      // The hub knows: it repairs the way and sends us back here, or shows that nothing runs.
      location.reload();
    } else {
      showEnded("The session is not running any more.");
    }
    return;
  }
  retry();
}

function retry() {
  const longest_ms = Math.min(LAST_RETRY_MS, FIRST_RETRY_MS * 2 ** retries);
  // Spread out, so that a hundred pages do not come back in the same instant.
  const wait_ms = longest_ms * (0.5 + Math.random() / 2);
  retries += 1;
  clearTimeout(nextTry);
  nextTry = setTimeout(connect, wait_ms);
  setPhase("reconnecting", navigator.onLine ? "Reconnecting" : "No network");
  showNotice({
    kind: "busy",
    title: wasConnected ? "Connection lost" : "Connecting to the desktop",
    text: navigator.onLine
      ? "Trying to reach the desktop. It keeps running meanwhile."
      : "This device has no network. The desktop keeps running meanwhile.",
    actions: retries > 2 ? [{ label: "Try now", run: connect }, HUB] : [],
  });
}

/** Show a last notice and stop all by itself. */
function finish(notice) {
  isOver = true;
  clearTimeout(nextTry);
  clearTimeout(nextPoll);
  desktop.disconnect();
  closeAll();
  hideBanner();
  byId("time").hidden = true;
  document.title = config.session_title;
  setPhase("over", notice.title);
  showNotice(notice);
  byId("notice-actions").firstElementChild?.focus();
}

function showEnded(reason, hint = "") {
  finish({ kind: "done", title: "This session has ended", text: reason, hint, actions: [HUB] });
}

desktop.addEventListener("connect", () => {
  wasConnected = true;
  retries = 0;
  hideNotice();
  showConnection();
  if (!document.querySelector("dialog[open]") && !byId("bar").contains(document.activeElement)) {
    desktop.focus();
  }
});

desktop.addEventListener("close", ({ detail: { code, reason } }) => {
  for (const button of document.querySelectorAll("[data-hold]")) {
    button.setAttribute("aria-pressed", "false");
  }
  if (isOver) {
    return;
  }
  if (code === ENDED) {
    showEnded(reason || "Its time was over.");
  } else if (code === WITHDRAWN) {
    finish({ kind: "lock", title: "No longer shared with you", text: reason, actions: [HUB] });
  } else if (code === REPLACED) {
    finish({
      kind: "done",
      title: "Open in another window",
      text: "You opened this desktop once more, so this window let go of it.",
      actions: [{ label: "Use it here", run: () => start() }, HUB],
    });
  } else if (code === FULL) {
    finish({ kind: "alert", title: "Too many viewers", text: reason, actions: [RETRY, HUB] });
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
      title: "The desktop failed",
      text: status.message,
      hint: status.hint,
      actions: [HUB],
    });
  } else if (status.state === "ended") {
    showEnded(status.message || "The session is over.", status.hint);
  } else {
    tick();
    schedulePoll();
    if (desktop.isConnected) {
      showConnection();
    }
  }
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
    take(await api.status());
  } catch {
    // The websocket knows better whether the session is there.
    schedulePoll();
  }
}

function showProgress() {
  const isStopping = status.state === "stopping";
  setPhase("starting", isStopping ? "Stopping" : "Starting");
  showNotice({
    kind: "busy",
    title: isStopping ? "The desktop is shutting down" : "The desktop is starting",
    text: status.message,
    steps: status.steps,
    progress: isStopping ? null : status.progress,
  });
}

function showConnection() {
  const words = {
    booting: status.steps.at(-1)?.text ?? "Starting",
    stopping: "Shutting down",
  };
  const calm = status.you.role === "view" ? "View only" : "Connected";
  const others = status.viewers > 1 ? ` · ${status.viewers} viewers` : "";
  setPhase("connected", words[status.state] ?? calm + others);
}

const RANK = { view: 0, control: 1, owner: 2 };

function applyRole(role) {
  for (const element of document.querySelectorAll("[data-needs]")) {
    element.hidden = RANK[role] < RANK[element.dataset.needs];
  }
}

// The clock.

function tick() {
  const left_s = clock.left_s;
  if (isOver || left_s === Infinity) {
    return;
  }
  const mayExtend = clock.canExtend && RANK[status.you.role] >= RANK.control;
  byId("time").hidden = false;
  byId("time-left").textContent = describe(left_s);
  byId("extend").hidden = !mayExtend;
  const warning = trouble() ?? clock.warning;
  byId("time").dataset.level = warning?.cause === "time" ? warning.level : "";
  document.title = warning ? `${describe(left_s)} left – ${config.session_title}` : config.session_title;
  if (!warning || hiddenWarning === warning.cause + warning.level) {
    hideBanner();
    return;
  }
  let action = null;
  if (warning.cause === "idle" && status.you.role !== "view") {
    action = { label: "I am here", run: stir };
  } else if (warning.cause === "time" && mayExtend) {
    action = { label: "Extend", run: extend };
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

/** What the session says is wrong while it runs, such as a full disk. */
function trouble() {
  if (status.state !== "running" || !status.message) {
    return null;
  }
  return { cause: status.message, level: "urgent", text: `${status.message} ${status.hint}`.trim() };
}

async function stir() {
  desktop.stir();
  desktop.focus();
  hideBanner();
  await poll();
}

async function extend() {
  try {
    take(await api.extend());
  } catch (error) {
    toast(error.message || "The session did not answer; its time is unchanged.");
    return;
  }
  hiddenWarning = "";
  toast(`Extended. The desktop ends in ${describe(clock.left_s)}.`);
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

const POWER = {
  shutdown: {
    title: "Shut the desktop down?",
    text: "The machine is asked to shut down. The session ends with it.",
    label: "Shut down",
    isDangerous: false,
  },
  reset: {
    title: "Reset the machine?",
    text: "It restarts at once, as by the button on its case. What is not saved is lost.",
    label: "Reset",
    isDangerous: true,
  },
  poweroff: {
    title: "Force the machine off?",
    text: "As if its plug was pulled: what is not saved is lost. The session ends with it.",
    label: "Force off",
    isDangerous: true,
  },
};

async function changePower(action) {
  closeAll();
  if (await confirmAction(POWER[action])) {
    try {
      take(await api.power(action));
      toast({ shutdown: "Asked to shut down.", reset: "Reset.", poweroff: "Switched off." }[action]);
    } catch (error) {
      toast([error.message, error.hint].filter(Boolean).join(" ") || "The session did not answer.");
    }
  }
  desktop.focus();
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
  toast("The screenshot was saved.");
}

function setUpView() {
  const scales = ["match", "fit", "actual"];
  // On a phone the guest would get a desktop of 412 x 727.
  const scale = remembered("scale", scales) ?? (matchMedia("(pointer: coarse)").matches ? "fit" : "match");
  desktop.scale = scale;
  document.querySelector(`[name=scale][value=${scale}]`).checked = true;
  byId("view-menu").addEventListener("change", ({ target }) => {
    if (target.name === "scale") {
      desktop.scale = target.value;
      remember("scale", target.value);
    }
  });
  const quality = remembered("quality", [0, 1, 2, 3, 4, 5, 6, 7, 8]) ?? 6;
  desktop.quality = quality;
  byId("quality").value = quality;
  byId("quality").addEventListener("change", ({ target }) => {
    desktop.quality = Number(target.value);
    remember("quality", Number(target.value));
  });
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
  for (const button of document.querySelectorAll("[data-hold]")) {
    button.addEventListener("click", () => {
      if (desktop.isConnected) {
        button.setAttribute("aria-pressed", String(desktop.toggleHeld(button.dataset.hold)));
      }
    });
  }
  for (const item of document.querySelectorAll("[data-power]")) {
    item.addEventListener("click", () => changePower(item.dataset.power));
  }
  byId("screenshot").addEventListener("click", saveScreenshot);
  byId("screen").addEventListener("focusin", closeMenus);
}

setUpToolbar({ onLeave: () => desktop.focus() });
setUpTools();
setUpView();
setUpTyping(desktop);
new Clipboard(desktop);
start();
