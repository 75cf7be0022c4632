// What the first picture need not wait for: people, files, checkpoints, sound, keyboards, more time, messages, troubles.

import { Checkpoints } from "./checkpoints.js";
import { Extension } from "./extension.js";
import { Files } from "./files.js";
import { Keyboard } from "./keyboard.js";
import { People } from "./people.js";
import { Pointers } from "./pointers.js";
import { Script } from "./script.js";
import { RemoteFolders } from "./remotefolders.js";
import { Sound } from "./sound.js";
import { StaffMessage } from "./staffmessage.js";
import { Trouble } from "./trouble.js";
import { setUpTyping } from "./typing.js";

const byId = (id) => document.getElementById(id);

export class Panels {
  #files;
  #checkpoints;
  #sound;
  #people;
  #pointers;
  #extension;
  #staffMessage;
  #trouble;
  #script;
  #keyboard;
  #remoteFolders;

  /** `onGoBack` is called with the checkpoint that somebody wants back, and means it; `onPower` asks before it does
   *  what it is called with; `onStatus` takes the status with which the session answers. */
  constructor({ api, config, desktop, clipboard, events, onGoBack, onPower, onStatus }) {
    this.#files = new Files({ api, config });
    this.#checkpoints = new Checkpoints({ api, config, onGoBack });
    this.#sound = config.sound ? new Sound({ api, config }) : null;
    this.#people = new People({ api, config });
    this.#pointers = new Pointers({
      stage: byId("stage"),
      screen: byId("screen"),
      desktop,
      onMove: (x, y) => this.#people.isAlone || events.point(x, y),
    });
    this.#extension = new Extension({ api, onStatus });
    this.#staffMessage = new StaffMessage();
    this.#trouble = new Trouble({ api, onPower, onStatus });
    this.#script = new Script({ api });
    this.#remoteFolders = config.remote_folders ? new RemoteFolders({ api, onStatus }) : null;
    this.#keyboard = new Keyboard({ api, config, desktop, onStatus });
    setUpTyping(desktop, { give: (text) => clipboard.give(text) });
    // Who was quicker than this module has opened a menu that nobody has filled.
    for (const button of document.querySelectorAll("[aria-controls$='-menu'][aria-expanded='true']")) {
      byId(button.getAttribute("aria-controls")).dispatchEvent(new Event("open"));
    }
  }

  /** Take a status that is new. */
  take(status) {
    this.#extension.take(status);
    this.#staffMessage.take(status);
    this.#trouble.take(status);
    this.#keyboard.take(status);
    this.#script.take(status);
    this.#remoteFolders?.take(status);
    this.#checkpoints.obstacle = status.suspend_obstacle ?? "";
  }

  /** Take what the session told of the people at the desktop. */
  show(people) {
    this.#people.show(people);
    this.#files.role = people.you.role;
  }

  /** What this person may do decides what is shown of files. */
  set role(role) {
    this.#files.role = role;
  }

  /** Show where others point: {name: [x, y]}. */
  point(pointers) {
    this.#pointers.show(pointers);
  }

  /** Ask the owner for more; wants: view, control or drive. */
  ask(wants) {
    return this.#people.ask(wants);
  }

  /** Whether somebody waits to be given more time. */
  get isWaiting() {
    return this.#extension.isWaiting;
  }

  /** Ask the site's staff for more time. */
  askForTime() {
    return this.#extension.ask();
  }

  /** The desktop is connected, or connected again. */
  resume() {
    this.#sound?.resume();
  }

  /** It is not any more. */
  pause() {
    this.#sound?.pause();
    this.#pointers.clear();
  }
}
