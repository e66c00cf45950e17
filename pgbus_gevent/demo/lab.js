// The lab. Ada and Bob each have a connection, which all tabs of a browser share.

import { Wire, connect, find, page, post, tab, tell } from "./site.js";

const LAB = "demo:lab";
const ANSWER = "demo:answer";
const KEPT = 60; // messages in a feed
const QUIET_FOR = 4000; // ms without a word until the server is asked to continue: the process that wrote the answer may be gone

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

// Feeds

/** The messages that were published here, by id, with their audience, which messages do not contain. */
const published = new Map();

class Feed {
  #untold = 0;

  constructor(user, name) {
    this.name = name;
    this.list = find(user).querySelector("ol");
    this.output = find(user).querySelector(".state");
  }

  state(state, text) {
    this.output.dataset.state = state;
    this.output.lastElementChild.textContent = text;
  }

  /** @param {"" | "earlier" | "replayed"} kind */
  take({ id, event, data }, kind) {
    const item = element("li", kind);
    item.dataset.id = id ?? "";
    const text = data.length > 600 ? `${data.slice(0, 600)}…` : data;
    const foot = element("footer", "");
    foot.append(element("span", "id", id ? `#${id}` : "ephemeral"));
    if (event) foot.append(element("span", "event", event));
    foot.append(element("span", "mark", kind));
    item.append(element("p", "", text), foot);
    this.#add(item);
    if (published.has(id)) this.explain(id);
    if (kind !== "earlier") this.#tell(text);
  }

  /** Tell screen readers how many messages have come, or what the only one says. */
  #tell(text) {
    this.#untold += 1;
    const words = this.#untold === 1 ? `${this.name}: ${text}` : `${this.name} got ${this.#untold} messages.`;
    tell(this.name, words, () => (this.#untold = 0));
  }

  /** Mark a message that only admins get. */
  explain(id) {
    const item = this.list.querySelector(`[data-id="${id}"]:not(.ghost)`);
    if (!item || !published.get(id).audience) return;
    item.classList.add("admins");
    const mark = item.querySelector(".mark");
    if (!mark.textContent.includes("admins")) mark.textContent += `${mark.textContent && " · "}admins`;
  }

  /** Show a placeholder for a message that this user does not get. */
  ghost(id, why) {
    const item = element("li", "ghost");
    item.append(element("p", "", why));
    const foot = element("footer", "");
    foot.append(element("span", "id", `#${id}`));
    item.append(foot);
    this.#add(item);
  }

  line(text, className) {
    this.#add(element("li", `line ${className}`, text));
  }

  #add(item) {
    this.list.append(item);
    while (this.list.children.length > KEPT) this.list.firstElementChild.remove();
    this.list.scrollTop = this.list.scrollHeight;
  }
}

const ada = new Feed("ada", "Ada");
const bob = new Feed("bob", "Bob");
const start = { [LAB]: Number(page.since), [ANSWER]: Number(page.answerSince) };

// Ids up to these are older than the page, or were published while the connection was cut.
let before = { [LAB]: Number(page.watermark), [ANSWER]: Number(page.answerWatermark) };
let again = "earlier";
let replayed = [];

const counts = { messages: 0, replayed: 0 };

function count(old) {
  counts.messages += 1;
  if (old) counts.replayed += 1;
  for (const [name, number] of Object.entries(counts)) find(name).textContent = number.toLocaleString("en");
}

const wire = new Wire(start);
wire.addEventListener("state", ({ detail }) => ada.state(detail, find("connection").lastElementChild.textContent));
wire.addEventListener(LAB, ({ detail }) => {
  const kind = detail.id <= before[LAB] ? again : "";
  if (kind === "replayed") replayed.push(detail.id);
  count(detail.id <= before[LAB]);
  if (detail.id) find("last-id").textContent = detail.id;
  ada.take(detail, kind);
});

const other = connect({ base: `${page.streams}?as=bob`, stream: LAB, since: start[LAB] });
other.addEventListener("pgbus:open", () => bob.state("open", "Live"));
other.addEventListener("pgbus:close", ({ detail }) => bob.state(detail.willRetry ? "waiting" : "closed", detail.willRetry ? "Reconnecting" : "Refused"));
other.addEventListener("pgbus:message", ({ detail }) => bob.take(detail, detail.id <= page.watermark ? "earlier" : ""));

// Publish

const form = find("publish");

/** The statement that the server runs, with its parameters written out. */
function statement({ text, event, audience, exclude }) {
  const quoted = (value) => `'${value.replaceAll("'", "''")}'`;
  const named = { event, visible_to: audience, exclude };
  const more = Object.entries(named).filter(([, value]) => value).map(([name, value]) => `, ${name} => ${quoted(value)}`);
  return `select pgbus.broadcast('${LAB}', ${quoted(text)}${more.join("")})`;
}

function filled() {
  const { text, event, audience, quiet } = form.elements;
  return {
    text: text.value.trim(),
    event: event.value.trim() || null,
    audience: audience.value || null,
    exclude: quiet.checked ? tab : null,
  };
}

