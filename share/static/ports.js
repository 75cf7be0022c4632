// The menu of web tools: what the machine offers beside its screen, each in a tab of its own.

import { closeAll } from "./toolbar.js";

/** Put the menu away when a tool was chosen; `onLeave` gives the keyboard back to the desktop. */
export function setUpPorts({ onLeave }) {
  for (const link of document.querySelectorAll("#ports-menu a")) {
    link.addEventListener("click", () => {
      closeAll();
      onLeave();
    });
  }
}
