// The connection to a worker: its feed of numbers, and requests that only this worker can answer.

import { $, announce, notice, sleep } from "./console-words.js";

const TRIES = 80; // requests until a chosen worker is given up

/** `hello` is the first frame of the worker, `paused` whether the operator has stopped all updates. */
export const feed = { hello: null, paused: false };

const LASTED = 4000; // milliseconds

let wanted = ""; // the id of the chosen worker
let tries = 0;
let source = null;
let handlers = {};

export const isOpen = () => source !== null && !feed.paused && !document.hidden;

/** Call `handlers[name]` with the content of each frame of that name. */
export function listen(given) {
  handlers = given;
}

let told = "serving"; // the state that a screen reader was told of last; this one goes without saying
let telling;

/** Show the state of the worker, and have it said once it has lasted: a worker at its limit changes from second to second. */
export function status(state, text) {
  const pill = $("status");
  pill.dataset.state = state;
  if (pill.textContent === text) return;
  pill.textContent = text;
  clearTimeout(telling);
  telling = setTimeout(() => {
    if (told !== text) announce(`this worker: ${text}`);
    told = text;
  }, LASTED);
}

export function open() {
  close();
  if (feed.paused || document.hidden) return;
  source = new EventSource(`console/feed${wanted ? `?worker=${encodeURIComponent(wanted)}` : ""}`);
  const on = (name, take) => source.addEventListener(name, (event) => take(JSON.parse(event.data)));
  on("hello", greeted);
  on("elsewhere", missed);
  for (const name of ["now", "slow", "warnings"]) on(name, handlers[name]);
  source.addEventListener("error", lost);
}

export function close() {
  source?.close();
  source = null;
}

/** Show another worker. */
export function choose(id) {
  notice();
  wanted = id;
  open();
}

function greeted(said) {
  tries = 0;
  const same = feed.hello?.worker === said.worker;
  feed.hello = said;
  wanted = said.worker;
  handlers.hello(said, same);
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

/** Ask this worker, and not another one that shares the port. */
export async function ask(path, fields, options = {}) {
  for (let n = 0; n < TRIES; n += 1) {
    const answer = await fetch(`console/${path}?${new URLSearchParams({ ...fields, worker: feed.hello.worker })}`, options);
    if (answer.status !== 421) return answer;
    await sleep(15);
  }
  throw new Error("the worker cannot be reached");
}
