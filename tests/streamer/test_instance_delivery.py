"""Delivery from a commit to a socket: nothing missed, nothing repeated, in order."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from support import received, run, serving, session, stored, until, until_messages

from pgbus_gevent.bus import Bus
from pgbus_gevent.core.client import Subscriber
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.web.stream_app import StreamApp

Connect = Callable[..., StreamClient]


# from the page to the stream


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_a_page_and_its_stream_miss_nothing_and_repeat_nothing(
    isolation: str, pgbus_bus: Bus, pgbus_client: Connect
) -> None:
    orders = pgbus_bus.stream("orders")
    for n in range(3):
        orders.broadcast(f"before {n}")
    with pgbus_bus.transaction(isolation) as cursor:
        watermark = orders.last_id(using=cursor)
        orders.broadcast("while the page is rendered")
        cursor.execute("select data from pgbus.messages where stream = 'orders' and msg_id <= %s", (watermark,))
        page = [data for (data,) in cursor.fetchall()]
    orders.broadcast("on its way to the browser")

    client = pgbus_client("orders", since=watermark)
    seen = page + [client.next().data for _ in range(2)]
    orders.broadcast("live")
    seen.append(client.next().data)

    assert seen == [
        "before 0", "before 1", "before 2", "while the page is rendered", "on its way to the browser", "live",
    ]  # fmt: skip
    assert client.quiet(0.2)


def test_the_watermark_of_a_repeatable_read_page_is_that_of_its_snapshot(pgbus_bus: Bus, pgbus_client: Connect) -> None:
    orders = pgbus_bus.stream("orders")
    orders.broadcast("in the page")
    with pgbus_bus.transaction("repeatable read") as cursor:
        cursor.execute("select count(*) from pgbus.messages")
        orders.broadcast("after the snapshot")
        watermark = orders.last_id(using=cursor)
        cursor.execute("select data from pgbus.messages where stream = 'orders'")
        assert [data for (data,) in cursor.fetchall()] == ["in the page"]

    assert pgbus_client("orders", since=watermark).next().data == "after the snapshot"


def test_the_watermark_of_a_stream_without_messages_gets_the_first_one(pgbus_bus: Bus, pgbus_client: Connect) -> None:
    orders = pgbus_bus.stream("orders")
    watermark = orders.last_id()
    orders.broadcast("the first")

    assert watermark == 0
    assert pgbus_client("orders", since=watermark).next().data == "the first"


# the order of commits


def test_an_id_that_was_drawn_first_and_committed_last_is_not_lost(
    pgbus_bus: Bus, pgbus_database: str, pgbus_client: Connect
) -> None:
    client = pgbus_client("slow")
    other = pgbus_client("quick")
    client.next("pgbus:connected")
    other.next("pgbus:connected")

    with session(pgbus_database) as connection:
        connection.autocommit = False
        [(first,)] = run(connection, "select pgbus.broadcast('slow', 'drawn first')")
        later = pgbus_bus.stream("quick").broadcast("drawn later")
        second = gevent.spawn(pgbus_bus.stream("slow").broadcast, "behind it")
        assert other.next().data == "drawn later"
        assert client.quiet(0.1)
        connection.commit()

    assert first < (later or 0) < (second.get(timeout=10) or 0)
    assert [client.next().data, client.next().data] == ["drawn first", "behind it"]


def test_the_first_of_two_queued_messages_to_commit_comes_first(
    pgbus_bus: Bus, pgbus_database: str, pgbus_client: Connect
) -> None:
    client = pgbus_client("orders")
    client.next("pgbus:connected")

    with session(pgbus_database) as connection:
        connection.autocommit = False
        run(connection, "select pgbus.broadcast_on_commit('orders', 'queued first')")
        with pgbus_bus.transaction() as cursor:
            pgbus_bus.stream("orders").broadcast("queued second", using=cursor)
        assert client.next().data == "queued second"
        connection.commit()
    last = client.next()

    assert last.data == "queued first"
    assert [int(frame.id or 0) for frame in client.messages] == sorted(int(frame.id or 0) for frame in client.messages)


def test_an_open_transaction_with_broadcast_on_commit_holds_up_no_publisher(
    pgbus_bus: Bus, pgbus_database: str, pgbus_settings: Settings
) -> None:
    # No sweep comes in time, so a wake that is held up would show.
    with serving(pgbus_settings, catch_up_interval=60.0) as server, session(pgbus_database) as connection:
        client = server.live("orders")
        connection.autocommit = False
        run(connection, "select pgbus.broadcast_on_commit('orders', 'still open')")

        for n in range(3):
            pgbus_bus.stream("orders").broadcast(str(n))
            assert client.next().data == str(n)

        connection.commit()
        assert client.next().data == "still open"


def test_a_transaction_that_broadcast_and_stays_open_holds_up_its_own_stream_alone(
    pgbus_bus: Bus, pgbus_database: str, pgbus_settings: Settings
) -> None:
    with serving(pgbus_settings, catch_up_interval=60.0) as server, session(pgbus_database) as connection:
        own, others = server.live("held"), [server.live(f"free:{n}") for n in range(5)]
        connection.autocommit = False
        run(connection, "select pgbus.broadcast('held', 'still open')")
        behind = gevent.spawn(pgbus_bus.stream("held").broadcast, "waits for it")

        for n, client in enumerate(others):
            pgbus_bus.stream(f"free:{n}").broadcast("hello")
            assert client.next().data == "hello"
        assert not behind.ready()

        connection.commit()
        assert [own.next().data, own.next().data] == ["still open", "waits for it"]
        assert behind.get(timeout=10)


def test_messages_that_are_rolled_back_are_never_seen(
    pgbus_database: str, pgbus_bus: Bus, pgbus_client: Connect
) -> None:
    client = pgbus_client("orders")
    client.next("pgbus:connected")
    with session(pgbus_database) as connection:
        connection.autocommit = False
        for function in ("broadcast", "broadcast_on_commit", "broadcast_ephemeral"):
            run(connection, f"select pgbus.{function}('orders', 'rolled back')")
            connection.rollback()
        run(connection, "select pgbus.broadcast('orders', 'kept')")
        run(connection, "savepoint s")
        run(connection, "select pgbus.broadcast('orders', 'rolled back')")
        run(connection, "rollback to savepoint s")
        connection.commit()
    pgbus_bus.stream("orders").broadcast("last")

    assert [client.next().data, client.next().data] == ["kept", "last"]


# names

ALIKE = [
    "a:b", "a_b", "a-b", "a.b", "a b", "a/b", "a%3Ab", "A:b", "A:B", "a:b ", "é", "e\u0301", "e", "É", "ß", "ss",
    "a:b?c", "a:b#c", "ａ", "a\u200bb", "ab",
]  # fmt: skip


def test_names_that_differ_by_case_punctuation_or_accent_stay_apart(
    pgbus_bus: Bus, pgbus_database: str, pgbus_client: Connect
) -> None:
    live = {name: pgbus_client(name) for name in ALIKE}
    signed = {name: pgbus_client(pgbus_bus.sign(name)) for name in ALIKE}
    for client in (*live.values(), *signed.values()):
        client.next("pgbus:connected")
    for name in ALIKE:
        pgbus_bus.stream(name).broadcast(f"to {name}")
        pgbus_bus.stream(name).broadcast(f"note to {name}", ephemeral=True)
    for clients in (live, signed):
        for client in clients.values():
            until_messages(client, 2)
    replayed = {name: pgbus_client(name, since=0) for name in ALIKE}
    with session(pgbus_database) as connection:
        for name in ALIKE:
            assert [frame.data for frame in live[name].messages] == [f"to {name}", f"note to {name}"]
            assert [frame.data for frame in signed[name].messages] == [f"to {name}", f"note to {name}"]
            assert replayed[name].next().data == f"to {name}"
            assert received(replayed[name]) == stored(connection, name)


# audiences, end to end


def test_exclude_and_visible_to_hold_live_and_replayed(pgbus_bus: Bus, pgbus_settings: Settings) -> None:
    def app(instance: Any) -> Any:
        instance.filters.register("admins", lambda context, stream: context == "admin")
        return StreamApp(instance, lambda environ, stream: Subscriber(context=environ.get("HTTP_X_ROLE")))

    with serving(pgbus_settings, app=app) as server:
        orders = pgbus_bus.stream("orders")
        start = orders.last_id()
        admin, user = server.client("orders", headers={"X-Role": "admin"}), server.client("orders")
        frame = admin.next("pgbus:connected")
        user.next("pgbus:connected")
        own_id = re.search('"connectionId":"([0-9a-f]+)"', frame.data)
        assert own_id is not None
        orders.broadcast("for all")
        orders.broadcast("for admins", visible_to="admins")
        orders.broadcast("for nobody", visible_to="unknown")
        orders.broadcast("not for who sent it", exclude=own_id[1])
        orders.broadcast("end")
        late = server.client("orders", since=start)

        def until_end(client: StreamClient) -> list[str]:
            until(lambda: client.messages and client.messages[-1].data == "end", "the end arrives")
            return [message.data for message in client.messages]

        assert until_end(admin) == ["for all", "for admins", "end"]
        assert until_end(user) == ["for all", "not for who sent it", "end"]
        assert until_end(late) == ["for all", "not for who sent it", "end"]
