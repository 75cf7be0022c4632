// What a status means for the people at the desktop, in words.

import { decimal, plural, t } from "./i18n.js";

/** What becomes of the desktop at an end for `cause`, which is idle, lifetime or stop:
 *  it "sleeps", ends but "keeps" its disk, or "ends" altogether. */
export function fateOf(status, cause) {
  if (!status.suspends?.includes(cause)) {
    return "ends";
  }
  return status.suspend_obstacle ? "keeps" : "sleeps";
}

/** Whether it may have fallen asleep since it said this status. */
export function maySleep(status) {
  return ["idle", "lifetime", "stop"].some((cause) => fateOf(status, cause) === "sleeps");
}

const WAYS = {
  "": "",
  cold: t("This desktop was booted."),
  restored: t("This desktop was restored from a template."),
  woken: t("This desktop was woken."),
};

/** How the desktop came up; "" where that is not known yet. */
export function describeWay({ way, why }) {
  // Some reasons are half a sentence, and some a whole one.
  return way === "cold" && why ? t("This desktop was booted: {why}.", { why: why.replace(/\.$/, "") }) : WAYS[way];
}

/** What closing the page does, for the help. */
export function describeClosing(status) {
  const closings = {
    sleeps: t("Closing this page leaves the desktop running until its time is over; then it falls asleep, and is as you left it when you open it again."),
    keeps: t("Closing this page leaves the desktop running until its time is over; then it shuts down, and its disk is kept."),
    ends: t("Closing this page leaves the desktop running until its time is over; then it ends."),
  };
  const fate = fateOf(status, "lifetime");
  const sentences = [closings[fate]];
  if (fate !== "sleeps" && status.idle_deadline && fateOf(status, "idle") === "sleeps") {
    sentences.push(t("When nobody uses it for long, it falls asleep."));
  }
  if (status.you.role === "owner") {
    if (!status.suspend_obstacle) {
      sentences.push(t("Suspend, in the power menu, puts it to sleep now."));
    }
    const canStop = fateOf(status, "stop") === "ends";
    sentences.push(canStop ? t("To end it, shut it down or stop it in the hub.") : t("To end it, shut it down."));
  }
  return sentences.join(" ");
}

/** 320 -> "5 min ago". */
export function describeAge(seconds) {
  return seconds < 60 ? t("just now") : t("{span} ago", { span: describeSpan(seconds) });
}

/** 320 -> "5 min", 100000 -> "1 d": one unit is enough. */
export function describeSpan(seconds) {
  if (seconds >= 86_400) {
    return t("{days} d", { days: Math.floor(seconds / 86_400) });
  }
  if (seconds >= 3600) {
    return t("{hours} h", { hours: Math.floor(seconds / 3600) });
  }
  return t("{minutes} min", { minutes: Math.max(1, Math.floor(seconds / 60)) });
}

/** 1503238553 -> "1.4 GiB", 2048 -> "2 KiB". */
export function describeSize(bytes) {
  if (bytes < 1024) {
    return plural(bytes, "{count} byte", "{count} bytes");
  }
  if (bytes < 1024 ** 2) {
    return t("{number} KiB", { number: decimal(bytes / 1024) });
  }
  const isLarge = bytes >= 1024 ** 3;
  const value = bytes / (isLarge ? 1024 ** 3 : 1024 ** 2);
  const number = decimal(value, value < 10 ? 1 : 0);
  return isLarge ? t("{number} GiB", { number }) : t("{number} MiB", { number });
}
