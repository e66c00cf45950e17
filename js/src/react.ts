import { type DetailedHTMLProps, type HTMLAttributes, useEffect, useState, useSyncExternalStore } from "react";

import type { PgbusStreamSource } from "./element.js";
import { BEFORE, Following, type Handlers, keyOf, type Live, NOTHING } from "./following.js";
import type { ElementAttributes, Message, Options } from "./types.js";

export type { Handlers, Live };

/**
 * Follow streams while the component is mounted.
 *
 * @param options Those of `connect`. The connection is kept while they are equal. If `since` stays as it was, another connection goes
 *   on behind the last message. Without options (null or undefined), nothing is followed.
 * @param handlers What to call for each message, or an object with functions for several events.
 */
export function useStream(options: Options | null | undefined, handlers?: Handlers | ((message: Message) => void)): Live {
  const [following] = useState(() => new Following());
  const key = keyOf(options);
  useEffect(() => {
    following.handlers = typeof handlers === "function" ? { onMessage: handlers } : handlers ?? {};
  });
  useEffect(() => {
    if (!options) return;
    following.open(options);
    return () => following.close();
    // The key stands for the options.
  }, [following, key]);
  const live = useSyncExternalStore(following.subscribe, () => following.live, () => BEFORE);
  return options ? live : NOTHING;
}

/** The properties of the element in JSX. */
export type ElementProps = DetailedHTMLProps<HTMLAttributes<PgbusStreamSource>, PgbusStreamSource> & ElementAttributes;

declare module "react" {
  namespace JSX {
    interface IntrinsicElements {
      "pgbus-stream-source": ElementProps;
    }
  }
}
