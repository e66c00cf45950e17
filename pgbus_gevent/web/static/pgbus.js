// @ts-check
/**
 * Live streams in the browser: `<pgbus-stream-source>`, and `connect()` for pages without elements.
 *
 * A Subscription is a cursor per stream and a target for its events. A Hub serves all subscriptions of one server, in one tab or
 * in all tabs of the origin, over as few Lines as there can be; a Line is one HTTP connection, made again whenever it ends.
 *
 * @typedef {{id?: number, event: string, data: string, stream?: string}} Message
 * @typedef {{reason: string, status: number, willRetry: boolean}} Close
 * @typedef {{id?: string, event: string, data: string, k?: number}} Frame
 * @typedef {{src?: string, stream?: string, streams?: string[], base?: string, since?: number | (number | undefined)[],
 *   credentials?: RequestCredentials, shared?: "tabs" | "page" | "none", heartbeat?: number}} Options
 */

const MAX_STREAMS = 32; // that the server takes on one connection
const MAX_WAIT = 30_000; // ms between two attempts, unless the server asks for more
const ANSWER = 3000; // ms in which the tab that holds the connection has to answer
const SETTLE = 15; // ms in which an element that is moved is back, and a page's elements are all there
const PASSING = [408, 425, 429]; // refusals that are worth another try, as all from 500 on are
const STREAMS = typeof Response === "function" && "body" in Response.prototype && "TextDecoder" in globalThis;

/** Event names that somebody listens for: an EventSource, where it has to do, hears no others. @type {Set<string>} */
const names = new Set(["message", "pgbus:connected", "pgbus:gap-detected", "pgbus:shutdown"]);
/** @type {Map<string, Hub>} */
const hubs = new Map();

/**
 * A parser of event streams, for bytes cut anywhere.
 * @param {(frame: Frame) => void} take @param {(ms: number) => void} retry @param {(text: string) => void} comment
 * @returns {(bytes: Uint8Array) => void}
 */
export function parser(take, retry = () => {}, comment = () => {}) {
  const decoder = new TextDecoder(); // it drops a BOM, and keeps the parts of a character
  let rest = "", cr = false, id, event = "", data, k;
  const line = (text) => {
    if (!text) {
      if (data !== undefined) take({ id, event, data, k });
      id = data = k = undefined;
      event = "";
      return;
    }
    const colon = text.indexOf(":");
    const field = colon < 0 ? text : text.slice(0, colon);
    let value = colon < 0 ? "" : text.slice(colon + 1);
    if (value[0] === " ") value = value.slice(1);
    if (field === "data") data = data === undefined ? value : data + "\n" + value;
    else if (field === "event") event = value;
    else if (field === "id" && !value.includes("\0")) id = value;
    else if (field === "retry" && /^\d+$/.test(value)) retry(+value);
    else if (!colon) {
      // The stream of a frame without an id, on a connection that has several.
      if (/^stream \d+$/.test(value)) k = +value.slice(7);
      comment(value);
    }
  };
  return (bytes) => {
    let text = decoder.decode(bytes, { stream: true });
    if (cr && text) {
      if (text[0] === "\n") text = text.slice(1);
      cr = false;
    }
    cr ||= text.endsWith("\r");
    const lines = text.split(/\r\n|\r|\n/);
    lines[0] = rest + lines[0];
    rest = lines.pop() ?? "";
    lines.forEach(line);
  };
}

/** One connection, for the streams in `keys`; `at` has the id up to which each has come. */
class Line {
  /** @type {string[]} */ keys = [];
  /** @type {Map<string, number | undefined>} */ at = new Map();
  /** @type {string[]} */ names = [];
  fails = 0;
  retry = 2000;
  beat = 0;
  last = 0; // when the last byte came
  timer = 0;
  state = "";
  bye = "";
  /** @type {AbortController | undefined} */ abort;
  /** @type {EventSource | undefined} */ source;

  /** @param {Hub} hub */
  constructor(hub) {
    this.hub = hub;
  }

  url() {
    const { base, query } = this.hub;
    const since = (key) => (this.at.get(key) === undefined ? "" : `since=${this.at.get(key)}`);
    const one = this.keys.length === 1;
    const parts = one ? [since(this.keys[0])] : this.keys.flatMap((key) => [`stream=${encodeURIComponent(key)}`, since(key)]);
    const search = [...parts, query].filter(Boolean).join("&");
    return base + (one ? `/${encodeURIComponent(this.keys[0])}` : "") + (search && `?${search}`);
  }

