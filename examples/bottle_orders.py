"""The orders of a small shop, live: a Bottle application whose open pages show each change at once.

Run it and open http://127.0.0.1:8080/ in two windows. In a third window, http://127.0.0.1:8080/?slow=5 is five seconds old when it
arrives; order something meanwhile, and it is there all the same. Give a database in PGBUS_DATABASE_URL and a secret in
PGBUS_SECRET, or neither; then the embedded PostgreSQL is started.
"""

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()

import os
import time

import bottle

from pgbus_gevent import Bus
from pgbus_gevent.bottle_plugin import PgbusPlugin, Server
from pgbus_gevent.database.embedded import EmbeddedPostgres

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Orders</title>
<style>
  :root { color-scheme: light dark; background: light-dark(#f5f6f8, #14161b); font: 1rem/1.5 system-ui, sans-serif }
  body { max-width: 36rem; margin: 3rem auto; padding: 0 1rem } small { color: light-dark(#5d6780, #9aa5bd) } ol { padding: 0 }
  form { display: flex; gap: .5rem } input { flex: 1; min-width: 0 } .paid b { color: light-dark(#087f5b, #4fd1a5) }
  input, button { font: inherit; padding: .4rem .8rem; border: 1px solid #b9c0cc; border-radius: .4rem }
  button { border-color: #2456c6; background: #2456c6; color: #fff; cursor: pointer } .paid form { display: none }
  li { display: flex; align-items: center; gap: 1rem; min-height: 2.4rem; padding: .6rem 1rem; margin: .5rem 0;
    border-radius: .6rem; background: light-dark(#fff, #20242c) } li span { flex: 1 } input { background: transparent }
  ::placeholder { color: light-dark(#5b6579, #a4adc0); opacity: 1 }
  [role] { position: absolute; clip-path: inset(50%) }
  @media (prefers-reduced-motion: no-preference) { .live { animation: live 3s } }
  @keyframes live { from { background: #ffd43b99 } }
</style>
<h1>Orders</h1>
<form method="post" action="/orders"><input name="item" placeholder="What would you like?" aria-label="Item" required>
  <button>Order</button></form>
<main><ol></ol></main> <p role="status"></p> {{!tag}}
<template><li><small></small> <span></span> <b></b> <form method="post"><button>Pay</button></form></li></template>
<script type="module">
  function show(order, how) { // as text, so that no order can inject markup
    let row = document.getElementById(`order-${order.id}`);
    if (!row) {
      row = document.querySelector("template").content.firstElementChild.cloneNode(true);
      row.id = `order-${order.id}`;
      row.querySelector("form").action = `/orders/${order.id}/pay`;
      document.querySelector("ol").prepend(row);
    }
    row.className = `${order.state} ${how}`;
    [`No. ${order.id}`, order.item, order.state].forEach((text, n) => { row.children[n].textContent = text; });
  }
  for (const order of {{!orders}}) show(order, "");
  // A page is stale when it arrives: it has the orders of one snapshot. The tag's since-id is the snapshot's watermark, so the
  // stream begins with changes that were committed while the page was loading. No change is missed, and none comes twice.
  const source = document.querySelector("pgbus-stream-source");
  const news = document.querySelector("[role=status]");
  let timer;
  source.addEventListener("order", (event) => {
    const order = JSON.parse(event.data);
    show(order, "live");
    clearTimeout(timer); // a screen reader is told the last of several changes
    timer = setTimeout(() => { news.textContent = `No. ${order.id}, ${order.item}: ${order.state}`; }, 2000);
  });
  document.addEventListener("pgbus:gap", () => location.reload());  // it was away for longer than the retention
</script><script type="module" src="/pgbus/pgbus.js"></script>"""

if "PGBUS_DATABASE_URL" not in os.environ:
    os.environ |= {"PGBUS_DATABASE_URL": EmbeddedPostgres.open("orders-data").url, "PGBUS_SECRET": "for this example"}
bus = Bus()
app = bottle.Bottle()
app.install(PgbusPlugin(bus))
with bus.transaction() as cursor:
    columns = "id bigint generated always as identity, item text not null, state text not null default 'open'"
    cursor.execute(f"create table if not exists orders ({columns}, primary key (id))")
    first = "('a pot of tea', 'paid'), ('a plum cake', 'open')"
    cursor.execute(
        f"insert into orders (item, state) select * from (values {first}) v where not exists (select from orders)"
    )


@app.get("/")
def page(pgbus):
    with pgbus.transaction("repeatable read") as cursor:  # one snapshot for the orders and the watermark
        cursor.execute("select coalesce(json_agg(orders order by id), '[]')::text from orders")
        (orders,) = cursor.fetchone()
        tag = pgbus.stream_tag("orders", using=cursor)
    time.sleep(min(float(bottle.request.query.slow or 0), 60))
    return bottle.template(PAGE, orders=orders.replace("<", "\\u003c"), tag=tag)


@app.post("/orders")
def order(pgbus):
    item = bottle.request.forms.item.strip() or bottle.abort(400, "What would you like?")
    return change(pgbus, "insert into orders (item) values (%s) returning row_to_json(orders)::text", item)


@app.post("/orders/<id:int>/pay")
def pay(pgbus, id):
    return change(pgbus, "update orders set state = 'paid' where id = %s returning row_to_json(orders)::text", id)


def change(bus, statement, value):
    """Change one order and broadcast it in one transaction: both happen, or neither does."""
    with bus.transaction() as cursor:
        cursor.execute(statement, (value,))
        (order,) = cursor.fetchone() or bottle.abort(404, "There is no such order.")
        bus.stream("orders").broadcast(order, event="order", using=cursor)
    bottle.redirect("/")


if __name__ == "__main__":
    bottle.run(app, server=Server, port=int(os.environ.get("PORT", "8080")))
