import { connect, type PgbusStream } from "./connect.js";
import type { Target } from "./subscription.js";
import type { Close, Cursor, Gap, Message, Opened, Options, State } from "./types.js";

/** What a component is told. Each is optional, and the functions of the latest render are called. */
export interface Handlers {
  onMessage?: ((message: Message) => void) | undefined;
  onOpen?: ((opened: Opened) => void) | undefined;
  /** Messages that the page missed are gone. */
  onGap?: ((gap: Gap) => void) | undefined;
  onClose?: ((close: Close) => void) | undefined;
}

/** What a component shows. */
export interface Live {
  readonly state: State;
  /** The last message. Several may come between two renders, so give a function if you need each. */
  readonly message: Message | undefined;
  /** The last gap. */
  readonly gap: Gap | undefined;
  /** For `exclude` of the next publish. */
  readonly connectionId: string | undefined;
}

/** Before there is a connection, also where pages are rendered on a server. */
export const BEFORE: Live = { state: "connecting", message: undefined, gap: undefined, connectionId: undefined };
/** Without options, nothing is followed. */
export const NOTHING: Live = { ...BEFORE, state: "closed" };

/** Equal for options that need no other connection. */
export const keyOf = (options: Options | null | undefined): string | undefined =>
  options ? JSON.stringify([...names(options), "", ...FIXED.map((name) => options[name]), options.since]) : undefined;

const FIXED = ["src", "base", "credentials", "shared", "identity"] as const;

/** The names of the streams, as in the URL. */
const names = ({ src, stream, streams = [stream ?? []].flat() }: Options): string[] => {
  if (src === undefined) return streams.map(String);
  const { pathname, searchParams } = new URL(src, "http://any");
  return searchParams.has("stream") ? searchParams.getAll("stream") : [decodeURIComponent(pathname.replace(/.*\//, ""))];
};

/** The streams of one component, for the hooks: one connection after the other, each with the cursors of the last one. */
export class Following {
  handlers: Handlers = {};
  live = BEFORE;
  _changed = new Set<() => void>();
  _stream: (PgbusStream & Target) | undefined;
  /** Also after it is closed: it may be closed while it dispatches a message, and moves its cursor only then. */
  _last: PgbusStream | undefined;
  _given: string | undefined;
  _due: Options | undefined;

  /** Call `changed` whenever `live` is another object. Returns what ends that. */
  readonly subscribe = (changed: () => void): (() => void) => {
    this._changed.add(changed);
    return () => this._changed.delete(changed);
  };

  /** Follow other streams, or the same ones again. They begin at `since` if that has changed, otherwise at their cursors. */
  open(options: Options): void {
    this.close();
    this._due = options;
    // A component that is mounted twice at once, as in Strict Mode, needs no connection for the first time. Both times it has the same
    // options, so the first microtask opens them for both.
    queueMicrotask(() => {
      if (this._due !== options) return;
      this._due = undefined;
      this._open(options);
    });
  }

  close(): void {
    this._due = undefined;
    const stream = this._stream;
    if (!stream) return;
    this._stream = undefined;
    stream._turned = () => {};
    stream.close();
  }

  _open(options: Options): void {
    const given = JSON.stringify(options.since);
    const since = this._last && this._given === given ? resumed(names(options), this._last.cursors) : options.since;
    const stream: PgbusStream & Target = connect({ ...options, since });
    this._given = given;
    this._stream = this._last = stream;
    stream._turned = (state) => this._show({ state });
    stream.addEventListener("pgbus:open", ({ detail }) => {
      this._show({ connectionId: detail.connectionId });
      this.handlers.onOpen?.(detail);
    });
    stream.addEventListener("pgbus:message", ({ detail }) => {
      this._show({ message: detail });
      this.handlers.onMessage?.(detail);
    });
    stream.addEventListener("pgbus:gap", ({ detail }) => {
      this._show({ gap: detail });
      this.handlers.onGap?.(detail);
    });
    stream.addEventListener("pgbus:close", ({ detail }) => this.handlers.onClose?.(detail));
    this._show({ state: stream.state });
  }

  _show(news: Partial<Live>): void {
    this.live = { ...this.live, ...news };
    this._changed.forEach((changed) => changed());
  }
}

/** The cursors to go on from. A stream whose name is new has that of the stream in its place: it may be a new token for it. */
const resumed = (names: string[], before: Record<string, Cursor>): Cursor[] =>
  names.map((name, place) => (name in before ? before[name] : Object.values(before)[place]));
