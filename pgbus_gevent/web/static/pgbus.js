// @ts-check
/**
 * Live streams in the browser: `<pgbus-stream-source>`, and `connect()` for pages without elements.
 *
 * A Subscription is a cursor per stream and a target for its events. A Hub serves all subscriptions to one server, of one tab or
 * of all tabs of the origin, over as few Lines as possible. A Line is one HTTP connection, reopened whenever it ends.
 *
 * The server removes the comments, so each needs lines of its own.
 *
 * @typedef {{id?: number, event: string, data: string, stream?: string}} Message
 * @typedef {{reason: string, status: number, willRetry: boolean, streams: string[]}} Close
 * @typedef {{id?: string, event: string, data: string, k?: number}} Frame
 * @typedef {number | undefined} Cursor
 * @typedef {{src?: string, stream?: string, streams?: string[], base?: string, since?: Cursor | Cursor[],
 *   credentials?: RequestCredentials, shared?: "tabs" | "page" | "none", identity?: string}} Options
 */

/** Part of the names of locks and channels, so that tabs with another version of this file do not share with these. */
const PROTOCOL = 2;

/** The longest time between two attempts, in ms, unless the server asks for more. */
const MAX_WAIT = 30_000;
/** The time in ms within which the leading tab has to answer. */
const ANSWER = 3000;
/** The shortest time between two attempts, in ms, even if the server says less. */
const MIN_WAIT = 100;
/** The time in ms within which a moved element is back. */
const SETTLE = 15;
/** The time in ms before a lost connection is reported: a browser may cut it before it tells the page that it is left. */
const GRACE = 250;
/** The interval of heartbeats in ms, until the server has sent its own. */
const BEAT = 15_000;
/** The number of attempts before the waits grow. */
const PROMPT = 4;
const STREAMS = "TextDecoder" in globalThis && "body" in Response.prototype;

/** Whether another attempt would change nothing. @param {number} status */
const final = (status) => status === 204 || (status >= 400 && status < 500 && ![408, 425, 429].includes(status));

/** Event names that have listeners. If an EventSource is the fallback, it hears only these. */
const names = new Set(["message", "pgbus:connected", "pgbus:identity", "pgbus:gap-detected", "pgbus:shutdown"]);
/** @type {Map<string, Hub>} */
const hubs = new Map();

/** Call code of the page. An exception in it is reported, and does not stop other messages. @param {() => void} act */
const safely = (act) => {
  try {
    act();
  } catch (error) {
    // reportError may be missing, or replaced by one that throws.
    queueMicrotask(() => {
      if (!globalThis.reportError) throw error;
      reportError(error);
    });
  }
};

/** Whether it covers what may be seen, so that equal identities may share. @param {string} [identity] */
const complete = (identity) => /[^.]$/.test(identity ?? "");

/** Do something next. Not with a timer, which may be a second late in a hidden tab. @param {() => void} act */
const soon = (act) => {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => {
    port1.close();
    act();
  };
  port2.postMessage(0);
};

/**
 * Whether a known identity was followed by that of another login. It has three parts: the key that made it, the login, and all that
 * decides what may be seen. Two keys cannot be compared. If only the last part has changed, it is still the same login.
 * @param {string} [before] @param {string} [now]
 */
const replaced = (before, now) => {
  const [key, who] = (before ?? "").split("."), [newKey, newWho] = (now ?? "").split(".");
  return !!before && before !== now && (!now || (key === newKey && !(who && who === newWho)));
};

/**
 * A parser of event streams, for bytes cut anywhere.
 * @param {(frame: Frame) => void} take
 * @param {(ms: number) => void} retry
 * @returns {(bytes: Uint8Array) => void}
 */
