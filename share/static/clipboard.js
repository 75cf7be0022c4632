// The clipboards of this device and of the desktop: kept the same where browser and session allow it, and a
// panel that always works.

import { MAX_COPIED_BYTES } from "./cuttext.js";
import { DeviceClipboard, IS_MAC } from "./device.js";
import { decimal, plural, t } from "./i18n.js";
import { toast } from "./notice.js";
import { Pasting } from "./pasting.js";
import { remember, remembered } from "./settings.js";
import { describeSize } from "./words.js";

// The relay passes no longer text on.
const MAX_BYTES = 200 * 1024;
const MAX_TYPED = 2000;
// The guest does not say when it knows of a text, and a key that overtakes it would paste the one before. An idle
// guest is faster than the key; a busy one may not be.
const GUEST_TAKES_MS = 100;
const PASTE_KEYS = IS_MAC ? t("Cmd+V") : t("Ctrl+V");

const byId = (id) => document.getElementById(id);

export class Clipboard {
  #desktop;
  #device = new DeviceClipboard();
  #here = null; // the device's text, as far as it is known
  #there = null; // the guest's
  #late = null; // what was copied there while the page had not the focus
  #copies = 0;
  #taken = Promise.resolve(); // when the guest has what it was given
  #may = { copies_in: true, copies_out: true }; // until the session has told; it has the last word anyway
  #isAlone = true;

  constructor(desktop) {
    this.#desktop = desktop;
    byId("clipboard-send").addEventListener("click", () => this.#send());
    byId("clipboard-type").addEventListener("click", () => this.#type(byId("clipboard-text").value));
    byId("clipboard-take").addEventListener("click", () => this.#take());
    byId("clipboard-allow").addEventListener("click", () => this.#device.read().then(() => this.#meet()));
    const auto = byId("clipboard-auto");
    auto.checked = remembered("clipboard") !== "off";
    auto.addEventListener("change", () => {
      remember("clipboard", auto.checked ? "on" : "off");
      this.#show();
    });
    this.#device.addEventListener("change", () => this.#show());
    desktop.addEventListener("copied", ({ detail }) => this.#onCopied(detail));
    desktop.addEventListener("connect", () => {
      // It may be another guest than before, such as an earlier self.
      this.#there = this.#late = null;
    });
    window.addEventListener("focus", () => this.#meet());
    byId("screen").addEventListener("focusin", () => this.#meet());
    new Pasting({
      desktop,
      screen: byId("screen"),
      isOn: () => this.#isShared && this.#may.copies_in && desktop.isConnected && !desktop.isViewOnly,
      give: (text) => this.#bring(text),
      read: () => this.#readForKey(),
    });
    this.#show();
  }

  /** What this person may copy, and whether they are alone: others see what comes to the desktop's clipboard. */
  allow({ copies_in, copies_out }, { isAlone = true } = {}) {
    this.#may = { copies_in, copies_out };
    this.#isAlone = isAlone;
    // Those who only look on have the panel where they may copy.
    byId("clipboard").dataset.needs = copies_out ? "view" : "control";
    this.#show();
  }

  get #isShared() {
    return byId("clipboard-auto").checked;
  }

  // From the desktop

  async #onCopied(copied) {
    this.#copies += 1;
    const copy = this.#copies;
    let text;
    try {
      text = await copied;
    } catch (error) {
      toast(error instanceof RangeError
        ? t("What was copied in the desktop is too long for the clipboard: at most {most}.", { most: describeSize(MAX_COPIED_BYTES) })
        : t("What was copied in the desktop cannot be read."));
      text = null;
    }
    if (copy !== this.#copies) {
      return;
    }
    this.#there = text;
    this.#late = null;
    if (text === null || !this.#may.copies_out) {
      return;
    }
    byId("clipboard-text").value = text;
    if (document.hasFocus()) {
      this.#write(text);
    } else {
      this.#late = text;
    }
  }

  #write(text) {
    if (text !== this.#here && this.#isShared && this.#device.canWrite) {
      this.#here = text;
      this.#device.write(text);
    }
  }

  // To the desktop

  /** The page has the focus again: whichever side has news tells the other. */
  async #meet() {
    const isReadable = this.#may.copies_in && this.#device.permission === "granted";
    if (!this.#isShared || !isReadable || !this.#desktop.isConnected || this.#desktop.isViewOnly) {
      return;
    }
    const text = await this.#device.read();
    const late = this.#late;
    this.#late = null;
    if (text && tidy(text) !== this.#here) {
      // Others would see what may not be meant for them.
      if (this.#isAlone) {
        await this.#bring(text);
      }
    } else if (late !== null) {
      this.#write(late);
    }
  }

  /** Give the device's text to the guest, as `give` does. */
  async #bring(text) {
    this.#here = tidy(text);
    return this.give(text);
  }

  /** Give a text to the guest, unless it has it; resolves when it can be pasted there, to whether it can. */
  async give(given) {
    const text = tidy(given);
    if (!this.#may.copies_in || !this.#desktop.isConnected) {
      return false;
    }
    if (new TextEncoder().encode(text).length > MAX_BYTES) {
      toast(t("The text is too long for the clipboard: at most {most}.", { most: describeSize(MAX_BYTES) }));
      return false;
    }
    if (text !== this.#there) {
      this.#there = text;
      byId("clipboard-text").value = text;
      this.#desktop.paste(text);
      this.#taken = new Promise((resolve) => setTimeout(resolve, GUEST_TAKES_MS));
    }
    await this.#taken;
    return true;
  }

  /** For a key that should paste, but brought no text: where the browser asks at most once. */
  #readForKey() {
    return ["granted", "prompt"].includes(this.#device.permission) ? this.#device.read() : null;
  }

  async #send() {
    if (await this.give(byId("clipboard-text").value)) {
      toast(t("Copied. Paste it in the desktop."));
    }
  }

  async #type(text) {
    if (!this.#desktop.isConnected) {
      return;
    }
    if (text.length > MAX_TYPED) {
      toast(t("The text is too long to be typed: at most {most} characters.", { most: decimal(MAX_TYPED) }));
      return;
    }
    this.#desktop.focus();
    const missing = await this.#desktop.type(text);
    if (missing) {
      toast(plural(missing, "Left out: {count} character that the desktop’s keyboard does not have.", "Left out: {count} characters that the desktop’s keyboard does not have."));
    }
  }

