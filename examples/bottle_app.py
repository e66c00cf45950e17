"""A wall that everybody reads and writes live: a complete Bottle application that is short enough to copy by hand.

Run it and open http://127.0.0.1:8080/ in two windows. Give a database in PGBUS_DATABASE_URL and a secret in PGBUS_SECRET, or
neither; then the embedded PostgreSQL is started.
"""
# ruff: noqa: E402

from gevent import monkey

monkey.patch_all()  # before all other imports: modules that are imported unpatched would block every client

import os

import bottle

from pgbus_gevent import Bus, Settings
from pgbus_gevent.bottle_plugin import PgbusPlugin, Server
from pgbus_gevent.database.embedded import EmbeddedPostgres

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>The wall</title><style>
  :root { color-scheme: light dark; background: Canvas; font: 1.1rem/1.5 system-ui, sans-serif }
  body { max-width: 34rem; margin: 2rem auto; padding: 0 1rem } ul { padding: 0; list-style: none }
  ::placeholder { color: light-dark(#5b6579, #a4adc0); opacity: 1 }
  .told { position: absolute; clip-path: inset(50%) }
  li { padding: .6rem 1rem; margin: .5rem 0; border-radius: .6rem; background: #7c8fb833; overflow-wrap: anywhere }
  form { display: flex; gap: .5rem } input { flex: 1; min-width: 0 } button { background: #3d63dd; color: #fff }
  input, button { font: inherit; padding: .45rem .9rem; border: 1px solid #7c8fb899; border-radius: .6rem }
</style>
<h1>The wall</h1>
<form method="post"><input name="text" placeholder="Say something" aria-label="Text" required autofocus>
<button>Say it</button></form>
<main><ul id="wall"></ul></main><p id="told" class="told" role="status"></p>
<pgbus-stream-source src="{{path}}?replay=20"></pgbus-stream-source>
<script>
  let timer;
  addEventListener("pgbus:message", ({ detail }) => {
    wall.prepend(document.createElement("li"));
    wall.firstChild.textContent = detail.data;
    // Screen readers are told at most every five seconds, whatever comes.
    timer ??= setTimeout(() => { told.textContent = `New: ${wall.firstChild.textContent}`; timer = undefined; }, 5000);
  });
  addEventListener("submit", ({ target }) => setTimeout(() => target.reset()));
</script>
<script type="module" src="/pgbus/pgbus.js"></script>"""

url = os.environ.get("PGBUS_DATABASE_URL") or EmbeddedPostgres.open(Settings.load().data_dir).url
app = bottle.Bottle()
app.install(PgbusPlugin(Bus(url, secret=os.environ.get("PGBUS_SECRET", "only for this example"))))


@app.get("/")
def wall(pgbus):
    pgbus.stream("wall").broadcast("Welcome. What you say here is on every screen at once.", key="welcome")  # only once
    return bottle.template(PAGE, path=pgbus.stream_path("wall"))


@app.post("/")
def say(pgbus):
    pgbus.stream("wall").broadcast(bottle.request.forms.text)
    bottle.response.status = 204  # the browser stays on the page, which gets the message from the stream


bottle.run(app, server=Server, port=int(os.environ.get("PORT", "8080")))