export function parser(take, retry) {
  // It drops a BOM, and keeps part of a character.
  const decoder = new TextDecoder();
  // The parts of a line that has not ended: joined once, because a large message comes in thousands of pieces.
  let rest = [], cr = false;
  /** @type {any} */
  let frame = { event: "" };
  const line = (text) => {
    if (!text) {
      const { id } = frame, empty = !("data" in frame);
      if (!empty) take(frame);
      frame = { event: "" };
      // An id without data is that of the next frame, as for an EventSource.
      if (empty && id !== undefined) frame.id = id;
      return;
    }
    const [, field, value] = /^([^:]*):? ?([^]*)$/.exec(text);
    if (field === "data") frame.data = "data" in frame ? frame.data + "\n" + value : value;
    else if (field === "event") frame.event = value;
    else if (field === "id" && !value.includes("\0")) frame.id = value;
    else if (field === "retry" && /^\d+$/.test(value)) retry(+value);
    // A comment: the stream of a frame without an id, on a connection with several.
    else if (!field && /^stream \d+$/.test(value)) frame.k = +value.slice(7);
  };
  return (bytes) => {
    let text = decoder.decode(bytes, { stream: true });
    if (!text) return;
    // The second half of a line break whose first half ended the last chunk.
    if (cr && text[0] === "\n") text = text.slice(1);
    cr = text ? text.endsWith("\r") : false;
    const [first, ...others] = text.split(/\r\n|\r|\n/);
    rest.push(first);
    if (!others.length) return;
    const lines = [rest.join(""), ...others];
    rest = [lines.pop()];
    lines.forEach(line);
  };
}

/** One connection for the streams in `keys`; `at` has the cursor of each. */
class Line {
  keys = [];
  at = new Map();
  names = [];
  fails = 0;
  retry = 2000;
  beat = BEAT;
  /** "" if it has to be opened */
  state = "";

  /** @param {Hub} hub */
  constructor(hub) {
    this.hub = hub;
  }

  url(keys, extra = "") {
    const { base, query } = this.hub;
    const [one, more] = keys;
    const parts = keys.flatMap((key) => {
      const since = this.at.get(key);
      return [more && "stream=" + encodeURIComponent(key), since === undefined ? "" : "since=" + since];
    });
    const id = this.id && !/(^|&)connection=/.test(query) ? "connection=" + this.id : "";
    return base + (more ? "?" : `/${encodeURIComponent(one)}?`) + [...parts, query, id, extra].filter(Boolean).join("&");
  }

  ask(keys, options, extra) {
    return fetch(this.url(keys, extra), { credentials: this.hub.credentials, cache: "no-store", ...options });
  }

  stop() {
    clearTimeout(this.timer);
    this.abort?.abort();
    this.abort = undefined;
  }

  async open() {
    this.stop();
    const abort = (this.abort = new AbortController());
    this.state = "connecting";
    this.bye = "";
    this.id ??= this.hub.inherited();
    this.heard();
    this.hub.state(this);
    const end = await (STREAMS ? this.read : this.listen).call(this, abort.signal).catch(() => ({ reason: "network", status: 0 }));
    if (end.reason === "network") await new Promise((done) => setTimeout(done, GRACE));
    this.ended(abort, end);
  }

  /** Bytes have come. */
  heard() {
    this.last = performance.now();
    this.doubted = false;
  }

