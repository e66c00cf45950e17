// The common part of the demo's pages: one connection for all tabs of a browser, its state, and the other visitors.

export const page = document.body.dataset;
export const find = (id) => document.getElementById(id);
export const calm = matchMedia("(prefers-reduced-motion: reduce)");

// Its URL depends on the server's prefix.
const { connect } = await import(page.element);
export { connect };

const HERE = "demo:here";

// The id of this browser, whose tabs share one connection. If tabs cannot share, as over plain HTTP from another machine, each tab
// has an id. A reload keeps it. A duplicated tab gets another one, because the id is not stored while the page is shown.
const together = "locks" in navigator && "BroadcastChannel" in globalThis;
const store = (change) => {
  try {
    return change(together ? localStorage : sessionStorage);
  } catch {
    return null; // the browser does not allow storage
  }
};
const random = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
export const tab = store((storage) => storage.getItem("tab")) ?? random();
const keep = () => store((storage) => storage.setItem("tab", tab));
const forget = () => store((storage) => storage.removeItem("tab"));
if (together) keep();
else {
  forget();
  addEventListener("pagehide", keep);
  addEventListener("pageshow", forget);
}

/** Post JSON to a route of the demo. */
export const post = (path, body) =>
  fetch(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });

// What screen readers are told: at most one sentence of each kind in a while, however much happens on the page.

const TELL_EVERY = 5000; // ms
const news = new Map();
let telling;
let told = -TELL_EVERY;

/** Tell screen readers, soon. `words` replace those of the same kind that have not been told yet. `done` is called when they are. */
export function tell(kind, words, done = () => {}) {
  news.set(kind, { words, done });
  telling ??= setTimeout(() => {
    telling = undefined;
    told = performance.now();
    find("announcer").textContent = [...news.values()].map(({ words }) => words).join(" ");
    for (const { done } of news.values()) done();
    news.clear();
  }, Math.max(0, told + TELL_EVERY - performance.now()));
}

const STATES = {
  connecting: "Connecting",
  open: "Live",
  waiting: "Reconnecting",
  closed: "Refused",
  cut: "Cut",
};

/**
 * The connection for all streams of this tab. It dispatches an event for each message, with the stream's name and the message as
 * `detail`, and the events `state` and `gap`.
 *
 * All its connections have the same id, so messages that exclude it are not replayed to it either.
 */
export class Wire extends EventTarget {
  #live = null;
  state = "";

  /** @param {Record<string, number>} cursors by stream */
  constructor(cursors) {
    super();
    this.cursors = { ...cursors, [HERE]: undefined };
  }

  /** Connect with the present cursors, or with those in `changes`. */
  open(changes = {}) {
    this.close("connecting");
    Object.assign(this.cursors, changes);
    const streams = Object.keys(this.cursors);
    const live = connect({
      base: `${page.streams}?as=ada&tab=${tab}&connection=${tab}`,
      streams,
      since: streams.map((stream) => this.cursors[stream]),
    });
    const on = (name, act) => live.addEventListener(name, ({ detail }) => live === this.#live && act(detail));
    on("pgbus:open", () => {
      this.#show("open");
      meet();
    });
    on("pgbus:close", ({ willRetry, reason }) => this.#show(willRetry ? "waiting" : "closed", reason));
    on("pgbus:gap", (detail) => this.#tell("gap", detail));
    on("pgbus:message", (detail) => {
      if (detail.stream === HERE) heard(JSON.parse(detail.data));
      else this.#tell(detail.stream, detail);
    });
    this.#live = live;
  }

  /** Close the connection. `open` continues with the same cursors. */
  close(state = "cut") {
    const live = this.#live;
    this.#live = null;
    if (live) {
      live.close();
      Object.assign(this.cursors, live.cursors);
    }
    this.#show(state);
  }

  #show(state, reason = "") {
    this.state = state;
    const cause = state === "waiting" && reason && reason !== "network" ? ` (${reason})` : "";
    find("connection").dataset.state = state;
    find("connection").lastElementChild.textContent = STATES[state] + cause;
    this.#tell("state", state);
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

// The visitors. The list is fetched after each connect, because changes are ephemeral: a page that is away misses them.

let others = new Map();
let you = "";
let early = null; // changes that arrive while the list is being fetched
let crowd = null; // the number of visitors while they are too many to be named
let later; // the timer of the next fetch

async function meet() {
  clearTimeout(later);
  const mine = (early = []);
  try {
    const answer = await fetch(`demo/here.json?tab=${tab}`);
    if (!answer.ok) throw new Error(answer.status);
    const found = await answer.json();
    if (mine !== early) return; // a newer connection fetches the list again
    you = found.you;
    others = new Map(found.members.map(({ member, metadata }) => [member, metadata]));
    mine.forEach(apply);
    early = null;
    showHere();
  } catch {
    // As when the database is away for a moment. Changes are not shown before there is a list.
    if (mine === early) later = setTimeout(meet, 2000 + 2000 * Math.random());
  }
}

function heard(news) {
  // In a crowd, changes are not named. When it is smaller again, all pages ask for the list, so not all at the same moment.
  if (news.op === "refresh") later = setTimeout(meet, 2000 * Math.random());
  if (early) return early.push(news);
  apply(news);
  showHere();
}

function apply(news) {
  crowd = news.op || news.members ? null : news.count;
  for (const { op, member, metadata } of news.members ?? [news]) {
    if (op === "join") others.set(member, metadata);
    else if (op === "leave") others.delete(member);
  }
}

function showHere() {
  const count = crowd ?? others.size;
  find("tabs").hidden = !count;
  find("tabs").firstElementChild.textContent = count;
  find("tabs").lastElementChild.textContent = count === 1 ? "visitor here" : "visitors here";
  const list = find("members");
  if (!list) return;
  const items = [...others].map(([member, { name }]) => {
    const item = document.createElement("li");
    item.textContent = name;
    item.classList.toggle("you", member === you);
    return item;
  });
  list.replaceChildren(...items);
}
