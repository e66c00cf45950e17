// WebKitGTK: the part of Playwright's interface that the tests use, over WebDriver (https://www.w3.org/TR/webdriver2/).
//
// Each context is a session with a MiniBrowser, which keeps nothing on disk, and a WebKitWebDriver, which can have one session. Both
// start slowly, so a session is emptied and used again. The browser has no display of its own, so there is an Xvfb.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:net";
import { setTimeout as pause } from "node:timers/promises";

const PATIENCE = 30_000;
const KEYS = { Enter: "\uE007", Tab: "\uE004", Escape: "\uE00C", ArrowDown: "\uE015", ArrowUp: "\uE013" };

/** Wait until `act` returns something, and return that. Errors mean that it has to be tried again, for as long as there is time. */
async function until(act, what) {
  const end = Date.now() + PATIENCE;
  for (;;) {
    let error;
    const found = await act().catch((thrown) => void (error = thrown));
    if (found) return found;
    if (Date.now() > end) throw error ?? new Error(`${what}: not within ${PATIENCE} ms`);
    await pause(20);
  }
}

async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

/** A WebKitWebDriver, which has at most one session. */
class Driver {
  #last = Promise.resolve();

  static async start(program, env) {
    const driver = new Driver();
    driver.port = await freePort();
    driver.process = spawn(program, [`--port=${driver.port}`, "--host=127.0.0.1"], { env, stdio: "ignore", detached: true });
    await until(() => driver.#ask("GET", "/status"), "WebKitWebDriver answers");
    return driver;
  }

  async open() {
    const capabilities = { alwaysMatch: { pageLoadStrategy: "none", timeouts: { script: PATIENCE } } };
    const { sessionId, capabilities: given } = await this.#ask("POST", "/session", { capabilities });
    this.session = `/session/${sessionId}`;
    this.version = given.browserVersion;
  }

  windows() {
    return this.#ask("GET", `${this.session}/window/handles`);
  }

  /** End the driver and the browser, which are a group of processes. If a tab has crashed, the session is gone, but not the browser. */
  async end() {
    await this.#ask("DELETE", this.session).catch(() => {});
    process.kill(-this.process.pid, "SIGKILL");
  }

  /** Do something in a window. Nothing else is done in any window meanwhile, because a session has a current one. */
  within(handle, act) {
    const done = this.#last.then(async () => {
      await this.#ask("POST", `${this.session}/window`, { handle });
      return act((method, path, body) => this.#ask(method, this.session + path, body));
    });
    this.#last = done.catch(() => {});
    return done;
  }

  async #ask(method, path, body = method === "POST" ? {} : undefined) {
    const response = await fetch(`http://127.0.0.1:${this.port}${path}`, {
      method,
      body: body && JSON.stringify(body),
      headers: { "content-type": "application/json" },
      signal: AbortSignal.timeout(2 * PATIENCE),
    });
    const { value } = await response.json();
    if (!response.ok) throw new Error(`${method} ${path}: ${value.error}: ${value.message}`);
    return value;
  }
}

let marks = 0;

class Page {
  constructor(driver, handle) {
    this.driver = driver;
    this.handle = handle;
  }

  #within(act) {
    return this.driver.within(this.handle, act);
  }

  /** The value of an expression, or of the function that it is, or null for a block. */
  async evaluate(expression) {
    const body = expression.trimStart().startsWith("{") ? expression : `const it = (${expression}); return typeof it === "function" ? it() : it;`;
    const script = `
      const done = arguments[arguments.length - 1];
      (async () => { ${body} })().then(
        (value) => done([JSON.stringify(value) ?? "null"]),
        (error) => done([null, String(error?.stack ?? error) + " " + String(error)]));`;
    const execute = this.#within((ask) => ask("POST", "/execute/async", { script, args: [] }));
    const [value, error] = await execute.catch((thrown) => {
      // In the words of Playwright.
      throw /unload/.test(thrown.message) ? new Error(`the context was destroyed: ${thrown.message}`) : thrown;
    });
    if (error) throw new Error(error);
    return JSON.parse(value);
  }

  goto(url) {
    return this.#leave((ask) => ask("POST", "/url", { url }));
  }

  reload() {
    return this.#leave((ask) => ask("POST", "/refresh"));
  }

  /** Do something that leads to another document, and wait for that. The mark tells them apart. */
  async #leave(act) {
    const mark = ++marks;
    await this.evaluate(`void (window.__mark = ${mark})`);
    await this.#within(act);
    await until(() => this.evaluate(`window.__mark !== ${mark} && document.readyState === "complete"`), "there is another page");
  }

  /** Do something with an element as soon as there is one. */
  async #with(selector, act) {
    const [, text] = /^text=(.*)/.exec(selector) ?? [];
    const found = text
      ? { using: "xpath", value: `//body//*[contains(normalize-space(text()), ${JSON.stringify(text)})]` }
      : { using: "css selector", value: selector };
    await until(
      () =>
        this.#within(async (ask) => {
          const [id] = Object.values(await ask("POST", "/element", found));
          await act((method, path, body) => ask(method, `/element/${id}${path}`, body));
          return true;
        }),
      selector,
    );
  }

  fill(selector, text) {
    return this.#with(selector, async (ask) => {
      await ask("POST", "/clear");
      await ask("POST", "/value", { text });
    });
  }

  type(selector, text) {
    return this.#with(selector, (ask) => ask("POST", "/value", { text }));
  }

  press(selector, key) {
    return this.type(selector, KEYS[key] ?? key);
  }

  click(selector) {
    return this.#with(selector, (ask) => ask("POST", "/click"));
  }

  async bringToFront() {
    await this.#within(async () => {});
  }

  async close() {
    await this.#within((ask) => ask("DELETE", "/window"));
    this.closed = true;
  }

  setDefaultTimeout() {}

  on() {}
}

