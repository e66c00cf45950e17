// Right uses of the hooks.

import { type Handlers, type Live, useStream } from "pgbus-gevent/react";
import { type LiveRefs, useStream as useStreamOfVue } from "pgbus-gevent/vue";
import { type Ref, ref } from "vue";

const live: Live = useStream({ src: "/pgbus/streams/a", since: 7 }, ({ id, event, data, stream }) => {
  const all: [number | undefined, string, string, string | undefined] = [id, event, data, stream];
  return all;
});
const state: "connecting" | "open" | "waiting" | "closed" = live.state;
const last: string | undefined = live.message?.data;
const handlers: Handlers = {
  onGap: ({ reason, lastId }) => `${reason.length} ${lastId.toFixed()}`,
  onClose: ({ willRetry, status }) => !willRetry && status === 403,
  onOpen: ({ connectionId }) => connectionId?.length,
};
useStream({ streams: ["a", "b"], since: [1, undefined], shared: "page" }, handlers);
useStream(null);
useStream(undefined, { onMessage: undefined });

const refs: LiveRefs = useStreamOfVue({ src: "/pgbus/streams/a" });
const reason: string | undefined = refs.gap.value?.reason;
useStreamOfVue(ref({ src: "/pgbus/streams/a" }));
useStreamOfVue(() => (state === "open" ? { stream: "a" } : null), ({ data }) => data.length);
const known: Ref<{ stream: string } | undefined> = ref();
useStreamOfVue(known, handlers);

export { last, reason };
