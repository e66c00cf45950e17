// Follow one stream for as long as the page lives: what EventSource leaves to its user.
//
// EventSource comes back by itself, with its Last-Event-ID, unless it was answered with anything but an event stream;
// then it stays closed. And a new one sends no Last-Event-ID, so the cursor has to be in the address.

const FIRST_DELAY = 500; // milliseconds
const MAX_DELAY = 30_000;

export class Follower {
  #url;
  #start; // the query before the first message is known: {since: …} or {replay: …}
  #cursor = null;
  #source = null;
  #failures = 0;
  #timer = 0;
  #on;

  /**
   * @param {string} url of the stream
   * @param {object} start `{since: id}`, `{replay: n}`, or `{}` for what comes from now on
   * @param {object} on `state(name, reason)`, `gap(detail)`, and `events`: a handler `(data, event)` for each event name
   */
  constructor(url, start, on) {
    this.#url = url;
    this.#start = start;
    this.#on = on;
  }

  get following() {
    return this.#source !== null || this.#timer !== 0;
  }

  /** The id of the last message; null before the first. */
  get cursor() {
    return this.#cursor;
  }

  /** Follow, from where it was left or from `start`. */
  open(start = null) {
    this.close();
    if (start) {
      this.#start = start;
      this.#cursor = null;
    }
    const query = new URLSearchParams(this.#cursor === null ? this.#start : { since: this.#cursor });
    const source = new EventSource(`${this.#url}?${query}`);
    this.#source = source;
    source.addEventListener("pgbus:connected", () => {
      this.#failures = 0;
      this.#on.state("live");
    });
    source.addEventListener("pgbus:gap-detected", (event) => this.#on.gap?.(JSON.parse(event.data)));
    source.addEventListener("pgbus:shutdown", (event) => this.#on.state("reconnecting", JSON.parse(event.data).reason));
    source.addEventListener("error", () => this.#failed(source));
    for (const [name, handle] of Object.entries(this.#on.events)) {
      source.addEventListener(name, (event) => {
        if (event.lastEventId) this.#cursor = event.lastEventId;
        handle(event.data, event);
      });
    }
  }

  /** Stop; `open` goes on from the same place. */
  close() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.#source?.close();
    this.#source = null;
  }

  #failed(source) {
    if (source !== this.#source) return;
    this.#on.state("reconnecting");
    if (source.readyState !== EventSource.CLOSED) return; // it comes back by itself
    // Any time within the delay: all pages that lost the same server must not come back at the same moment.
    const delay = Math.min(MAX_DELAY, FIRST_DELAY * 2 ** ++this.#failures);
    this.close();
    this.#timer = setTimeout(() => this.open(), FIRST_DELAY + Math.random() * delay);
  }
}
