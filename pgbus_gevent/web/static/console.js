// The console: what a worker counts, from its feed, and tables that are fetched page by page. Values are inserted as text only.

import * as charts from "./console-charts.js";
import { close, feed, isOpen, listen, open, status } from "./console-feed.js";
import { prepare } from "./console-publish.js";
import { refreshTables } from "./console-tables.js";
import { $ } from "./console-words.js";
import * as workers from "./console-workers.js";

listen({
  hello(said, same) {
    charts.begin(said, same);
    workers.begin(same);
    prepare(said);
    $("worker").textContent = `${said.host} · process ${said.pid} · version ${said.version}`;
    $("logout").classList.toggle("absent", !said.guarded);
    refreshTables();
  },
  now(point) {
    if (point.unready) status("bad", point.unready === "restart" ? "draining" : `not ready: ${point.unready}`);
    else status("good", "serving");
    charts.take(point);
    workers.facts();
  },
  slow: workers.take,
  warnings: workers.warnings,
});

$("pause").addEventListener("click", () => {
  feed.paused = !feed.paused;
  $("pause").setAttribute("aria-pressed", String(feed.paused));
  $("pause").textContent = feed.paused ? "Resume" : "Pause";
  if (feed.paused) {
    close();
    status("wait", "paused");
  } else open();
});

document.addEventListener("visibilitychange", () => (document.hidden ? close() : isOpen() || open()));

/** A region that scrolls sideways can be reached by the keyboard, and only then. */
const reach = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const box = target.closest(".scroll");
    if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight) box.tabIndex = 0;
    else if (box !== document.activeElement) box.removeAttribute("tabindex");
  }
});
for (const box of document.querySelectorAll(".scroll")) {
  reach.observe(box);
  reach.observe(box.firstElementChild);
}

open();
