// What is shown in the desktop's place, and the small things shown above it.

import { decimal, t } from "./i18n.js";

const byId = (id) => document.getElementById(id);

/** Show a card where the desktop would be.
 *
 *  kind     busy, alert, done, lock or asleep: its mark
 *  actions  [{label, href} or {label, run}]; the first one is the main one
 *  steps    the session's steps; `progress` in percent
 */
export function showNotice({ kind, title, text = "", hint = "", actions = [], steps = [], progress = null }) {
  const notice = byId("notice");
  notice.hidden = false;
  notice.dataset.kind = kind;
  setText("notice-title", title);
  setText("notice-text", text);
  setText("notice-hint", hint);
  byId("notice-progress").hidden = progress === null;
  byId("notice-progress").value = progress ?? 0;
  showSteps(steps);
  showActions(actions);
}

export function hideNotice() {
  byId("notice").hidden = true;
}

/** One sentence that goes away by itself. */
export function toast(text) {
  const element = byId("toast");
  element.textContent = text;
  element.classList.add("shown");
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => element.classList.remove("shown"), 5000);
}

/** Ask before something that cannot be taken back; resolves to whether it is wanted. */
export function confirmAction({ title, text, label, isDangerous }) {
  const dialog = byId("confirm");
  setText("confirm-title", title);
  setText("confirm-text", text);
  const yes = byId("confirm-yes");
  yes.textContent = label;
  yes.classList.toggle("danger", isDangerous);
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

/** Ask for a line of text; resolves to it, trimmed, or to null where it was called off.
 *
 *  pattern  a regular expression that the whole text must match; `rule` says it in words
 */
export function askText({ title, text, field, label, rule = "", pattern = null, maxLength, placeholder = "" }) {
  const dialog = byId("ask");
  setText("ask-title", title);
  setText("ask-text", text);
  setText("ask-field", field);
  setText("ask-rule", rule);
  byId("ask-yes").textContent = label;
  const input = byId("ask-input");
  input.value = "";
  input.maxLength = maxLength;
  input.placeholder = placeholder;
  const isGood = () => pattern === null || pattern.test(input.value.trim());
  const mark = (isBad) => {
    input.setAttribute("aria-invalid", String(isBad));
    byId("ask-rule").classList.toggle("bad", isBad);
  };
  mark(false);
  input.oninput = () => mark(false);
  byId("ask-yes").onclick = (event) => {
    if (!isGood()) {
      event.preventDefault();
      mark(true);
      input.focus();
    }
  };
  byId("ask-no").onclick = () => dialog.close("no");
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    const answer = () => resolve(dialog.returnValue === "yes" ? input.value.trim() : null);
    dialog.addEventListener("close", answer, { once: true });
  });
}

/** A strip below the bar; `level` is info, warning or urgent. */
export function showBanner({ level, text, action = null, onClose }) {
  const banner = byId("banner");
  banner.hidden = false;
  banner.dataset.level = level;
  setText("banner-text", text);
  const button = byId("banner-action");
  button.hidden = !action;
  if (action) {
    button.textContent = action.label;
    button.onclick = action.run;
  }
  byId("banner-close").onclick = onClose;
}

export function hideBanner() {
  byId("banner").hidden = true;
}

function setText(id, text) {
  const element = byId(id);
  // Set again, the same text would be read aloud again.
  if (element.textContent !== text) {
    element.textContent = text;
  }
  element.hidden = !text;
}

function showSteps(steps) {
  const list = byId("notice-steps");
  list.hidden = steps.length === 0;
  list.replaceChildren(
    ...steps.slice(-6).map(({ at, text, level }) => {
      const item = document.createElement("li");
      item.dataset.level = level;
      const time = document.createElement("time");
      time.textContent = t("{number} s", { number: decimal(at, 1) });
      const words = document.createElement("span");
      words.textContent = text;
      item.append(time, words);
      return item;
    }),
  );
}

function showActions(actions) {
  const elements = actions.map(({ label, href, run }, at) => {
    const element = document.createElement(href ? "a" : "button");
    element.textContent = label;
    element.classList.add("button");
    element.classList.toggle("quiet", at > 0);
    if (href) {
      element.href = href;
    } else {
      element.type = "button";
      element.addEventListener("click", run);
    }
    return element;
  });
  const box = byId("notice-actions");
  box.hidden = elements.length === 0;
  // Kept while nothing changes, so that a button does not lose the keyboard's focus.
  const labels = (nodes) => nodes.map((node) => node.textContent + (node.href ?? "")).join("\n");
  if (labels([...box.children]) !== labels(elements)) {
    box.replaceChildren(...elements);
  }
}
