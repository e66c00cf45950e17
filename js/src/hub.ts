import { soon } from "./acts.js";
import { complete, replaced } from "./identity.js";
import { BEAT, type Greeting, Line } from "./line.js";
import type { Subscription } from "./subscription.js";
import type { Close, Cursor, Gap, Message, State } from "./types.js";

/**
 * Part of the names of locks and channels, so that tabs with another version of this module do not share with these. Raise it with
 * every change of what goes over the channel, whose names are not shortened.
 */
const PROTOCOL = 3;
/** The time in ms within which the leading tab has to answer. */
const ANSWER = 3000;
/** The time in ms between two attempts to leave polling. */
const AGAIN = 300_000;
/** The time in ms within which a moved element is back. */
const SETTLE = 15;

/** What subscriptions and other tabs are told about the streams in `keys`. */
export type Tidings = { keys: string[] } & (
  | {
      t: "state";
      state: State;
      at?: Map<string, Cursor>;
      id?: string | undefined;
      close?: Close | undefined;
      known?: Map<string, string>;
    }
  | { t: "gap"; to: Cursor; detail: Gap }
  | { t: "frame"; before: Cursor; detail: Message }
);

type Wants = Map<string, Cursor>;

/** What goes over the channel, each with the number of the tab that it comes from. */
type Post = { from: number } & (
  | { t: "who" }
  | { t: "want"; wants: Wants; woken?: boolean | undefined }
  | Tidings
);

export const hubs = new Map<string, Hub>();

/** Keep it for the next pages of this tab whether streams are held back; without a value, what a page before has kept. */
const kept = (value?: string): string | undefined => {
  try {
    return value === undefined ? sessionStorage.pgbus : (sessionStorage.pgbus = value);
  } catch {
    return value;
  }
};

/** What a promise brings within the time of a heartbeat; undefined if it fails, or takes longer. */
const soonEnough = <T>(promise: Promise<T>): Promise<T | undefined> =>
  Promise.race([promise, new Promise<undefined>((done) => setTimeout(done, BEAT))]).catch(() => undefined);

/** The lowest cursor for each stream, of subscriptions or of tabs. */
const merged = (wants: Iterable<[string, Cursor]>[]): Wants => {
  const all: Wants = new Map();
  for (const [key, cursor] of wants.flatMap((each) => [...each])) {
    const least = all.get(key);
    all.set(key, cursor! > least! ? least : cursor ?? least);
  }
  return all;
};

/** All subscriptions to one server; in the leading tab also those of the other tabs. */
export class Hub {
  _subs = new Set<Subscription>();
  _lines: Line[] = [];
  /** The cursors that each other tab wants to start from. */
  _others = new Map<number, Wants>();
  /** The identity for each stream, from the server. */
  _known = new Map<string, string>();
  /** The number of this tab. */
  _tab = Math.random();
  /** How often in a row the identity was another one. */
  _moves = 0;
  /** The most streams that the server takes on one connection. */
  declare _most: number;
  declare _tabs: boolean;
  declare _key: string;
  declare _base: string;
  declare _query: string;
  declare _credentials: RequestCredentials | undefined;
  /** The identity for all: undefined until it is known, empty if the server has none. */
  declare _identity: string | undefined;
  declare _leads: boolean | undefined;
  /** How many streams in a row brought no byte for three heartbeats, since one began. */
  _held = 0;
  /** Whether streams are held back on the way, so that this polls; undefined or an empty text for no. */
  _polls = kept();
  /** When the next attempt to leave polling is due: at once where a connection was lost, which may have been the reason for it. */
  _again = 0;
  declare _due: boolean | undefined;
  /** The name of lock and channel. */
  declare _name: string;
  /** Aborted when this tab takes part no more. */
  declare _joined: AbortController | undefined;
  declare _channel: BroadcastChannel | undefined;
  /** The number of the leading tab. */
  declare _leader: number | undefined;
  /** The connection's id in the leading tab. */
  declare _connection: string | undefined;
  /** When the leader was last heard. */
  _heard = -Infinity;
  /** When this tab last looked, and how far the clock of the wall was ahead then. */
  declare _looked: number;
  declare _ahead: number;
  declare _check: ReturnType<typeof setInterval> | undefined;
  declare _timer: ReturnType<typeof setTimeout> | 0 | undefined;
  declare _answer: ReturnType<typeof setTimeout> | undefined;

