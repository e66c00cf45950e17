/** Types of the package. This module has no code. */

/** The last id that a page knows of a stream; undefined to start from now. */
export type Cursor = number | undefined;

/** connecting, open (live), waiting (lost, or refused for now; it tries again), closed (refused for good, or ended). */
export type State = "connecting" | "open" | "waiting" | "closed";

export interface Options {
  /** The URL of a stream, or of several: `/pgbus/streams?stream=A&since=1&stream=B`. */
  src?: string | undefined;
  /** Instead of `src`: the name of one stream, as in its URL. */
  stream?: string | undefined;
  /** Instead of `src`: the names of several streams. */
  streams?: readonly string[] | undefined;
  /** Where the streams are, if there is no `src`. The default is `/pgbus/streams`. */
  base?: string | undefined;
  /** The cursor, or one for each stream. */
  since?: Cursor | readonly Cursor[];
  /** That of `fetch`. The default is `same-origin`. */
  credentials?: RequestCredentials | undefined;
  /** Who shares the connection: all tabs (the default), this page, or nobody. */
  shared?: "tabs" | "page" | "none" | undefined;
  /** For which user the page was made: an opaque text from the server. */
  identity?: string | undefined;
}

/** The attributes of the element, all optional, for the types of templates. */
export interface ElementAttributes {
  src?: string | undefined;
  stream?: string | undefined;
  /** Names, separated by spaces. */
  streams?: string | undefined;
  base?: string | undefined;
  /** The cursor; for several streams one each, separated by spaces, `-` for none. */
  since?: string | number | undefined;
  "since-id"?: string | number | undefined;
  credentials?: RequestCredentials | undefined;
  shared?: "tabs" | "page" | "false" | undefined;
  identity?: string | undefined;
}

/** A message of a stream. */
export interface Message {
  /** Undefined for an ephemeral message. */
  id?: number | undefined;
  /** Empty if the message has none. */
  event: string;
  data: string;
  /** The name of its stream, without the signature. */
  stream?: string | undefined;
}

export interface Opened {
  /** For `exclude` of the next publish. */
  connectionId: string | undefined;
  /** The names, as in the URL. */
  streams: string[];
}

/** Messages that the page missed are gone. */
export interface Gap {
  stream: string;
  requestedId: number;
  oldestId: number | null;
  lastId: number;
  reason: string;
}

/** Why a connection ended. The server's farewells may have reasons that are not listed here. */
export type CloseReason =
  | "network" | "ended" | "timeout" | "status" | "content-type" | "identity-changed" | "expired"
  | "restart" | "revoked" | "max-age" | "overloaded" | "unavailable" | "too-many-connections"
  | (string & {});

export interface Close {
  reason: CloseReason;
  /** The status of HTTP, 0 if there was none. */
  status: number;
  willRetry: boolean;
  /** The names, as in the URL. */
  streams: string[];
}

/** The event that is named after a message's event, or `message`. */
export interface PgbusMessageEvent extends MessageEvent<string> {
  readonly detail: Message;
}

/** The events of the element that have fixed names, without `message`. They bubble, so any listener above it gets them. */
export interface BubblingEventMap {
  "pgbus:open": CustomEvent<Opened>;
  "pgbus:message": CustomEvent<Message>;
  "pgbus:gap": CustomEvent<Gap>;
  "pgbus:close": CustomEvent<Close>;
}

export interface PgbusEventMap extends BubblingEventMap {
  message: PgbusMessageEvent;
}

type Listener<Event> = ((event: Event) => unknown) | { handleEvent(event: Event): unknown };

/** What the element and the result of `connect` have in common. Any other event is that of a message. */
export interface Follower {
  readonly state: State;
  /** The cursor of each stream, by its name as in the URL. */
  readonly cursors: Record<string, Cursor>;
  /** End it for good. */
  close(): void;
}

export interface ListensToMessages {
  addEventListener<Name extends keyof PgbusEventMap>(
    type: Name, listener: Listener<PgbusEventMap[Name]> | null, options?: boolean | AddEventListenerOptions): void;
  addEventListener(type: string, listener: Listener<PgbusMessageEvent> | null, options?: boolean | AddEventListenerOptions): void;
  removeEventListener<Name extends keyof PgbusEventMap>(
    type: Name, listener: Listener<PgbusEventMap[Name]> | null, options?: boolean | EventListenerOptions): void;
  removeEventListener(type: string, listener: Listener<PgbusMessageEvent> | null, options?: boolean | EventListenerOptions): void;
}
