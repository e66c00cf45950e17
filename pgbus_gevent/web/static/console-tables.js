// The tables of streams and of connections, and what an operator can do with a row.

import { ask, feed } from "./console-feed.js";
import { showMessages } from "./console-messages.js";
import { Table } from "./console-table.js";
import { $, age, allow, allowed, amount, announce, copier, make, say, size, whole } from "./console-words.js";

const SURE = 4000; // milliseconds for which "Sure?" stays
const LEVELS = { live: "good", starting: "", replay: "warn", behind: "warn", blocked: "bad" };

const number = (name) => ({
  className: "number",
  fill: (cell, data) => {
    say(cell, amount(data[name]));
    cell.classList.toggle("zero", !data[name]);
  },
});

const streams = new Table("streams", "readers", "down", [
  { className: "grow", build: opener, fill: (cell, data) => cell.firstChild.setAttribute("aria-pressed", String(data.name === connections.more.stream)) },
  number("readers"),
  { className: "number", fill: (cell, data) => { say(cell, amount(data.behind), data.behind ? "warn" : ""); cell.classList.toggle("zero", !data.behind); } },
  { className: "number", fill: (cell, data) => { say(cell, data.rate ? `${amount(data.rate)}/s` : "0"); cell.classList.toggle("zero", !data.rate); } },
  number("messages"),
  number("ring"),
  { className: "number", build: counter },
  { className: "number head", fill: (cell, data) => { say(cell, data.head ? String(data.head) : "–"); cell.classList.toggle("zero", !data.head); } },
]);

/** A button that leads from a stream to its connections and its messages. */
function opener(cell, data) {
  const button = make("button", data.name, "link");
  button.title = `${data.name}: its connections and latest messages`;
  button.addEventListener("click", () => showStream(data.name, button));
  cell.append(button);
}

function counter(cell, data) {
  const button = make("button", "count", "link stored");
  button.setAttribute("aria-label", `count the stored messages of ${data.name}`);
  button.addEventListener("click", async () => {
    if (!allowed(button)) return;
    allow(button, false);
    try {
      const { count, more } = await (await ask("retained", { stream: data.name })).json();
      button.textContent = `${whole.format(count)}${more ? "+" : ""}`;
      button.setAttribute("aria-label", `${button.textContent} stored messages of ${data.name}: count again`);
      announce(`${button.textContent} stored`);
    } catch {
      button.textContent = "not now";
    }
    allow(button, true);
  });
  cell.append(button);
}

const connections = new Table("connections", "age", "down", [
  { className: "id", build: naming },
  { className: "grow", fill: (cell, data) => { say(cell, data.streams.join(", ") + (data.more ? ` and ${data.more} more` : "")); cell.title = cell.textContent; } },
  { className: "owner", fill: (cell, data) => { say(cell, data.owner || "–"); cell.title = data.owner; cell.classList.toggle("zero", !data.owner); } },
  { className: "address", fill: (cell, data) => say(cell, data.address || "–") },
  { className: "number", fill: (cell, data) => say(cell, age(data.age)) },
  { className: "number", fill: (cell, data) => say(cell, size(data.bytes)) },
  number("lag"),
  { className: "state", fill: (cell, data) => say(cell, data.blocked == null ? data.state : `blocked ${age(data.blocked)}`, LEVELS[data.state]) },
  { className: "number", build: kicker },
]);

function naming(cell, data) {
  const short = make("span", data.id.slice(0, 8));
  short.title = data.id;
  cell.append(short, " ", copier(`the connection id ${data.id.slice(0, 8)}…`, () => data.id));
}

/** A button that ends a connection at the second click. */
function kicker(cell, data, table) {
  const button = make("button", "End", "end");
  const name = `connection ${data.id.slice(0, 8)}`;
  button.setAttribute("aria-label", `End ${name}`);
  let timer;
  const calm = () => {
    clearTimeout(timer);
    table.held = false;
    button.textContent = "End";
    button.setAttribute("aria-label", `End ${name}`);
    button.classList.remove("sure");
  };
  button.addEventListener("click", async () => {
    if (!allowed(button)) return;
    if (!button.classList.contains("sure")) {
      table.held = true;
      button.classList.add("sure");
      button.textContent = "Sure?";
      button.setAttribute("aria-label", `Sure? Press again to end ${name}`);
      timer = setTimeout(calm, SURE);
      return;
    }
    calm();
    allow(button, false);
    try {
      const answer = await ask("kick", {}, { method: "POST", body: new URLSearchParams({ connection: data.id, worker: feed.hello.worker }) });
      announce(answer.ok ? `${name} has ended` : `${name} could not be ended: ${(await answer.text()).trim()}`);
    } finally {
      allow(button, true);
      table.refresh();
    }
  });
  cell.append(button);
}

const only = $("only");

/** Show the connections of one stream only, and its latest messages; with an empty name, all connections. */
export function showStream(name, from) {
  connections.more = name ? { stream: name } : {};
  only.hidden = !name;
  only.textContent = `only ${name} ×`;
  only.title = "show all connections";
  connections.page = 0;
  refreshTables();
  showMessages(name, from, () => showStream(""));
}

only.addEventListener("click", () => {
  showStream("");
  connections.input.focus();
});

export const refreshTables = () => [streams, connections].forEach((table) => table.refresh());
