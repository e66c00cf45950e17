// What the demo's pages have in common: one connection for all tabs of a browser, its state, and who else is here.

export const page = document.body.dataset;
export const find = (id) => document.getElementById(id);
export const calm = matchMedia("(prefers-reduced-motion: reduce)");

// Where it is depends on the prefix that the server is configured with.
const { connect } = await import(page.element);
export { connect };

const HERE = "demo:here";

// Who this is: a browser, whose tabs share one connection and with it the id. Where tabs cannot share, as over plain HTTP from another
// machine, it is the tab. A reload keeps that id; a copy of the tab gets another one: what it copies has none while this page is shown.
const together = "locks" in navigator && "BroadcastChannel" in globalThis;
const store = (change) => {
  try {
    return change(together ? localStorage : sessionStorage);
  } catch {
    return null; // a browser that keeps nothing
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

const STATES = {
  connecting: "Connecting",
  open: "Live",
  waiting: "Reconnecting",
  closed: "Refused",
  cut: "Cut",
};

/**
 * The connection, for all that this tab follows. Its events are named for the streams, with the message as `detail`; and `state` and
 * `gap`.
 *
 * Its id stays, from connection to connection: who is excluded stays so, also in what is replayed.
 */
export class Wire extends EventTarget {
  #live = null;
  state = "";

  /** @param {Record<string, number>} cursors by stream */
  constructor(cursors) {
    super();
    this.cursors = { ...cursors, [HERE]: undefined };
  }

  /** Follow, from where it was left; or from the cursors in `changes`. */
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

  /** Stop; `open` goes on from the same place. */
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
    const said = state === "waiting" && reason && reason !== "network" ? ` (${reason})` : "";
    find("connection").dataset.state = state;
    find("connection").lastElementChild.textContent = STATES[state] + said;
    this.#tell("state", state);
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

// Who is here: a list, asked for with each connection, as what is told is not kept for who is away.

let others = new Map();
let you = "";
let early = null; // what is told while the list is on its way

async function meet() {
  const mine = (early = []);
  try {
    const answer = await fetch(`demo/here.json?tab=${tab}`);
    if (!answer.ok || mine !== early) return;
    const found = await answer.json();
    if (mine !== early) return; // connected once more meanwhile
    you = found.you;
    others = new Map(found.members.map(({ member, metadata }) => [member, metadata]));
    mine.forEach(apply);
    early = null;
    showHere();
  } catch {
    // It is asked for again with the next connection.
  }
}

function heard(change) {
  if (early) return early.push(change);
  apply(change);
  showHere();
}

function apply({ op, member, metadata }) {
  if (op === "join") others.set(member, metadata);
  else others.delete(member);
}

function showHere() {
  const count = others.size;
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
