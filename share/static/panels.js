// What the first picture need not wait for: files, checkpoints, sound.

import { Checkpoints } from "./checkpoints.js";
import { Files } from "./files.js";
import { Sound } from "./sound.js";

export class Panels {
  #files;
  #checkpoints;
  #sound;

  /** `onGoBack` is called with the checkpoint that somebody wants back, and means it. */
  constructor({ api, config, onGoBack }) {
    this.#files = new Files({ api, config });
    this.#checkpoints = new Checkpoints({ api, config, onGoBack });
    this.#sound = config.sound ? new Sound({ api, config }) : null;
    // Who was quicker than this module has opened a menu that nobody has filled.
    for (const button of document.querySelectorAll("[aria-controls$='-menu'][aria-expanded='true']")) {
      document.getElementById(button.getAttribute("aria-controls")).dispatchEvent(new Event("open"));
    }
  }

  /** What this person may do decides what is shown of files. */
  set role(role) {
    this.#files.role = role;
  }

  /** Why the desktop cannot be saved; "" where it can. */
  set obstacle(obstacle) {
    this.#checkpoints.obstacle = obstacle;
  }

  /** The desktop is connected, or connected again. */
  resume() {
    this.#sound?.resume();
  }

  /** It is not any more. */
  pause() {
    this.#sound?.pause();
  }
}
