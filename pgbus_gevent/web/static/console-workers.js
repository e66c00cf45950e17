// Facts about this worker, the list of all workers with their sums, and the last warnings.

import { newest, recent } from "./console-charts.js";
import { choose, feed } from "./console-feed.js";
import { place } from "./console-rows.js";
import { $, age, amount, announce, lasting, make, say, several, size } from "./console-words.js";

const SILENT = 12; // seconds without a report after which a worker is marked

let slow = null; // the last "slow" frame
let before = null; // the "slow" frame before that
let roll = null; // the last list of workers, from whichever of them

/** Another worker is shown, or the same one again. */
export function begin(same) {
  if (!same) before = slow = null;
  if (roll) fleet(); // otherwise the worker that was left would still be marked, and this one could be chosen once more
}

export function take(said) {
  [before, slow] = [slow, { ...said, at: Date.now() / 1000 }];
  roll = slow;
  facts();
  fleet();
}

// this worker -----------------------------------------------------------------------------------------------------------

export function facts() {
  const point = newest();
  if (!point || !feed.hello) return;
  const lost = point.losses ? `, lost ${point.losses === 1 ? "once" : `${point.losses} times`}` : "";
  if (!feed.hello.listen) say($("fact-listener"), "off: polling");
  else say($("fact-listener"), (point.listening ? "listening" : "not listening") + lost, point.listening ? "good" : "bad");
  const [used, most] = point.ring;
  say($("fact-ring"), `${size(used)} of ${size(most)}`, used > most * 0.9 ? "warn" : "");
  const [busy, pool] = point.pool;
  say($("fact-pool"), `${busy} of ${pool} in use`, busy >= pool ? "warn" : "");
  say($("fact-age"), age(point.at - feed.hello.started));
  if (!slow) return;
  if (slow.trouble) say($("fact-database"), "not", "bad");
  else say($("fact-database"), `in ${lasting(slow.answered)}`);
  $("fact-database").title = slow.trouble ?? "";
  const off = slow.offset;
  say($("fact-clock"), off == null ? "–" : Math.abs(off) < 0.001 ? "none" : `${lasting(Math.abs(off))} ${off > 0 ? "behind" : "ahead"}`, Math.abs(off) > 1 ? "warn" : "");
  say($("fact-memory"), size(slow.memory));
  say($("fact-descriptors"), amount(slow.descriptors));
  say($("fact-cpu"), before ? `${Math.round((100 * (slow.cpu - before.cpu)) / (slow.at - before.at))} %` : "–");
}

// all workers -----------------------------------------------------------------------------------------------------------

const RATES = ["messages", "sends"];
const SUMS = ["connections", "streams", "messages", "sends", "refused", "lost", "warned"];
let rows = new Map(); // by the worker's id
const reports = new Map(); // the last two different reports of each worker

/** The numbers of a worker, with the rates between its last two reports. */
function numbersOf(worker) {
  const at = roll.at - worker.silent;
  const [, last] = reports.get(worker.id) ?? [];
  if (!last || at - last.at > 1) reports.set(worker.id, [last, { ...worker, at }]);
  const [earlier, now] = reports.get(worker.id);
  const rates = RATES.map((name) => [name, earlier && now[name] != null ? Math.max(0, now[name] - earlier[name]) / (now.at - earlier.at) : null]);
  return { ...worker, ...Object.fromEntries(rates) };
}

function fleet() {
  const section = $("fleet");
  const workers = (roll.fleet ?? []).map(numbersOf);
  for (const id of reports.keys()) if (!workers.some((worker) => worker.id === id)) reports.delete(id);
  const empty = section.querySelector(".empty");
  empty.hidden = workers.length > 0;
  empty.textContent = roll.trouble ? "The database does not answer." : "No worker has reported yet.";
  const hosts = new Set(workers.map((worker) => worker.host)).size;
  say(section.querySelector(".count"), hosts > 1 ? `${workers.length} on ${hosts} hosts` : workers.length ? String(workers.length) : "");
  rows = new Map(workers.map((worker) => [worker.id, rowOf(worker)]));
  place(section.querySelector("tbody"), [...rows.values()]);
  sums(workers);
}