  stop() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = undefined;
    const { abort } = this;
    this.abort = undefined;
    abort?.abort();
  }

  async open() {
    this.stop();
    const abort = (this.abort = new AbortController());
    this.state = "connecting";
    this.bye = "";
    this.hub.state(this);
    this.heard();
    this.watch();
    let end;
    try {
      end = await (STREAMS ? this.read(abort) : this.listen());
    } catch {
      end = { reason: "network", status: 0 };
    }
    if (this.abort === abort) await this.ended(end, abort);
  }

  /** @param {AbortController} abort @returns {Promise<{reason: string, status: number, after?: number}>} */
  async read(abort) {
    const { signal } = abort;
    const { credentials } = this.hub;
    const response = await fetch(this.url(), { headers: { accept: "text/event-stream" }, credentials, cache: "no-store", signal });
    const { status } = response;
    if (status !== 200 || !response.body || !/^text\/event-stream\b/i.test(response.headers.get("content-type") ?? "")) {
      response.body?.cancel().catch(() => {});
      const told = response.headers.get("retry-after") ?? "";
      const after = /^\d+$/.test(told) ? +told * 1000 : Date.parse(told) - Date.now();
      return { reason: status === 200 ? "content-type" : "status", status, after: after || 0 };
    }
    const reader = response.body.getReader();
    const feed = parser(
      (frame) => this.abort === abort && this.take(frame),
      (ms) => (this.retry = ms),
      (text) => {
        const quiet = Date.now() - this.last;
        // A server with a longer interval than we were told. Beyond the watchdog's time it was this machine that slept.
        if (text.startsWith("heartbeat") && quiet > this.pace && !this.silent) this.beat = quiet;
      },
    );
    for (;;) {
      const { done, value } = await reader.read();
      if (done || this.abort !== abort) return { reason: this.bye || "ended", status };
      feed(value);
      this.heard();
    }
  }

  /** Without streaming fetch: no status, no comments, hence no watchdog. */
  listen() {
    return new Promise((done) => {
      const source = (this.source = new EventSource(this.url(), { withCredentials: this.hub.credentials === "include" }));
      let before = "";
      source.onerror = () => done({ reason: this.bye || "network", status: 0 });
      this.hear = (name) =>
        source.addEventListener(name, ({ data, lastEventId }) => {
          // An EventSource goes on telling the last id with frames that have none.
          if (this.source === source) this.take({ id: lastEventId === before ? undefined : lastEventId, event: name, data });
          before = lastEventId;
        });
      names.forEach(this.hear);
    });
  }
  /** @type {(name: string) => void} */ hear = () => {};

  heard() {
    this.last = Date.now();
    this.hub.pulse();
  }

  get pace() {
    return Math.max(this.beat, this.hub.beat);
  }

  get silent() {
    return STREAMS && Date.now() - this.last > 3 * this.pace;
  }

  watch() {
    const { abort } = this;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      if (this.silent && abort) this.drop(abort);
      else this.watch();
    }, this.pace / 2);
  }

  /** Give up a connection that has gone dead without an end. @param {AbortController} abort */
  drop(abort) {
    this.abort = undefined;
    abort.abort();
    this.abort = abort;
    this.ended({ reason: "timeout", status: 0 }, abort);
  }

  /** @param {{reason: string, status: number, after?: number}} end @param {AbortController} abort */
  async ended({ reason, status, after = 0 }, abort) {
    this.source?.close();
    clearTimeout(this.timer);
    const refused = reason === "expired" || (status >= 400 && status < 500 && !PASSING.includes(status));
    if (refused || status === 204) {
      const gone = await this.refused(reason === "expired" ? 403 : status);
      if (this.abort !== abort) return;
      if (gone.size) {
        this.abort = undefined;
        for (const [key, code] of gone) this.hub.refuse(this, key, { reason, status: code, willRetry: false });
        return this.keys.length ? this.open() : undefined;
      }
    }
    // Twice the time with each failure, anywhere in between, so that clients that were lost together do not come together. A
    // server that said goodbye has told each another time already.
    const most = Math.max(this.retry, Math.min(MAX_WAIT, this.retry * 2 ** ++this.fails));
    const wait = this.bye && this.fails === 1 ? this.retry : this.retry + Math.random() * (most - this.retry);
    this.abort = undefined;
    this.state = "waiting";
    this.timer = setTimeout(() => this.open(), Math.min(Math.max(wait, after), 3_600_000));
    this.hub.state(this, { reason, status, willRetry: true });
  }

  /** Which streams the server will not give, by status: of several only some may be at fault. @param {number} status */
  async refused(status) {
    const { keys } = this;
    /** @type {Map<string, number>} */
    const gone = new Map();
    if (keys.length > 1) {
      const ask = async (key) => {
        const { base, credentials, query } = this.hub;
        const answer = await fetch(`${base}/${encodeURIComponent(key)}?${query}`, { method: "HEAD", credentials, cache: "no-store" });
        if (answer.status >= 400 && answer.status < 500 && !PASSING.includes(answer.status)) gone.set(key, answer.status);
      };
      await Promise.all(keys.map((key) => ask(key).catch(() => {})));
      // None alone is: then it is the request that they make together.
      if (gone.size || status === 403) return gone;
    }
    keys.forEach((key) => gone.set(key, status));
    return gone;
  }

  /** @param {Frame} frame */
  take({ id, event, data, k }) {
    const { hub, keys } = this;
    if (event.startsWith("pgbus:")) return this.control(event, JSON.parse(data));
    const [, index, cursors] = /^(\d+)~([\d.]+)$/.exec(id ?? "") ?? [];
    if (cursors) k = +index;
    const number = id === undefined ? undefined : +(cursors ? cursors.split(".")[k] : id);
    if (keys.length === 1) k = 0;
    const key = k === undefined ? undefined : keys[k];
    const before = key === undefined ? undefined : this.at.get(key);
    if (number !== undefined && key !== undefined) {
      if (before !== undefined && number <= before) return;
      this.at.set(key, number);
    }
    hub.tell({ t: "frame", keys: key === undefined ? keys : [key], id: number, before, event, data, stream: this.names[k ?? -1] });
  }

  control(event, value) {
    const { hub, keys } = this;
    if (event === "pgbus:connected") {
      this.names = value.streams.map(({ name }) => name);
      // From here on: what comes while the connection is away is missed no more. A replay is still to come.
      if (!hub.query.includes("replay="))
        value.streams.forEach(({ lastId }, i) => this.at.get(keys[i]) === undefined && this.at.set(keys[i], lastId));
      this.state = "open";
      this.fails = 0;
      hub.connection = value.connectionId;
      hub.state(this);
    } else if (event === "pgbus:gap-detected") {
      const key = keys[Math.max(0, this.names.indexOf(value.stream))];
      if (value.reason !== "expired") this.at.set(key, value.reason === "ahead" ? 0 : value.lastId);
      hub.tell({ t: "gap", keys: [key], detail: value });
    } else if (event === "pgbus:shutdown") this.bye = value.reason;
  }
}

