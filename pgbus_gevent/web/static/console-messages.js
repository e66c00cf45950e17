// The latest messages of a stream, as text.

import { ask, feed, isOpen } from "./console-feed.js";
import { publishTo } from "./console-publish.js";
import { place } from "./console-rows.js";
import { $, announce, copier, make, say, size } from "./console-words.js";

const REFRESH = 2000; // milliseconds between two requests

const section = $("messages");
const title = $("messages-title");
const empty = section.querySelector(".empty");
let stream = "";
let opener = null; // what had the focus before
let closing = () => {};
let rows = new Map(); // by the id of the message
let number = 0;
let waiting = false;

/** Show the messages of a stream; with an empty name, of none. `from` gets the focus back, and `closed` is called, at the end. */
export function showMessages(name, from = null, closed = () => {}) {
  if (section.contains(document.activeElement) && !name) (opener?.isConnected ? opener : $("streams-title")).focus();
  [stream, opener, closing] = [name, from ?? opener, closed];
  section.hidden = !name;
  rows = new Map();
  section.querySelector("tbody").replaceChildren();
  if (!name) return;
  $("messages-stream").textContent = name;
  empty.hidden = false;
  empty.textContent = "Reading…";
  title.focus();
  section.scrollIntoView({ block: "nearest" });
  refresh();
}

async function refresh() {
  if (!stream || !feed.hello) return;
  const asked = (number += 1);
  waiting = true;
  try {
    const answer = await ask("messages", { stream });
    if (asked !== number) return;
    if (answer.ok) show((await answer.json()).messages);
    else tell(`${(await answer.text()).trim()}.`);
  } catch {
    // The feed shows that the server does not answer.
  } finally {
    if (asked === number) waiting = false;
  }
}

function tell(text) {
  empty.hidden = false;
  if (empty.textContent !== text) empty.textContent = text;
}

function show(messages) {
  if (messages.length) empty.hidden = true;
  else tell("No message of this stream is stored. Ephemeral messages never are.");
  rows = new Map(messages.map((message) => [message.id, rows.get(message.id) ?? build(message)]));
  place(section.querySelector("tbody"), [...rows.values()]);
}

function build({ id, at, event, size: bytes, data, cut, visible_to, exclude }) {
  const row = make("tr");
  const [name, time, kind, length, audience, text] = ["id", "time", "", "number", "", "data"].map((className) => make("td", "", className));
  const when = new Date(at * 1000);
  name.append(make("span", String(id)), " ", copier(`the id ${id}`, () => String(id)));
  say(time, when.toLocaleTimeString("en-GB"));
  time.title = when.toLocaleString();
  say(kind, event || "–");
  kind.classList.toggle("zero", !event);
  say(length, size(bytes));
  say(audience, visible_to ?? "everybody");
  audience.classList.toggle("zero", visible_to == null);
  if (exclude) audience.append(` but ${exclude}`);
  text.append(data, cut ? make("span", " … (cut off here)", "zero") : "");
  row.append(name, time, kind, length, audience, text);
  return row;
}

$("messages-copy").append(copier("the name of the stream", () => stream));
$("messages-publish").addEventListener("click", () => publishTo(stream));
$("messages-close").addEventListener("click", () => {
  closing();
  announce("all connections are shown again");
});

setInterval(() => isOpen() && !waiting && refresh(), REFRESH);
