// The socket to the server: opens it again when it is lost, and matches replies to requests.

const FIRST_DELAY = 0.5;
const LONGEST_DELAY = 8;
const HELLO_SECONDS = 10;
const BUSY = 1013;
// A reply to these waits for a model to be made or a film to be written.
const REPLY_SECONDS = { configure: 20, train: 20, clip: 90 };
const USUAL_REPLY_SECONDS = 5;

/** A request that the server has refused, or that came to nothing. */
export class RequestError extends Error {
  /** reason: "refused" by the server, "late", or "lost" with the connection. */
  constructor(text, reason) {
    super(text);
    this.reason = reason;
  }
}

export class Connection {
  #url;
  #on;
  #socket = null;
  #open = false;
  #lastId = 0;
  #waiting = new Map();
  #attempts = 0;
  #retry = 0;

  /** on: {status({phase, busy, retryAt}, hello), message(object), binary(buffer)}; hello comes with phase "open". */
  constructor(url, on) {
    this.#url = url;
    this.#on = on;
    window.addEventListener("online", () => this.retryNow());
  }

  start() {
    this.#on.status({ phase: "connecting", busy: false, retryAt: null });
    this.#connect();
  }

  /** Try at once, where the next attempt is only due later. */
  retryNow() {
    if (this.#retry === 0) return;
    clearTimeout(this.#retry);
    this.#connect();
  }

  /** Send a request; the promise settles with its reply. */
  request(type, fields = {}) {
    if (!this.#open) return Promise.reject(new RequestError("There is no connection to the server.", "lost"));
    const id = ++this.#lastId;
    return new Promise((resolve, reject) => {
      const seconds = REPLY_SECONDS[type] ?? USUAL_REPLY_SECONDS;
      const timer = setTimeout(() => {
        this.#waiting.delete(id);
        reject(new RequestError(`The server has not answered within ${seconds} s.`, "late"));
      }, seconds * 1000);
      this.#waiting.set(id, { resolve, reject, timer });
      this.#socket.send(JSON.stringify({ type, id, ...fields }));
    });
  }

  #connect() {
    this.#retry = 0;
    const socket = new WebSocket(this.#url);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    const tooLate = setTimeout(() => socket.close(), HELLO_SECONDS * 1000);
    let ended = false;
    socket.addEventListener("message", ({ data }) => {
      if (socket !== this.#socket) return;
      if (typeof data === "string") this.#read(data, tooLate);
      else this.#on.binary(data);
    });
    socket.addEventListener("close", ({ code }) => {
      if (ended) return;
      ended = true;
      clearTimeout(tooLate);
      if (socket === this.#socket) this.#lost(code === BUSY);
    });
  }

  #read(text, tooLate) {
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      return;
    }
    if (message === null || typeof message !== "object") return;
    if (message.type === "hello") {
      clearTimeout(tooLate);
      this.#open = true;
      this.#attempts = 0;
      this.#on.status({ phase: "open", busy: false, retryAt: null }, message);
      return;
    }
    if (message.type === "reply" && this.#waiting.has(message.id)) this.#settle(message);
    else this.#on.message(message);
  }

  #settle({ id, error }) {
    const { resolve, reject, timer } = this.#waiting.get(id);
    this.#waiting.delete(id);
    clearTimeout(timer);
    if (error === null || error === undefined) resolve();
    else reject(new RequestError(String(error), "refused"));
  }

  #lost(busy) {
    this.#open = false;
    for (const { reject, timer } of this.#waiting.values()) {
      clearTimeout(timer);
      reject(new RequestError("The connection was lost.", "lost"));
    }
    this.#waiting.clear();
    const delay = FIRST_DELAY * 2 ** this.#attempts * (0.75 + 0.5 * Math.random());
    const seconds = Math.min(LONGEST_DELAY, Math.max(FIRST_DELAY, delay));
    this.#attempts = Math.min(this.#attempts + 1, 10);
    this.#retry = setTimeout(() => this.#connect(), seconds * 1000);
    this.#on.status({ phase: "reconnecting", busy, retryAt: performance.now() + seconds * 1000 });
  }
}
