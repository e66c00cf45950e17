// The console: one feed with the counts of a worker, and two tables that are fetched page by page. Values are inserted as text only.

const WINDOW = 300; // seconds that the charts show at most
const LEAST_WINDOW = 60; // seconds that they show at least, even if the worker is younger
const SMOOTH = 5; // seconds over which percentiles are taken
const REFRESH = 2000; // milliseconds between two requests for a table
const TRIES = 80; // requests until a chosen worker is given up
const SURE = 4000; // milliseconds for which "Sure?" stays

const $ = (id) => document.getElementById(id);
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

let hello = null; // the first frame of the worker
let points = []; // its snapshots, oldest first
let slow = null; // the last "slow" frame
let before = null; // the "slow" frame before that
let roll = null; // the last list of workers, from whichever of them
let wanted = ""; // the id of the chosen worker
let tries = 0;
let paused = false;
let source = null;

// words -----------------------------------------------------------------------------------------------------------------

const whole = new Intl.NumberFormat("en");
const one = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

function amount(value) {
  if (value == null) return "–";
  if (value >= 1e6) return `${one.format(value / 1e6)} M`;
  if (value >= 1e5) return `${whole.format(Math.round(value / 1e3))} k`;
  return value > 0 && value < 10 && value % 1 ? one.format(value) : whole.format(Math.round(value));
}

function short(seconds) {
  if (seconds == null) return ["–", ""];
  const [value, unit] = seconds >= 1 ? [seconds, "s"] : seconds >= 0.001 ? [seconds * 1e3, "ms"] : [seconds * 1e6, "µs"];
  return [value >= 100 || unit === "µs" ? String(Math.round(value)) : value.toFixed(value >= 10 ? 1 : 2), unit];
}

const lasting = (seconds) => short(seconds).join(" ");