  constructor(key: string, base: string, query: string, credentials: RequestCredentials | undefined, tabs: boolean, identity?: string) {
    hubs.set(key, this);
    this._key = key;
    this._base = base;
    this._query = query;
    this._credentials = credentials;
    this._identity = identity;
    // Elsewhere than on a page, there are no tabs.
    this._tabs = !!(tabs && globalThis.document && navigator.locks);
    this._most = query.includes("&replay=") ? 1 : 32;
  }

  /** Look again at what is wanted; `later` if something removed may soon be back. */
  _change(later?: boolean): void {
    if (this._subs.size && !this._joined) this._join();
    if (later) {
      this._timer ||= setTimeout(() => {
        this._timer = 0;
        if (this._subs.size) return this._sync();
        this._leave();
        hubs.delete(this._key);
      }, SETTLE);
    } else if (!this._due) {
      this._due = true;
      soon(() => {
        this._due = false;
        this._sync();
      });
    }
  }

  async _join(): Promise<void> {
    const joined = (this._joined = new AbortController());
    this._check = setInterval(() => this._look(), ANSWER);
    this._look();
    if (this._tabs && this._identity === undefined) this._identity = await this._learn(joined.signal);
    if (this._joined !== joined) return;
    // A tab that may have another login does not share.
    if (!this._tabs || !complete(this._identity)) return this._lead();
    this._name = `pgbus/${PROTOCOL} ${this._credentials} ${this._base}?${this._query} ${this._identity}`;
    // The leader gets this lock when this tab is gone.
    this._hold(this._name + this._tab, () => {
      this._channel = new BroadcastChannel(this._name);
      this._channel.onmessage = ({ data }) => this._hear(data);
      this._elect();
      this._sync();
    });
  }

  /** Ask for the identity for these streams. If that fails, it comes with the connection. */
  async _learn(signal: AbortSignal): Promise<string | undefined> {
    await new Promise<void>(soon);
    const keys = [...this._wants().keys()].slice(0, this._most);
    if (!keys[0]) return;
    const asked = new Line(this)._ask(keys, { method: "HEAD", signal }, "&identity");
    return (await soonEnough(asked))?.headers.get("pgbus-identity") ?? undefined;
  }

  /**
   * The server has sent the identities for the streams of a line. Streams of another login than before end. If it is the same login in
   * another role, the tab goes on, together with the tabs that have that role too. Returns whether the line may go on.
   */
  _meet(line: Line, { identity: found, streams }: Greeting): boolean {
    const { _known: known, _identity: before } = this;
    const { _keys: keys } = line;
    const identity = found ?? "";
    const told = keys.map((_, i) => streams[i]?.identity ?? identity);
    if (found !== undefined && identity !== before) {
      const some = keys.some((key) => known.has(key));
      const gone = keys.filter((key, i) => (some ? replaced(known.get(key), told[i]) : replaced(before, identity)));
      if (gone[0]) {
        this._refuse(line, gone, "identity-changed", 200);
        return false;
      }
    }
    keys.forEach((key, i) => known.set(key, told[i]!));
    if (identity === before) this._moves = 0;
    // Join the tabs that have it; without an identity, stay alone.
    const moves = identity !== before && this._tabs && (complete(identity) || this._channel);
    this._identity = identity;
    if (!moves) return true;
    // One that changes each time cannot be shared.
    if (this._moves++) this._tabs = false;
    this._part();
    this._join();
    return false;
  }

