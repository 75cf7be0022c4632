// What a status means for the people at the desktop, in words.

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

/** "falls asleep", to go between "It" and "in 4:59". */
export function fateVerb(fate) {
  return { sleeps: "falls asleep", keeps: "shuts down", ends: "ends" }[fate];
}

const WAYS = {
  cold: "Booted",
  restored: "Restored from a template",
  woken: "Woken",
};

/** How the desktop came up; "" where that is not known yet. */
export function describeWay({ way, why }) {
  return [WAYS[way], why].filter(Boolean).join(": ");
}

/** What closing the page does, for the help. */
export function describeClosing(status) {
  const atLast = {
    sleeps: "then it falls asleep, and is as you left it when you open it again.",
    keeps: "then it shuts down, and its disk is kept.",
    ends: "then it ends.",
  };
  const fate = fateOf(status, "lifetime");
  const sentences = [`Closing this page leaves the desktop running until its time is over; ${atLast[fate]}`];
  if (fate !== "sleeps" && status.idle_deadline && fateOf(status, "idle") === "sleeps") {
    sentences.push("When nobody uses it for long, it falls asleep.");
  }
  if (status.you.role === "owner") {
    if (!status.suspend_obstacle) {
      sentences.push("Suspend, in the power menu, puts it to sleep now.");
    }
    const orStop = fateOf(status, "stop") === "ends" ? " or stop it in the hub" : "";
    sentences.push(`To end it, shut it down${orStop}.`);
  }
  return sentences.join(" ");
}

/** 320 -> "5 min ago". */
export function describeAge(seconds) {
  return seconds < 60 ? "just now" : `${describeSpan(seconds)} ago`;
}

/** 320 -> "5 min", 100000 -> "1 d": one unit is enough. */
export function describeSpan(seconds) {
  for (const [unit, size] of [["d", 86_400], ["h", 3600]]) {
    if (seconds >= size) {
      return `${Math.floor(seconds / size)} ${unit}`;
    }
  }
  return `${Math.max(1, Math.floor(seconds / 60))} min`;
}

/** 1503238553 -> "1.4 GiB", 2048 -> "2 KiB". */
export function describeSize(bytes) {
  if (bytes < 1024) {
    return bytes === 1 ? "1 byte" : `${bytes} bytes`;
  }
  const units = { KiB: 1024, MiB: 1024 ** 2, GiB: 1024 ** 3 };
  const unit = bytes < units.MiB ? "KiB" : bytes < units.GiB ? "MiB" : "GiB";
  const number = bytes / units[unit];
  return `${number < 10 && unit !== "KiB" ? number.toFixed(1) : Math.round(number)} ${unit}`;
}
