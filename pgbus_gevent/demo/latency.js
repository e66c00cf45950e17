// How long a change takes from its commit to this screen. The commit is timed by the database's clock, the screen by this browser's.
// Their difference is estimated as NTP does it: from requests for the database's time, of which the quickest says the most.

const ROUNDS = 5;
const PAUSE = 300; // ms between two of these requests
const AGAIN = 60_000; // ms until the next one: clocks drift
const KEPT = 8;
const SHOWN = 20; // the changes of which the median is shown

/** Milliseconds since 1970, from a clock that does not jump while the page is open. */
export const now = () => performance.timeOrigin + performance.now();

let turnedAt = 0; // when the tab was last hidden or shown again; a change that was on its way then has waited for the visitor
document.addEventListener("visibilitychange", () => (turnedAt = now()));

/** In an animation frame: call `act` with the time at which that frame is on the screen. */
export function afterFrame(act) {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => act(now());
  port2.postMessage(0);
}

/** Call `act` with the time at which the present changes to the page are on the screen; never if the tab is hidden meanwhile. */
export function painted(act) {
  const asked = now();
  if (!document.hidden) requestAnimationFrame(() => afterFrame((shown) => turnedAt < asked && act(shown)));
}

let samples = [];
let next;

/** Compare the clocks anew, as after a reconnect: the computer may have slept, or the database may be another one. */
export function compareClocks() {
  samples = [];
  ask(ROUNDS);
}

async function ask(rounds) {
  clearTimeout(next);
  try {
    const sent = now();
    const answer = await fetch("demo/clock.json");
    const theirs = await answer.json();
    const got = now();
    samples = [...samples, { ahead: theirs.now - (sent + got) / 2, error: (got - sent) / 2 }].slice(-KEPT);
  } catch {
    // The next request may be answered.
  }
  next = setTimeout(ask, rounds > 1 ? PAUSE : AGAIN, Math.max(1, rounds - 1));
}

const best = () => samples.reduce((least, sample) => (!least || sample.error < least.error ? sample : least), null);

/** The time of this browser's clock for one of the database's clock, or null before the clocks were compared. */
export const ours = (theirs) => (best() ? theirs - best().ahead : null);

let took = [];

/** Note that a change with this time of the database was on the screen at this time of the browser. */
export function note(committed, shown) {
  const started = ours(committed);
  if (started !== null && started > turnedAt) took = [...took, { committed, shown }].slice(-SHOWN);
}

/** The median of the last changes in words, or null before there are any. It is less exact while the clocks are compared. */
export function words() {
  const compared = best();
  if (!took.length || !compared) return null;
  const times = took.map(({ committed, shown }) => shown - (committed - compared.ahead)).sort((a, b) => a - b);
  const median = times[times.length >> 1];
  const error = Math.max(1, Math.ceil(compared.error));
  return median < error ? `under ${Math.ceil(Math.max(0, median) + error)} ms` : `${Math.round(median)} ms ± ${error}`;
}
