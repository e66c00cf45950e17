// Brings the rows of a table or list into an order without replacing any, so that focus, selection and a click under way survive.

import { selected } from "./console-words.js";

let pressed = false; // a row that moves between press and release of a button gets no click
addEventListener("pointerdown", () => (pressed = true), true);
for (const name of ["pointerup", "pointercancel"]) addEventListener(name, () => setTimeout(() => (pressed = false)), true);

/**
 * Make `rows` the children of `body`. A row that is there already is moved only if it has to be, and never if it has the focus. While
 * text is selected, or a button is pressed, the rows that are there keep their order. If the focused row is gone, the focus goes to the
 * same place in the row that is now there.
 */
export function place(body, rows) {
  const wanted = new Set(rows);
  const focused = body.contains(document.activeElement) ? document.activeElement : null;
  const row = focused && [...body.children].find((child) => child.contains(focused));
  const lost = row && !wanted.has(row) ? placeOf(body, row, focused) : null;
  for (const child of [...body.children]) if (!wanted.has(child)) child.remove();
  const held = pressed || selected(body);
  arrange(body, held ? [...body.children, ...rows.filter((each) => each.parentNode !== body)] : rows, lost ? null : row);
  if (lost) focusAt(body, lost);
}

function arrange(body, rows, fixed) {
  const start = fixed ? rows.indexOf(fixed) : -1;
  for (let n = start - 1; n >= 0; n -= 1) {
    if (rows[n + 1].previousElementSibling !== rows[n]) rows[n + 1].before(rows[n]);
  }
  for (let n = start + 1; n < rows.length; n += 1) {
    const before = n ? rows[n - 1] : null;
    if (rows[n].parentNode !== body || rows[n].previousElementSibling !== before) before ? before.after(rows[n]) : body.prepend(rows[n]);
  }
}

const cellsOf = (row) => [...row.children];
const FOCUSABLE = "button, [tabindex], a[href], input";

function placeOf(body, row, focused) {
  return { row: [...body.children].indexOf(row), cell: cellsOf(row).findIndex((cell) => cell.contains(focused)) };
}

function focusAt(body, { row, cell }) {
  const next = body.children[Math.min(row, body.children.length - 1)];
  const target = next && (next.children[cell]?.querySelector(FOCUSABLE) ?? next.querySelector(FOCUSABLE));
  (target ?? body.closest("section").querySelector("h2")).focus();
}
