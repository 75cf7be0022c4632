// Requests to the session's API, and what it means when they fail.

import { t } from "./i18n.js";

const ASK_TIMEOUT_MS = 15_000;
// Many gigabytes may have to be written.
const ACT_TIMEOUT_MS = 120_000;
const TUS = { "Tus-Resumable": "1.0.0" };

/** Why a request failed. `kind` is one of
 *    network  nobody answered: the connection is lost, or the proxy is
 *    login    the session no longer knows this browser, or no longer lets this person in
 *    gone     something answered, but not the session: it has ended, or is not there yet
 *    astray   the request was sent on to the hub: the proxy has lost the way, or the session has ended
 *    refused  the session said no; message and hint say why
 *  `status` is the HTTP status, 0 where there is none.
 */
export class ApiError extends Error {
  constructor(kind, message = "", hint = "", status = 0) {
    super(message);
    this.kind = kind;
    this.hint = hint;
    this.status = status;
  }

  /** In whole sentences, for the person who asked. */
  get words() {
    return [this.message, this.hint].filter(Boolean).join(" ") || t("The session did not answer.");
  }
}

export class Api {
  #prefix;
  #xsrf;

  constructor({ prefix, xsrf }) {
    this.#prefix = prefix;
    this.#xsrf = xsrf;
  }

  /** The status; with `after`, the version of the last one, when there is another one or after 10 s. */
  status(after = null) {
    return this.#ask("GET", after === null ? "api/status" : `api/status?after=${after}`);
  }

