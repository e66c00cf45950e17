// The charts of a worker, its snapshots of the last minutes and of the last hour, and the switch between the two.

import { feed } from "./console-feed.js";
import { Plot } from "./console-plot.js";
import { level, linear, lines, logarithmic, rate, share, steps } from "./console-series.js";
import { $, amount, announce, lasting, make, several, short } from "./console-words.js";

const WINDOWS = {
  minutes: { span: 300, step: 5, words: "5 min ago", half: "2½ min", name: "last 5 minutes" },
  hour: { span: 3600, step: 60, words: "1 h ago", half: "30 min", name: "last hour" },
};
const SPARE = 35; // seconds before a window for which snapshots are kept, because rates need an earlier one
const COARSE = 29; // seconds between two snapshots of the hour, at least

const kept = { minutes: [], hour: [] }; // snapshots, oldest first
let window_ = "minutes";

/** Take the history of a worker. If it is the one that was shown, it fills only the times for which this page has no snapshots. */
export function begin(said, same) {
  for (const [name, history, apart] of [["minutes", said.history, 4], ["hour", said.hour ?? [], COARSE - 1]]) {
    const own = same ? kept[name] : [];
    const missing = history.filter((old) => !own.some((point) => Math.abs(point.at - old.at) < apart));
    kept[name] = [...own, ...missing].sort((a, b) => a.at - b.at);
  }
}

/** Take a new snapshot, and draw. */
export function take(point) {
  for (const [name, points] of Object.entries(kept)) {
    // The clock of the host may have been set back.
    if (points.length && point.at <= points[points.length - 1].at) kept[name] = points.filter((old) => old.at < point.at);
  }
  kept.minutes.push(point);
  const { hour } = kept;
  if (!hour.length || point.at - hour[hour.length - 1].at >= COARSE) hour.push(point);
  for (const [name, points] of Object.entries(kept)) {
    while (points.length && points[0].at < point.at - WINDOWS[name].span - SPARE) points.shift();
  }
  update();
}

export const newest = () => kept.minutes[kept.minutes.length - 1];

/** How often each reason of a kind of trouble was counted in the last minutes. */
export function recent(kind) {
  const { minutes } = kept;
  const known = minutes.filter((point) => point[kind]);
  if (known.length < 2) return 0;
  return known[known.length - 1][kind].reduce((sum, count, n) => sum + count - known[0][kind][n], 0);
}

function update() {
  const point = newest();
  if (!point) return;
  let points = kept[window_];
  if (points[points.length - 1] !== point) points = [...points, point];
  for (const chart of charts) chart.update(points, WINDOWS[window_]);
}

const last = (columns) => columns[columns.length - 1]?.values;

function counting(id, read, note) {
  const box = $(id);
  const show = (given, columns) => {
    const [value] = given ?? last(columns) ?? [null];
    box.querySelector(".value").textContent = amount(value);
    box.querySelector(".note").textContent = note(newest());
    return `${amount(value)} ${box.dataset.unit}`;
  };
  return new Plot(box, { columns: lines(read), scale: linear, unit: amount, show });
}

function timing(id, name) {
  const box = $(id);
  const bounds = () => feed.hello.bounds;
  const show = (given, columns) => {
    const [half, most] = given ?? last(columns) ?? [null, null];
    const [value, unit] = short(half);
    box.querySelector(".value").replaceChildren(value, make("small", unit && ` ${unit}`));
    const keys = [make("span", "median", "key of1"), " ", make("span", `p99 ${lasting(most)}`, "key of2")];
    if (box.querySelector(".note").textContent !== `median p99 ${lasting(most)}`) box.querySelector(".note").replaceChildren(...keys);
    return half == null ? "none" : `median ${lasting(half)}, 99th percentile ${lasting(most)}`;
  };
  const columns = lines(share(name, 0.5, bounds), share(name, 0.99, bounds));
  return new Plot(box, { columns, scale: logarithmic, unit: tick, show, lines: 2 });
}

/** A power of ten seconds. */
function tick(seconds) {
  const [share, unit] = seconds >= 0.9 ? [1, "s"] : seconds >= 0.0009 ? [1e3, "ms"] : [1e6, "µs"];
  return `${Math.round(seconds * share)} ${unit}`;
}

const MOST = 4; // colours for reasons

/** Bars of what went wrong, by its reason. The value is the sum of what is shown, or that of the bar at the cursor. */
function troubles(id, kind, reasons) {
  const box = $(id);
  const show = (given, columns) => {
    const none = reasons().map(() => 0);
    const counts = given ?? columns.reduce((sums, { values }) => sums.map((sum, n) => sum + values[n]), none);
    const total = counts.reduce((sum, count) => sum + count, 0);
    const parts = reasons().map((reason, n) => [counts[n], reason.replaceAll("-", " "), n]).filter(([count]) => count);
    box.querySelector(".value").textContent = amount(total);
    box.querySelector(".value").dataset.level = total ? "warn" : "";
    const keys = parts.flatMap(([count, reason, n]) => [make("span", `${amount(count)} ${reason}`, `key of${Math.min(n + 1, MOST)}`), " "]);
    box.querySelector(".note").replaceChildren(...(keys.length ? keys : ["none"]));
    return parts.length ? parts.map(([count, reason]) => `${amount(count)} ${reason}`).join(", ") : "none";
  };
  return new Plot(box, { columns: steps(kind), scale: linear, unit: amount, show, lines: MOST, bars: true });
}

const reasonsOf = (kind) => () => feed.hello.reasons?.[kind] ?? [];

const charts = [
  counting("chart-messages", rate("messages"), (point) => `per second · ${amount(point.messages)} so far`),
  counting("chart-sends", rate("sends"), (point) => `per second · ${amount(point.sends)} so far`),
  counting("chart-connections", level("connections"), (point) => `of ${amount(feed.hello.max)} · ${several(point.streams, "stream")}`),
  timing("chart-passes", "passes"),
  timing("chart-latency", "latency"),
  troubles("chart-refused", "refused", reasonsOf("refused")),
  troubles("chart-lost", "lost", reasonsOf("lost")),
  troubles("chart-gaps", "gaps", reasonsOf("gaps")),
  troubles("chart-warned", "warned", () => ["warnings", "errors"]),
];

for (const button of document.querySelectorAll("#window button"))
  button.addEventListener("click", () => {
    window_ = button.value;
    for (const other of document.querySelectorAll("#window button")) other.setAttribute("aria-pressed", String(other === button));
    announce(`the charts show the ${WINDOWS[window_].name}`);
    update();
  });
