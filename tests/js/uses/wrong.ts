// Wrong uses of the package. Each has to be an error of the next line.

import { connect, type Options } from "pgbus-gevent";
import type { PgbusStreamSource } from "pgbus-gevent/element";
import { type Live, useStream } from "pgbus-gevent/react";
import { type LiveRefs, useStream as useStreamOfVue } from "pgbus-gevent/vue";
import { ref } from "vue";

// @ts-expect-error  there is no such option
connect({ source: "/pgbus/streams/demo:x" });
// @ts-expect-error  options are needed
connect();
// @ts-expect-error  not one of its values
const options: Options = { shared: "tab" };
// @ts-expect-error  cursors are numbers
connect({ src: "/pgbus/streams/demo:x", since: "5" });

const stream = connect({ stream: "demo:x" });
// @ts-expect-error  only the server and the connection change it
stream.state = "open";
// @ts-expect-error  not a state
if (stream.state === "ready") stream.close();
// @ts-expect-error  the id may be undefined
stream.addEventListener("pgbus:message", ({ detail }) => detail.id.toFixed());
// @ts-expect-error  a gap has no data
stream.addEventListener("pgbus:gap", ({ detail }) => detail.data);
// @ts-expect-error  a close event has no data
stream.addEventListener("pgbus:close", (event) => event.data);
// @ts-expect-error  data are text
stream.addEventListener("order.paid", ({ data }) => data.total);
// @ts-expect-error  it may be undefined
stream.cursors["demo:x"].toFixed();
// @ts-expect-error  not a part of the package
stream._sub;

declare const element: PgbusStreamSource;
// @ts-expect-error  an opened stream has no reason
element.addEventListener("pgbus:open", ({ detail }) => detail.reason);
// @ts-expect-error  the event has another type
document.addEventListener("pgbus:message", (event: MouseEvent) => event.clientX);

// @ts-expect-error  only what exports names can be imported
import "pgbus-gevent/dist/hub.js";

declare const live: Live;
declare const refs: LiveRefs;
// @ts-expect-error  there have to be options
useStream();
// @ts-expect-error  a cursor is a number
useStream({ src: "/pgbus/streams/a", since: "7" });
// @ts-expect-error  there is no such option
useStream({ url: "/pgbus/streams/a" });
// @ts-expect-error  there is no such way to share
useStream({ src: "/pgbus/streams/a", shared: "browser" });
// @ts-expect-error  there is no such handler
useStream({ src: "/pgbus/streams/a" }, { onMesage() {} });
// @ts-expect-error  a handler gets the message, not its data
useStream({ src: "/pgbus/streams/a" }, (data: string) => data);
// @ts-expect-error  it cannot be changed
live.state = "open";
// @ts-expect-error  there may be no message yet
live.message.data;
// @ts-expect-error  a cursor is a number, also in a ref
useStreamOfVue(ref({ src: "/pgbus/streams/a", since: "7" }));
// @ts-expect-error  it is a ref
refs.state === "open";
// @ts-expect-error  it cannot be changed
refs.state.value = "open";

export { options };