  /** @param {AbortSignal} signal */
  async read(signal) {
    const response = await this.ask(this.keys, { headers: { accept: "text/event-stream" }, signal });
    const { status, headers, body } = response;
    if (status !== 200 || !/^\s*text\/event-stream\s*(;|$)/i.test(headers.get("content-type"))) {
      body?.cancel().catch(() => {});
      /** @type {any} */
      const told = headers.get("retry-after"), sent = Date.parse(headers.get("date"));
      // A date goes by the clock of the server, which may differ from ours by hours.
      return { reason: status === 200 ? "content-type" : "status", status, after: told * 1000 || Date.parse(told) - (sent || Date.now()) };
    }
    const reader = body.getReader();
    const feed = parser(
      (frame) => signal.aborted || this.take(frame),
      (ms) => (this.retry = Math.max(ms, MIN_WAIT)),
    );
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return { reason: this.bye || "ended", status };
      this.heard();
      feed(value);
    }
  }

  /** If fetch cannot stream: no status, no comments, hence no watchdog. @param {AbortSignal} signal */
  async listen(signal) {
    const source = new EventSource(this.url(this.keys), { withCredentials: this.hub.credentials === "include" });
    signal.onabort = () => source.close();
    let before = "";
    this.hear = (name) =>
      source.addEventListener(name, ({ data, lastEventId: id }) => {
        // An EventSource repeats the last id for frames that have none.
        if (!signal.aborted) this.take({ id: id === before ? undefined : id, event: name === "message" ? "" : name, data });
        before = id;
      });
    names.forEach(this.hear);
    await new Promise((done) => (source.onerror = done));
    return { reason: this.bye || "network", status: 0 };
  }

  /** @param {AbortController} abort */
  async ended(abort, { reason, status, after }) {
    if (this.abort !== abort) return;
    const { hub, keys } = this;
    if (["expired", "content-type"].includes(reason) || final(status)) {
      let gone = keys;
      // Perhaps only some of several streams are refused, and an expired right may have been renewed. If none is refused by itself,
      // the server refuses them together.
      if (reason === "expired" || (reason === "status" && keys[1])) {
        const asked = await Promise.all(keys.map((key) => this.ask([key], { method: "HEAD" }).catch(() => ({ status: 0 }))));
        if (this.abort !== abort) return;
        gone = keys.filter((key, i) => final(asked[i].status));
        if (gone[0]) status = asked[keys.indexOf(gone[0])].status;
        else if (reason !== "expired") return hub.split(this);
      }
      if (gone[0]) return hub.refuse(this, gone, { reason, status, willRetry: false, streams: gone });
    }
    this.stop();
    // Up to half the server's time more, at random, so that clients lost together do not return together. After several failures the
    // range doubles with each. A server that said goodbye has already given each client another time.
    const more = this.fails < PROMPT ? this.retry / 2 : Math.min(MAX_WAIT, this.retry * 2 ** (this.fails - PROMPT + 2)) - this.retry;
    const wait = this.retry + (this.bye && !this.fails ? 0 : Math.random() * Math.max(0, more));
    this.fails++;
    this.state = "waiting";
    this.timer = setTimeout(() => this.open(), Math.min(Math.max(wait, after || 0), 3_600_000));
    hub.state(this, { reason, status, willRetry: true, streams: keys });
  }

  /** @param {Frame} frame */
  take({ id, event, data, k }) {
    const { hub, keys, at } = this;
    const [, index, cursors] = /^(\d+)~(.*)/.exec(id) ?? [];
    const ids = id && (cursors ?? id).split(".").map(Number);
    if (event.startsWith("pgbus:")) return safely(() => this.control(event, JSON.parse(data), ids));
    k = +(index ?? (keys[1] ? k : 0));
    const key = keys[k];
    const before = at.get(key);
    const number = id && ids[cursors ? k : 0];
    if (number <= before) return;
    hub.tell({ t: "frame", keys: key ? [key] : keys, before, detail: { id: number || undefined, event, data, stream: this.names[k] } });
    if (number) at.set(key, number);
  }

  /** A control frame of the server. @param {number[]} [ids] where each stream starts */
  control(event, value, ids) {
    const { hub, keys, at } = this;
    if (event === "pgbus:shutdown") this.bye = value.reason;
    else if (event === "pgbus:gap-detected") {
      const key = keys[this.names.indexOf(value.stream)] ?? keys[0];
      if (value.reason !== "expired") at.set(key, value.reason === "ahead" ? 0 : value.lastId);
      hub.tell({ t: "gap", keys: [key], detail: value });
    } else if (event === "pgbus:identity") hub.meet(this, value);
    else if (event === "pgbus:connected" && hub.meet(this, value)) {
      this.names = value.streams.map(({ name }) => name);
      // From here on, messages during an absence are not missed.
      const start = (i) => ids?.[i] ?? (hub.query.includes("replay=") ? undefined : value.streams[i].lastId);
      keys.forEach((key, i) => at.set(key, at.get(key) ?? start(i)));
      if (value.heartbeat) this.beat = value.heartbeat * 1000;
      this.state = "open";
      this.fails = 0;
      this.id = value.connectionId;
      hub.state(this);
    }
  }
}