/** All subscriptions of one server, and where this tab has the connections, those of the other tabs. */
class Hub {
  /** @type {Set<Subscription>} */ subs = new Set();
  /** @type {Line[]} */ lines = [];
  /** What other tabs want: of each, the cursor of each stream. @type {Map<string, [string, number | undefined][]>} */
  others = new Map();
  beat = 15_000;
  leads = false;
  timer = 0;
  answer = 0;
  check = 0;
  heardAt = 0;
  toldAt = 0;
  connection = "";
  id = Math.random().toString(36).slice(2);
  /** @type {AbortController | undefined} */ joined;
  /** @type {BroadcastChannel | undefined} */ channel;

  /** @param {string} base @param {string} query @param {RequestCredentials} credentials @param {boolean} tabs */
  constructor(base, query, credentials, tabs) {
    this.base = base;
    this.query = query;
    this.credentials = credentials;
    this.tabs = tabs && "locks" in navigator && "BroadcastChannel" in globalThis;
    this.name = `pgbus ${credentials} ${base}?${query}`;
    this.key = "";
  }

  /** Look again, in a moment, at what is wanted. */
  change() {
    if (this.subs.size && !this.joined) this.join();
    this.timer ||= setTimeout(() => {
      this.timer = 0;
      if (this.subs.size) return this.sync();
      this.leave();
      hubs.delete(this.key);
    }, SETTLE);
  }

