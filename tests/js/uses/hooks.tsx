// Right and wrong uses of the hooks, and of the element in JSX. Each wrong one has to be an error of the next line.

import { useStream } from "pgbus-gevent/react";
import { useStream as useStreamInVue } from "pgbus-gevent/vue";
import { type GlobalComponents, ref } from "vue";

export function Orders({ src, since }: { src: string; since: number }) {
  const { state, message, connectionId } = useStream({ src, since }, ({ id, data }) => console.log(id?.toFixed(), data.trim()));
  useStream(null);
  useStream({ stream: "demo:x" }, { onGap: ({ lastId }) => lastId.toFixed(), onClose: ({ willRetry }) => willRetry });
  // @ts-expect-error  there is no such option
  useStream({ source: src });
  // @ts-expect-error  there is no such handler
  useStream({ src }, { onError: () => {} });
  // @ts-expect-error  there may be none yet
  console.log(message.data);
  return (
    <p title={connectionId}>
      {state} {message?.data}
      <pgbus-stream-source id="orders" src={src} since={since} shared="page" />
    </p>
  );
}

export const wrong = [
  // @ts-expect-error  not one of its values
  <pgbus-stream-source key="1" shared="everybody" />,
  // @ts-expect-error  there is no such attribute
  <pgbus-stream-source key="2" source="/pgbus/streams/demo:x" />,
];

const since = ref(5);
const live = useStreamInVue(() => ({ stream: "demo:x", since: since.value }), ({ data }) => data.trim());
export const shown: string = live.state.value + (live.message.value?.data ?? "");
// @ts-expect-error  a ref, not a value
live.message.data;

type Attributes = Parameters<GlobalComponents["pgbus-stream-source"]>[0];
export const attributes: Attributes = { src: "/pgbus/streams/demo:x", "since-id": "5" };
// @ts-expect-error  not one of its values
export const others: Attributes = { shared: "everybody" };