/** All subscriptions to one server; in the leading tab also those of the other tabs. */
class Hub {
  /** @type {Set<Subscription>} */
  subs = new Set();
  /** @type {Line[]} */
  lines = [];
  /** The cursors that each other tab wants to start from. @type {Map<string, Map<string, Cursor>>} */
  others = new Map();
  /** The identity for each stream, from the server. @type {Map<string, string>} */
  known = new Map();
  id = `${Math.random()}`;
  /** @type {string} */
  key;
  /** @type {string} */
  base;
  /** @type {string} */
  query;
  /** @type {RequestCredentials} */
  credentials;
  /** The identity for all: undefined until it is known, empty if the server has none. @type {string | undefined} */
  identity;
  /** How often in a row it was another one. */
  moves = 0;
  /** The most streams that the server takes on one connection. */
  most = 32;

  constructor(key, base, query, credentials, tabs, identity) {
    Object.assign(this, { key, base, query, credentials, identity });
    this.tabs = tabs && "locks" in navigator && "BroadcastChannel" in globalThis;
  }

  /** Look again at what is wanted; `later` if something removed may soon be back. */
  change(later) {
    if (this.subs.size && !this.joined) this.join();
    if (later) {
      this.timer ||= setTimeout(() => {
        this.timer = 0;
        if (this.subs.size) return this.sync();
        this.leave();
        hubs.delete(this.key);
      }, SETTLE);
    } else {
      this.due ||= !soon(() => {
        this.due = false;
        if (this.subs.size) this.sync();
      });
    }
  }

  async join() {
    const joined = (this.joined = new AbortController());
    this.check = setInterval(() => this.look(), ANSWER);
    this.looked = performance.now();
    this.wall = Date.now();
    if (this.tabs && this.identity === undefined) this.identity = await this.learn(joined);
    if (this.joined !== joined) return;
    // A tab that may have another login does not share.
    if (!this.tabs || !complete(this.identity)) return this.lead();
    this.name = `pgbus/${PROTOCOL} ${this.credentials} ${this.base}?${this.query} ${this.identity}`;
    // The leader gets this lock when this tab is gone.
    this.hold(this.name + this.id, () => {
      this.channel = new BroadcastChannel(this.name);
      this.channel.onmessage = ({ data }) => this.hear(data);
      this.elect();
      this.sync();
    });
  }

  /** Ask for the identity for these streams. If that fails, it comes with the connection. */
  async learn({ signal }) {
    await new Promise((done) => soon(() => done()));
    const abort = new AbortController();
    const stop = () => abort.abort();
    signal.addEventListener("abort", stop);
    const timer = setTimeout(stop, BEAT);
    const keys = [...this.wants.keys()].slice(0, this.most);
    if (!keys[0]) return;
    const answer = await new Line(this).ask(keys, { method: "HEAD", signal: abort.signal }, "identity").catch(() => undefined);
    clearTimeout(timer);
    return answer?.headers.get("pgbus-identity") ?? undefined;
  }

  /**
   * The server has sent the identities for the streams of a line. Streams of another login than before end. If it is the same login in
   * another role, the tab goes on, together with the tabs that have that role too.
   * @param {Line} line
   * @returns {boolean} whether the line may go on
   */
  meet(line, { identity: found, streams }) {
    const identity = found ?? "";
    const told = line.keys.map((_, i) => streams[i]?.identity ?? identity);
    if (found !== undefined && identity !== this.identity) {
      const known = line.keys.some((key) => this.known.has(key));
      const gone = line.keys.filter((key, i) => (known ? replaced(this.known.get(key), told[i]) : replaced(this.identity, identity)));
      if (gone[0]) {
        this.refuse(line, gone, { reason: "identity-changed", status: 200, willRetry: false, streams: gone });
        return false;
      }
    }
    line.keys.forEach((key, i) => this.known.set(key, told[i]));
    if (identity === this.identity) this.moves = 0;
    // Join the tabs that have it; without an identity, stay alone.
    const moves = identity !== this.identity && this.tabs && (complete(identity) || this.channel);
    this.identity = identity;
    if (!moves) return true;
    // One that changes each time cannot be shared.
    if (this.moves++) this.tabs = false;
    this.part();
    this.join();
    return false;
  }

