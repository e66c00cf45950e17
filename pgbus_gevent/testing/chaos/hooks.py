"""What the workers of a run load: an application, the authorize hook and the filters.

A client says who it is in a cookie, ``login=7``. It holds the label ``user:7``, and the filter ``odd`` permits odd numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qs

import pgbus_gevent
from pgbus_gevent.core.filters import Filters

ROOM = "chaos:room"
"""The stream whose members are tracked."""

PAGE = """<!doctype html>
<title>chaos</title>
<script>
const given = new URLSearchParams(location.search);
const queue = [];
let last = "";
function open(since) {
  const path = "/pgbus/streams/" + encodeURIComponent(given.get("stream"));
  const source = new EventSource(path + (since ? "?since=" + since : ""));
  const names = ["message", "pgbus:connected", "pgbus:gap-detected", "pgbus:shutdown", "pgbus:close", "pgbus:identity"];
  for (const name of names)
    source.addEventListener(name, (event) => {
      last = event.lastEventId || last;
      queue.push([name, event.data, event.lastEventId]);
    });
  source.onerror = () => {
    queue.push(["cut", source.readyState === EventSource.CLOSED ? "ended by the browser" : "reconnecting", ""]);
    if (source.readyState === EventSource.CLOSED) setTimeout(open, 1000, last);
  };
}
async function pass() {
  const batch = queue.splice(0);
  try {
    if (batch.length)
      await fetch(given.get("collector"), {
        method: "POST", mode: "no-cors", body: JSON.stringify({client: Number(given.get("client")), batch}),
      });
  } catch {
    queue.unshift(...batch);
  }
  setTimeout(pass, 100);
}
open("");
pass();
</script>
"""
"""The page of a client that is a browser: it passes on what its EventSource gets."""

filters = Filters()
filters.register("odd", lambda user, stream: isinstance(user, int) and user % 2 == 1)


def authorize(environ: dict[str, Any], stream: str) -> pgbus_gevent.Subscriber | bool:
    """Let everybody in who has a login."""
    cookie = SimpleCookie(environ.get("HTTP_COOKIE", "")).get("login")
    if cookie is None:
        return False
    user = int(cookie.value)
    member = f"member-{user}" if stream == ROOM else None
    return pgbus_gevent.Subscriber(owner=f"owner-{user}", context=user, labels={f"user:{user}"}, member=member)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Serve the page of :mod:`.browsers`, which is logged in as the client that its query names."""
    if environ["PATH_INFO"] == "/page":
        body = PAGE.encode()
        client = parse_qs(environ["QUERY_STRING"])["client"][0]
        headers = [("Content-Type", "text/html"), ("Content-Length", str(len(body)))]
        start_response("200 OK", [*headers, ("Set-Cookie", f"login={int(client)}; Path=/")])
        return [body]
    start_response("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", "0")])
    return [b""]


def entitled(user: int, label: str | None) -> bool:
    """Return whether a client with this login may see a message that is visible to ``label``. Written apart from the product."""
    if label is None:
        return True
    return user % 2 == 1 if label == "odd" else label == f"user:{user}"
