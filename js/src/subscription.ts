import { safely } from "./acts.js";
import { Hub, hubs, type Tidings } from "./hub.js";
import type { Cursor, Message, Options, State } from "./types.js";

/** What a subscription dispatches its events on. */
export interface Target extends EventTarget {
  _sub?: Subscription | undefined;
  _moved?(cursors: Map<string, Cursor>): void;
  _turned?(state: State): void;
  _message?(message: Message): void;
}

/** A cursor per stream, and a target for its events. */
export class Subscription {
  declare _cursors: Map<string, Cursor>;
  /** Of each stream that is not closed. */
  _states = new Map<string, State>();
  declare _state: State;
  declare _hub: Hub;
  declare _target: Target;

  constructor(target: Target, options: Options) {
    this._target = target;
    const { src, base = "/pgbus/streams", stream, since, credentials, shared = "tabs", identity } = options;
    let { streams = [stream ?? []].flat() } = options;
    const url = new URL(src ?? base, globalThis.document?.baseURI);
    const { searchParams: given } = url;
    if (src && !given.has("stream")) {
      const [, path, name] = /(.*)\/(.*)/.exec(url.pathname) as unknown as [string, string, string];
      url.pathname = path;
      streams = [decodeURIComponent(name)];
    }
    const cursors = (this._cursors = new Map<string, any>(streams.map((name) => [`${name}`, ""])));
    let [key] = cursors.keys() as unknown as [string];
    let others = "";
    given.forEach((value, name) => {
      if (name === "stream") cursors.set((key = value), "");
      else if (name === "since") cursors.set(key, value);
      else others += `&${encodeURIComponent(name)}=${encodeURIComponent(value)}`;
    });
    // Numbers, because they are compared. The server refuses anything else.
    [...cursors].forEach(([key, cursor], i) => {
      cursor = [since].flat()[i] ?? cursor;
      cursors.set(key, /^-?$/.test(cursor) ? undefined : +cursor);
      this._states.set(key, "connecting");
    });
    const root = url.origin + url.pathname.replace(/\/$/, "");
    // Without sharing, it has a hub of its own.
    const id = [shared === "none" ? Math.random() : shared, credentials, root, others, identity].join(" ");
    this._hub = hubs.get(id) ?? new Hub(id, root, others, credentials, shared === "tabs", identity);
    this._hub._subs.add(this);
    this._hub._change();
    this._settle();
  }

  _wants(): [string, Cursor][] {
    return [...this._cursors].filter(([key]) => this._states.has(key));
  }

  _close(): void {
    this._hub._subs.delete(this);
    this._hub._change(true);
    this._states.clear();
    this._settle();
  }

  /** The page is left, and may come back. */
  _restart(): void {
    this._states.forEach((_, key) => this._states.set(key, "connecting"));
    this._settle();
  }

  _take(message: Tidings): void {
    const keys = message.keys.filter((key) => this._states.has(key));
    const [key] = keys;
    if (!key) return;
    const mine = this._cursors.get(key);
    if (message.t === "state") {
      const { state, at, id, close } = message;
      for (const key of keys) {
        if (state === "closed") this._states.delete(key);
        // A connection that is reopened for another subscription is not reported.
        else if (state !== "connecting" || this._states.get(key) !== "open") this._states.set(key, state);
        if (this._cursors.get(key) === undefined) this._move(key, at?.get(key));
      }
      this._settle(id);
      if (close) this._fire("pgbus:close", { ...close, streams: keys });
    } else if (message.t === "gap") {
      const { to, detail } = message;
      if (to !== undefined) this._move(key, to);
      else if (mine! >= detail.oldestId!) return;
      this._fire("pgbus:gap", detail);
    } else {
      const { before, detail } = message;
      const { id } = detail;
      // Neither is true if one is undefined.
      if (id! <= mine!) return;
      // A message between the two is missing, as after a change of leader. The leader has to go back.
      if (id && before! > mine!) return this._hub._change();
      this._message(detail);
      if (!id) return;
      this._move(key, id);
      // A handler has moved the element, so that it began again before this message.
      const { _sub: next } = this._target;
      if (next !== this && next?._cursors.get(key)! < id) next!._move(key, id);
    }
  }

  _move(key: string, cursor: Cursor): void {
    this._cursors.set(key, cursor);
    if (cursor !== undefined) safely(() => this._target._moved?.(this._cursors));
  }

  _message(detail: Message): void {
    const { id = "", event, data } = detail;
    safely(() => this._target._message?.(detail));
    this._fire("pgbus:message", detail);
    safely(() => {
      const typed = new MessageEvent(event || "message", { data, lastEventId: `${id}`, bubbles: true });
      this._target.dispatchEvent(Object.assign(typed, { detail }));
    });
  }

  /** The state of several streams is the worst of theirs, but closed only if all are. */
  _settle(connectionId?: string): void {
    const streams = [...this._cursors.keys()];
    const states = [...this._states.values()];
    const state = (["waiting", "connecting", "open"] as const).find((state) => states.includes(state)) ?? "closed";
    if (state === this._state) return;
    this._state = state;
    safely(() => this._target._turned?.(state));
    if (state === "open") this._fire("pgbus:open", { connectionId, streams });
  }

  _fire(name: string, detail: unknown): void {
    safely(() => this._target.dispatchEvent(new CustomEvent(name, { detail, bubbles: true })));
  }
}
