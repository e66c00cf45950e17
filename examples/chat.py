"""A chat with rooms, presence, typing indicators and earlier messages. Run it and open http://127.0.0.1:8080/ in two browsers.

Give a database in PGBUS_DATABASE_URL and a secret in PGBUS_SECRET, or neither; then the embedded PostgreSQL is started.
"""
# ruff: noqa: E402

from gevent import monkey

monkey.patch_all()  # before all other imports: modules that are imported unpatched would block every client

import json
import os
import random

import bottle

from pgbus_gevent import Bus, Settings, Subscriber
from pgbus_gevent.bottle_plugin import PgbusPlugin, Server
from pgbus_gevent.database.embedded import EmbeddedPostgres

SECRET = os.environ.get("PGBUS_SECRET", "only for this example")
ROOMS = ["lobby", "garden", "kitchen"]


def visitor() -> str | None:
    """The visitor's name from a signed cookie, or None without a cookie."""
    return bottle.request.get_cookie("name", secret=SECRET)


def authorize(environ: dict, stream: str) -> Subscriber | bool:
    """Visitors with a name may follow a room, and are present in it while one of their tabs is connected."""
    return visitor() is not None and Subscriber(owner=visitor(), member=visitor())


url = os.environ.get("PGBUS_DATABASE_URL") or EmbeddedPostgres.open(Settings.load().data_dir).url
# Messages are kept for a day.
bus = Bus(url, secret=SECRET, presence=["chat:*"], presence_grace=2, retention_patterns={"chat:*": "1d"})
app = bottle.Bottle()
app.install(PgbusPlugin(bus, authorize=authorize))


@app.get("/")
@app.get("/<room:re:[a-z]{1,20}>")
def page(pgbus, room="lobby"):
    name = visitor() or f"Guest {random.randrange(1000)}"
    bottle.response.set_cookie("name", name, secret=SECRET, path="/", samesite="lax")
    # The first visitor of a room finds a message there. With the key, it is stored once.
    welcome = {
        "key": "welcome",
        "name": "Host",
        "text": f"Welcome to the {room}. Come with a second browser, and talk.",
    }
    pgbus.stream(f"chat:{room}").broadcast(json.dumps(welcome), event="said", key="welcome")
    return bottle.template(PAGE, room=room, rooms=ROOMS, name=name, path=pgbus.stream_path(f"chat:{room}"))


@app.post("/<room:re:[a-z]{1,20}>/name")
def rename(room):
    if name := bottle.request.forms.name.strip()[:40]:
        bottle.response.set_cookie("name", name, secret=SECRET, path="/", samesite="lax")
    bottle.redirect(f"/{room}")


@app.get("/<room:re:[a-z]{1,20}>/here")
def here(pgbus, room):
    return {"names": [one.member for one in pgbus.stream(f"chat:{room}").presence.members()]}


