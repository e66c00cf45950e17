// Right uses of the package, which have to type check. wrong.ts has the others.

import "pgbus-gevent/element";

import { type Close, connect, type Gap, type Message, type Options, type PgbusMessageEvent, type PgbusStream } from "pgbus-gevent";
import type { PgbusStreamSource } from "pgbus-gevent/element";

const options: Options = { src: "/pgbus/streams/demo:x", since: 5, shared: "page", credentials: "include", identity: undefined };
const stream: PgbusStream = connect(options);
connect({ base: "https://live.example/pgbus/streams", streams: ["a", "b"] as const, since: [1, undefined] });

stream.addEventListener("pgbus:message", (event) => {
  const id: number | undefined = event.detail.id;
  const data: string = event.detail.data;
  return [id, data];
});
stream.addEventListener("pgbus:open", ({ detail: { connectionId, streams } }) => [connectionId?.length, streams.join()]);
stream.addEventListener("pgbus:gap", ({ detail }) => {
  const gap: Gap = detail;
  return gap.lastId + (gap.oldestId ?? 0);
});
stream.addEventListener("pgbus:close", ({ detail }) => {
  const close: Close = detail;
  if (close.reason === "identity-changed" || close.status === 403) location.reload();
});
stream.addEventListener("message", (event) => event.data.trim() + event.lastEventId);
const paid = (event: PgbusMessageEvent) => JSON.parse(event.data) as unknown;
stream.addEventListener("order.paid", paid, { once: true });
stream.addEventListener("order.paid", { handleEvent: ({ detail }) => detail.event });
stream.removeEventListener("order.paid", paid);
stream.removeEventListener("pgbus:open", null);
stream.dispatchEvent(new Event("order.paid"));
const target: EventTarget = stream;
const cursor: number | undefined = stream.cursors["demo:x"];
if (stream.state === "waiting" || stream.state === "closed") stream.close();

const made: PgbusStreamSource = document.createElement("pgbus-stream-source");
const found = document.querySelector("pgbus-stream-source");
found?.addEventListener("pgbus:message", ({ detail }) => detail.id?.toFixed());
found?.addEventListener("order.paid", ({ data, detail }) => [data.length, detail.stream?.length]);
found?.addEventListener("click", (event) => event.type);
found?.close();
const element: HTMLElement = made;
document.body.append(made, element);
made.setAttribute("since", String(cursor));

document.addEventListener("pgbus:gap", ({ detail }) => detail.reason === "expired" && location.reload());
window.addEventListener("pgbus:close", ({ detail }) => detail.willRetry);
document.body.addEventListener("pgbus:message", (event) => {
  const message: Message = event.detail;
  return message.event;
});

export { target };
