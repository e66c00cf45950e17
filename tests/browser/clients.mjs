// Event-stream clients from npm, used as their manuals say: node clients.mjs LIBRARY URL CUTS opens URL&cut=0, URL&cut=1 …
// and prints each event as a line of JSON.
import { createRequire } from "node:module";
import http from "node:http";

const require = createRequire(import.meta.url);
const [library, url, cuts] = process.argv.slice(2);
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
process.on("unhandledRejection", (error) => console.error("unhandled", error));

/** The part of a browser's XMLHttpRequest that the libraries need. */
class XMLHttpRequest extends EventTarget {
  static HEADERS_RECEIVED = 2;
  readyState = 0;
  responseText = "";
  headers = {};
  open(method, target) {
    this.options = { method };
    this.target = target;
  }
  setRequestHeader(name, value) {
    this.headers[name] = value;
  }
  say(type, state = this.readyState) {
    this.readyState = state;
    if (state !== this.said) this.dispatchEvent(new Event("readystatechange"));
    this.said = state;
    if (type) this.dispatchEvent(new Event(type));
  }
  send() {
    const failed = () => this.request.destroyed || this.say("error", 4);
    this.request = http.get(this.target, { ...this.options, headers: this.headers }, (response) => {
      this.status = response.statusCode;
      this.response = response;
      this.say("", 2);
      response.setEncoding("utf8");
      response.on("data", (text) => {
        this.responseText += text;
        this.say("progress", 3);
      });
      response.on("end", () => this.say("load", 4));
      response.on("error", () => this.say("error", 4));
    });
    this.request.on("error", failed);
  }
  getResponseHeader(name) {
    return this.response?.headers[name.toLowerCase()] ?? null;
  }
  getAllResponseHeaders() {
    return Object.entries(this.response?.headers ?? {}).map(([name, value]) => `${name}: ${value}\r\n`).join("");
  }
  abort() {
    this.request.destroy();
  }
}

/** For libraries with the interface of EventSource. */
const standard = (make) => (target, take) => {
  const source = make(target);
  const hear = (event) => take(event.type, event.data, event.lastEventId);
  source.addEventListener("message", hear);
  source.addEventListener("pgbus:connected", hear);
};

/** For parsers alone. It reconnects as a program around the parser would. */
const resuming = (read) => async (target, take) => {
  const state = { id: "", retry: 3000 };
  for (;;) {
    try {
      const headers = { accept: "text/event-stream", ...(state.id && { "last-event-id": state.id }) };
      await read(await fetch(target, { headers }), take, state);
    } catch {
      // cut
    }
    await pause(state.retry);
  }
};

const fetchEventSource = async (target, take) => {
  globalThis.window = globalThis;
  globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
  const { fetchEventSource } = await import("@microsoft/fetch-event-source");
  await fetchEventSource(target, {
    onmessage: ({ event, data, id }) => take(event, data, id),
    onclose() {
      throw new Error("ended: try again"); // as its manual says
    },
  });
};

const libraries = {
  "eventsource-1": standard((target) => new (require("eventsource-1"))(target)),
  "eventsource-2": standard((target) => new (require("eventsource-2"))(target)),
  "eventsource-3": standard((target) => new (require("eventsource-3").EventSource)(target)),
  "eventsource-4": standard((target) => new (eventsource4.EventSource)(target)),
  undici: standard((target) => new (require("undici").EventSource)(target)),
  "extended-eventsource": standard((target) => new (require("extended-eventsource").EventSource)(target)),
  "event-source-polyfill": standard((target) => {
    globalThis.XMLHttpRequest = XMLHttpRequest;
    return new (require("event-source-polyfill").EventSourcePolyfill)(target);
  }),
  "reconnecting-eventsource": standard((target) => {
    const { default: Reconnecting } = require("reconnecting-eventsource");
    return new Reconnecting(target, { eventSourceClass: require("eventsource-2") });
  }),
  "launchdarkly-eventsource": standard((target) => {
    // Without the first, it gives up a connection after five seconds of silence, the timeout of Node's agent. Without the second,
    // the error of a connection that it gives up ends the process.
    const source = new (require("launchdarkly-eventsource").EventSource)(target, { readTimeoutMillis: 60_000 });
    source.addEventListener("error", () => {});
    return source;
  }),
  "sse.js": (target, take) => {
    globalThis.XMLHttpRequest = XMLHttpRequest;
    const source = new sse.SSE(target, { autoReconnect: true });
    const hear = (event) => take(event.type, event.data, event.id);
    source.addEventListener("message", hear);
    source.addEventListener("pgbus:connected", hear);
  },
  "@microsoft/fetch-event-source": fetchEventSource,
  "eventsource-client": async (target, take) => {
    const { createEventSource } = await import("eventsource-client");
    createEventSource({ url: target, onMessage: ({ event, data, id }) => take(event, data, id) });
  },
  "event-source-plus": async (target, take) => {
    const { EventSourcePlus } = await import("event-source-plus");
    new EventSourcePlus(target).listen({ onMessage: ({ event, data, id }) => take(event, data, id) });
  },
  "eventsource-parser": resuming(async (response, take, state) => {
    const { createParser } = await import("eventsource-parser");
    const parser = createParser({
      onEvent({ event, data, id }) {
        state.id = id ?? state.id;
        take(event, data, id);
      },
      onRetry: (ms) => (state.retry = ms),
    });
    const decoder = new TextDecoder();
    for await (const bytes of response.body) parser.feed(decoder.decode(bytes, { stream: true }));
  }),
  "fetch-event-stream": resuming(async (response, take, state) => {
    const { events } = await import("fetch-event-stream");
    for await (const { event, data, id, retry } of events(response)) {
      state.id = `${id ?? state.id}`;
      state.retry = retry ?? state.retry;
      take(event, data, id);
    }
  }),
};

const eventsource4 = library === "eventsource-4" && (await import("eventsource-4"));
const sse = library === "sse.js" && (await import("sse.js"));
for (let cut = 0; cut < +cuts; cut++) {
  libraries[library](`${url}&cut=${cut}`, (event, data, id) =>
    console.log(JSON.stringify({ cut, event: event || "message", data: data ?? null, id: `${id ?? ""}` })),
  );
}
process.stdin.resume();
process.stdin.on("end", () => process.exit());
