// The departures board: rendered by the server, kept up to date by its stream from there on.

import { Follower } from "./follow.js";

const page = document.body.dataset;
const find = (id) => document.getElementById(id);
const table = find("rows");
const blank = find("line").content.querySelector("tr");
const calm = matchMedia("(prefers-reduced-motion: reduce)");

const HIDDEN_FOR = 15_000; // ms until a page that nobody sees gives its connections back: a browser has six per host
const SILENT_FOR = 45_000 * Math.max(1, 60 / page.speed); // ms without a message that a board with flights cannot have
const RUNS_FOR = 30_000; // ms that the clock runs on without hearing of the time
const ANNOUNCE_EVERY = 30_000;
const GREETINGS = 8;

// Times of the board have no zone. Read as UTC they can be counted with, whatever zone the visitor is in.
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

/** Change the text of a flap; its characters run through others first, the way such a board does. */
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
    if (flap.dataset.text !== text) return; // it has been told something newer
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

/** Set one line to what the message says; it is made where it is missing. */
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

/** Do `work` on the rows, then show as many as are wanted, each gliding from where it was. */
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
});

// Messages: counted as they come, shown once a frame

let waiting = [];
let received = 0;
let arrivals = [];
let lastHeard = performance.now();
const opened = performance.now();
const changes = new Map();

function hear(data, event) {
  const message = JSON.parse(data);
  count(event);
  waiting.push(message);
  if (waiting.length === 1) requestAnimationFrame(showWaiting);
}

function count(event) {
  received += 1;
  lastHeard = performance.now();
  arrivals.push(lastHeard);
  find("messages").textContent = received.toLocaleString("en");
  if (event.lastEventId) find("last-id").textContent = event.lastEventId;
}

function showWaiting() {
  const messages = waiting;
  waiting = [];
  rearrange(() => {
    for (const message of messages) {
      hearTime(message.clock);
      change(message);
      if (!airport || message.origin === airport) changes.set(message.status, (changes.get(message.status) ?? 0) + 1);
    }
    remove(goneRows());
  });
}

function showRate() {
  const now = performance.now();
  arrivals = arrivals.filter((arrival) => now - arrival < 10_000);
  find("rate").textContent = (arrivals.length / Math.min(10, Math.max(1, (now - opened) / 1000))).toFixed(1);
}

/** Tell a screen reader what happened, in one sentence, and not more often than it can be listened to. */
function announce() {
  const words = ["boarding", "delayed", "departed", "cancelled"].filter((status) => changes.has(status));
  if (words.length) find("announcer").textContent = words.map((status) => `${changes.get(status)} ${status}`).join(", ");
  changes.clear();
}

// The streams

const STATES = { connecting: "Connecting", live: "Live", reconnecting: "Reconnecting", paused: "Paused" };

function showState(state, reason = "") {
  find("connection").dataset.state = state;
  const text = reason ? `${STATES[state]} (${reason})` : STATES[state];
  if (find("connection").lastElementChild.textContent !== text) find("connection").lastElementChild.textContent = text;
}

/** Take the board as it is now from the server, and follow from there. */
async function reload() {
  board.close();
  try {
    const answer = await fetch("demo/board.json");
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const state = await answer.json();
    waiting = [];
    hearTime(state.clock);
    rearrange(() => {
      rows = new Map();
      table.replaceChildren();
      state.rows.forEach(change);
    });
    find("last-id").textContent = state.since;
    lastHeard = performance.now();
    board.open({ since: state.since });
  } catch {
    showState("reconnecting");
    reloadSoon(5000);
  }
}

let reloading = 0;

/** Some time within `delay` ms: a reset reaches all pages at once, they must not all ask at once. */
function reloadSoon(delay = 2000) {
  clearTimeout(reloading);
  reloading = setTimeout(reload, Math.random() * delay);
}

const board = new Follower(page.departures, { since: page.since }, {
  state: showState,
  gap: () => reloadSoon(),
  events: {
    flight: hear,
    reset: (_, event) => {
      count(event);
      reloadSoon();
    },
  },
});

let greeted = Infinity; // when the stream came; what it has from before comes in the same moment

const hello = new Follower(page.hello, { replay: GREETINGS }, {
  state: (state) => {
    if (state === "live") greeted = Math.min(greeted, performance.now());
  },
  events: { message: greet },
});

function greet(text, event) {
  const item = document.createElement("li");
  const words = document.createElement("span");
  words.textContent = text.length > 280 ? `${text.slice(0, 280)}…` : text;
  const time = document.createElement("time");
  time.textContent = performance.now() - greeted < 1000 ? "earlier" : new Date().toLocaleTimeString("en-GB");
  item.append(words, time);
  find("greetings").prepend(item);
  find("waiting").hidden = true;
  while (find("greetings").children.length > GREETINGS) find("greetings").lastElementChild.remove();
  if (!calm.matches) item.animate({ opacity: [0, 1], transform: ["translateY(-8px)", "none"] }, { duration: 300, easing: "ease-out" });
}

let leaving = 0;
document.addEventListener("visibilitychange", () => {
  clearTimeout(leaving);
  if (document.hidden) leaving = setTimeout(pause, HIDDEN_FOR);
  else if (!board.following) {
    reload();
    hello.open();
  }
});

function pause() {
  clearTimeout(reloading);
  board.close();
  hello.close();
  showState("paused");
}

for (const button of document.querySelectorAll("[data-copy]")) {
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.closest("figure").querySelector("code").textContent);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}

setInterval(() => {
  if (find("connection").dataset.state === "live") showClock();
  const gone = goneRows();
  if (gone.length) rearrange(() => remove(gone));
  showRate();
}, 250);
setInterval(announce, ANNOUNCE_EVERY);
// A connection that died without a word still looks open: only the silence gives it away.
setInterval(() => {
  if (board.following && !document.hidden && performance.now() - lastHeard > SILENT_FOR) reloadSoon();
}, 5000);

board.open();
hello.open();
