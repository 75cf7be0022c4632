// How good the connection is, for people who wonder.

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
      byId("updates").textContent = `${Math.round((now.updates - before.updates) / seconds)} per second`;
      byId("received").textContent = describeRate((now.bytes - before.bytes) / seconds);
    }
    const latency_ms = await this.#ping();
    byId("latency").textContent = latency_ms === null ? "no answer" : `${Math.round(latency_ms)} ms`;
  }
}

/** 123456 -> "123 kB/s". */
function describeRate(bytes_s) {
  const [unit, size] = bytes_s < 1e6 ? ["kB/s", 1e3] : ["MB/s", 1e6];
  const number = bytes_s / size;
  return `${number < 10 ? number.toFixed(1) : Math.round(number)} ${unit}`;
}