  async ticket() {
    return (await this.#ask("POST", "api/ticket")).ticket;
  }

  /** With a reason, where it cannot be extended, that is asked of the site's staff. */
  extend(reason = "") {
    return this.#act("POST", "api/extend", reason ? { reason } : {});
  }

  /** Grant so many seconds to who asked for more time, or `false`. */
  answerExtension(grant, comment) {
    return this.#act("POST", "api/extension", { grant, comment });
  }

  setKeyboard(layout) {
    return this.#act("POST", "api/keyboard", { layout });
  }

  /** Do something about what is wrong: one of what the status offers. */
  actOnTrouble(act) {
    return this.#act("POST", "api/trouble", { act });
  }

  /** Mount a folder of a server; `login` is {account, password}, or {} where none is needed or it is known. */
  connectFolder(name, login) {
    return this.#act("POST", "api/remote-folders", { name, ...login });
  }

  disconnectFolder(name) {
    return this.#act("DELETE", "api/remote-folders", { name });
  }

  power(action) {
    return this.#act("POST", "api/power", { action });
  }

  /** Resolves when the desktop is saved and sleeps. */
  suspend() {
    return this.#act("POST", "api/suspend");
  }

  /** {checkpoints: [...], most}, the newest first; so are the answers to saving and deleting. */
  /** {state, code, output} of the start script. */
  script() {
    return this.#act("GET", "api/script");
  }

  checkpoints() {
    return this.#act("GET", "api/checkpoints");
  }

  saveCheckpoint(title) {
    return this.#act("POST", "api/checkpoints", { title });
  }

  goBack(name) {
    return this.#act("POST", `api/checkpoints/${name}`);
  }

  deleteCheckpoint(name) {
    return this.#act("DELETE", `api/checkpoints/${name}`);
  }

  /** Who is there, who asks and who drives, as the `people` event tells it; so are the answers below. */
  drop(name) {
    return this.#act("POST", "api/people", { drop: name });
  }

  /** wants: view, control or drive. */
  askFor(wants, reason = "") {
    return this.#act("POST", "api/requests", { wants, reason });
  }

  /** grant: view, control or null. */
  answer(name, grant) {
    return this.#act("POST", "api/answers", { name, grant });
  }

  handOver(to) {
    return this.#act("POST", "api/driver", { to });
  }

  letOneDrive(one) {
    return this.#act("POST", "api/driver", { one });
  }

  /** {shares, codes, problem}; so are the answers to sharing and taking back. */
  shares() {
    return this.#act("GET", "api/shares");
  }

  /** kind: user or group; expires_in in seconds, 0: never. */
  share(kind, name, role, expires_in) {
    return this.#act("POST", "api/shares", { [kind]: name, role, expires_in });
  }

  unshare(kind, name) {
    return this.#act("DELETE", "api/shares", { [kind]: name });
  }

  /** {path, expires_at}: the path of a link, told this once. */
  makeLink(role, expires_in) {
    return this.#act("POST", "api/share-codes", { role, expires_in });
  }

  revokeLinks() {
    return this.#act("DELETE", "api/share-codes");
  }

  /** The URL of a checkpoint's picture. An image of the same origin passes the login by its cookie. */
  picture(name) {
    return `${this.#prefix}api/checkpoints/${name}`;
  }

  /** {path, folders, entries, is_whole} of a folder. Paths are percent-encoded, as listings have them. */
  files(path) {
    return this.#act("GET", `api/files?path=${path}`);
  }

  makeFolder(folder, name) {
    return this.#act("POST", "api/files/folders", { folder, name });
  }

  /** The URL of a file, for a link that downloads it. */
  fileUrl(path) {
    return `${this.#prefix}api/files/content?path=${path}`;
  }

  /** Begin an upload by the tus protocol; returns where it is. The values of `metadata` are in base64. */
  async beginUpload(size, metadata) {
    const pairs = Object.entries(metadata).map(([key, value]) => `${key} ${value}`);
    const headers = { "Upload-Length": String(size), "Upload-Metadata": pairs.join(",") };
    const told = await this.#tus("POST", `${this.#prefix}api/files/uploads`, { headers });
    return told.get("Location");
  }

  /** How many bytes of an upload are there. */
  async uploadOffset(url, signal) {
    return Number((await this.#tus("HEAD", url, { signal })).get("Upload-Offset"));
  }

  /** Send a part of an upload; returns how much is there then. */
  async sendPart(url, offset, part, signal) {
    const headers = { "Upload-Offset": String(offset), "Content-Type": "application/offset+octet-stream" };
    return Number((await this.#tus("PATCH", url, { headers, body: part, signal })).get("Upload-Offset"));
  }

  giveUpUpload(url) {
    return this.#tus("DELETE", url, {});
  }

  /** The headers of the answer. */
  async #tus(method, url, { headers = {}, body, signal }) {
    const { response, answer } = await this.#fetch(method, url, {
      headers: { ...headers, ...TUS },
      body,
      signal,
      timeout_ms: ACT_TIMEOUT_MS,
    });
    if (response.ok) {
      return response.headers;
    }
    // An answer to HEAD has no words.
    const isTold = answer?.message || response.headers.has("Tus-Resumable");
    const kind = { 401: "login", 0: "astray" }[response.status] ?? (isTold ? "refused" : "gone");
    throw new ApiError(kind, answer?.message, answer?.hint, response.status);
  }

  /** What the page cannot go on without: where it is forbidden, the login is lost. */
  async #ask(method, path) {
    const { response, answer } = await this.#fetch(method, this.#prefix + path, { timeout_ms: ASK_TIMEOUT_MS });
    if (response.status === 401 || response.status === 403) {
      throw new ApiError("login", answer?.message);
    }
    return this.#accept(response, answer);
  }

  /** What a person wants: a no is an answer. */
  async #act(method, path, body = {}) {
    const { response, answer } = await this.#fetch(method, this.#prefix + path, {
      headers: { "Content-Type": "application/json" },
      body: method === "GET" ? undefined : JSON.stringify(body),
      timeout_ms: ACT_TIMEOUT_MS,
    });
    if (response.status === 401) {
      throw new ApiError("login", answer?.message);
    }
    if (!response.ok && answer?.message) {
      throw new ApiError("refused", answer.message, answer.hint);
    }
    return this.#accept(response, answer);
  }

  #accept(response, answer) {
    if (response.ok && answer) {
      return answer;
    }
    throw new ApiError(response.type === "opaqueredirect" ? "astray" : "gone", answer?.message);
  }

  async #fetch(method, url, { headers = {}, body, signal = null, timeout_ms }) {
    const timeout = AbortSignal.timeout(timeout_ms);
    try {
      const response = await fetch(url, {
        method,
        headers: { "X-XSRFToken": this.#xsrf, Accept: "application/json", ...headers },
        body,
        // The session never redirects its API: a redirect is the hub's, and followed it would look like an answer.
        redirect: "manual",
        cache: "no-store",
        signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
      });
      return { response, answer: await response.json().catch(() => null) };
    } catch {
      throw new ApiError("network");
    }
  }
}
