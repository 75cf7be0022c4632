// The time that is left: the lifetime's end, and the end for want of input.

import { fateOf, fateVerb } from "./words.js";

const WARN_S = 10 * 60;
const URGENT_S = 2 * 60;
const IDLE_WARN_S = 5 * 60;
// Extending by less is not worth a button.
const LEAST_GAIN_S = 60;

/** 5400 -> "1 h 30 min", 119 -> "1:59". */
export function describe(seconds) {
  const left = Math.max(0, Math.floor(seconds));
  if (left < WARN_S) {
    return `${Math.floor(left / 60)}:${String(left % 60).padStart(2, "0")}`;
  }
  const minutes = Math.floor(left / 60);
  const hours = Math.floor(minutes / 60);
  if (hours >= 48) {
    return `${Math.floor(hours / 24)} d ${hours % 24} h`;
  }
  return hours ? `${hours} h ${minutes % 60} min` : `${minutes} min`;
}

// Nothing is lost by falling asleep, so that is never urgent.
function levelOf(fate, seconds) {
  return seconds < URGENT_S && fate !== "sleeps" ? "urgent" : "warning";
}

const ADVICE = {
  sleeps: { warning: "Everything is kept as it is." },
  keeps: {
    warning: "Its disk is kept; save what is open in time.",
    urgent: "Its disk is kept; save what is open now.",
  },
  ends: { warning: "Save your work in time.", urgent: "Save your work now." },
};

/** What a clock shows, from the session's newest status. */
export class Clock {
  #status = null;
  #behind_s = 0;

  /** Take a status; its moments are by the session's clock, which need not agree with ours. */
  set(status) {
    this.#status = status;
    this.#behind_s = Date.now() / 1000 - status.now;
  }

  #until(moment) {
    return moment ? moment - (Date.now() / 1000 - this.#behind_s) : Infinity;
  }

  get left_s() {
    return this.#status ? this.#until(this.#status.deadline) : Infinity;
  }

  /** What the desktop does when its time is over: "ends", or "falls asleep". */
  get verb() {
    return this.#status ? fateVerb(fateOf(this.#status, "lifetime")) : "ends";
  }

  get canExtend() {
    return Boolean(this.#status) && this.#status.max_deadline - this.#status.deadline >= LEAST_GAIN_S;
  }

  /** The warning of this moment: {cause: "time"|"idle", level, text}, or null. */
  get warning() {
    const left_s = this.left_s;
    const idle_s = this.#status ? this.#until(this.#status.idle_deadline) : Infinity;
    if (idle_s < Math.min(IDLE_WARN_S, left_s)) {
      const fate = fateOf(this.#status, "idle");
      return {
        cause: "idle",
        level: levelOf(fate, idle_s),
        text: `Nobody has used this desktop for a while. It ${fateVerb(fate)} in ${describe(idle_s)}.`,
      };
    }
    if (left_s < WARN_S) {
      const fate = fateOf(this.#status, "lifetime");
      const level = levelOf(fate, left_s);
      return {
        cause: "time",
        level,
        text: `This desktop ${fateVerb(fate)} in ${describe(left_s)}. ${this.canExtend ? "" : ADVICE[fate][level]}`.trim(),
      };
    }
    return null;
  }
}
