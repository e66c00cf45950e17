"""The orders of a small shop, live: a Bottle application of which every open page shows each change at once.

    python examples/bottle_orders.py        then open http://127.0.0.1:8080/ in two windows

It needs a database in PGBUS_DATABASE_URL and a secret in PGBUS_SECRET; without them it uses the embedded PostgreSQL.
"""

from gevent import monkey

monkey.patch_all()

import json
import os

import bottle

from pgbus_gevent import Bus
from pgbus_gevent.bottle_plugin import PgbusPlugin, Server
from pgbus_gevent.database.embedded import EmbeddedPostgres

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Orders</title>
<style>body{font:1rem system-ui;margin:2rem auto;max-width:32rem}td{padding:.3rem 1rem}.paid{color:#087f5b}</style>
<h1>Orders</h1>
<form method="post" action="/orders"><input name="item" placeholder="What?" required><button>Order</button></form>
<table id="orders">
% for id, item, state in rows:
  <tr data-id="{{id}}"><td>{{id}}<td>{{item}}<td class="{{state}}">{{state}}
  <td><form method="post" action="/orders/{{id}}/pay"><button>Pay</button></form>
% end
</table>
{{!tag}}
<script type="module">
  // The tag's since-id is the watermark of the rows above: what was committed while the page was on its way comes first.
  const tag = document.querySelector("pgbus-stream-source");
  const source = new EventSource(`${tag.getAttribute("src")}?since=${tag.getAttribute("since-id")}`);
  source.addEventListener("order", (event) => {
    const order = JSON.parse(event.data);
    let row = document.querySelector(`tr[data-id="${order.id}"]`);
    if (!row) {
      row = document.querySelector("#orders").insertRow(0);
      row.dataset.id = order.id;
      for (let n = 0; n < 3; n++) row.insertCell();
    }
    [order.id, order.item, order.state].forEach((text, n) => { row.cells[n].textContent = text; });
    row.cells[2].className = order.state;
  });
</script>
"""


def make_app(bus: Bus) -> bottle.Bottle:
    """The shop. Its table is in the same database as the messages, so a change and its broadcast are one transaction."""
    app = bottle.Bottle()
    app.install(PgbusPlugin(bus))
    with bus.transaction() as cursor:
        cursor.execute(
            "create table if not exists orders"
            " (id bigint generated always as identity primary key, item text not null, state text not null)"
        )

    @app.get("/")
    def show(pgbus: Bus) -> str:
        # One snapshot for the rows and for the watermark in the tag.
        with pgbus.transaction("repeatable read") as cursor:
            cursor.execute("select id, item, state from orders order by id desc limit 50")
            return bottle.template(PAGE, rows=cursor.fetchall(), tag=pgbus.stream_tag("orders", using=cursor))

    @app.post("/orders")
    def order(pgbus: Bus) -> None:
        item = bottle.request.forms.item.strip() or bottle.abort(400, "What do you want to order?")
        change(pgbus, "insert into orders (item, state) values (%s, 'open') returning id, item, state", (item,))

    @app.post("/orders/<id:int>/pay")
    def pay(pgbus: Bus, id: int) -> None:
        change(pgbus, "update orders set state = 'paid' where id = %s returning id, item, state", (id,))

    return app


def change(bus: Bus, statement: str, parameters: tuple[object, ...]) -> None:
    """Change one order and tell everybody: both happen, or neither does."""
    with bus.transaction() as cursor:
        cursor.execute(statement, parameters)
        id, item, state = cursor.fetchone() or bottle.abort(404, "There is no such order")
        message = json.dumps({"id": id, "item": item, "state": state})
        bus.stream("orders").broadcast(message, event="order", using=cursor)
    bottle.redirect("/")


if __name__ == "__main__":
    if "PGBUS_DATABASE_URL" in os.environ:
        bus = Bus()
    else:
        bus = Bus(EmbeddedPostgres.open("orders-data").url, secret="only for this example")
    bottle.run(make_app(bus), server=Server, port=int(os.environ.get("PORT", "8080")))
