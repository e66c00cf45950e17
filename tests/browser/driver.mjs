// A browser for the tests: takes one JSON line {id, code, arg} at a time, runs the code as the body of an async function of
// (browser, kept, arg), and answers {id, value} or {id, error}. `kept` is an object for what later lines need. Ends with stdin.
// Started with the engine, its program, and flags for that.

import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

import { chromium, firefox } from "playwright-core";

import { openBehind } from "./behind.mjs";
import { crash } from "./crash.mjs";
import { webkit } from "./webkit.mjs";

const [engine, executablePath, ...flags] = process.argv.slice(2);

const start = {
  chromium: () =>
    chromium.launch({
      executablePath,
      args: ["--no-sandbox", "--disable-dev-shm-usage", ...flags],
      // Some tests check this cache. The others let hidden tabs have the timers of visible ones.
      ignoreDefaultArgs: [
        "--disable-back-forward-cache",
        "--disable-background-timer-throttling",
        "--disable-backgrounding-occluded-windows",
        "--disable-renderer-backgrounding",
      ],
    }),
  firefox: () =>
    firefox.launch({
      channel: "moz-firefox",
      executablePath: fileURLToPath(new URL("firefox.sh", import.meta.url)),
      env: { ...process.env, FIREFOX: executablePath },
      args: flags,
      firefoxUserPrefs: {
        // The values of Firefox itself, in place of those that let hidden tabs have the timers of visible ones.
        "dom.min_background_timeout_value": 1000,
        "dom.min_background_timeout_value_without_budget_throttling": 1000,
        "dom.timeout.enable_budget_timer_throttling": true,
        "layout.testing.top-level-always-active": false,
      },
    }),
  webkit: () => webkit.launch({ executablePath }),
};

const browser = await start[engine]();
const kept = {
  crash: engine === "chromium" ? (page) => page.goto("chrome://crash").catch(() => {}) : crash,
  openBehind: openBehind[engine],
};
const answer = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
const AsyncFunction = (async () => {}).constructor;

const lines = createInterface({ input: process.stdin });
lines.on("line", async (line) => {
  const { id, code, arg } = JSON.parse(line);
  try {
    answer({ id, value: await new AsyncFunction("browser", "kept", "arg", code)(browser, kept, arg) });
  } catch (error) {
    answer({ id, error: String(error.stack ?? error) });
  }
});
lines.on("close", async () => {
  await browser.close();
  process.exit();
});
answer({ id: 0, value: browser.version() });
