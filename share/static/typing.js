// A phone's keyboard: what is typed into a hidden text field goes to the desktop.

import { closeAll } from "./toolbar.js";

const byId = (id) => document.getElementById(id);
// Something to delete, or Backspace would say nothing.
const FILLER = " ".repeat(64);

export function setUpTyping(desktop) {
  const area = byId("typing");
  const button = byId("keyboard");
  let before = "";
  // One text after the other: typing takes its time.
  let queue = Promise.resolve();

  const reset = () => {
    area.value = FILLER;
    before = FILLER;
  };
  button.addEventListener("click", () => {
    if (button.getAttribute("aria-pressed") === "true") {
      area.blur();
      return;
    }
    reset();
    area.focus({ preventScroll: true });
    // The sheet of a phone's tools would cover what is typed.
    closeAll();
  });
  // Otherwise a tap on the button would first take the focus away, and then bring it back.
  button.addEventListener("pointerdown", (event) => event.preventDefault());
  area.addEventListener("focus", () => button.setAttribute("aria-pressed", "true"));
  area.addEventListener("blur", () => button.setAttribute("aria-pressed", "false"));
  area.addEventListener("input", (event) => {
    const now = area.value;
    let same = 0;
    while (same < before.length && before[same] === now[same]) {
      same += 1;
    }
    const deleted = before.length - same;
    const added = now.slice(same);
    before = now;
    queue = queue.then(async () => {
      if (!desktop.isConnected) {
        return;
      }
      for (let count = 0; count < deleted; count += 1) {
        desktop.press("Backspace");
      }
      await desktop.type(added);
    });
    // Not while a word is being composed: the keyboard still refers to the text.
    if (!event.isComposing && (now.length > 256 || now.length < 8)) {
      reset();
    }
  });
}
