// A table that the server filters, sorts and pages, and that is brought up to date every two seconds.

import { ask, feed, isOpen } from "./console-feed.js";
import { place } from "./console-rows.js";
import { $, allow, allowed, amount, announce, make, say } from "./console-words.js";

const REFRESH = 2000; // milliseconds between two requests for a table
const TEXTS = ["name", "id", "streams", "owner", "address", "state"]; // columns that are sorted upwards first

export class Table {
  /** `columns` have a `className`, and `build(cell, data, table)` and `fill(cell, data)` for the cells of a row. */
  constructor(id, sort, order, columns) {
    Object.assign(this, { path: id, sort, order, columns });
    this.section = $(id);
    this.body = this.section.querySelector("tbody");
    this.input = this.section.querySelector("input");
    this.count = this.section.querySelector(".count");
    [this.back, this.next] = this.section.querySelectorAll(".pager button");
    this.page = 0;
    this.more = {}; // further fields of the request
    this.rows = new Map();
    this.asked = 0;
    this.held = false; // while "Sure?" is shown, no row may move under the pointer
    this.telling = false; // whether the operator waits for the outcome
    let timer;
    this.input.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.go(0), 150);
    });
    for (const head of this.section.querySelectorAll("th[data-column]"))
      head.querySelector("button").addEventListener("click", () => this.by(head.dataset.column));
    for (const [button, step] of [[this.back, -1], [this.next, 1]])
      button.addEventListener("click", () => allowed(button) && this.go(this.page + step));
    this.arrows();
    // An answer that takes longer than that is waited for. Otherwise each request would make the answer to the one before worthless.
    setInterval(() => isOpen() && !this.waiting && this.refresh(), REFRESH);
  }

  by(column) {
    this.order = this.sort === column ? (this.order === "up" ? "down" : "up") : TEXTS.includes(column) ? "up" : "down";
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
    this.telling = true;
    this.refresh();
  }

  async refresh() {
    if (!feed.hello || this.held) return;
    const number = (this.asked += 1);
    this.waiting = true;
    try {
      const fields = { sort: this.sort, order: this.order, text: this.input.value, page: this.page, ...this.more };
      const answer = await ask(this.path, fields);
      if (!answer.ok || number !== this.asked || this.held) return;
      this.show(await answer.json());
    } catch {
      // The feed shows that the server does not answer.
    } finally {
      if (number === this.asked) this.waiting = false;
    }
  }

  show(found) {
    this.page = found.page;
    const filtered = found.matched !== found.total;
    say(this.count, filtered ? `${amount(found.matched)} of ${amount(found.total)}` : amount(found.total));
    const empty = this.section.querySelector(".empty");
    empty.hidden = found.rows.length > 0;
    empty.textContent = filtered ? "Nothing matches." : "None now.";
    const pages = `page ${found.page + 1} of ${found.pages}`;
    say(this.section.querySelector(".pager span"), pages);
    allow(this.back, found.page > 0);
    allow(this.next, found.page + 1 < found.pages);
    const rows = new Map();
    for (const data of found.rows) {
      const key = data.id ?? data.name;
      const row = this.rows.get(key) ?? this.build(data);
      row.cells_.forEach((cell, n) => this.columns[n].fill?.(cell, data));
      rows.set(key, row);
    }
    this.rows = rows;
    place(this.body, [...rows.values()]);
    if (this.telling) announce(`${this.count.textContent} ${this.path}, ${pages}`);
    this.telling = false;
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