  join() {
    const joined = (this.joined = new AbortController());
    if (!this.tabs) return this.lead();
    this.check = setInterval(() => {
      if (!this.leads && Date.now() - this.heardAt > 3 * this.beat) this.ask();
    }, ANSWER);
    // A lock of this tab's own tells the leader when it is gone.
    this.hold(`${this.name} ${this.id}`, joined, () => {
      this.channel = new BroadcastChannel(this.name);
      this.channel.onmessage = ({ data }) => this.hear(data);
      this.elect(joined, false);
      this.sync();
    });
  }

  /** Hold a lock, once it is given, until `until` is aborted. @param {string} name @param {AbortController} until */
  hold(name, until, then, options = { signal: until.signal }) {
    const held = () => {
      if (until.signal.aborted) return;
      then();
      return new Promise((done) => until.signal.addEventListener("abort", done));
    };
    return navigator.locks.request(name, options, held).catch(({ name }) => {
      if (name !== "SecurityError" || this.joined !== until) return;
      this.tabs = false; // a page that may not have locks is alone
      this.lead();
    });
  }

  async elect(joined, steal) {
    await this.hold(this.name, joined, () => this.lead(), steal ? { steal } : undefined);
    if (joined.signal.aborted || !this.leads || !this.tabs) return;
    // The lock was taken away, while this tab was frozen.
    this.follow();
    this.elect(joined, false);
    this.sync();
  }

  lead() {
    clearTimeout(this.answer);
    this.leads = true;
    // Whoever has a lower cursor than we have says so now; should it be late, the connection goes back.
    this.channel?.postMessage({ t: "who" });
    this.change();
  }

  follow() {
    this.leads = false;
    this.lines.forEach((line) => line.stop());
    this.lines = [];
    this.others.clear();
  }

  leave() {
    clearTimeout(this.answer);
    clearInterval(this.check);
    this.subs.forEach((sub) => sub.restart());
    this.channel?.postMessage({ t: "want", from: this.id, wants: [] });
    this.channel?.close();
    this.channel = undefined;
    this.joined?.abort();
    this.joined = undefined;
    this.follow();
  }

  /** @returns {[string, number | undefined][]} */
  wants() {
    return [...this.subs].flatMap((sub) => [...sub.cursors].filter(([key]) => sub.states.get(key) !== "closed"));
  }

  sync() {
    if (!this.joined) return;
    this.beat = Math.max(...[...this.subs].map((sub) => sub.beat));
    if (this.leads) this.arrange();
    else this.ask();
  }

  /** Tell the leader what is wanted here; one that does not answer, though somebody looks, is replaced. */
  ask() {
    const { joined } = this;
    this.channel?.postMessage({ t: "want", from: this.id, wants: this.wants() });
    clearTimeout(this.answer);
    if (this.channel && joined)
      this.answer = setTimeout(() => {
        if (this.leads || this.joined !== joined) return;
        if (document.visibilityState === "visible") this.elect(joined, true);
      }, ANSWER);
  }

  /** Connect to what is wanted, from the lowest cursors. */
  arrange() {
    /** @type {Map<string, number | undefined>} */
    const wanted = new Map();
    for (const [key, cursor] of [this.wants(), ...this.others.values()].flat()) {
      const least = wanted.get(key);
      wanted.set(key, least === undefined || (cursor !== undefined && cursor < least) ? cursor : least);
    }
    const moved = new Set();
    for (const line of this.lines) {
      const kept = line.keys.filter((key) => wanted.has(key));
      if (kept.length < line.keys.length) moved.add(line);
      line.keys = kept;
    }
    for (const [key, cursor] of wanted) {
      let line = this.lines.find(({ keys }) => keys.includes(key));
      const at = line?.at.get(key);
      if (line && (cursor === undefined || (at !== undefined && at <= cursor))) continue;
      line ??= this.lines.find(({ keys }) => keys.length < MAX_STREAMS && !this.query);
      if (!line) this.lines.push((line = new Line(this)));
      if (!line.keys.includes(key)) line.keys.push(key);
      line.at.set(key, cursor);
      moved.add(line);
    }
    this.lines = this.lines.filter((line) => line.keys.length || line.stop());
    // Told by now: from here on they are as far as the connection is.
    this.others.forEach((wants) => wants.forEach((want) => (want[1] = undefined)));
    this.lines.forEach((line) => (moved.has(line) && line.state !== "waiting" ? line.open() : this.state(line)));
  }