function sums(workers) {
  $("all-workers").textContent = workers.length ? several(workers.length, "worker") : "–";
  for (const name of SUMS) {
    const known = workers.map((worker) => worker[name]).filter((value) => value != null);
    const sum = known.length ? known.reduce((all, value) => all + value, 0) : null;
    const text = RATES.includes(name) && sum != null ? `${amount(sum)}/s` : amount(sum);
    say($(`all-${name}`), text);
    say($(`foot-${name}`), text);
  }
  const unready = workers.filter((worker) => worker.unready || worker.silent > SILENT).length;
  say($("all-ready"), !workers.length ? "–" : unready ? `${unready} not serving` : "all serving", unready ? "warn" : workers.length ? "good" : "");
}

function rowOf(worker) {
  const row = rows.get(worker.id) ?? make("tr");
  if (!row.children.length) row.append(...["grow", ...SUMS.map(() => "number"), "number", "state"].map((name) => make("td", "", name)));
  const [name, ...cells] = row.children;
  const state = cells.pop();
  const lived = cells.pop();
  nameOf(name, worker);
  SUMS.forEach((what, n) => {
    say(cells[n], RATES.includes(what) && worker[what] != null ? `${amount(worker[what])}/s` : amount(worker[what]));
    cells[n].classList.toggle("zero", !worker[what]);
  });
  const quiet = worker.silent > SILENT;
  say(lived, age(worker.age));
  say(state, quiet ? `silent for ${age(worker.silent)}` : worker.unready ? `not ready: ${worker.unready}` : "serving", quiet || worker.unready ? "warn" : "good");
  return row;
}

/** The name of a worker: a button, if this page can show it. The button stays when it is chosen, and so does the focus. */
function nameOf(cell, worker) {
  const text = `${worker.host} · ${worker.pid}`;
  const here = worker.id === feed.hello.worker;
  if (!cell.firstChild) {
    const name = make(worker.host === feed.hello.host ? "button" : "span", text, "link");
    if (name.localName === "button") name.addEventListener("click", () => worker.id !== feed.hello.worker && choose(worker.id));
    else name.className = "";
    cell.append(name);
    cell.title = text;
  }
  const name = cell.firstChild;
  say(name, here ? `${text} (this one)` : text);
  name.classList.toggle("here", here);
  if (here) name.setAttribute("aria-current", "true");
  else name.removeAttribute("aria-current");
}

// warnings --------------------------------------------------------------------------------------------------------------

let items = new Map(); // by the number of the warning
let from = ""; // the worker whose warnings they are

export function warnings(found) {
  const section = $("warnings");
  section.querySelector(".empty").hidden = found.length > 0;
  say(section.querySelector(".count"), found.length ? String(found.length) : "");
  if (from !== feed.hello.worker) items = new Map();
  from = feed.hello.worker;
  items = new Map(found.map((warned) => [warned.number, items.get(warned.number) ?? itemOf(warned)]));
  place(section.querySelector("ol"), [...items.values()]);
}

function itemOf(warned) {
  const item = make("li");
  const when = new Date(warned.at * 1000);
  const time = make("time", when.toLocaleTimeString("en-GB"));
  time.title = when.toLocaleString();
  const text = make("span");
  const level = make("b", `${warned.level} · ${warned.logger}: `);
  level.dataset.level = warned.level === "warning" ? "warn" : "bad";
  text.append(level, warned.message);
  item.append(time, text);
  return item;
}

// a summary for those who do not see the charts ---------------------------------------------------------------------------

const fact = (id) => $(id).textContent;

$("summarise").addEventListener("click", () => {
  const point = newest();
  if (!point) return announce("nothing is known yet");
  announce(
    `${fact("status")}. ${several(point.connections, "connection")} to ${several(point.streams, "stream")}. In the last 5 minutes ` +
      `${several(recent("refused"), "refusal")}, ${several(recent("lost"), "lost connection")}, ${several(recent("warned"), "warning")}. ` +
      `The listener: ${fact("fact-listener")}. The database answers ${fact("fact-database")}. ` +
      `${fact("all-workers")}, ${fact("all-ready")}, with ${fact("all-connections")} connections.`,
  );
});
