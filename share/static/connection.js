// How good the connection is, for people who wonder.

import { decimal, t } from "./i18n.js";

const byId = (id) => document.getElementById(id);

export class Connection {
  #desktop;
  #ping;
  #before = null; // {at_ms, bytes, updates}

  /** ping()  resolves to milliseconds, or null */
  constructor({ desktop, ping }) {
    this.#desktop = desktop;
    this.#ping = ping;
  }

  /** Count from now on. */
  begin() {
    this.#before = null;
    for (const name of ["latency", "updates", "received"]) {
      byId(name).textContent = "…";
    }
  }

  /** Show what came since the last time. */
  async show() {
    const now = { at_ms: performance.now(), ...this.#desktop.traffic };
    const before = this.#before;
    this.#before = now;
    if (before) {
      const seconds = (now.at_ms - before.at_ms) / 1000;
      byId("updates").textContent = t("{number} per second", { number: decimal((now.updates - before.updates) / seconds) });
      byId("received").textContent = describeRate((now.bytes - before.bytes) / seconds);
    }
    const latency_ms = await this.#ping();
    byId("latency").textContent = latency_ms === null ? t("no answer") : t("{number} ms", { number: decimal(latency_ms) });
  }
}

/** 123456 -> "123 kB/s". */
function describeRate(bytes_s) {
  const isSlow = bytes_s < 1e6;
  const value = bytes_s / (isSlow ? 1e3 : 1e6);
  const number = decimal(value, value < 10 ? 1 : 0);
  return isSlow ? t("{number} kB/s", { number }) : t("{number} MB/s", { number });
}
