// A browser for the tests: takes one JSON line {id, code, arg} at a time, runs the code as the body of an async function of
// (browser, kept, arg), and answers {id, value} or {id, error}. `kept` is an object for what later lines need. Ends with stdin.

import { createInterface } from "node:readline";

import { chromium } from "playwright-core";

const browser = await chromium.launch({
  executablePath: process.argv[2],
  args: ["--no-sandbox", "--disable-dev-shm-usage", ...process.argv.slice(3)],
  // Some tests check this cache.
  ignoreDefaultArgs: ["--disable-back-forward-cache"],
});
const kept = {};
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
