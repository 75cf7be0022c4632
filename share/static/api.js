// Requests to the session's API, and what it means when they fail.

/** Why a request failed. `kind` is one of
 *    network  nobody answered: the connection is lost, or the proxy is
 *    login    the session no longer knows this browser, or no longer lets this person in
 *    gone     something answered, but not the session: it has ended, or is not there yet
 *    astray   the request was sent on to the hub: the proxy has lost the way, or the session has ended
 *    refused  the session said no; message and hint say why
 */
export class ApiError extends Error {
  constructor(kind, message = "", hint = "") {
    super(message);
    this.kind = kind;
    this.hint = hint;
  }
}

export class Api {
  #prefix;
  #xsrf;

  constructor({ prefix, xsrf }) {
    this.#prefix = prefix;
    this.#xsrf = xsrf;
  }

  status() {
    return this.#request("GET", "api/status");
  }

  async ticket() {
    return (await this.#request("POST", "api/ticket")).ticket;
  }

  extend() {
    return this.#request("POST", "api/extend", {});
  }

  power(action) {
    return this.#request("POST", "api/power", { action });
  }

  async #request(method, path, body) {
    const headers = { "X-XSRFToken": this.#xsrf, Accept: "application/json" };
    if (body) {
      headers["Content-Type"] = "application/json";
    }
    let response;
    try {
      response = await fetch(this.#prefix + path, {
        method,
        headers,
        body: body && JSON.stringify(body),
        // The session never redirects its API: a redirect is the hub's, and followed it would look like an answer.
        redirect: "manual",
        cache: "no-store",
        signal: AbortSignal.timeout(15_000),
      });
    } catch {
      throw new ApiError("network");
    }
    const answer = await response.json().catch(() => null);
    if (response.ok && answer) {
      return answer;
    }
    const isAction = Boolean(body);
    if (response.type === "opaqueredirect") {
      throw new ApiError("astray");
    }
    if (response.status === 401 || (response.status === 403 && !isAction)) {
      throw new ApiError("login", answer?.message);
    }
    if (answer?.message && isAction) {
      throw new ApiError("refused", answer.message, answer.hint);
    }
    throw new ApiError("gone", answer?.message);
  }
}