function age(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

function size(bytes) {
  if (bytes == null) return "–";
  if (bytes < 1024) return `${Math.round(bytes)} B`;
  if (bytes < 1048576) return `${Math.round(bytes / 1024)} kB`;
  return `${one.format(bytes / 1048576)} MB`;
}

function make(tag, text = "", className = "") {
  const made = document.createElement(tag);
  if (text !== "") made.textContent = text;
  if (className) made.className = className;
  return made;
}

function say(element, text, level = "") {
  if (element.textContent !== text) element.textContent = text;
  if (level) element.dataset.level = level;
  else delete element.dataset.level;
}

// charts ----------------------------------------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300;
const HEIGHT = 64;

function draw(tag, className) {
  const made = document.createElementNS(SVG, tag);
  made.setAttribute("class", className);
  return made;
}

/** A scale from 0 to the highest value, as a share of the height. */
const linear = (values) => {
  const most = Math.max(...values) * 1.15 || 1;
  return (value) => value / most;
};

/** A logarithmic scale, so that a median is visible below an outlier. */
const logarithmic = (values) => {
  const low = Math.log(Math.min(...values) / 3);
  const high = Math.log(Math.max(...values) * 1.6);
  return (value) => Math.max(0, (Math.log(value) - low) / (high - low));
};

/** One chart. Each of `series` makes a line from all points. `label` gives the text for the values at one point. */
class Chart {
  constructor(id, series, scale, label) {
    this.series = series;
    this.scale = scale;
    this.label = label;
    this.box = $(id);
    this.value = this.box.querySelector(".value");
    this.note = this.box.querySelector(".note");
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    this.area = draw("path", "area");
    this.lines = series.map((_, n) => draw("path", n ? "line second" : "line"));
    this.cursor = draw("path", "cursor");
    const axis = draw("path", "axis");
    axis.setAttribute("d", `M0 ${HEIGHT}H${WIDTH}`);
    svg.append(axis, this.area, ...this.lines, this.cursor);
    const ends = make("div", "", "ends");
    this.top = make("span");
    this.left = make("span");
    ends.append(this.left, this.top, make("span", "now"));
    this.box.append(svg, ends);
    this.pointed = null;
    svg.addEventListener("pointermove", (event) => {
      const { left, width } = svg.getBoundingClientRect();
      this.pointed = Math.min(1, Math.max(0, (event.clientX - left) / width));
      this.tell();
    });
    svg.addEventListener("pointerleave", () => {
      this.pointed = null;
      this.tell();
    });
  }

  update() {
    this.values = this.series.map((make) => make(points));
    const end = points[points.length - 1].at;
    this.span = Math.min(WINDOW, Math.max(LEAST_WINDOW, end - points[0].at));
    this.left.textContent = `${age(this.span)} ago`;
    const x = (n) => WIDTH * (1 - (end - points[n].at) / this.span);
    const known = this.values.flat().filter((value) => value != null);
    const most = Math.max(0, ...known);
    const share = known.length ? this.scale(known) : () => 0;
    const y = (value) => HEIGHT - share(value) * (HEIGHT - 3) - 0.8;
    this.lines.forEach((line, s) => line.setAttribute("d", path(this.values[s], x, y)));
    this.area.setAttribute("d", this.series.length === 1 ? filled(this.values[0], x, y) : "");
    this.top.textContent = most > 0 ? `highest ${this.label(this.values.map(() => most))}` : "";
    this.tell();
  }

  tell() {
    if (!this.values) return;
    let n = points.length - 1;
    const end = points[n].at;
    if (this.pointed == null) this.cursor.setAttribute("d", "");
    else {
      const at = end - this.span * (1 - this.pointed);
      while (n > 0 && points[n].at > at) n -= 1;
      this.cursor.setAttribute("d", `M${WIDTH * this.pointed} 0V${HEIGHT}`);
    }
    this.show(n, this.values.map((values) => values[n]), this.pointed == null ? "" : `${age(end - points[n].at)} ago`);
  }
}

/** A line through the known values. A value without neighbours is a dot. */
function path(values, x, y) {
  let line = "";
  let open = false;
  values.forEach((value, n) => {
    if (value != null) line += open ? `L${x(n).toFixed(1)} ${y(value).toFixed(1)}` : `M${x(n).toFixed(1)} ${y(value).toFixed(1)}h.01`;
    open = value != null;
  });
  return line;
}

function filled(values, x, y) {
  const known = values.map((value, n) => [value, n]).filter(([value]) => value != null);
  if (known.length < 2) return "";
  const line = known.map(([value, n]) => `L${x(n).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  return `M${x(known[0][1]).toFixed(1)} ${HEIGHT}${line}L${x(known[known.length - 1][1]).toFixed(1)} ${HEIGHT}Z`;
}

const rate = (name) => (all) =>
  all.map((point, n) => {
    if (!n) return null;
    const seconds = point.at - all[n - 1].at;
    return seconds > 0 ? Math.max(0, point[name] - all[n - 1][name]) / seconds : null;
  });

/** A percentile of a histogram, over the last seconds before each point. */
const share = (name, part) => (all) => {
  let from = 0;
  return all.map((point, n) => {
    if (!n) return null;
    while (from < n - 1 && all[from + 1].at <= point.at - SMOOTH) from += 1;
    return percentile(hello.bounds[name], point[name].map((count, bucket) => count - all[from][name][bucket]), part);
  });
};

function percentile(bounds, counts, part) {
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (total <= 0) return null;
  let below = 0;
  for (let bucket = 0; bucket < counts.length; bucket += 1) {
    if (below + counts[bucket] >= part * total) {
      const low = bucket ? bounds[bucket - 1] : 0;
      const high = bounds[bucket] ?? low;
      return low + (high - low) * ((part * total - below) / counts[bucket]);
    }
    below += counts[bucket];
  }
  return bounds[bounds.length - 1];
}

function counting(id, series, note) {
  const chart = new Chart(id, [series], linear, ([value]) => amount(value));
  chart.show = (n, [value], when) => {
    chart.value.textContent = amount(value);
    chart.note.textContent = when || note(points[n]);
  };
  return chart;
}

function timing(id, name) {
  const chart = new Chart(id, [share(name, 0.5), share(name, 0.99)], logarithmic, ([value]) => lasting(value));
  chart.show = (n, [half, most], when) => {
    const [value, unit] = short(half);
    chart.value.replaceChildren(value, make("small", unit && ` ${unit}`));
    chart.note.replaceChildren(make("span", "median", "key"), make("span", `p99 ${lasting(most)}`, "key second"), when && ` · ${when}`);
  };
  return chart;
}

const charts = [
  counting("chart-messages", rate("messages"), (point) => `per second · ${amount(point.messages)} so far`),
  counting("chart-sends", rate("sends"), (point) => `per second · ${amount(point.sends)} so far`),
  counting("chart-connections", (all) => all.map((point) => point.connections), (point) => `of ${amount(hello.max)} · ${amount(point.streams)} stream${point.streams === 1 ? "" : "s"}`),
  timing("chart-passes", "passes"),
  timing("chart-latency", "latency"),
];

// the feed --------------------------------------------------------------------------------------------------------------

function status(state, text) {
  const pill = $("status");
  pill.dataset.state = state;
  if (pill.textContent !== text) pill.textContent = text;
}

function notice(text = "") {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function open() {
  close();
  if (paused || document.hidden) return;
  source = new EventSource(`console/feed${wanted ? `?worker=${encodeURIComponent(wanted)}` : ""}`);
  const on = (name, take) => source.addEventListener(name, (event) => take(JSON.parse(event.data)));
  on("hello", greeted);
  on("now", look);
  on("slow", (said) => {
    [before, slow] = [slow, { ...said, at: Date.now() / 1000 }];
    roll = said;
    facts();
    fleet();
  });
  on("warnings", warnings);
  on("elsewhere", missed);
  source.addEventListener("error", lost);
}

function close() {
  source?.close();
  source = null;
}

function greeted(said) {
  tries = 0;
  const same = hello?.worker === said.worker;
  if (!same) before = slow = null;
  hello = said;
  wanted = said.worker;
  // The worker keeps a coarser history. It fills the times for which this page has no points.
  const kept = same ? points : [];
  const missing = said.history.filter((old) => !kept.some((point) => Math.abs(point.at - old.at) < 4));
  points = [...kept, ...missing].sort((a, b) => a.at - b.at);
  $("worker").textContent = `${said.host} · process ${said.pid} · version ${said.version}`;
  $("logout").hidden = !said.guarded;
  if (roll) fleet(); // otherwise the worker that was left would still be marked, and this one could be chosen once more
  for (const table of tables) table.refresh();
}

function look(point) {
  if (points.length && point.at <= points[points.length - 1].at) points = points.filter((old) => old.at < point.at);
  points.push(point);
  while (points.length && points[0].at < point.at - WINDOW - SMOOTH) points.shift();
  if (point.unready) status("bad", point.unready === "restart" ? "draining" : "not ready");
  else status("good", "serving");
  for (const chart of charts) chart.update();
  facts();
}

async function missed() {
  close();
  tries += 1;
  if (tries > TRIES) {
    notice("That worker cannot be reached from here, or has ended. This is another one.");
    tries = 0;
    wanted = "";
  }
  await sleep(15);
  open();
}

async function lost() {
  status("warn", "connecting");
  if (source?.readyState !== EventSource.CLOSED) return; // it reconnects by itself
  close();
  await sleep(2000);
  try {
    const answer = await fetch("console/feed", { method: "HEAD" });
    if (answer.status === 401 || answer.status === 403) return location.reload();
  } catch {
    // The server does not answer.
  }
  wanted = ""; // the worker may have ended
  open();
}

// facts, workers, warnings ----------------------------------------------------------------------------------------------

function facts() {
  const point = points[points.length - 1];
  if (!point || !hello) return;
  const lostSo = point.losses ? `, lost ${point.losses === 1 ? "once" : `${point.losses} times`}` : "";
  if (!hello.listen) say($("fact-listener"), "off: polling");
  else say($("fact-listener"), (point.listening ? "listening" : "not listening") + lostSo, point.listening ? "good" : "bad");
  const [used, most] = point.ring;
  say($("fact-ring"), `${size(used)} of ${size(most)}`, used > most * 0.9 ? "warn" : "");
  const [busy, pool] = point.pool;
  say($("fact-pool"), `${busy} of ${pool} in use`, busy >= pool ? "warn" : "");
  say($("fact-age"), age(point.at - hello.started));
  if (!slow) return;
  if (slow.trouble) say($("fact-database"), "does not answer", "bad");
  else say($("fact-database"), `answers in ${lasting(slow.answered)}`);
  $("fact-database").title = slow.trouble ?? "";
  const off = slow.offset;
  say($("fact-clock"), off == null ? "–" : Math.abs(off) < 0.001 ? "same as the database" : `${lasting(Math.abs(off))} ${off > 0 ? "behind" : "ahead"}`, Math.abs(off) > 1 ? "warn" : "");
  say($("fact-memory"), size(slow.memory));
  say($("fact-descriptors"), amount(slow.descriptors));
  say($("fact-cpu"), before ? `${Math.round((100 * (slow.cpu - before.cpu)) / (slow.at - before.at))} %` : "–");
}

function fleet() {
  const section = $("fleet");
  const workers = roll.fleet ?? [];
  const empty = section.querySelector(".empty");
  empty.hidden = workers.length > 0;
  empty.textContent = roll.trouble ? "The database does not answer." : "No worker has reported yet.";
  const hosts = new Set(workers.map((worker) => worker.host)).size;
  section.querySelector(".count").textContent = hosts > 1 ? `${workers.length} on ${hosts} hosts` : workers.length || "";
  const rows = new Map(workers.map((worker) => [worker.id, fleetRow(worker)]));
  fleetRows = rows;
  place(section.querySelector("tbody"), [...rows.values()]);
}

let fleetRows = new Map(); // by the worker's id

function fleetRow(worker) {
  const row = fleetRows.get(worker.id) ?? make("tr");
  if (!row.children.length) row.append(...["grow", "number", "number wide", "number wide", "state"].map((name) => make("td", "", name)));
  const [name, connections, streams, lived, state] = row.children;
  const text = `${worker.host} · ${worker.pid}`;
  const kind = worker.id === hello.worker ? "here" : worker.host === hello.host ? "near" : "far";
  if (name.dataset.kind !== kind) {
    name.dataset.kind = kind;
    if (kind === "near") name.replaceChildren(chooser(text, worker.id));
    else name.replaceChildren(kind === "here" ? make("span", `${text} (this one)`, "here") : make("span", text));
  }
  name.title = text;
  const quiet = worker.silent > 12;
  say(connections, amount(worker.connections));
  say(streams, amount(worker.streams));
  say(lived, age(worker.age));
  say(state, quiet ? `silent for ${age(worker.silent)}` : worker.unready ? "not ready" : "serving", quiet || worker.unready ? "warn" : "good");
  return row;
}

/** A button that shows another worker. */
function chooser(text, id) {
  const go = make("button", text, "link");
  go.type = "button";
  go.addEventListener("click", () => {
    notice();
    wanted = id;
    open();
  });
  return go;
}

function warnings(found) {
  const section = $("warnings");
  section.querySelector(".empty").hidden = found.length > 0;
  section.querySelector(".count").textContent = found.length || "";
  const items = found.map((warned) => {
    const item = make("li");
    const when = new Date(warned.at * 1000);
    const time = make("time", when.toLocaleTimeString("en-GB"));
    time.title = when.toLocaleString();
    const text = make("span");
    const level = make("b", `${warned.logger}: `);
    level.dataset.level = warned.level === "warning" ? "warn" : "bad";
    text.append(level, warned.message);
    item.append(time, text);
    return item;
  });
  section.querySelector(".log").replaceChildren(...items);
}

// tables ----------------------------------------------------------------------------------------------------------------

/** Ask this worker, and not another one that shares the port. */
async function ask(path, fields, options = {}) {
  for (let n = 0; n < TRIES; n += 1) {
    const answer = await fetch(`console/${path}?${new URLSearchParams({ ...fields, worker: hello.worker })}`, options);
    if (answer.status !== 421) return answer;
    await sleep(15);
  }
  throw new Error("the worker cannot be reached");
}

/**
 * Put rows into a table. Replacing a row takes the focus from a button in it, and a click that is under way is lost, so rows are
 * replaced only if they have changed or moved.
 */
function place(body, rows) {
  if (rows.length !== body.children.length || rows.some((row, n) => body.children[n] !== row)) body.replaceChildren(...rows);
}

class Table {
  constructor(id, path, sort, order, columns) {
    this.path = path;
    this.sort = sort;
    this.order = order;
    this.columns = columns;
    this.section = $(id);
    this.body = this.section.querySelector("tbody");
    this.input = this.section.querySelector("input");
    this.pager = this.section.querySelector(".pager");
    this.page = 0;
    this.rows = new Map();
    this.asked = 0;
    this.held = false; // while "Sure?" is shown, no row may move under the pointer
    let timer;
    this.input.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.go(0), 150);
    });
    for (const head of this.section.querySelectorAll("th[data-column]"))
      head.querySelector("button").addEventListener("click", () => this.by(head.dataset.column));
    this.pager.querySelector(".back").addEventListener("click", () => this.go(this.page - 1));
    this.pager.querySelector(".next").addEventListener("click", () => this.go(this.page + 1));
    this.arrows();
  }

  by(column) {
    const text = ["name", "id", "streams", "owner", "address", "state"].includes(column);
    this.order = this.sort === column ? (this.order === "up" ? "down" : "up") : text ? "up" : "down";
    this.sort = column;
    this.arrows();
    this.go(0);
  }

  arrows() {
    for (const head of this.section.querySelectorAll("th[data-column]")) {
      if (head.dataset.column === this.sort) head.setAttribute("aria-sort", this.order === "up" ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    }
  }

  go(page) {
    this.page = Math.max(0, page);
    this.held = false;
    this.refresh();
  }

  async refresh() {
    if (!hello || this.held) return;
    const number = (this.asked += 1);
    try {
      const fields = { sort: this.sort, order: this.order, text: this.input.value, page: this.page };
      const answer = await ask(this.path, fields);
      if (!answer.ok || number !== this.asked || this.held) return;
      this.show(await answer.json());
    } catch {
      // The feed shows that the server does not answer.
    }
  }

  show(found) {
    this.page = found.page;
    const filtered = found.matched !== found.total;
    this.section.querySelector(".count").textContent = filtered ? `${amount(found.matched)} of ${amount(found.total)}` : amount(found.total);
    const empty = this.section.querySelector(".empty");
    empty.hidden = found.rows.length > 0;
    empty.textContent = filtered ? "Nothing matches." : "None now.";
    this.pager.hidden = found.pages < 2;
    this.pager.querySelector("span").textContent = `page ${found.page + 1} of ${found.pages}`;
    this.pager.querySelector(".back").disabled = found.page === 0;
    this.pager.querySelector(".next").disabled = found.page + 1 >= found.pages;
    const rows = new Map();
    for (const data of found.rows) {
      const key = data.id ?? data.name;
      const row = this.rows.get(key) ?? this.build(data);
      row.cells_.forEach((cell, n) => this.columns[n].fill?.(cell, data));
      rows.set(key, row);
    }
    this.rows = rows;
    place(this.body, [...rows.values()]);
  }

  build(data) {
    const row = make("tr");
    row.cells_ = this.columns.map(({ className = "", build }) => {
      const cell = make("td", "", className);
      build?.(cell, data, this);
      return cell;
    });
    row.append(...row.cells_);
    return row;
  }
}

const number = (name, className = "number") => ({
  className,
  fill: (cell, data) => {
    say(cell, amount(data[name]));
    cell.classList.toggle("zero", !data[name]);
  },
});

const LEVELS = { live: "good", starting: "", replay: "warn", behind: "warn", blocked: "bad" };

const streams = new Table("streams", "streams", "readers", "down", [
  { className: "grow", fill: (cell, data) => { say(cell, data.name); cell.title = data.name; } },
  number("readers"),
  { className: "number", fill: (cell, data) => { say(cell, amount(data.behind), data.behind ? "warn" : ""); cell.classList.toggle("zero", !data.behind); } },
  { className: "number", fill: (cell, data) => { say(cell, data.rate ? `${amount(data.rate)}/s` : "0"); cell.classList.toggle("zero", !data.rate); } },
  number("messages", "number wide"),
  number("ring", "number wide"),
  { className: "number wide", build: counter },
  { className: "number wide head", fill: (cell, data) => { say(cell, data.head ? String(data.head) : "–"); cell.classList.toggle("zero", !data.head); } },
]);

function counter(cell, data) {
  const button = make("button", "count", "link");
  button.type = "button";
  button.setAttribute("aria-label", `Count the stored messages of ${data.name}`);
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const answer = await ask("retained", { stream: data.name });
      const { count, more } = await answer.json();
      button.textContent = `${whole.format(count)}${more ? "+" : ""}`;
    } catch {
      button.textContent = "not now";
    }
    button.disabled = false;
  });
  cell.append(button);
}

const connections = new Table("connections", "connections", "age", "down", [
  { className: "id", fill: (cell, data) => { say(cell, data.id.slice(0, 8)); cell.title = data.id; } },
  { className: "grow", fill: (cell, data) => { say(cell, data.streams.join(", ") + (data.more ? ` and ${data.more} more` : "")); cell.title = cell.textContent; } },
  { className: "owner wide", fill: (cell, data) => { say(cell, data.owner || "–"); cell.title = data.owner; cell.classList.toggle("zero", !data.owner); } },
  { className: "address wide", fill: (cell, data) => say(cell, data.address || "–") },
  { className: "number wide", fill: (cell, data) => say(cell, age(data.age)) },
  { className: "number wide", fill: (cell, data) => say(cell, size(data.bytes)) },
  number("lag"),
  { className: "state", fill: (cell, data) => say(cell, data.blocked == null ? data.state : `blocked ${age(data.blocked)}`, LEVELS[data.state]) },
  { className: "number", build: kicker },
]);

/** A button that ends a connection at the second click. */
function kicker(cell, data, table) {
  const button = make("button", "End");
  button.type = "button";
  button.setAttribute("aria-label", `End connection ${data.id.slice(0, 8)}`);
  let timer;
  const calm = () => {
    clearTimeout(timer);
    table.held = false;
    button.textContent = "End";
    button.classList.remove("sure");
  };
  button.addEventListener("click", async () => {
    if (!button.classList.contains("sure")) {
      table.held = true;
      button.classList.add("sure");
      button.textContent = "Sure?";
      timer = setTimeout(calm, SURE);
      return;
    }
    calm();
    button.disabled = true;
    try {
      await ask("kick", {}, { method: "POST", body: new URLSearchParams({ connection: data.id, worker: hello.worker }) });
    } finally {
      table.refresh();
    }
  });
  cell.append(button);
}

const tables = [streams, connections];

setInterval(() => {
  if (!paused && !document.hidden && source) for (const table of tables) table.refresh();
}, REFRESH);

// pausing ---------------------------------------------------------------------------------------------------------------

$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  $("pause").textContent = paused ? "Resume" : "Pause";
  if (paused) {
    close();
    status("wait", "paused");
  } else open();
});

document.addEventListener("visibilitychange", () => (document.hidden ? close() : source || open()));

open();