  /** Get a lock, and hold it while this tab takes part. */
  async _hold(name: string, then: () => void, steal?: boolean): Promise<void> {
    const { signal } = this._joined!;
    const held = () =>
      signal.aborted ||
      new Promise((done) => {
        signal.addEventListener("abort", done);
        then();
      });
    try {
      await navigator.locks.request(name, steal ? { steal } : { signal }, held);
    } catch (error) {
      if ((error as Error)?.name === "AbortError" || signal.aborted) return;
      // A page without access to locks or channels is alone.
      this._tabs = false;
      this._lead();
    }
  }

  async _elect(steal?: boolean): Promise<void> {
    const { _joined: joined } = this;
    await this._hold(this._name, () => this._lead(), steal);
    // If it has not left, the lock was stolen while this tab was frozen.
    if (this._joined !== joined || !this._leads || !this._tabs) return;
    this._follow();
    this._elect();
    this._sync();
  }

  _lead(): void {
    this._leads = true;
    // Tabs with a lower cursor say so now. If one is late, the connection goes back.
    this._post({ t: "who" });
    this._change();
  }

  _follow(): void {
    this._leads = false;
    this._lines.forEach((line) => line._stop());
    this._lines = [];
    this._others.clear();
  }

  _leave(): void {
    this._subs.forEach((sub) => sub._restart());
    this._part();
  }

  /** Stop taking part, until the next join. */
  _part(): void {
    clearInterval(this._check);
    this._channel?.close();
    this._channel = this._connection = undefined;
    this._joined?.abort();
    this._joined = undefined;
    this._follow();
  }

  _sync(): void {
    if (!this._joined || !this._subs.size) return;
    if (this._leads) this._arrange();
    else this._ask();
  }

  _wants(): Wants {
    return merged([...this._subs].map((sub) => sub._wants()));
  }

  _post(message: DistributiveOmit<Post, "from">): void {
    this._channel?.postMessage({ ...message, from: this._tab });
  }

  /** Tell the leader what this tab wants. If it does not answer a visible tab, it is replaced. */
  _ask(woken?: boolean): void {
    const { _joined: joined } = this;
    clearTimeout(this._answer);
    this._leader = undefined;
    this._post({ t: "want", wants: this._wants(), woken });
    this._answer = setTimeout(() => {
      if (this._joined === joined && !this._leads && this._channel && !document.hidden) this._elect(true);
    }, ANSWER);
  }

  /** Connect to what is wanted. */
  _arrange(): void {
    const wanted = merged([this._wants(), ...this._others.values()]);
    const move = (line: Line) => line._state === "waiting" || (line._state = "");
    for (const line of this._lines) {
      const kept = line._keys.filter((key) => wanted.has(key));
      if (line._keys[kept.length]) move(line);
      line._keys = kept;
    }
    for (const [key, cursor] of wanted) {
      let line = this._lines.find(({ _keys }) => _keys.includes(key));
      if (!line) {
        line = this._lines.find(({ _keys }) => !_keys[this._most - 1]);
        if (!line) this._lines.push((line = new Line(this)));
        line._keys.push(key);
      } else if (cursor === undefined || line._at.get(key)! <= cursor) continue;
      line._at.set(key, cursor);
      move(line);
    }
    this._lines = this._lines.filter((line) => line._keys[0] || line._stop());
    // The connection has these cursors now, and the tabs go on with it.
    this._others.forEach((wants) => wants.forEach((_, key) => wants.set(key, undefined)));
    this._lines.forEach((line) => (line._state ? this._tellState(line) : line._open()));
  }

  _tellState({ _keys: keys, _state: state, _at: at, _id: id }: Line, close?: Close): void {
    this._tell({ t: "state", keys, state: state as State, at, id, close, known: this._known });
  }

  /** Streams of a line end for good. */
  _refuse(line: Line, streams: string[], reason: string, status: number): void {
    this._others.forEach((wants) => streams.forEach((key) => wants.delete(key)));
    this._tell({ t: "state", keys: streams, state: "closed", close: { reason, status, willRetry: false, streams } });
    line._state = "closed";
    this._arrange();
  }

  /** Give each stream of a line its own. */
  _split(line: Line): void {
    this._most = 1;
    line._stop();
    const single = (key: string) => Object.assign(new Line(this), { _keys: [key], _at: line._at });
    this._lines = this._lines.flatMap((other) => (other === line ? line._keys.map(single) : other));
    this._arrange();
  }

