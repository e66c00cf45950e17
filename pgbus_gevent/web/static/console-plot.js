// One chart: lines or bars over the last minutes, a scale, and a cursor that mouse, finger and arrow keys move.

import { age, make } from "./console-words.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300;
const HEIGHT = 64;
const KEYS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10, Home: -Infinity, End: Infinity };

const plots = [];
let pointed = null; // the time that the cursor of all charts is at, in Unix seconds

function draw(tag, className) {
  const made = document.createElementNS(SVG, tag);
  made.setAttribute("class", className);
  return made;
}

function point(at) {
  pointed = at;
  for (const plot of plots) plot.tell();
}

addEventListener("pointerdown", (event) => {
  if (pointed != null && !event.target.closest?.(".plot")) point(null);
});

/**
 * A chart in the article `box`, which has a heading, a value, a note, and a place for the plot.
 *
 * `columns(points, step)` gives what is drawn: `{ from, at, values }` with times in Unix seconds. `scale(values)` gives the shares of
 * the height and the values with a label, `unit(value)` such a label. `show(values, columns, window)` shows the values at the cursor,
 * or those of now if it gets none, and returns them in words. With `bars`, the values of a column stand on one another.
 */
export class Plot {
  constructor(box, { columns, scale, unit, show, lines = 1, bars = false }) {
    Object.assign(this, { box, read: columns, scale, unit, bars });
    this.show = show;
    this.columns = [];
    this.place = box.querySelector(".plot");
    this.title = box.querySelector("h2");
    this.when = box.querySelector(".when");
    this.build(lines);
    this.react();
    plots.push(this);
  }

  build(lines) {
    const svg = draw("svg", "");
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    this.grid = draw("path", "grid");
    this.area = draw("path", "area");
    this.lines = Array.from({ length: lines }, (_, n) => draw("path", `${this.bars ? "bar" : "line"} of${n + 1}`));
    this.cursor = draw("path", "cursor");
    svg.append(this.grid, this.area, ...this.lines, this.cursor);
    this.ticks = make("div", "", "ticks");
    const ends = make("div", "", "ends");
    this.left = make("span");
    this.middle = make("span");
    ends.append(this.left, this.middle, make("span", "now"));
    this.place.replaceChildren(this.ticks, svg, ends);
    this.svg = svg;
    for (const [name, value] of Object.entries({ role: "slider", tabindex: "0", "aria-orientation": "horizontal", "aria-valuemax": "0" }))
      this.place.setAttribute(name, value);
    this.place.setAttribute("aria-label", `${this.title.firstChild.data.trim()}: move through the past`);
  }

