// The time that is left: the lifetime's end, and the end for want of input.

import { t } from "./i18n.js";
import { fateOf } from "./words.js";

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
    return t("{days} d {hours} h", { days: Math.floor(hours / 24), hours: hours % 24 });
  }
  return hours ? t("{hours} h {minutes} min", { hours, minutes: minutes % 60 }) : t("{minutes} min", { minutes });
}

// Nothing is lost by falling asleep, so that is never urgent.
function levelOf(fate, seconds) {
  return seconds < URGENT_S && fate !== "sleeps" ? "urgent" : "warning";
}

const ADVICE = {
  sleeps: { warning: t("Everything is kept as it is.") },
  keeps: {
    warning: t("Its disk is kept; save what is open in time."),
    urgent: t("Its disk is kept; save what is open now."),
  },
  ends: { warning: t("Save your work in time."), urgent: t("Save your work now.") },
};

function describeEnd(fate, span) {
  return {
    sleeps: t("This desktop falls asleep in {span}.", { span }),
    keeps: t("This desktop shuts down in {span}.", { span }),
    ends: t("This desktop ends in {span}.", { span }),
  }[fate];
}

function describeIdleEnd(fate, span) {
  return {
    sleeps: t("Nobody has used this desktop for a while. It falls asleep in {span}.", { span }),
    keeps: t("Nobody has used this desktop for a while. It shuts down in {span}.", { span }),
    ends: t("Nobody has used this desktop for a while. It ends in {span}.", { span }),
  }[fate];
}

/** What is said when its time was extended. */
export function describeExtended(fate, span) {
  return {
    sleeps: t("Extended. The desktop falls asleep in {span}.", { span }),
    keeps: t("Extended. The desktop shuts down in {span}.", { span }),
    ends: t("Extended. The desktop ends in {span}.", { span }),
  }[fate];
}

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

  /** What becomes of the desktop when its time is over; see `fateOf`. */
  get fate() {
    return this.#status ? fateOf(this.#status, "lifetime") : "ends";
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
        text: describeIdleEnd(fate, describe(idle_s)),
      };
    }
    if (left_s < WARN_S) {
      const fate = fateOf(this.#status, "lifetime");
      const level = levelOf(fate, left_s);
      return {
        cause: "time",
        level,
        text: `${describeEnd(fate, describe(left_s))} ${this.canExtend ? "" : ADVICE[fate][level]}`.trim(),
      };
    }
    return null;
  }
}