class Context {
  #pages = [];
  #origins = new Set();

  constructor(browser, driver, first) {
    this.browser = browser;
    this.driver = driver;
    // This one stays, because the session ends with its last window. It shows a page of the site while a cookie is set.
    this.first = first;
  }

  /** Open a window, or a tab of the last window. */
  async newPage(type = "window") {
    const from = (type === "tab" && this.#pages.at(-1)) || this.first;
    const { handle } = await this.driver.within(from.handle, (ask) => ask("POST", "/window/new", { type }));
    const page = new Page(this.driver, handle);
    this.#pages.push(page);
    return page;
  }

  /** Show a page of the origin in the first window. It does not matter which one. */
  async #visit(origin) {
    if ((await this.first.evaluate("location.origin")) !== origin) await this.first.goto(`${origin}/robots.txt`);
  }

  async addCookies(cookies) {
    for (const { name, value, url } of cookies) {
      const { origin } = new URL(url);
      this.#origins.add(origin);
      await this.#visit(origin);
      const cookie = { name, value, path: "/" };
      await this.driver.within(this.first.handle, (ask) => ask("POST", "/cookie", { cookie }));
    }
  }

  /** The pages get the event. Nothing is cut, because the driver cannot do that. */
  async setOffline(off) {
    for (const page of this.#pages.filter(({ closed }) => !closed)) await page.evaluate(`dispatchEvent(new Event("${off ? "offline" : "online"}"))`);
  }

  /** Close all windows but the first, and delete what the sites have stored. */
  async close() {
    try {
      for (const page of this.#pages.filter(({ closed }) => !closed)) {
        this.#origins.add(await page.evaluate("location.origin"));
        await page.close();
      }
      if ((await this.driver.windows()).length > 1) throw new Error("there are more windows");
      for (const origin of [...this.#origins].filter((origin) => origin.startsWith("http"))) {
        await this.#visit(origin);
        await this.driver.within(this.first.handle, (ask) => ask("DELETE", "/cookie"));
        await this.first.evaluate("{ localStorage.clear(); sessionStorage.clear(); }");
      }
      await this.first.goto("about:blank");
    } catch {
      // A tab has crashed, or the site is gone.
      return this.browser.end(this.driver);
    }
    this.browser.keep(this);
  }
}

class Browser {
  #kept = [];
  #drivers = new Set();

  constructor(program, env, display) {
    this.program = program;
    this.env = env;
    this.display = display;
  }

  version() {
    return [...this.#drivers][0].version;
  }

  async newContext() {
    const kept = this.#kept.pop();
    if (kept) return new Context(this, kept.driver, kept.first);
    const driver = await Driver.start(this.program, this.env);
    this.#drivers.add(driver);
    await driver.open();
    const [handle] = await until(async () => (await driver.windows()).slice(0, 1), "there is a window");
    return new Context(this, driver, new Page(driver, handle));
  }

  keep(context) {
    this.#kept.push(context);
  }

  async end(driver) {
    this.#drivers.delete(driver);
    await driver.end();
  }

  async close() {
    await Promise.all([...this.#drivers].map((driver) => driver.end()));
    this.display.kill();
  }
}

export const webkit = {
  async launch({ executablePath }) {
    const arguments_ = ["-displayfd", "3", "-screen", "0", "1280x900x24", "-nolisten", "tcp"];
    const display = spawn("Xvfb", arguments_, { stdio: ["ignore", "ignore", "ignore", "pipe"] });
    const [number] = await once(display.stdio[3], "data", { signal: AbortSignal.timeout(PATIENCE) });
    const env = {
      ...process.env,
      DISPLAY: `:${String(number).trim()}`,
      GDK_BACKEND: "x11",
      NO_AT_BRIDGE: "1",
      LIBGL_ALWAYS_SOFTWARE: "1",
      WEBKIT_DISABLE_DMABUF_RENDERER: "1",
      // Root has no user namespaces of its own. Only pages of the tests are loaded.
      WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS: "1",
    };
    const browser = new Browser(executablePath, env, display);
    browser.keep(await browser.newContext());
    return browser;
  },
};
