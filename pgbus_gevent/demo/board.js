// The departures board. The server renders it, and its stream keeps it up to date.

import { greet } from "./hello.js";
import { afterFrame, compareClocks, note, now, ours, words } from "./latency.js";
import { Wire, calm, find, page, tell } from "./site.js";

const table = find("rows");
const blank = find("line").content.querySelector("tr");

const MANY = 2000; // messages that wait to be shown, as in a tab that was hidden for long: beyond it, loading the board is quicker
const RUNS_FOR = 30_000; // ms that the clock runs on without a message
const ANNOUNCE_EVERY = 30_000;

// Times of the board have no zone. They are parsed as UTC, so that the visitor's time zone does not matter.
const parse = (local) => Date.parse(`${local}Z`);
const days = new Intl.DateTimeFormat("en-GB", { weekday: "short", day: "numeric", month: "short", year: "numeric", timeZone: "UTC" });

let rows = new Map([...table.children].map((row) => [row.dataset.id, row]));
let airport = "";
let limit = Number(page.rowsShown);

// The clock

let anchor = { simulated: parse(page.clock), heard: performance.now() };

function simulated() {
  return anchor.simulated + Math.min(performance.now() - anchor.heard, RUNS_FOR) * page.speed;
}

function hearTime(clock) {
  anchor = { simulated: parse(clock), heard: performance.now() };
}

function showClock() {
  const now = simulated();
  const local = new Date(now).toISOString();
  flip(find("clock"), local.slice(11, 16), 0);
  find("clock").dateTime = local.slice(0, 16);
  find("today").textContent = days.format(now).replace(",", "");
}

// Flaps

const any = (characters) => characters[Math.floor(Math.random() * characters.length)];

/** Change the text of a flap. Its characters run through others first, as on a split-flap board. */
function flip(flap, text, frames = 7) {
  if (flap.dataset.text === text || (flap.dataset.text === undefined && flap.textContent === text)) return;
  const before = flap.textContent;
  flap.dataset.text = text;
  if (!frames || calm.matches || document.hidden) {
    flap.textContent = text;
    return;
  }
  const length = Math.max(before.length, text.length);
  let frame = 0;
  const turn = () => {
    if (flap.dataset.text !== text) return; // a newer text was set meanwhile
    frame += 1;
    const settled = Math.floor((frame / frames) * length);
    if (frame >= frames) flap.textContent = text;
    else {
      const turning = Array.from({ length: length - settled }, (_, index) => {
        const [old, next] = [before[settled + index] ?? " ", text[settled + index] ?? " "];
        return old === next ? next : any(next >= "0" && next <= "9" ? "0123456789" : "ABCDEFGHIJKLMNOPQRSTUVWXYZ");
      });
      flap.textContent = text.padEnd(length).slice(0, settled) + turning.join("");
      setTimeout(turn, 45);
    }
  };
  turn();
}

// Rows

const order = (row) => row.dataset.expected + row.dataset.id.padStart(7, "0");

/** Update the line of a flight from a message, or add the line. */
function change(message) {
  const id = String(message.id);
  let row = rows.get(id);
  const known = row !== undefined;
  if (!known) {
    row = blank.cloneNode(true);
    rows.set(id, row);
  }
  const moved = row.dataset.expected !== message.expected;
  for (const name of ["id", "status", "origin", "expected", "until"]) row.dataset[name] = message[name] ?? "";
  for (const field of row.querySelectorAll("[data-field]")) {
    const text = message[field.dataset.field];
    if (known && field.classList.contains("flap")) flip(field, text);
    else field.textContent = text;
  }
  if (!known || moved) place(row);
}

function place(row) {
  const key = order(row);
  let next = table.lastElementChild;
  if (next === row) next = row.previousElementSibling;
  let after = null;
  while (next && (next === row || order(next) > key)) {
    if (next !== row) after = next;
    next = next.previousElementSibling;
  }
  table.insertBefore(row, after);
}

/** The rows whose time on the board is over. */
function goneRows() {
  const now = new Date(simulated()).toISOString();
  return [...table.children].filter((row) => row.dataset.until && row.dataset.until <= now);
}

function remove(gone) {
  for (const row of gone) {
    row.remove();
    rows.delete(row.dataset.id);
  }
}

/** Do `work` on the rows, then show the wanted number of rows. Each row glides from its former place. */
function rearrange(work) {
  const before = calm.matches ? new Map() : tops();
  work();
  const counts = { boarding: 0, delayed: 0, cancelled: 0 };
  let wanted = 0;
  for (const row of table.children) {
    const here = !airport || row.dataset.origin === airport;
    row.hidden = !here || ++wanted > limit;
    if (here && row.dataset.status in counts) counts[row.dataset.status] += 1;
  }
  for (const item of find("summary").children) item.firstElementChild.textContent = counts[item.dataset.status];
  find("more").hidden = wanted <= limit;
  find("more").textContent = `Show all ${wanted} flights`;
  find("empty").hidden = wanted > 0;
  if (!calm.matches) glide(before);
}