  /** @param {Line} line @param {Close} [close] */
  state(line, close) {
    const at = line.keys.map((key) => line.at.get(key));
    this.tell({ t: "state", keys: line.keys, state: line.state, at, connection: this.connection, close });
  }

  /** @param {Line} line @param {string} key @param {Close} close */
  refuse(line, key, close) {
    line.keys = line.keys.filter((other) => other !== key);
    this.lines = this.lines.filter(({ keys }) => keys.length);
    this.others.forEach((wants, tab) => this.others.set(tab, wants.filter(([other]) => other !== key)));
    this.tell({ t: "state", keys: [key], state: "closed", at: [], close });
  }

  /** To all subscriptions, here and in the other tabs. */
  tell(message) {
    if (this.others.size) {
      this.toldAt = Date.now();
      this.channel?.postMessage(message);
    }
    this.subs.forEach((sub) => sub.take(message));
  }

  /** The leader tells now and then that it lives. */
  pulse() {
    if (this.others.size && Date.now() - this.toldAt > this.beat / 2) this.tell({ t: "pulse", keys: [] });
  }

  hear(message) {
    const { t, from, wants } = message;
    if (t === "want") {
      if (!this.leads || !this.joined) return;
      const known = this.others.has(from);
      if (wants.length) this.others.set(from, wants);
      else this.others.delete(from);
      if (wants.length && !known) {
        // Given once that tab is gone.
        const { signal } = this.joined;
        const gone = () => void (this.others.delete(from) && this.change());
        navigator.locks.request(`${this.name} ${from}`, { signal }, gone).catch(() => {});
      }
      this.change();
    } else if (t === "who") {
      if (!this.leads) this.ask();
    } else if (!this.leads) {
      clearTimeout(this.answer);
      this.heardAt = Date.now();
      this.subs.forEach((sub) => sub.take(message));
    }
  }

  /** Somebody looks again, or the network is back. */
  wake() {
    if (!this.joined) this.change();
    else if (!this.leads) Date.now() - this.heardAt > ANSWER && this.ask();
    for (const line of this.lines) if (line.state === "waiting" || line.silent) line.open();
  }
}

class Subscription {
  /** @type {Map<string, number | undefined>} */ cursors = new Map();
  /** @type {Map<string, string>} */ states = new Map();
  state = "closed";

  /** @param {EventTarget} target @param {Options} options */
  constructor(target, options, hooks = {}) {
    const { src, since, credentials = "same-origin", shared = "tabs", heartbeat = 15 } = options;
    this.target = target;
    this.hooks = hooks;
    this.beat = heartbeat * 1000;
    const url = new URL(src ?? options.base ?? "/pgbus/streams", document.baseURI);
    const listed = options.streams ?? (options.stream === undefined ? [] : [options.stream]);
    const cursor = (text) => (text === null || text === "" ? undefined : +text);
    if (src !== undefined && !url.searchParams.has("stream")) {
      const cut = url.pathname.lastIndexOf("/");
      this.cursors.set(decodeURIComponent(url.pathname.slice(cut + 1)), cursor(url.searchParams.get("since")));
      url.pathname = url.pathname.slice(0, cut);
    } else listed.forEach((key) => this.cursors.set(key, undefined));
    /** @type {string | undefined} */
    let key;
    const others = [];
    for (const [name, value] of url.searchParams) {
      if (name === "stream") this.cursors.set((key = value), undefined);
      else if (name !== "since") others.push([name, value]);
      else if (key !== undefined) this.cursors.set(key, cursor(value));
    }
    const given = [since].flat();
    [...this.cursors.keys()].forEach((key, i) => this.cursors.set(key, given[i] ?? this.cursors.get(key)));
    const query = `${new URLSearchParams(others)}`;
    const base = url.origin + url.pathname.replace(/\/$/, "");
    // Without sharing, a hub for this one alone.
    const id = `${shared === "none" ? Math.random() : shared} ${credentials} ${base}?${query}`;
    this.hub = hubs.get(id) ?? new Hub(base, query, credentials, shared === "tabs");
    hubs.set((this.hub.key = id), this.hub);
    this.turn("connecting");
    this.hub.subs.add(this);
    this.hub.change();
  }

