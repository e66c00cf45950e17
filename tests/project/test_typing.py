"""The types of the package are right for the code of applications: mypy in strict mode checks such code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mypy import api

CODE = """
from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import bottle
from flask import Flask

import pgbus_gevent.aio
from pgbus_gevent import Bus, Message, Settings, StreamApp, Subscriber, streamer
from pgbus_gevent.bottle_plugin import PgbusPlugin
from pgbus_gevent.bus import Cursor
from pgbus_gevent.django import get_bus
from pgbus_gevent.flask import Pgbus
from pgbus_gevent.streamer import Instance
from pgbus_gevent.testing import FakeBus


bus = Bus("postgresql:///shop", secret=os.environ.get("SECRET"), retention="1d", pool_size=3, public=["demo:*"], migrate=False)
Bus(settings=Settings.load(config="pgbus.toml"))
Bus(config="pgbus.toml", retention_patterns={"demo:*": "1m/100"}, heartbeat=5)
Bus(heartbeat=[])  # refused: arg-type
Bus(retension=5)  # refused: call-arg
FakeBus(retention=60.0)
FakeBus(retension=60.0)  # refused: call-arg


def authorize(environ: dict[str, Any], stream: str) -> bool | Subscriber:
    return Subscriber(owner=str(environ["REMOTE_USER"])) if stream == "orders" else False


def authorize_any(environ: Mapping[str, Any], stream: str) -> bool:
    return stream == "orders"


def authorize_wrongly(environ: dict[str, Any], stream: str) -> str:
    return stream


plugin = PgbusPlugin(bus, keyword="bus", authorize=authorize)
PgbusPlugin(bus, authorize=authorize_any)
PgbusPlugin(bus, authorise=authorize)  # refused: call-arg
PgbusPlugin(bus, authorize=authorize_wrongly)  # refused: arg-type
app = StreamApp(Instance(bus.settings, filters=bus.filters), authorize=authorize)
Instance(database_url="postgresql:///shop", heartbeat="5s", read_only=True, on_failure=print)
Instance(hearbeat=5)  # refused: call-arg
Instance(filters="shop:filters")  # refused: arg-type
instance: Instance = streamer.current(settings=bus.settings, filters=bus.filters)
streamer.current(database_url="postgresql:///shop", retention="1d")
streamer.current(retention=[])  # refused: arg-type
streamer.current(hearbeat=5)  # refused: call-arg
streamer.set_current(instance)
bus.filters.register("admins", lambda context, stream: bool(context.is_admin))

site = bottle.Bottle()
site.install(plugin)
flask_app = Flask(__name__)
flask_bus = Pgbus(flask_app)
flask_bus.bus.stream("orders").broadcast("paid", using=None)
get_bus().stream("orders").broadcast("paid", evnt="x")  # refused: call-arg


@flask_bus.authorize
def may_watch(stream: str) -> bool | Subscriber:
    return stream == "orders"


@flask_bus.authorize  # refused: type-var
def may_not_watch(stream: str) -> str:
    return stream


allowed: bool | Subscriber = may_watch("orders")


async def follow(limit: float) -> int:
    async with pgbus_gevent.aio.Bus(retention="1d", pool_size=2) as bus:
        orders = bus.stream("orders")
        async with bus.transaction("repeatable read") as cursor:
            await cursor.execute("select id from orders where item = %s", ("tea",))
            rows = await cursor.fetchall()
            tag: str = await bus.stream_tag("orders", using=cursor, expires_at=limit)
            await orders.broadcast(tag + bus.sign("orders", expires_at=limit), event="order", using=cursor)
            await orders.broadcast(b"x")  # refused: arg-type
        async for message in orders.tail(since=0, on_gap=lambda gap: print(gap.reason)):
            number: int | None = message.id
            return number or len(rows)
        pgbus_gevent.aio.Bus(retension="1d")  # refused: call-arg
    return 0


def count(cursor: Cursor) -> int:
    cursor.execute("select count(*) from orders where paid = %s", (True,))
    (number,) = cursor.fetchone()
    return int(number) * cursor.rowcount


def order(item: str) -> int:
    orders = bus.stream("orders")
    with bus.transaction("repeatable read") as cursor:
        cursor.execute("insert into orders (item) values (%s)", (item,))
        items: list[str] = [str(name) for (name,) in cursor]
        rows: list[tuple[Any, ...]] = cursor.fetchall()
        orders.broadcast(item, event="order", using=cursor)
        orders.broadcast_many(items, keys=["a", None], using=cursor)
        cursor.exekute("select 1")  # refused: attr-defined
        tag: str = bus.stream_tag("orders", using=cursor, expires_at=1764000000)
        return count(cursor) + len(rows) + len(tag) + orders.last_id(using=cursor)


def read() -> list[Message]:
    token: str = bus.sign("orders", expires_at=1764000000.0) + bus.sign("orders", expires_in=3600)
    id: int | None = bus.stream("orders").broadcast(token, visible_to="admins", key="k")
    bus.stream("orders").broadcast(7)  # refused: arg-type
    return bus.stream("orders").read_after(id or 0)
"""


@pytest.mark.slow
def test_strict_mypy_accepts_an_applications_code_and_finds_its_errors(tmp_path: Path) -> None:
    path, cache = tmp_path / "shop.py", tmp_path / "cache"
    path.write_text(CODE, encoding="utf-8")
    # Not the options of this repository. Bottle has no types.
    (tmp_path / "mypy.ini").write_text("[mypy]\n[mypy-bottle]\nignore_missing_imports = true\n", encoding="utf-8")
    said, errors, _ = api.run(
        [
            "--strict",
            "--config-file",
            str(tmp_path / "mypy.ini"),
            "--cache-dir",
            str(cache),
            "--follow-imports=silent",
            str(path),
        ]
    )
    found = re.findall(r"shop\.py:(\d+): error: .*\[([\w-]+)\]", said)
    wanted = [
        (str(number), line.partition("# refused: ")[2])
        for number, line in enumerate(CODE.splitlines(), 1)
        if "# refused: " in line
    ]
    assert (found, errors) == (wanted, ""), said + errors
