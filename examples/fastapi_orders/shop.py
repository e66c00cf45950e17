"""The orders of a small shop, live, in FastAPI. The streams are served by `pgbus-gevent serve`, from the same database.

    pgbus-gevent serve --port 8081 --cors-origin http://127.0.0.1:8080
    STREAMS=http://127.0.0.1:8081 uvicorn --port 8080 shop:app

Both need PGBUS_DATABASE_URL and PGBUS_SECRET. Behind a proxy that sends /pgbus to the one and the rest to the other, leave out
STREAMS and --cors-origin.
"""

import asyncio
import html
import os
from collections import Counter
from contextlib import asynccontextmanager
from string import Template

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from pgbus_gevent.aio import Bus

STREAMS = os.environ.get("STREAMS", "")
PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Orders</title>
<style>ol:empty::before { content: "No orders yet." }</style>
<h1>Orders</h1>
<form><input name="item" placeholder="What would you like?" aria-label="Item" required> <button>Order</button></form>
<main><ol>$rows</ol></main> $tag
<script type="module" src="$streams/pgbus/pgbus.js"></script>
<script type="module">
  document.querySelector("pgbus-stream-source").addEventListener("order", (event) => {
    document.querySelector("ol").append(Object.assign(document.createElement("li"), { textContent: event.data }));
  });
  document.addEventListener("pgbus:gap", () => location.reload());  // it was away for longer than the retention
  document.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    const body = JSON.stringify({ item: new FormData(event.target).get("item") });
    fetch("/orders", { method: "POST", body, headers: { "content-type": "application/json" } });
    event.target.reset();
  });
</script>""")

bus = Bus()
orders = bus.stream("orders")
popular = Counter()


class Order(BaseModel):
    item: str


async def count():
    """Follow the stream, to know what is popular. It begins with all orders that are retained."""
    async for message in orders.tail(since=0, on_gap=print):
        popular[message.data] += 1


@asynccontextmanager
async def lifespan(app):
    async with bus:
        async with bus.transaction() as cursor:
            await cursor.execute(
                "create table if not exists orders (id bigint generated always as identity, item text)"
            )
        counting = asyncio.create_task(count())
        yield
        counting.cancel()


app = FastAPI(lifespan=lifespan)


@app.get("/", response_class=HTMLResponse)
async def page():
    async with bus.transaction("repeatable read") as cursor:  # one snapshot for the rows and the watermark in the tag
        await cursor.execute("select item from orders order by id")
        rows = "".join(f"<li>{html.escape(item)}</li>" for (item,) in await cursor.fetchall())
        tag = await bus.stream_tag("orders", using=cursor)
    return PAGE.substitute(rows=rows, tag=tag.replace('src="', f'src="{STREAMS}', 1), streams=STREAMS)


@app.post("/orders", status_code=204)
async def order(order: Order):
    async with bus.transaction() as cursor:  # the order and its message: both, or neither
        await cursor.execute("insert into orders (item) values (%s)", (order.item,))
        await orders.broadcast(order.item, event="order", using=cursor)


@app.get("/popular")
async def most_popular():
    return popular.most_common(3)