  close() {
    this.hub.subs.delete(this);
    this.hub.change();
    this.states.clear();
    this.turn("closed");
  }

  take(message) {
    const { t, id, before, event, data, stream, state, at, close, detail } = message;
    const keys = message.keys.filter((key) => this.cursors.has(key) && this.states.get(key) !== "closed");
    if (!keys.length) return;
    const [key] = keys;
    const mine = this.cursors.get(key);
    if (t === "state") {
      for (const key of keys) {
        // A connection that is made anew because somebody else wants another stream is nothing to tell of.
        if (state !== "connecting" || this.states.get(key) !== "open") this.states.set(key, state);
        if (this.cursors.get(key) === undefined) this.move(key, at[message.keys.indexOf(key)]);
      }
      this.settle(message.connection);
      if (close) this.fire("pgbus:close", { ...close, streams: keys });
    } else if (t === "gap") {
      if (detail.reason === "expired" && (mine ?? 0) >= detail.oldestId) return;
      if (detail.reason !== "expired") this.move(key, detail.reason === "ahead" ? 0 : detail.lastId);
      this.fire("pgbus:gap", detail);
    } else if (t === "frame") {
      if (id !== undefined) {
        if (mine !== undefined && id <= mine) return;
        // Something between the two went past us, as when a connection changes hands: the leader has to go back.
        if (mine !== undefined && before > mine) return this.hub.change();
        this.move(key, id);
      }
      this.message({ id, event, data, stream });
    }
  }

  move(key, cursor) {
    this.cursors.set(key, cursor);
    this.hooks.moved?.(this);
  }

  /** @param {Message} message */
  message(message) {
    const { id, event, data } = message;
    this.hooks.message?.(message);
    this.fire("pgbus:message", message);
    const typed = new MessageEvent(event || "message", { data, lastEventId: `${id ?? ""}`, bubbles: true });
    Object.defineProperty(typed, "detail", { value: message });
    this.target.dispatchEvent(typed);
  }

  /** The state of several streams is that of the one that is worst off, but closed only where all are. */
  settle(connection = "") {
    const states = [...this.cursors.keys()].map((key) => this.states.get(key) ?? "connecting");
    const living = states.filter((state) => state !== "closed");
    const state = ["waiting", "connecting", "open"].find((state) => living.includes(state)) ?? "closed";
    const opened = state === "open" && this.state !== "open";
    this.turn(state);
    if (opened) this.fire("pgbus:open", { connectionId: connection, streams: [...this.cursors.keys()] });
  }

  /** The page goes away, and may come back. */
  restart() {
    this.states.forEach((state, key) => state === "closed" || this.states.delete(key));
    this.settle();
  }

  /** @param {string} state */
  turn(state) {
    this.state = state;
    this.hooks.state?.(state);
  }

  fire(name, detail) {
    this.target.dispatchEvent(new CustomEvent(name, { detail, bubbles: true }));
  }
}

/** @param {string} name */
function listenFor(name) {
  if (STREAMS || names.has(name)) return;
  names.add(name);
  hubs.forEach(({ lines }) => lines.forEach((line) => line.source && line.hear(name)));
}

/** What `connect` returns: dispatches the events of the element. */
export class PgbusStream extends EventTarget {
  #sub;

  /** @param {Options} options */
  constructor(options) {
    super();
    this.#sub = new Subscription(this, options);
  }

  /** connecting, open, waiting or closed */
  get state() {
    return this.#sub.state;
  }

