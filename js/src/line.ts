import { safely } from "./acts.js";
import type { Hub } from "./hub.js";
import { type Frame, parser } from "./parser.js";
import type { Cursor, Gap, State } from "./types.js";

/** The longest time between two attempts, in ms, unless the server asks for more. */
const MAX_WAIT = 30_000;
/** The shortest time between two attempts, in ms, even if the server says less. */
const MIN_WAIT = 100;
/** The longest time between two attempts in ms that the server can ask for. */
const MAX_ASKED = 3_600_000;
/** The time in ms before a lost connection is reported: a browser may cut it before it tells the page that it is left. */
const GRACE = 250;
/** The number of attempts before the waits grow. */
const PROMPT = 4;
/** The interval of heartbeats in ms, until the server has sent its own. */
export const BEAT = 15_000;

/** What the server says in `pgbus:connected` and `pgbus:identity`. */
export interface Greeting {
  identity?: string;
  connectionId: string;
  heartbeat?: number;
  streams: { name: string; lastId: number; identity?: string }[];
}

/** Whether another attempt would change nothing. */
const final = (status: number) => /204|^4(?!08|25|29)/.test(`${status}`);

/** One HTTP connection for the streams in `_keys`, reopened whenever it ends; `_at` has the cursor of each. */
export class Line {
  _keys: string[] = [];
  _at = new Map<string, Cursor>();
  _names: string[] = [];
  _fails = 0;
  _retry = 2000;
  _beat = BEAT;
  /** Empty if it has to be opened. */
  _state: State | "" = "";
  /** When the last bytes came. */
  declare _last: number;
  declare _doubted: boolean;
  /** The reason of the server's farewell. */
  declare _bye: string;
  declare _id: string | undefined;
  declare _abort: AbortController | undefined;
  declare _timer: ReturnType<typeof setTimeout> | undefined;
  declare _hub: Hub;

  constructor(hub: Hub) {
    this._hub = hub;
  }

  /** Request streams; `extra` is a further parameter, with its `&`. */
  _ask(keys: string[], options: RequestInit, extra = ""): Promise<Response> {
    const { _base: base, _query: query, _credentials } = this._hub;
    const [one, more] = keys.map(encodeURIComponent);
    const fields = keys.map((key) => {
      const since = this._at.get(key);
      return (more ? "&stream=" + encodeURIComponent(key) : "") + (since === undefined ? "" : "&since=" + since);
    });
    const id = this._id && !query.includes("&connection=") ? "&connection=" + this._id : "";
    const parameters = fields.join("") + query + id + extra;
    return fetch(base + (more ? "?" : `/${one}?`) + parameters.slice(1), { credentials: _credentials!, cache: "no-store", ...options });
  }

  _stop(): void {
    clearTimeout(this._timer);
    this._abort?.abort();
  }

  /** Connect. A poll that follows another lasts `seconds`: nothing has changed for the page. */
  async _open(seconds = 0): Promise<void> {
    this._stop();
    const { signal } = (this._abort = new AbortController());
    this._bye = "";
    const { _hub: hub } = this;
    // The id of the leader before, so that `exclude` still works.
    if (!hub._lines.some(({ _id }) => _id)) this._id = hub._connection;
    this._heard();
    if (!seconds) {
      this._state = "connecting";
      hub._tellState(this);
    }
    try {
      await this._read(signal, seconds);
    } catch {
      await new Promise((done) => setTimeout(done, GRACE));
      this._ended(signal, "network");
    }
  }

  /** Bytes have come. */
  _heard(): void {
    this._last = performance.now();
    this._doubted = false;
  }