  /** Get a lock, and hold it while this tab takes part. */
  async hold(name, then, steal) {
    const { signal } = this.joined;
    const held = () =>
      signal.aborted ||
      new Promise((done) => {
        signal.addEventListener("abort", done);
        then();
      });
    try {
      await navigator.locks.request(name, steal ? { steal } : { signal }, held);
    } catch (error) {
      if (error?.name === "AbortError" || signal.aborted) return;
      // A page without access to locks or channels is alone.
      this.tabs = false;
      this.lead();
    }
  }

  async elect(steal) {
    const { joined } = this;
    await this.hold(this.name, () => this.lead(), steal);
    // If it has not left, the lock was stolen while this tab was frozen.
    if (this.joined !== joined || !this.leads || !this.tabs) return;
    this.follow();
    this.elect();
    this.sync();
  }

  lead() {
    clearTimeout(this.answer);
    this.leads = true;
    // Tabs with a lower cursor say so now. If one is late, the connection goes back.
    this.channel?.postMessage({ t: "who", from: this.id });
    this.change();
  }

  follow() {
    this.leads = false;
    this.lines.forEach((line) => line.stop());
    this.lines = [];
    this.others.clear();
  }

  leave() {
    this.subs.forEach((sub) => sub.restart());
    this.part();
  }

  /** Stop taking part, until the next join. */
  part() {
    clearTimeout(this.answer);
    clearInterval(this.check);
    this.channel?.postMessage({ t: "want", from: this.id, wants: new Map() });
    this.channel?.close();
    this.channel = undefined;
    this.connection = undefined;
    this.joined?.abort();
    this.joined = undefined;
    this.follow();
  }

  sync() {
    if (!this.joined) return;
    if (this.leads) this.arrange();
    else this.ask();
  }

  /** The lowest cursor for each stream, of subscriptions or of tabs. */
  merged(wants) {
    /** @type {Map<string, Cursor>} */
    const all = new Map();
    for (const [key, cursor] of wants.flatMap((map) => [...map])) {
      const least = all.get(key);
      all.set(key, cursor > least ? least : cursor ?? least);
    }
    return all;
  }

  get wants() {
    return this.merged([...this.subs].map((sub) => sub.wants));
  }

  /** Tell the leader what this tab wants. If it does not answer a visible tab, it is replaced. @param {boolean} [woken] */
  ask(woken) {
    const { joined } = this;
    clearTimeout(this.answer);
    this.leader = undefined;
    this.channel?.postMessage({ t: "want", from: this.id, wants: this.wants, woken });
    this.answer = setTimeout(() => {
      if (this.joined === joined && !this.leads && this.channel && !document.hidden) this.elect(true);
    }, ANSWER);
  }

  /** Connect to what is wanted. */
  arrange() {
    const wanted = this.merged([this.wants, ...this.others.values()]);
    const move = (line) => line.state === "waiting" || (line.state = "");
    for (const line of this.lines) {
      const kept = line.keys.filter((key) => wanted.has(key));
      if (line.keys[kept.length]) move(line);
      line.keys = kept;
    }
    for (const [key, cursor] of wanted) {
      let line = this.lines.find(({ keys }) => keys.includes(key));
      if (line && (cursor === undefined || line.at.get(key) <= cursor)) continue;
      line ??= this.lines.find(({ keys }) => !this.query.includes("replay=") && !keys[this.most - 1]);
      if (!line) this.lines.push((line = new Line(this)));
      if (!line.keys.includes(key)) line.keys.push(key);
      line.at.set(key, cursor);
      move(line);
    }
    this.lines = this.lines.filter((line) => line.keys[0] || line.stop());
    // The connection has these cursors now, and the tabs go on with it.
    this.others.forEach((wants) => wants.forEach((_, key) => wants.set(key, undefined)));
    this.lines.forEach((line) => (line.state ? this.state(line) : line.open()));
  }

  /** The connection id of the leader before, so that `exclude` still works. */
  inherited() {
    return this.lines.some(({ id }) => id) ? undefined : this.connection;
  }

  /** @param {Line} line @param {Close} [close] */
  state({ keys, state, at, id }, close) {
    this.tell({ t: "state", keys, state, at, id, close, known: this.known });
  }

