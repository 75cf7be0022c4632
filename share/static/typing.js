// A phone's keyboard, or any input method: what is written into a hidden text field goes to the desktop.

import { t } from "./i18n.js";
import { toast } from "./notice.js";
import { canType as canLayoutType } from "./strokes.js";
import { closeAll } from "./toolbar.js";

const byId = (id) => document.getElementById(id);
// Something to delete, or Backspace would say nothing.
const FILLER = " ".repeat(64);

/** give(text)  puts a text into the desktop's clipboard; resolves to whether it is there */
export function setUpTyping(desktop, { give }) {
  const area = byId("typing");
  const button = byId("keyboard");
  const strip = byId("strip");
  const canType = (character) => canLayoutType(character, desktop.layout);
  let before = [];
  // One text after the other: typing takes its time.
  let queue = Promise.resolve();

  const reset = () => {
    area.value = FILLER;
    before = [...FILLER];
  };
  const write = () => {
    reset();
    area.focus({ preventScroll: true });
  };
  button.addEventListener("click", () => {
    strip.hidden = !strip.hidden;
    button.setAttribute("aria-pressed", String(!strip.hidden));
    if (strip.hidden) {
      area.blur();
    } else {
      write();
    }
    // The sheet of a phone's tools would cover what is typed.
    closeAll();
  });
  byId("write").addEventListener("click", write);
  // Otherwise a tap on a button would first take the focus away, and the phone's keyboard with it.
  for (const element of [button, strip]) {
    element.addEventListener("pointerdown", (event) => event.preventDefault());
  }
  byId("more-keys").addEventListener("click", ({ currentTarget }) => {
    const row = byId("strip-more");
    row.hidden = !row.hidden;
    currentTarget.setAttribute("aria-expanded", String(!row.hidden));
  });
  for (const key of strip.querySelectorAll("[data-key]")) {
    key.addEventListener("click", () => {
      queue = queue.then(() => desktop.isConnected && desktop.press(key.dataset.key));
    });
  }

  area.addEventListener("input", (event) => {
    const now = [...area.value];
    let same = 0;
    while (same < before.length && before[same] === now[same]) {
      same += 1;
    }
    // What could not be typed is not there to be deleted.
    const deleted = before.slice(same).filter(canType).length;
    const added = now.slice(same);
    before = now;
    queue = queue.then(() => change(deleted, added));
    if (!event.isComposing) {
      offer(added);
    }
    // Not while a word is being composed: the keyboard still refers to the text.
    if (!event.isComposing && (now.length > 256 || now.length < 8)) {
      reset();
    }
  });

  // Only now it is certain what was meant.
  area.addEventListener("compositionend", ({ data }) => offer([...data]));

  async function change(deleted, added) {
    if (!desktop.isConnected) {
      return;
    }
    for (let count = 0; count < deleted; count += 1) {
      desktop.press("Backspace");
    }
    await desktop.type(added.filter(canType).join(""));
  }

  /** What no key makes, the desktop's clipboard can have. */
  async function offer(written) {
    const text = written.filter((character) => !canType(character)).join("");
    if (text) {
      const isThere = await give(text);
      toast(isThere
        ? t("“{text}” is on none of the desktop’s keys. It is in its clipboard: paste it there.", { text })
        : t("“{text}” is on none of the desktop’s keys. It was left out.", { text }));
    }
  }
}