  /** The cursor of each stream. */
  get cursors() {
    return Object.fromEntries(this.#sub.cursors);
  }

  addEventListener(name, ...rest) {
    listenFor(name);
    super.addEventListener(name, ...rest);
  }

  close() {
    this.#sub.close();
  }
}

/** Follow streams without an element. @param {string | Options} source the URL of a stream, or options */
export const connect = (source) => new PgbusStream(typeof source === "string" ? { src: source } : source);

const ATTRIBUTES = ["src", "stream", "streams", "base", "since", "since-id", "credentials", "shared", "heartbeat"];

if ("HTMLElement" in globalThis && !customElements.get("pgbus-stream-source"))
  customElements.define(
    "pgbus-stream-source",
    class extends HTMLElement {
      static observedAttributes = ATTRIBUTES;
      /** @type {Subscription | undefined} */ #sub;
      #own = false;
      #again = false;
      #turbo = false;

      get state() {
        return this.#sub?.state ?? "closed";
      }

      get cursors() {
        return Object.fromEntries(this.#sub?.cursors ?? []);
      }

      close() {
        this.#sub?.close();
      }

      addEventListener(name, ...rest) {
        listenFor(name);
        super.addEventListener(name, ...rest);
      }

      connectedCallback() {
        this.#start();
      }

      disconnectedCallback() {
        this.close();
        this.#sub = undefined;
        this.#feedTurbo(false);
      }

      attributeChangedCallback(name, before, now) {
        if (this.#own || before === now || !this.#sub || this.#again) return;
        this.#again = true;
        queueMicrotask(() => {
          this.#again = false;
          if (this.isConnected) this.#start();
        });
      }

      #start() {
        this.#sub?.close();
        const get = (name) => this.getAttribute(name) ?? undefined;
        const words = (text) => text?.split(/\s+/).filter(Boolean);
        const shared = { false: "none", none: "none", page: "page" }[get("shared") ?? ""];
        this.querySelectorAll("[sse-swap]").forEach((part) => swaps(part).forEach(listenFor));
        this.#sub = new Subscription(
          this,
          {
            src: get("src"),
            stream: get("stream"),
            streams: words(get("streams")),
            base: get("base"),
            since: words(get("since") ?? get("since-id"))?.map((word) => (word === "-" ? undefined : +word)),
            credentials: get("credentials"),
            shared,
            heartbeat: +(get("heartbeat") ?? 15) || 15,
          },
          {
            state: (state) => this.setAttribute("state", state),
            moved: (sub) => this.#keep(sub),
            message: (message) => this.#swap(message),
          },
        );
      }

      /** Keep the cursor in the document: what copies or caches the page's contents has the cursor that belongs to them. */
      #keep({ cursors }) {
        this.#own = true;
        const name = this.hasAttribute("since-id") && !this.hasAttribute("since") ? "since-id" : "since";
        this.setAttribute(name, [...cursors.values()].map((cursor) => cursor ?? "-").join(" "));
        this.#own = false;
      }

      #swap({ event, data }) {
        this.#feedTurbo(!event && data.includes("<turbo-stream"));
        const { htmx } = globalThis;
        if (!htmx?.swap) return;
        for (const part of [this, ...this.querySelectorAll("[sse-swap]")]) {
          if (!swaps(part).includes(event || "message")) continue;
          const near = (name) => part.closest(`[${name}]`);
          const given = near("hx-target");
          const selector = given?.getAttribute("hx-target") ?? "this";
          const target = selector === "this" ? given ?? part : htmx.find(selector);
          const swapStyle = near("hx-swap")?.getAttribute("hx-swap").split(" ")[0] ?? htmx.config.defaultSwapStyle;
          if (target) htmx.swap(target, data, { swapStyle, swapDelay: 0, settleDelay: htmx.config.defaultSettleDelay });
        }
      }

      /** Turbo puts whatever it is given into the page: it gets its own elements, and nothing else. @param {boolean} on */
      #feedTurbo(on) {
        const { Turbo } = globalThis;
        if (!Turbo || on === this.#turbo) return;
        this.#turbo = on;
        if (on) Turbo.connectStreamSource(this);
        else Turbo.disconnectStreamSource(this);
      }
    },
  );

/** @param {globalThis.Element} part @returns {string[]} */
function swaps(part) {
  return (part.getAttribute("sse-swap") ?? "").split(",").map((name) => name.trim());
}

const all = (then) => () => hubs.forEach(then);
const wake = all((hub) => hub.wake());
globalThis.addEventListener?.("online", wake);
// Into the back/forward cache and out of it: no page is kept there that has a connection or a lock.
globalThis.addEventListener?.("pagehide", all((hub) => hub.leave()));
globalThis.addEventListener?.("pageshow", ({ persisted }) => persisted && wake());
globalThis.document?.addEventListener("visibilitychange", () => document.visibilityState === "visible" && wake());