  /** @param {Line} line @param {string[]} keys @param {Close} close */
  refuse(line, keys, close) {
    this.others.forEach((wants) => keys.forEach((key) => wants.delete(key)));
    this.tell({ t: "state", keys, state: "closed", close });
    line.state = "closed";
    this.arrange();
  }

  /** @param {Line} line */
  split(line) {
    this.most = 1;
    line.stop();
    const single = (key) => Object.assign(new Line(this), { keys: [key], at: line.at });
    this.lines = this.lines.flatMap((other) => (other === line ? line.keys.map(single) : other));
    this.arrange();
  }

  /** Tell all subscriptions, here and in the other tabs. */
  tell(message) {
    if (this.others.size) this.channel?.postMessage({ ...message, from: this.id });
    this.give(message);
  }

  give(message) {
    // A copy, so that a subscription made by a handler does not get this message.
    [...this.subs].forEach((sub) => sub.take(message));
  }

  hear(message) {
    const { t, from, wants, woken, known, id } = message;
    if (t === "who") {
      if (!this.leads) this.ask();
      this.leader = from;
    } else if (t !== "want") {
      // A leader that was replaced while it was frozen may still send for a moment.
      this.leader ??= from;
      if (this.leads || from !== this.leader) return;
      clearTimeout(this.answer);
      this.heard = performance.now();
      this.connection = id ?? this.connection;
      known?.forEach((identity, key) => this.known.set(key, identity));
      this.give(message);
    } else if (this.leads) {
      const gone = () => void (this.others.delete(from) && this.change());
      // Granted when that tab is gone.
      if (!this.others.has(from)) navigator.locks.request(this.name + from, { signal: this.joined.signal }, gone).catch(() => {});
      if (wants.size) this.others.set(from, wants);
      else this.others.delete(from);
      if (woken) this.look(true);
      this.change();
    }
  }

  /** Check that bytes come; at once if the tab is visible again or the network is back. */
  look(woken) {
    if (!this.joined) return this.change();
    const now = performance.now(), wall = Date.now();
    // If the clock went further than this timer, the machine slept. If this call is late, the tab was frozen.
    const passed = now - this.looked, slept = wall - this.wall - passed;
    this.looked = now;
    this.wall = wall;
    const quiet = (since, ms) => !(now - since < ms);
    if (!this.leads && (woken || quiet(this.heard, 3 * BEAT))) this.ask(woken);
    for (const line of this.lines) {
      const waits = line.state === "waiting";
      if ((slept > ANSWER || passed > 3 * ANSWER) && !line.doubted) {
        // A connection that survived sends something within half the time.
        line.last = now - (slept > 3 * line.beat ? 3 : 1.5) * line.beat;
        line.doubted = true;
      }
      const silent = STREAMS && !waits && quiet(line.last, 3 * line.beat);
      if (woken && (waits || silent)) line.open();
      else if (silent) {
        line.abort.abort();
        line.ended(line.abort, { reason: "timeout", status: 0 });
      }
    }
  }
}

class Subscription {
  /** @type {Map<string, Cursor>} */
  cursors = new Map();
  /** @type {Map<string, string>} */
  states = new Map();

  /** @param {any} target @param {Options} options */
  constructor(target, { src, base, stream, streams = [stream ?? []].flat(), since, credentials = "same-origin", shared, identity }) {
    this.target = target;
    const url = new URL(src ?? base ?? "/pgbus/streams", document.baseURI);
    const { searchParams: given } = url;
    if (src && !given.has("stream")) {
      const [, path, name] = /(.*)\/(.*)/.exec(url.pathname);
      url.pathname = path;
      streams = [decodeURIComponent(name)];
    }
    const others = new URLSearchParams();
    streams = streams.map(String);
    let key = streams[0];
    streams.forEach((name) => this.cursors.set(name, undefined));
    given.forEach((value, name) => {
      if (name === "stream") this.cursors.set((key = value), undefined);
      else if (name === "since") this.cursors.set(key, +value);
      else others.append(name, value);
    });
    // Numbers, because they are compared. The server refuses anything else.
    [...this.cursors].forEach(([key, cursor], i) => {
      const given = [since].flat()[i] ?? cursor ?? "";
      this.cursors.set(key, given === "" ? undefined : Number(given));
    });
    base = url.origin + url.pathname.replace(/\/$/, "");
    // Without sharing, it has a hub of its own.
    const id = `${shared === "none" ? Math.random() : shared} ${credentials} ${base}?${others} ${identity}`;
    this.hub = hubs.get(id) ?? new Hub(id, base, `${others}`, credentials, !shared || shared === "tabs", identity);
    hubs.set(id, this.hub);
    this.hub.subs.add(this);
    this.hub.change();
    this.settle();
  }

