// The bar: menus, and the whole page without a mouse.

import { t } from "./i18n.js";
import { toast } from "./notice.js";

const byId = (id) => document.getElementById(id);
const bar = byId("bar");
const tools = byId("tools");
const fold = byId("fold");

/** Wire the bar. `onLeave` gives the keyboard back to the desktop. */
export function setUpToolbar({ onLeave }) {
  for (const button of bar.querySelectorAll("[aria-controls$='-menu']")) {
    button.addEventListener("click", () => toggleMenu(button));
  }
  fold.addEventListener("click", () => setFolded(fold.getAttribute("aria-expanded") === "true"));
  bar.addEventListener("keydown", (event) => onBarKey(event, onLeave));
  document.addEventListener("pointerdown", (event) => {
    // A dialog lies above all; what it was asked from waits for the answer.
    if (event.target.closest("dialog")) {
      return;
    }
    if (!event.target.closest(".with-menu")) {
      closeMenus();
    }
    if (!bar.contains(event.target)) {
      setFolded(true);
    }
  });
  byId("fullscreen").addEventListener("click", async () => {
    await toggleFullScreen();
    onLeave();
  });
  document.addEventListener("fullscreenchange", onFullScreen);
  // Before the canvas, which takes every key.
  window.addEventListener("keydown", onChord, { capture: true });
  byId("help-button").addEventListener("click", () => byId("help").showModal());
  byId("help").addEventListener("close", onLeave);
  byId("insecure").hidden = window.isSecureContext;
}

export function closeMenus() {
  for (const button of bar.querySelectorAll("[aria-controls$='-menu'][aria-expanded='true']")) {
    setMenu(button, false);
  }
}

/** Close whatever is open, also the folded-out tools of a phone. */
export function closeAll() {
  closeMenus();
  setFolded(true);
}

function setMenu(button, isOpen) {
  button.setAttribute("aria-expanded", String(isOpen));
  const menu = byId(button.getAttribute("aria-controls"));
  menu.hidden = !isOpen;
  menu.dispatchEvent(new Event(isOpen ? "open" : "close"));
}

function toggleMenu(button) {
  const isOpen = button.getAttribute("aria-expanded") === "true";
  closeMenus();
  if (!isOpen) {
    setMenu(button, true);
    focusables(byId(button.getAttribute("aria-controls")))[0]?.focus();
  }
}

function setFolded(isFolded) {
  fold.setAttribute("aria-expanded", String(!isFolded));
}

function focusables(root) {
  return [...root.querySelectorAll("a, button, input, select, textarea, [tabindex='0']")].filter(
    (element) => element.checkVisibility() && !element.disabled,
  );
}

function onBarKey(event, onLeave) {
  const menu = event.target.closest(".menu");
  const isText = event.target.matches("textarea, select, input:not([type=checkbox])");
  if (event.key === "Escape") {
    event.preventDefault();
    if (menu) {
      const button = bar.querySelector(`[aria-controls="${menu.id}"]`);
      setMenu(button, false);
      button.focus();
    } else {
      closeAll();
      onLeave();
    }
    return;
  }
  if (isText) {
    return;
  }
  const isForward = event.key === (menu ? "ArrowDown" : "ArrowRight");
  const isBack = event.key === (menu ? "ArrowUp" : "ArrowLeft");
  if (isForward || isBack) {
    event.preventDefault();
    const all = focusables(menu ?? bar).filter((element) => menu || !element.closest(".menu"));
    const at = all.indexOf(event.target) + (isForward ? 1 : -1);
    all[(at + all.length) % all.length].focus();
  }
}

function onChord(event) {
  if (!(event.ctrlKey && event.altKey && event.shiftKey) || event.repeat) {
    return;
  }
  const actions = {
    KeyM: () => (fold.checkVisibility() ? fold : focusables(bar)[0]).focus(),
    KeyF: toggleFullScreen,
    KeyV: () => {
      setFolded(false);
      if (!byId("clipboard-button").closest("[hidden]")) {
        closeMenus();
        toggleMenu(byId("clipboard-button"));
      }
    },
  };
  const action = actions[event.code];
  if (action && !document.querySelector("dialog[open]")) {
    event.preventDefault();
    event.stopImmediatePropagation();
    action();
  }
}

async function toggleFullScreen() {
  if (document.fullscreenElement) {
    await document.exitFullscreen();
    return;
  }
  try {
    await document.documentElement.requestFullscreen({ navigationUI: "hide" });
  } catch {
    toast(t("The browser does not allow full screen here."));
    return;
  }
  // Chromium only: Alt+Tab, the Windows key and a short Esc reach the desktop.
  await navigator.keyboard?.lock?.().catch(() => {});
  toast(navigator.keyboard?.lock ? t("Hold Esc to leave full screen.") : t("Press Esc to leave full screen."));
}

function onFullScreen() {
  const isFull = Boolean(document.fullscreenElement);
  byId("fullscreen").setAttribute("aria-pressed", String(isFull));
  if (!isFull) {
    navigator.keyboard?.unlock?.();
  }
}