  /** Tell all subscriptions, here and in the other tabs. */
  _tell(message: Tidings): void {
    if (this._others.size) this._post(message);
    this._give(message);
  }

  _give(message: Tidings): void {
    // A copy, so that a subscription made by a handler does not get this message.
    [...this._subs].forEach((sub) => sub._take(message));
  }

  _hear(message: Post): void {
    const { from } = message;
    if (message.t === "who") {
      if (!this._leads) this._ask();
      this._leader = from;
    } else if (message.t !== "want") {
      // A leader that was replaced while it was frozen may still send for a moment.
      this._leader ??= from;
      if (this._leads || from !== this._leader) return;
      this._heard = performance.now();
      if (message.t === "state") {
        this._connection = message.id ?? this._connection;
        message.known?.forEach((identity, key) => this._known.set(key, identity));
      } else clearTimeout(this._answer);
      this._give(message);
    } else if (this._leads) {
      const { wants, woken } = message;
      const gone = () => {
        this._others.delete(from);
        this._change();
      };
      // Granted when that tab is gone.
      if (!this._others.has(from))
        navigator.locks.request(this._name + from, { signal: this._joined!.signal }, gone).catch(() => {});
      this._others.set(from, wants);
      if (woken) this._look(true);
      this._change();
      // A message about no stream shows that this tab lives. By a timer: a dialog or a synchronous request stops timers and connections,
      // but in Firefox not the messages of channels. So a leader that cannot read its connection would be taken for alive.
      setTimeout(() => this._post({ t: "frame", keys: [] } as unknown as Tidings));
    }
  }

  /** Try a stream beside the polls, and leave them if its first bytes come. It has an id of its own, or it would end the poll. */
  async _probe(keys: string[]): Promise<void> {
    const abort = new AbortController();
    const asked = new Line(this)._ask(keys, { signal: abort.signal }).then(({ body }) => body!.getReader().read());
    if ((await soonEnough(asked))?.value) {
      this._polls = kept("");
      this._lines.forEach((line) => line._open());
    }
    abort.abort();
  }

  /** Check that bytes come; at once if the tab is visible again or the network is back. */
  _look(woken?: boolean): void {
    if (!this._joined) return this._change();
    const now = performance.now();
    const ahead = Date.now() - now;
    // Not a number at the first look. If that clock went further than this timer, the machine slept. If this call is late, the tab was frozen.
    const passed = now - this._looked;
    const slept = ahead - this._ahead;
    this._looked = now;
    this._ahead = ahead;
    if (!this._leads && (woken || now - this._heard >= 3 * BEAT)) this._ask(woken);
    for (const line of this._lines) {
      const waits = line._state === "waiting";
      if (this._polls && line._state === "open" && now >= this._again) {
        this._again = now + AGAIN;
        this._probe(line._keys);
      }
      if ((slept > ANSWER || passed > 3 * ANSWER) && !line._doubted) {
        // A connection that survived sends something within half the time.
        line._last = now - (slept > 3 * line._beat ? 3 : 1.5) * line._beat;
        line._doubted = true;
      }
      const silent = !waits && now - line._last >= 3 * line._beat;
      if (silent && this._held++) this._polls = kept("1");
      if (woken && (waits || silent)) line._open();
      else if (silent) line._ended(line._abort!.signal, "timeout");
    }
  }
}

type DistributiveOmit<T, Key extends PropertyKey> = T extends unknown ? Omit<T, Key> : never;

const wake = () => hubs.forEach((hub) => hub._look(true));

// Neither exists where pages are rendered on a server.
if ("document" in globalThis) {
  addEventListener("online", wake);
  // For the back/forward cache, which keeps no page that has a connection or a lock.
  addEventListener("pagehide", () => hubs.forEach((hub) => hub._leave()));
  addEventListener("pageshow", (event) => event.persisted && wake());
  document.addEventListener("visibilitychange", () => document.hidden || wake());
}
