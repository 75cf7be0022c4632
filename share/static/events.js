// What happens at the desktop, told by the session as it happens.

const FIRST_RETRY_MS = 1000;
const LAST_RETRY_MS = 30_000;
const PING_TIMEOUT_MS = 5000;
// As often as the session tells others of it.
const POINT_EVERY_MS = 40;

/** Events, each with what is so now in `detail`: `status`, `people`, `pointers` ({name: [x, y]}). */
export class Events extends EventTarget {
  #api;
  #url;
  #socket = null;
  #isWanted = false;
  #retries = 0;
  #timer = null;
  #pings = new Map(); // what was sent -> who waits for it
  #pointed_at = 0;

  constructor({ api, config }) {
    super();
    this.#api = api;
    this.#url = new URL(`${config.prefix}events`, location.href);
    this.#url.protocol = this.#url.protocol.replace("http", "ws");
  }

  /** Listen, and go on listening whatever happens to the connection. */
  start() {
    if (!this.#isWanted) {
      this.#isWanted = true;
      this.#retries = 0;
      this.#connect();
    }
  }

  stop() {
    this.#isWanted = false;
    clearTimeout(this.#timer);
    this.#socket?.close();
    this.#socket = null;
  }

  /** Show the others where this person's pointer is, in pixels of the screen. */
  point(x, y) {
    const now_ms = performance.now();
    if (this.#socket?.readyState === WebSocket.OPEN && now_ms - this.#pointed_at >= POINT_EVERY_MS) {
      this.#pointed_at = now_ms;
      this.#send({ pointer: [x, y] });
    }
  }

  /** Milliseconds to the session and back; null where it does not answer. */
  ping() {
    if (this.#socket?.readyState !== WebSocket.OPEN) {
      return Promise.resolve(null);
    }
    const sent_ms = performance.now();
    return new Promise((resolve) => {
      this.#pings.set(sent_ms, () => resolve(performance.now() - sent_ms));
      setTimeout(() => {
        this.#pings.delete(sent_ms);
        resolve(null);
      }, PING_TIMEOUT_MS);
      this.#send({ ping: sent_ms });
    });
  }

  #send(message) {
    this.#socket.send(JSON.stringify(message));
  }

  async #connect() {
    let ticket;
    try {
      ticket = await this.#api.ticket();
    } catch {
      // The desktop's own connection finds out what is wrong, and says it.
      this.#retry();
      return;
    }
    if (!this.#isWanted) {
      return;
    }
    const socket = new WebSocket(this.#url, ["events", `qs.ticket.${ticket}`]);
    this.#socket = socket;
    socket.addEventListener("message", ({ data }) => this.#take(JSON.parse(data)));
    socket.addEventListener("close", () => {
      if (this.#socket === socket) {
        this.#socket = null;
        this.#retry();
      }
    });
  }

  #retry() {
    if (this.#isWanted) {
      const longest_ms = Math.min(LAST_RETRY_MS, FIRST_RETRY_MS * 2 ** this.#retries);
      this.#retries += 1;
      this.#timer = setTimeout(() => this.#connect(), longest_ms * (0.5 + Math.random() / 2));
    }
  }

  #take(message) {
    this.#retries = 0;
    if ("pong" in message) {
      this.#pings.get(message.pong)?.();
      this.#pings.delete(message.pong);
      return;
    }
    for (const [name, detail] of Object.entries(message)) {
      this.dispatchEvent(new CustomEvent(name, { detail }));
    }
  }
}