  async #take() {
    const area = byId("clipboard-text");
    try {
      await navigator.clipboard.writeText(area.value);
    } catch {
      area.select();
      toast(t("Press Ctrl+C to copy the selected text."));
      return;
    }
    toast(t("Copied to this device."));
  }

  // The panel

  #show() {
    const { copies_in, copies_out } = this.#may;
    byId("clipboard-send").disabled = byId("clipboard-type").disabled = !copies_in;
    byId("clipboard-take").disabled = !copies_out;
    byId("clipboard-auto").disabled = !copies_in && !copies_out;
    byId("clipboard-policy").textContent = describePolicy(copies_in, copies_out);
    const isOn = copies_in && this.#isShared;
    byId("clipboard-allow").hidden = !isOn || !this.#isAlone || this.#device.permission !== "prompt";
    byId("clipboard-hint").textContent = isOn ? this.#describeSharing() : "";
  }

  #describeSharing() {
    const byKeys = t("{keys} brings this device’s text along.", { keys: PASTE_KEYS });
    if (!window.isSecureContext) {
      return `${byKeys} ${t("The browser allows no more, as this page was not opened by https.")}`;
    }
    if (!this.#isAlone) {
      return `${byKeys} ${t("Nothing else takes it to the desktop while others see that.")}`;
    }
    return {
      granted: t("What you copy on one side can be pasted on the other."),
      prompt: `${byKeys} ${t("For pasting with the mouse, the browser must let this page read the clipboard.")}`,
      denied: `${byKeys} ${t("To paste with the mouse, put it in here first: the browser does not let this page read the clipboard.")}`,
      never: `${byKeys} ${t("To paste with the mouse, put it in here first.")}`,
    }[this.#device.permission];
  }
}

/** The same text on all devices: Windows has other ends of lines, and none can hold a NUL. */
function tidy(text) {
  return text.replaceAll("\r\n", "\n").replaceAll("\0", "");
}

/** What the administrator, or the one who drives, does not allow. */
function describePolicy(copies_in, copies_out) {
  if (copies_in && copies_out) {
    return "";
  }
  if (copies_in) {
    return t("Text goes into this desktop, but you may not copy out of it.");
  }
  return copies_out
    ? t("You can copy out of this desktop, but it takes no text from you.")
    : t("You cannot copy here, neither into the desktop nor out of it.");
}