const showStatement = () => {
  const wanted = filled();
  find("sql").firstElementChild.textContent = statement({ ...wanted, text: wanted.text || "Say something" });
};
form.addEventListener("input", showStatement);

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const wanted = filled();
  if (!wanted.text) return;
  const result = (text) => (find("sql").firstElementChild.textContent = `${statement(wanted)}\n${text}`);
  try {
    const answer = await post("lab/publish", wanted);
    if (!answer.ok) return result(`-- ${answer.status}: ${answer.status < 500 ? await answer.text() : "the database is away"}`);
    const { id } = await answer.json();
    result(`-- ${id}`);
    form.elements.text.value = "";
    published.set(id, wanted);
    ada.explain(id);
    if (wanted.audience) bob.ghost(id, "only for admins, so not sent to Bob");
    if (wanted.exclude) ada.ghost(id, "not sent to this browser");
  } catch {
    result("-- the server cannot be reached");
  }
});

// Cut

// A button that is disabled loses the focus, so it only looks so, and does nothing.
const off = (button, is) => button.setAttribute("aria-disabled", is);
const isOff = (button) => button.ariaDisabled === "true";

let mending = 0;
let ticking = 0;

function cut(seconds) {
  wire.close("cut");
  const since = performance.now();
  document.body.classList.add("is-cut");
  find("cut").textContent = "Reconnect";
  off(find("cut-for"), true);
  find("verdict").hidden = true;
  ada.line("connection cut", "away");
  const show = () => {
    const gone = (performance.now() - since) / 1000;
    find("cut-hint").textContent = seconds
      ? `Cut for another ${Math.max(0, Math.ceil(seconds - gone))} s. Publish something.`
      : `Cut for ${Math.floor(gone)} s. Publish something, then reconnect.`;
  };
  show();
  ticking = setInterval(show, 250);
  if (seconds) mending = setTimeout(mend, seconds * 1000);
}

/** Ask the database for the missed messages, reconnect with the cursor, and compare. */
async function mend() {
  clearTimeout(mending);
  if (isOff(find("cut"))) return;
  off(find("cut"), true);
  let missed;
  try {
    const answer = await fetch(`lab/missed?after=${wire.cursors[LAB]}&tab=${tab}`);
    if (!answer.ok) throw new Error(answer.status);
    missed = await answer.json();
  } catch {
    off(find("cut"), false);
    mending = setTimeout(mend, 3000);
    return;
  }
  before = { [LAB]: missed.watermark, [ANSWER]: missed.answer };
  again = "replayed";
  replayed = [];
  wire.open();
  const deadline = performance.now() + 15_000;
  const look = () => {
    const done = wire.state === "open" && replayed.length >= missed.ids.length;
    if (!done && performance.now() < deadline) return setTimeout(look, 50);
    clearInterval(ticking);
    document.body.classList.remove("is-cut");
    find("cut").textContent = "Cut";
    off(find("cut"), false);
    off(find("cut-for"), false);
    find("cut-hint").textContent = "Publish meanwhile, and see what is replayed.";
    judge(missed.ids);
  };
  look();
}

function judge(ids) {
  const same = `${replayed}` === `${ids}`;
  const count = replayed.length;
  ada.line(same ? `${count} replayed, live again` : "live again", "back");
  find("verdict").hidden = false;
  find("verdict").classList.toggle("wrong", !same);
  find("verdict").textContent = !same
    ? `${ids.length} missed, ${count} replayed. They do not match.`
    : count
      ? `${count} missed, ${count} replayed, in order. Live again.`
      : "Nothing was published meanwhile, so nothing was replayed.";
}

find("cut").addEventListener("click", () => {
  if (!isOff(find("cut"))) wire.state === "cut" ? mend() : cut(0);
});
find("cut-for").addEventListener("click", () => isOff(find("cut-for")) || cut(5));
find("reload").addEventListener("click", () => location.reload());

// The answer

let answer = null; // {id, words, got, again}
let lastWord = performance.now();

function showCount() {
  const { words, got, again } = answer;
  find("bar").style.transform = `scaleX(${got / words})`;
  find("count").replaceChildren(`${got} of ${words} words`);
  if (again) find("count").append(", ", element("b", "", `${again} of them replayed`));
}

wire.addEventListener(ANSWER, ({ detail: { id, event, data } }) => {
  const message = JSON.parse(data);
  count(id <= before[ANSWER]);
  lastWord = performance.now();
  if (event === "answer.start") {
    answer = { id: message.answer, words: message.words, got: 0, again: 0 };
    find("words").replaceChildren();
    find("words").className = "writing";
    for (const button of find("topics").children) {
      const chosen = button.dataset.topic === message.topic;
      button.ariaPressed = String(chosen);
      off(button, true);
      if (chosen) find("source").textContent = button.dataset.source;
    }
  } else if (answer?.id !== message.answer) return;
  else if (event === "answer.word") {
    if (message.at !== answer.got) throw new Error(`word ${message.at} came after ${answer.got} words`);
    answer.got += 1;
    const old = id <= before[ANSWER];
    if (old) answer.again += 1;
    find("words").append(element("span", old ? "again" : "", message.text), " ");
  } else if (event === "answer.end") {
    find("words").className = "";
    for (const button of find("topics").children) off(button, false);
    answer.done = true;
    tell("answer", "The answer is complete.");
  }
  showCount();
});
wire.addEventListener("gap", ({ detail }) => detail.stream === ANSWER && location.reload());

for (const button of find("topics").children) {
  button.addEventListener("click", () => isOff(button) || post("lab/answer", { topic: button.dataset.topic }).catch(() => {}));
}

setInterval(() => {
  if (!answer || answer.done || wire.state !== "open" || performance.now() - lastWord < QUIET_FOR) return;
  lastWord = performance.now();
  post("lab/answer", {}).catch(() => {});
}, 1000);

wire.open();