  async _read(signal: AbortSignal, seconds: number): Promise<void> {
    // The first poll is answered at once, so that there is a cursor. The server answers the others within two heartbeats.
    const poll = this._hub._polls && "&poll=" + seconds;
    const options = { headers: { accept: "text/event-stream" }, signal };
    const { status, headers, body } = await this._ask(this._keys, options, poll);
    if (status !== 200 || !/^text\/event-stream *(;|$)/i.test(headers.get("content-type")!)) {
      const told = headers.get("retry-after") as never;
      const sent = Date.parse(headers.get("date")!);
      // A date goes by the clock of the server, which may differ from ours by hours.
      const after = told * 1000 || Date.parse(told) - (sent || Date.now());
      return this._ended(signal, status === 200 ? "content-type" : "status", status, after);
    }
    const reader = body!.getReader();
    const feed = parser(
      (frame) => signal.aborted || this._take(frame),
      (ms) => (this._retry = Math.max(ms, MIN_WAIT)),
    );
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return poll && !this._bye ? void this._open(25) : this._ended(signal, this._bye || "ended", status);
      this._heard();
      feed(value);
    }
  }

  /** The connection ended; `after` is the time in ms that the server asks for. */
  async _ended(signal: AbortSignal, reason: string, status = 0, after = 0): Promise<void> {
    if (signal.aborted) return;
    const { _hub: hub, _keys: keys, _retry: retry } = this;
    const expired = reason === "expired";
    if (expired || reason === "content-type" || final(status)) {
      let gone = keys;
      // Perhaps only some of several streams are refused, and an expired right may have been renewed. If none is refused by itself,
      // the server refuses them together.
      if (expired || (keys[1] && reason === "status")) {
        const asked = await Promise.all(
          keys.map((key) => this._ask([key], { method: "HEAD" }).then((answer) => answer.status, () => 0)),
        );
        if (signal.aborted) return;
        gone = keys.filter((_, i) => final(asked[i]!) && (status = asked[i]!));
        if (!gone[0] && !expired) return hub._split(this);
      }
      if (gone[0]) return hub._refuse(this, gone, reason, status);
    }
    this._stop();
    // Up to half the server's time more, at random, so that clients lost together do not return together. After several failures the
    // range doubles with each. A server that said goodbye has already given each client another time.
    const more = this._fails < PROMPT ? retry / 2 : Math.min(MAX_WAIT, retry * 2 ** (this._fails - (PROMPT - 2))) - retry;
    const wait = retry + (this._bye && !this._fails ? 0 : Math.random() * Math.max(0, more));
    this._fails++;
    hub._again = 0;
    this._state = "waiting";
    this._timer = setTimeout(() => this._open(), Math.min(Math.max(wait, after || 0), MAX_ASKED));
    hub._tellState(this, { reason, status, willRetry: true, streams: keys });
  }

  _take({ id: text, event, data, k: stream }: Frame): void {
    const { _hub: hub, _keys: keys, _at: at } = this;
    // The id is a cursor; or, on a connection with several streams, the index of the message's stream, and all cursors.
    const [index, cursors] = text ? text.split("~") : [];
    const ids = (cursors ?? index)?.split(".").map(Number);
    if (event.startsWith("pgbus:")) return safely(() => this._control(event, JSON.parse(data), ids));
    const k = cursors ? +index! : keys[1] ? stream! : 0;
    const key = keys[k];
    const before = at.get(key!);
    const id = ids?.[cursors ? k : 0];
    // Neither is true if one is undefined.
    if (id! <= before!) return;
    const detail = { id: id || undefined, event, data, stream: this._names[k] };
    hub._tell({ t: "frame", keys: key ? [key] : keys, before, detail });
    if (id) at.set(key!, id);
  }

  /** A control frame of the server; `ids` is where each stream starts. */
  _control(event: string, value: any, ids: number[] | undefined): void {
    const { _hub: hub, _keys: keys, _at: at } = this;
    if (event === "pgbus:shutdown") this._bye = value.reason;
    else if (event === "pgbus:gap-detected") {
      const key = keys[this._names.indexOf(value.stream)] ?? keys[0]!;
      const { reason, lastId } = value as Gap;
      const to = reason === "expired" ? undefined : reason === "ahead" ? 0 : lastId;
      if (to !== undefined) at.set(key, to);
      hub._tell({ t: "gap", keys: [key], to, detail: value });
    } else if (event === "pgbus:identity") hub._meet(this, value);
    else if (event === "pgbus:connected" && hub._meet(this, value)) {
      const { streams, heartbeat, connectionId } = value as Greeting;
      this._names = streams.map(({ name }) => name);
      // From here on, messages during an absence are not missed.
      const start = (i: number) => ids?.[i] ?? (hub._query.includes("&replay=") ? undefined : streams[i]!.lastId);
      keys.forEach((key, i) => at.set(key, at.get(key) ?? start(i)));
      if (heartbeat) this._beat = heartbeat * 1000;
      this._state = "open";
      this._fails = hub._held = 0;
      this._id = connectionId;
      hub._tellState(this);
    }
  }
}