const visible = () => [...table.children].filter((row) => !row.hidden);
const tops = () => new Map(visible().map((row) => [row, row.offsetTop]));

function glide(before) {
  for (const [row, top] of tops()) {
    const was = before.get(row);
    if (was === undefined) row.animate({ opacity: [0, 1] }, { duration: 400, easing: "ease-out" });
    else if (was !== top) {
      const from = `translateY(${was - top}px)`;
      row.animate({ transform: [from, "none"] }, { duration: 350, easing: "cubic-bezier(.2, .7, .2, 1)" });
    }
  }
}

for (const button of document.querySelectorAll("[data-airport]")) {
  button.addEventListener("click", () => {
    airport = button.dataset.airport;
    for (const other of document.querySelectorAll("[data-airport]")) other.ariaPressed = String(other === button);
    rearrange(() => {});
  });
}

find("more").addEventListener("click", () => {
  limit = Infinity;
  rearrange(() => {});
  find("board-title").focus(); // the button is gone
});

// While the board is held, messages wait.

let held = false;

find("hold").addEventListener("click", () => {
  held = !held;
  find("hold").ariaPressed = String(held);
  document.body.classList.toggle("is-held", held);
  if (!held && waiting.length) requestAnimationFrame(showWaiting);
  showHeld();
});

function showHeld() {
  const count = waiting.length > MANY ? `more than ${MANY}` : waiting.length;
  find("held").textContent = held ? `${count} waiting` : "";
}

// Messages: counted when they come, shown once in each animation frame

let waiting = [];
let received = 0;
let arrivals = [];
let lookingSince = Infinity;
let heldUntil = 0;
const opened = performance.now();
const changes = new Map();

function hear({ id, event, data }) {
  received += 1;
  arrivals.push(performance.now());
  find("messages").textContent = received.toLocaleString("en");
  find("last-id").textContent = id;
  if (event === "reset") return reloadSoon();
  if (waiting.length <= MANY) waiting.push(JSON.parse(data));
  if (held) showHeld();
  else if (waiting.length === 1) requestAnimationFrame(showWaiting);
}

function showWaiting() {
  if (held) return;
  const messages = waiting;
  waiting = [];
  if (messages.length > MANY) return reloadSoon(0);
  rearrange(() => {
    for (const message of messages) {
      hearTime(message.clock);
      change(message);
      if (!airport || message.origin === airport) changes.set(message.status, (changes.get(message.status) ?? 0) + 1);
    }
    remove(goneRows());
  });
  // Only what was committed while this page was looking: other messages have waited for it.
  const fresh = messages.filter(({ at }) => at && ours(at) > Math.max(lookingSince, heldUntil));
  if (fresh.length) afterFrame((shown) => fresh.forEach(({ at }) => note(at, shown)));
}

function showRate() {
  const now = performance.now();
  arrivals = arrivals.filter((arrival) => now - arrival < 10_000);
  find("rate").textContent = (arrivals.length / Math.min(10, Math.max(1, (now - opened) / 1000))).toFixed(1);
}

/** Announce the changes to screen readers in one sentence, at a pace that a person can follow. */
function announce() {
  const kinds = ["boarding", "delayed", "departed", "cancelled"].filter((status) => changes.has(status));
  if (kinds.length) tell("flights", `${kinds.map((status) => `${changes.get(status)} ${status}`).join(", ")}.`);
  changes.clear();
}

// The streams

const wire = new Wire({ [page.stream]: Number(page.since), [page.hello]: Number(page.helloSince) });

/** Load the present board from the server, and follow the stream from there. */
async function reload() {
  if (held) return reloadSoon(1000);
  try {
    const answer = await fetch("demo/board.json");
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const state = await answer.json();
    if (held) return reloadSoon(1000);
    waiting = [];
    lookingSince = now();
    hearTime(state.clock);
    rearrange(() => {
      rows = new Map();
      table.replaceChildren();
      state.rows.forEach(change);
    });
    find("last-id").textContent = state.since;
    wire.open({ [page.stream]: state.since });
  } catch {
    reloadSoon(5000);
  }
}

let reloading = 0;

/** Reload at a random time within `delay` ms. A reset reaches all pages at the same time, and they must not reload together. */
function reloadSoon(delay = 2000) {
  clearTimeout(reloading);
  reloading = setTimeout(reload, Math.random() * delay);
}

wire.addEventListener(page.stream, ({ detail }) => hear(detail));
wire.addEventListener(page.hello, ({ detail }) => greet(detail));
wire.addEventListener("gap", () => reloadSoon());
wire.addEventListener("state", ({ detail }) => {
  if (detail !== "open") return;
  lookingSince = now();
  compareClocks();
});

setInterval(() => {
  showRate();
  find("latency").textContent = words() ?? "…";
  if (held) {
    heldUntil = now();
    return;
  }
  if (wire.state === "open") showClock();
  const gone = goneRows();
  if (gone.length) rearrange(() => remove(gone));
}, 250);
setInterval(announce, ANNOUNCE_EVERY);

wire.open();
