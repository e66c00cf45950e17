"""The orders of a bakery as Turbo streams. The server renders rows with the same function for the page and for the stream.

Run it and open http://127.0.0.1:8080/ in two windows. "Open a slow page" opens one that is five seconds old when it arrives: order
something meanwhile, and it is there all the same.

Give a database in PGBUS_DATABASE_URL and a secret in PGBUS_SECRET, or neither; then the embedded PostgreSQL is started.
Turbo is one file of the npm package @hotwired/turbo. It is searched in node_modules below the working directory and below
tests/browser, unless `--turbo PATH` is given. Without it, a few lines on the page perform the three actions that are used here.
"""
# ruff: noqa: E402

from gevent import monkey

monkey.patch_all()  # before all other imports: modules that are imported unpatched would block every client

import argparse
import os
import time
from collections.abc import Callable
from html import escape
from pathlib import Path

import bottle

from pgbus_gevent import Bus, Settings, turbo
from pgbus_gevent.bottle_plugin import PgbusPlugin, Server
from pgbus_gevent.bus import Cursor
from pgbus_gevent.database.embedded import EmbeddedPostgres

TURBO = "node_modules/@hotwired/turbo/dist/turbo.es2017-esm.js"
NEXT = {"ordered": ("bake", "baking"), "baking": ("hand over", "done")}

url = os.environ.get("PGBUS_DATABASE_URL") or EmbeddedPostgres.open(Settings.load().data_dir).url
bus = Bus(url, secret=os.environ.get("PGBUS_SECRET", "only for this example"))
app = bottle.Bottle()
app.install(PgbusPlugin(bus))
with bus.transaction() as cursor:
    columns = (
        "id bigint generated always as identity primary key, item text not null, state text not null default 'ordered'"
    )
    cursor.execute(f"create table if not exists bakery ({columns})")
    first = "('a sourdough loaf', 'done'), ('two cinnamon buns', 'baking'), ('a rye bread', 'ordered')"
    cursor.execute(
        f"insert into bakery (item, state) select * from (values {first}) v where not exists (select from bakery)"
    )


def row(id: int, item: str, state: str, how: str = "") -> str:
    """Return one order as HTML."""
    button = ""
    if state in NEXT:
        verb, after = NEXT[state]
        label = f'aria-label="{verb} {escape(item)}"'
        button = f'<form method="post" action="/orders/{id}/{after}"><button {label}>{verb}</button></form>'
    return f'<li id="order-{id}" class="{state} {how}"><small>{id}</small> <span>{escape(item)}</span> <b>{state}</b>{button}</li>'


def count(cursor: Cursor) -> str:
    """Return the number of open orders as HTML."""
    cursor.execute("select count(*) from bakery where state <> 'done'")
    return f"{cursor.fetchone()[0]} open"


@app.get("/")
def page(pgbus):
    with pgbus.transaction("repeatable read") as cursor:  # one snapshot for the orders, their number and the watermark
        cursor.execute("select id, item, state from bakery order by id desc limit 50")
        rows = "".join(row(*order) for order in cursor.fetchall())
        parts = {"rows": rows, "count": count(cursor), "tag": pgbus.stream_tag("bakery", using=cursor)}
    slow = min(float(bottle.request.query.slow or 0), 30)
    # From here on the page is stale. Its tag has the watermark, so the stream begins with the changes that are committed meanwhile.
    time.sleep(slow)
    return bottle.template(PAGE, slow=slow, turbo=library.is_file(), **parts)


@app.post("/orders")
def order(pgbus):
    item = bottle.request.forms.item.strip() or bottle.abort(400, "What would you like?")
    change(pgbus, turbo.prepend, "insert into bakery (item) values (%s) returning id, item, state", item)


@app.post("/orders/<id:int>/<state:re:baking|done>")
def step(pgbus, id, state):
    change(
        pgbus,
        turbo.replace,
        "update bakery set state = %s where id = %s and state <> 'done' returning id, item, state",
        state,
        id,
    )


def change(bus: Bus, action: Callable, statement: str, *values: str | int) -> None:
    """Change one order and broadcast it in one transaction: both happen, or neither does."""
    with bus.transaction() as cursor:
        # One change at a time, so that the number in each message includes exactly the orders up to its own.
        cursor.execute("lock table bakery in share row exclusive mode")
        cursor.execute(statement, values)
        order = cursor.fetchone() or bottle.abort(404, "There is no such order.")
        target = "orders" if action is turbo.prepend else f"order-{order[0]}"
        message = action(target, row(*order, "live")) + turbo.update("count", count(cursor))
        bus.stream("bakery").broadcast(message, using=cursor)
    bottle.response.status = 204  # the browser stays on the page, which gets the change from the stream