  get wants() {
    return [...this.cursors].filter(([key]) => this.states.get(key) !== "closed");
  }

  close() {
    this.hub.subs.delete(this);
    this.hub.change(true);
    this.cursors.forEach((_, key) => this.states.set(key, "closed"));
    this.settle();
  }

  /** The page is left, and may come back. */
  restart() {
    this.states.forEach((state, key) => state === "closed" || this.states.delete(key));
    this.settle();
  }

  take({ t, keys, state, at, id, close, before, detail }) {
    keys = keys.filter((key) => this.cursors.has(key) && this.states.get(key) !== "closed");
    const [key] = keys;
    if (!key) return;
    const mine = this.cursors.get(key);
    if (t === "state") {
      for (const key of keys) {
        // A connection that is reopened for another subscription is not reported.
        if (state !== "connecting" || this.states.get(key) !== "open") this.states.set(key, state);
        if (this.cursors.get(key) === undefined) this.move(key, at?.get(key));
      }
      this.settle(id);
      if (close) this.fire("pgbus:close", { ...close, streams: keys });
    } else if (t === "gap") {
      const { reason, oldestId, lastId } = detail;
      if (reason !== "expired") this.move(key, reason === "ahead" ? 0 : lastId);
      else if (mine >= oldestId) return;
      this.fire("pgbus:gap", detail);
    } else {
      const { id } = detail;
      if (id <= mine) return;
      // A message between the two is missing, as after a change of leader. The leader has to go back.
      if (id && before > mine) return this.hub.change();
      this.message(detail);
      if (!id) return;
      this.move(key, id);
      // A handler has moved the element, so that it began again before this message.
      const { _sub: next } = this.target;
      if (next !== this && next?.cursors.get(key) < id) next.move(key, id);
    }
  }

  move(key, cursor) {
    this.cursors.set(key, cursor);
    if (cursor !== undefined) safely(() => this.target._moved?.(this.cursors));
  }

  /** @param {Message} detail */
  message(detail) {
    const { id = "", event, data } = detail;
    safely(() => this.target._message?.(detail));
    this.fire("pgbus:message", detail);
    safely(() => {
      const typed = new MessageEvent(event || "message", { data, lastEventId: `${id}`, bubbles: true });
      this.target.dispatchEvent(Object.defineProperty(typed, "detail", { value: detail }));
    });
  }

  /** The state of several streams is the worst of theirs, but closed only if all are. */
  settle(connectionId) {
    const streams = [...this.cursors.keys()];
    const states = streams.map((key) => this.states.get(key) ?? "connecting");
    const state = ["waiting", "connecting", "open"].find((state) => states.includes(state)) ?? "closed";
    if (state === this.state) return;
    this.state = state;
    safely(() => this.target._turned?.(state));
    if (state === "open") this.fire("pgbus:open", { connectionId, streams });
  }

  fire(name, detail) {
    safely(() => this.target.dispatchEvent(new CustomEvent(name, { detail, bubbles: true })));
  }
}

/** @param {string} name */
function listenFor(name) {
  if (STREAMS || names.has(name)) return;
  names.add(name);
  hubs.forEach(({ lines }) => lines.forEach((line) => line.hear?.(name)));
}

/** The common part of the element and of what `connect` returns. @param {any} Base @returns {any} */
const follows = (Base) =>
  class extends Base {
    /** connecting, open, waiting or closed */
    get state() {
      return this._sub?.state ?? "closed";
    }

    /** The cursor of each stream. */
    get cursors() {
      return Object.fromEntries(this._sub?.cursors ?? []);
    }

    addEventListener(name, ...rest) {
      listenFor(name);
      super.addEventListener(name, ...rest);
    }

    close() {
      this._sub?.close();
    }
  };