  react() {
    const at = ({ clientX }) => {
      const { left, width } = this.svg.getBoundingClientRect();
      point(this.end - this.window.span * (1 - Math.min(1, Math.max(0, (clientX - left) / width))));
    };
    // A finger stays on the chart that it touched, because `touch-action` leaves only vertical moves to the browser.
    for (const name of ["pointerdown", "pointermove"]) this.place.addEventListener(name, (event) => this.columns.length && at(event));
    this.place.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && point(null));
    this.place.addEventListener("blur", () => point(null));
    this.place.addEventListener("focus", () => this.speak());
    this.place.addEventListener("keydown", (event) => {
      if (event.key === "Escape") point(null);
      else if (event.key in KEYS && this.columns.length) this.move(KEYS[event.key]);
      else return;
      event.preventDefault();
      this.speak();
    });
  }

  move(by) {
    const last = this.columns.length - 1;
    const n = Math.min(last, Math.max(0, (pointed == null ? last : this.at()) + by));
    point(n === last ? null : (this.columns[n].from + this.columns[n].at) / 2);
  }

  /** The number of the column at the cursor. */
  at() {
    let n = this.columns.length - 1;
    while (n > 0 && (this.bars ? this.columns[n].from : this.columns[n].at) > pointed) n -= 1;
    return n;
  }

  /** Draw the points of a `window`: `span` and `step` are its length and that of a bar in seconds, `words` its name. */
  update(points, window) {
    this.window = window;
    this.end = points[points.length - 1].at;
    this.columns = this.read(points, window.step).filter(({ at }) => at > this.end - window.span);
    const { y, ticks } = this.scale(this.columns.flatMap(({ values }) => (this.bars ? [sum(values)] : values.filter((value) => value != null))));
    const top = (value) => (value == null ? null : HEIGHT * (1 - y(value)));
    const left = (time) => WIDTH * Math.min(1, Math.max(0, 1 - (this.end - time) / window.span));
    this.label(ticks, y);
    if (this.bars) this.stack(left, top);
    else this.trace(left, top);
    this.left.textContent = window.words;
    this.middle.textContent = window.half;
    this.place.setAttribute("aria-valuemin", String(-window.span));
    this.tell();
    if (document.activeElement !== this.place) this.speak();
  }

  trace(left, top) {
    const places = this.lines.map((_, s) => this.columns.map(({ at, values }) => [left(at), top(values[s])]));
    this.lines.forEach((line, s) => line.setAttribute("d", path(places[s])));
    this.area.setAttribute("d", places.length > 1 ? "" : filled(places[0]));
  }

  label(ticks, y) {
    const heights = new Set([0, ...ticks.map(y)]);
    this.grid.setAttribute("d", [...heights].map((share) => `M0 ${(HEIGHT * (1 - share)).toFixed(1)}H${WIDTH}`).join(""));
    const texts = ticks.map((value) => this.unit(value));
    if (texts.join() !== this.labelled) {
      this.labelled = texts.join();
      this.ticks.replaceChildren(...texts.map((text) => make("span", text)));
    }
    ticks.forEach((value, n) => (this.ticks.children[n].style.bottom = `${(100 * y(value)).toFixed(1)}%`));
  }

  stack(left, top) {
    const below = this.columns.map(() => 0);
    this.lines.forEach((bar, s) => {
      const d = this.columns.map(({ from, at, values }, n) => {
        if (!values[s]) return "";
        const [x, bottom] = [left(from), top(below[n])];
        below[n] += values[s];
        const width = Math.max(1, left(Math.min(at, this.end)) - x - 0.8);
        return `M${x.toFixed(1)} ${bottom.toFixed(1)}V${top(below[n]).toFixed(1)}h${width.toFixed(1)}V${bottom.toFixed(1)}Z`;
      });
      bar.setAttribute("d", d.join(""));
    });
  }

  /** Show the values at the cursor, or those of now. */
  tell() {
    if (!this.window) return;
    const column = pointed == null || !this.columns.length ? null : this.columns[this.at()];
    const x = column && WIDTH * Math.min(1, Math.max(0, 1 - (this.end - (column.from + column.at) / 2) / this.window.span));
    this.cursor.setAttribute("d", column ? `M${x.toFixed(1)} 0V${HEIGHT}` : "");
    const when = column ? `${age(Math.max(0, this.end - column.from))} ago` : this.bars ? this.window.name : "now";
    if (this.when.textContent !== when) this.when.textContent = when;
    this.words = `${when}: ${this.show(column?.values ?? null, this.columns, this.window)}`;
    this.seconds = column ? Math.round(column.at - this.end) : 0;
  }

  /** Give the values to a screen reader. It says them when the chart gets the focus or the cursor moves, and not every second. */
  speak() {
    this.place.setAttribute("aria-valuenow", String(Math.min(0, this.seconds ?? 0)));
    this.place.setAttribute("aria-valuetext", this.words ?? "no values yet");
  }
}

const sum = (values) => values.reduce((all, value) => all + value, 0);

/** A line through the known values. A value without neighbours is a dot. */
function path(places) {
  let line = "";
  let open = false;
  for (const [x, y] of places) {
    if (y != null) line += open ? `L${x.toFixed(1)} ${y.toFixed(1)}` : `M${x.toFixed(1)} ${y.toFixed(1)}h.01`;
    open = y != null;
  }
  return line;
}

function filled(places) {
  const known = places.filter(([, y]) => y != null);
  if (known.length < 2) return "";
  const line = known.map(([x, y]) => `L${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  return `M${known[0][0].toFixed(1)} ${HEIGHT}${line}L${known[known.length - 1][0].toFixed(1)} ${HEIGHT}Z`;
}
