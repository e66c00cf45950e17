// The page without a database asks in the background whether the board can be shown again, and is replaced only then.

const EVERY = 5000; // ms

setInterval(async () => {
  try {
    if ((await fetch(location.href, { method: "HEAD", cache: "no-store" })).ok) location.reload();
  } catch {
    // The server does not answer either.
  }
}, EVERY);