@app.get("/turbo.js")
def turbo_file():
    return bottle.static_file(library.name, root=library.parent, mimetype="text/javascript")


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>The bakery</title><style>
  :root { color-scheme: light dark; --card: light-dark(#fffdf8, #27211b); --quiet: light-dark(#76695a, #ab9c8a); --crust: #b4571c }
  * { box-sizing: border-box } body { font: 1rem/1.5 system-ui, sans-serif; max-width: 44rem; margin: 0 auto; padding: 1.5rem 1rem;
    background: light-dark(#f6efe4, #191512) } h1 { margin: 0; font-size: 1.6rem } h1 small { margin-left: .6rem }
  small, p { color: var(--quiet); font-weight: 400; font-size: .95rem } a { color: light-dark(#99450f, #f0a76d) }
  form { display: flex; gap: .5rem; margin: 0 } input { flex: 1; min-width: 0 } ol { padding: 0; list-style: none }
  input, button { font: inherit; padding: .45rem .9rem; border: 1px solid #a8957d80; border-radius: .6rem; background: var(--card);
    color: inherit } button { background: var(--crust); border-color: var(--crust); color: #fff; cursor: pointer }
  li { display: flex; align-items: center; gap: .9rem; padding: .5rem .5rem .5rem 1rem; min-height: 3.4rem; margin: .45rem 0;
    border-radius: .7rem; background: var(--card) } li span { flex: 1; overflow-wrap: anywhere; min-width: 0 }
  li b { font-weight: 500; color: light-dark(#99450f, #f0a76d) } li button { min-width: 6.5rem }
  .done b { color: light-dark(#2c7436, #8fd19a); padding-right: .6rem }
  @media (max-width: 30rem) { li { gap: .6rem } li small { display: none } li button { min-width: 0; padding: .4rem .6rem } }
  @media (prefers-reduced-motion: no-preference) { .live { animation: live 3s } }
  ::placeholder { color: var(--quiet); opacity: 1 }
  #told { position: absolute; clip-path: inset(50%) } @keyframes live { from { background: #f3b44aa0 } }
</style>
% if turbo:
<script type="module" src="/turbo.js"></script>
% else:
<script>
  const does = {
    prepend(target, content) { document.getElementById(content.firstElementChild.id)?.remove(); target.prepend(content); },
    replace(target, content) { target?.replaceWith(content); },
    update(target, content) { target.replaceChildren(content); },
  };
  addEventListener("pgbus:message", ({ detail }) => {
    const message = Object.assign(document.createElement("template"), { innerHTML: detail.data }).content;
    for (const action of message.querySelectorAll("turbo-stream"))
      does[action.getAttribute("action")](document.getElementById(action.getAttribute("target")), action.firstChild.content);
  });
</script>
% end
<script>addEventListener("pgbus:gap", () => location.reload());  // it was away for longer than the retention</script>
<script type="module" src="/pgbus/pgbus.js"></script>
<h1>The bakery <small id="count">{{count}}</small></h1>
<p id="told" role="status"></p>
<script>
  // A screen reader says what changes there: the number of orders, at most every ten seconds.
  setInterval(() => { if (told.textContent !== count.textContent) told.textContent = count.textContent; }, 10_000);
</script>
<p>{{"This page was %g s old when it arrived. Orders that came meanwhile are marked." % slow if slow else ""}}
  <a href="/?slow=5" target="_blank">Open a slow page</a>, and order something while it loads.</p>
<form method="post" action="/orders" onsubmit="setTimeout(() => this.reset())">
  <input name="item" placeholder="What would you like?" aria-label="Item" autocomplete="off" required> <button>Order</button>
</form>
<main><ol id="orders">{{!rows}}</ol></main>
{{!tag}}"""

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A bakery whose orders are Turbo streams.")
    parser.add_argument("--turbo", type=Path, help="the file turbo.es2017-esm.js of the npm package @hotwired/turbo")
    places = [Path(TURBO), Path(__file__).parent.parent / "tests/browser" / TURBO]
    library = parser.parse_args().turbo or next(filter(Path.is_file, places), places[0])
    bottle.run(app, server=Server, port=int(os.environ.get("PORT", "8080")))