class PgbusStream extends follows(EventTarget) {
  /** @param {Options} options */
  constructor(options) {
    super();
    this._sub = new Subscription(this, options);
  }
}

/** Follow streams without an element. @param {Options} options */
export const connect = (options) => new PgbusStream(options);

/** The names of the events that htmx puts into an element. @param {Element} part @returns {string[]} */
const swaps = (part) => (part.getAttribute("sse-swap") ?? "").split(/[\s,]+/);

class PgbusStreamSource extends follows(HTMLElement) {
  static observedAttributes = ["src", "stream", "streams", "base", "since", "since-id", "credentials", "shared", "identity"];

  connectedCallback() {
    const get = (name) => this.getAttribute(name) ?? undefined;
    const words = (name) => get(name)?.match(/\S+/g) ?? undefined;
    safely(() => this.querySelectorAll("[sse-swap]").forEach((part) => swaps(part).forEach(listenFor)));
    const shared = get("shared");
    this._sub = new Subscription(this, {
      src: get("src"),
      base: get("base"),
      stream: get("stream"),
      streams: words("streams"),
      since: (words("since") ?? words("since-id"))?.map((word) => (word === "-" ? undefined : +word)),
      credentials: get("credentials"),
      shared: shared === "false" ? "none" : shared || undefined,
      identity: get("identity"),
    });
  }

  disconnectedCallback() {
    this.close();
    this._sub = undefined;
    this.#feed(false);
  }

  attributeChangedCallback(name, before, now) {
    if (this.#own || before === now || !this._sub || this.#again) return;
    this.#again = true;
    queueMicrotask(() => {
      this.#again = false;
      if (!this._sub) return;
      this.close();
      this.connectedCallback();
    });
  }
  #again = false;

  _turned(state) {
    this.setAttribute("state", state);
  }

  /** Keep the cursor in the document, so that a copy of the page has the cursor of its contents. */
  _moved(cursors) {
    // A handler has just given it another start.
    if (this.#again) return;
    this.#own = true;
    const name = this.hasAttribute("since-id") && !this.hasAttribute("since") ? "since-id" : "since";
    this.setAttribute(name, [...cursors.values()].map((cursor) => cursor ?? "-").join(" "));
    this.#own = false;
  }
  #own = false;

  _message({ event, data }) {
    safely(() => this.#feed(!event && data.includes("<turbo-stream")));
    if (!("htmx" in globalThis)) return;
    for (const part of [this, ...this.querySelectorAll("[sse-swap]")])
      if (swaps(part).includes(event || "message")) safely(() => this.#swap(part, data));
  }

  /** @param {Element} part @param {string} data */
  #swap(part, data) {
    /** @type {any} */
    const { htmx } = globalThis;
    const near = (name) => part.closest(`[${name}]`)?.getAttribute(name);
    const selector = near("hx-target") ?? "this";
    const target = selector === "this" ? part.closest("[hx-target]") ?? part : htmx.find(selector);
    const swapStyle = near("hx-swap")?.split(" ")[0] ?? htmx.config.defaultSwapStyle;
    if (target) htmx.swap(target, data, { swapStyle, swapDelay: 0, settleDelay: 20 });
  }

  /** Turbo puts all that it gets into the page, so it gets only its own elements. @param {boolean} on */
  #feed(on) {
    /** @type {any} */
    const { Turbo } = globalThis;
    if (Turbo && on !== this.#fed) Turbo[on ? "connectStreamSource" : "disconnectStreamSource"](this);
    this.#fed = Turbo && on;
  }
  #fed = false;
}

if (!customElements.get("pgbus-stream-source"))
  // @ts-ignore  it is not known to extend HTMLElement
  customElements.define("pgbus-stream-source", PgbusStreamSource);

const wake = () => hubs.forEach((hub) => hub.look(true));
addEventListener("online", wake);
// For the back/forward cache, which keeps no page that has a connection or a lock.
addEventListener("pagehide", () => hubs.forEach((hub) => hub.leave()));
addEventListener("pageshow", (event) => event.persisted && wake());
document.addEventListener("visibilitychange", () => document.hidden || wake());
