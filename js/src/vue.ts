import { computed, type ComputedRef, type FunctionalComponent, getCurrentScope, type MaybeRefOrGetter, onScopeDispose, shallowRef, toValue, watch } from "vue";

import { BEFORE, Following, type Handlers, keyOf, type Live, NOTHING } from "./following.js";
import type { ElementAttributes, Message, Options } from "./types.js";

export type { Handlers, Live };

/** What `useStream` returns: a ref for each value of `Live`. */
export type LiveRefs = { readonly [Name in keyof Live]: ComputedRef<Live[Name]> };

/**
 * Follow streams until the scope, such as the component, ends.
 *
 * @param options Those of `connect`, as a value, a ref or a getter. The connection is kept while they are equal. If `since` stays as it
 *   was, another connection goes on behind the last message. Without options (null or undefined), nothing is followed.
 * @param handlers What to call for each message, or an object with functions for several events.
 */
export function useStream(
  options: MaybeRefOrGetter<Options | null | undefined>, handlers: Handlers | ((message: Message) => void) = {}): LiveRefs {
  const following = new Following();
  following.handlers = typeof handlers === "function" ? { onMessage: handlers } : handlers;
  const shown = shallowRef(BEFORE);
  following.subscribe(() => (shown.value = following.live));
  const live = computed(() => (toValue(options) ? shown.value : NOTHING));
  // Not where pages are rendered on a server.
  if (globalThis.document)
    watch(() => keyOf(toValue(options)), () => {
      const now = toValue(options);
      if (now) following.open(now);
      else following.close();
    }, { immediate: true });
  if (getCurrentScope()) onScopeDispose(() => following.close());
  const part = <Name extends keyof Live>(name: Name) => computed(() => live.value[name]);
  return { state: part("state"), message: part("message"), gap: part("gap"), connectionId: part("connectionId") };
}

declare module "vue" {
  /** What templates know. */
  interface GlobalComponents {
    "pgbus-stream-source": FunctionalComponent<ElementAttributes>;
  }
}
