import { Subscription } from "./subscription.js";
import type { Cursor, Follower, ListensToMessages, Options, State } from "./types.js";

/** The common part of the element and of what `connect` returns. */
export const follows = <Base extends new (...options: any[]) => EventTarget>(Base: Base) =>
  class extends Base implements Follower {
    declare _sub: Subscription | undefined;

    get state(): State {
      return this._sub?._state ?? "closed";
    }

    get cursors(): Record<string, Cursor> {
      return Object.fromEntries(this._sub?._cursors ?? []);
    }

    close(): void {
      this._sub?._close();
    }
  };

/** What `connect` returns. */
export interface PgbusStream extends EventTarget, Follower, ListensToMessages {
  addEventListener: ListensToMessages["addEventListener"];
  removeEventListener: ListensToMessages["removeEventListener"];
}

/** Follow streams without an element. */
export const connect = (options: Options): PgbusStream => {
  const stream = new (follows(EventTarget))();
  stream._sub = new Subscription(stream, options);
  return stream as PgbusStream;
};