@app.post("/<room:re:[a-z]{1,20}>/<what:re:say|typing>")
def say(pgbus, room, what):
    name, form = visitor() or bottle.abort(403, "Open the page first."), bottle.request.forms
    stream = pgbus.stream(f"chat:{room}")
    # The sender's tab shows the message already, so its connection is excluded.
    echo = form.connection or None
    if what == "say":
        stream.broadcast(json.dumps({"key": form.key, "name": name, "text": form.text}), event="said", exclude=echo)
    # The page posts each keystroke. Others get only the newest state, at most twice a second, and nothing is stored.
    state = json.dumps({"name": name, "typing": what == "typing"})
    stream.broadcast(state, event="typing", exclude=echo, ephemeral=True, coalesce=0.5, target=name)
    bottle.response.status = 204


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{room}}</title><style>
  :root { color-scheme: light dark; --card: light-dark(#fff, #1f2531); --quiet: light-dark(#5b6579, #98a2b8); --blue: #3d63dd }
  * { box-sizing: border-box; margin: 0 } input, button { font: inherit; padding: .45rem .9rem; min-width: 0; color: inherit }
  body { font: 1rem/1.45 system-ui, sans-serif; background: light-dark(#eef1f7, #12151c); max-width: 52rem; height: 100dvh;
    margin: auto; padding: 1rem; display: grid; gap: .8rem 1.2rem; grid: auto 1fr auto auto / 1fr 11rem }
  input, button { border: 1px solid #8a94a866; border-radius: .7rem; background: var(--card) } form { display: flex; gap: .5rem }
  nav, #typing, #form { grid-column: 1 / -1 } #form input { flex: 1 } nav { display: flex; gap: .5rem; align-items: center }
  nav a { padding: .3rem .8rem; border-radius: 1rem; color: inherit; text-decoration: none } nav form { margin-left: auto }
  nav input { width: 9.5rem } a[aria-current], #form button, #log .mine { background: var(--blue); color: #fff }
  #log { min-height: 9rem; overflow-y: auto; display: flex; flex-direction: column-reverse; gap: .4rem }
  p { padding: .45rem .9rem; border-radius: 1rem; background: var(--card); max-width: 85%; align-self: start }
  b, li::before { display: block; font-size: .8rem; color: light-dark(oklch(.48 .15 var(--hue)), oklch(.78 .12 var(--hue))) }
  #told { position: absolute; clip-path: inset(50%) } .mine { align-self: end } .mine b { display: none }
  ul { list-style: none; padding: 0 }
  li::before { content: "●"; display: inline; margin-right: .5rem }
  ::placeholder { color: light-dark(#5b6579, #a4adc0); opacity: 1 }
  h1 { position: absolute; clip-path: inset(50%) }
  h2, #typing { font-size: .85rem; color: var(--quiet); min-height: 1.5em } :has([state=waiting]) #form button { opacity: .4 }
  @media (max-width: 36rem) { body { grid: auto auto 1fr auto auto / minmax(0, 1fr) }
    aside { order: 0 } #log, #typing, #form { order: 1 }
    nav, nav form { flex-wrap: wrap } nav form { margin: 0 } ul { display: flex; flex-wrap: wrap; gap: 1rem } }
</style>
<h1>Chat: {{room}}</h1>
<nav>
% for other in rooms:
  <a href="/{{other}}" {{!'aria-current="page"' if other == room else ""}}>{{other}}</a>
% end
  <form method="post" action="/{{room}}/name">
  <input name="name" value="{{name}}" aria-label="Your name" maxlength="40" required><button>Rename</button></form>
</nav>
<main id="log" tabindex="0" aria-label="Messages"></main>
<aside><h2>Here now</h2><ul id="names"></ul></aside> <div id="typing"></div>
<form id="form"><input id="text" placeholder="Say something" aria-label="Text" autocomplete="off" autofocus required>
  <button>Say it</button></form>
<p id="told" role="status"></p>
<!-- The tab has its own connection (shared="page"), so that it can exclude itself. The last 50 messages come first (replay). -->
<pgbus-stream-source id="source" src="{{path}}?replay=50" shared="page" data-name="{{name}}"></pgbus-stream-source>
<script type="module">
  const me = source.dataset.name, here = new Set(), typing = new Map();
  let connection = "", changes = [], timer;
  const post = (what, more) => fetch(`/{{room}}/${what}`, { method: "POST", body: new URLSearchParams({ connection, ...more }) });
  const element = (tag, text, name) => { // as text, so that nobody can inject markup
    const made = Object.assign(document.createElement(tag), { textContent: text });
    made.style.setProperty("--hue", [...name].reduce((hue, letter) => hue * 31 + letter.codePointAt(), 7) % 360);
    return made;
  };
  function show({ key, name, text }) {
    if (document.getElementById(key)) return; // our own: after a reconnect, the tab has another connection, which is not excluded
    const line = Object.assign(element("p", text, name), { id: key, className: name === me ? "mine" : "" });
    line.prepend(element("b", name, name));
    document.getElementById("log").prepend(line); // the list grows upwards, so it stays scrolled to the newest message
    // Screen readers are told at most every five seconds, whatever comes.
    timer ??= setTimeout(() => { told.textContent = log.firstElementChild.innerText; timer = undefined; }, 5000);
  }
  function draw() {
    names.replaceChildren(...[...here].sort().map((name) => element("li", name === me ? `${name} (you)` : name, name)));
    document.getElementById("typing").textContent = [...typing.keys()].map((name) => `${name} is typing …`).join(" ");
  }
  const stop = (name) => { clearTimeout(typing.get(name)); typing.delete(name); draw(); };
  source.addEventListener("said", ({ data }) => { const said = JSON.parse(data); show(said); stop(said.name); });
  source.addEventListener("typing", ({ data }) => {
    const { name, typing: still } = JSON.parse(data);
    stop(name);
    if (still) { typing.set(name, setTimeout(stop, 2500, name)); draw(); }
  });
  const apply = (news) => (news.members ?? [news]).forEach(({ op, member }) => here[op === "join" ? "add" : "delete"](member));
  source.addEventListener("presence", ({ data }) => { changes.push(JSON.parse(data)); apply(changes.at(-1)); draw(); });
  source.addEventListener("pgbus:open", async ({ detail }) => { // at each connect, because changes of presence are not replayed
    connection = detail.connectionId;
    changes = []; // changes that arrive while the list is loading may be newer than the list
    const { names } = await (await fetch("/{{room}}/here")).json();
    here.clear(); names.concat(me).forEach((name) => here.add(name)); changes.forEach(apply); draw();
  });
  text.oninput = () => post("typing");
  form.onsubmit = (event) => {
    event.preventDefault();
    const said = { key: `${Math.random()}`, name: me, text: text.value };
    show(said); post("say", said); text.value = "";
  };
</script>
<script type="module" src="/pgbus/pgbus.js"></script>"""

bottle.run(app, server=Server, port=int(os.environ.get("PORT", "8080")))
