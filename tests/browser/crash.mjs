// End the process of a tab. No driver tells which one that is, so the tab computes for a moment, and the process that did is ended.

import { readFileSync, readdirSync } from "node:fs";

const PAGES = /WebKitWebProcess|-contentproc.* tab\s*$/;
const BUSY = "{ const end = Date.now() + 200; while (Date.now() < end); }";

/** The processor time that each process of pages below this one has had, in ticks of 10 ms. */
function times() {
  const parents = new Map(), ticks = new Map();
  for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    try {
      // The name is in parentheses, and may have spaces.
      const fields = readFileSync(`/proc/${pid}/stat`, "utf8").replace(/.*\) /s, "").split(" ");
      parents.set(+pid, +fields[1]);
      if (PAGES.test(readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " "))) ticks.set(+pid, +fields[11] + +fields[12]);
    } catch {
      // It has ended.
    }
  }
  const ours = (pid) => pid === process.pid || (parents.has(pid) && ours(parents.get(pid)));
  return new Map([...ticks].filter(([pid]) => ours(pid)));
}

export async function crash(page) {
  const before = times();
  for (let n = 0; n < 100; n++) {
    await page.evaluate(BUSY);
    const used = [...times()].map(([pid, ticks]) => [ticks - (before.get(pid) ?? ticks), pid]).sort(([a], [b]) => b - a);
    const [[most, pid], [next] = [0]] = used;
    if (most >= 8 && most > 2 * next) return process.kill(pid, "SIGKILL");
  }
  throw new Error("no process computes when the page does");
}
