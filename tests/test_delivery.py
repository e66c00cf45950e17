"""Delivery from a commit to a socket: nothing missed, nothing repeated, in order."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import gevent
import psycopg2
import pytest
from support import get, judged, received, run, serving, session, stored, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.config import Settings
from pgbus_gevent.core.client import Subscriber
from pgbus_gevent.errors import InvalidEvent
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.testing.plugin import RunningServer
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


def test_the_watermark_of_a_repeatable_read_page_is_that_of_its_snapshot(
    pgbus_bus: Bus, pgbus_client: Connect
) -> None:
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

    assert later is not None and first < later < second.get(timeout=10)
    assert [client.next().data, client.next().data] == ["drawn first", "behind it"]


def test_of_two_that_were_queued_for_commit_the_one_that_commits_first_is_first(
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


def test_a_transaction_that_broadcast_on_commit_and_stays_open_holds_up_nobody(
    pgbus_bus: Bus, pgbus_database: str, pgbus_settings: Settings
) -> None:
    # No sweep comes to the help of a wake that is held up.
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


def test_what_is_rolled_back_is_never_seen(pgbus_database: str, pgbus_bus: Bus, pgbus_client: Connect) -> None:
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


# what is on the wire

BREAKS = {
    "lf": "a\nb", "cr": "a\rb", "crlf": "a\r\nb", "mixed": "\n\r\n\r\ra\r\n\n", "leading": "\nx", "trailing": "x\n",
    "only": "\n", "empty": "", "spaces": "  two\n three ", "colon": ": not a comment\n:nor this",
    "no break to a stream": "u2028\u2028u2029\u2029nel\u0085vt\x0bff\x0cfs\x1crs\x1egs\x1d",
    "astral": "𝄞 e\u0301 é \u200b\ufeff", "bom": "\ufeffx", "html": "<p>\n  paid\n</p>",
}  # fmt: skip


def test_every_kind_of_line_break_in_data_arrives_as_a_line_break(pgbus_bus: Bus, pgbus_client: Connect) -> None:
    client = pgbus_client("orders")
    client.next("pgbus:connected")
    for event, data in BREAKS.items():
        pgbus_bus.stream("orders").broadcast(data, event=event)
    until(lambda: len(client.messages) == len(BREAKS), "all arrive")

    found = {event.event: event.data for event in judged(client.raw) if not event.event.startswith("pgbus:")}
    assert found == {event: re.sub("\r\n|\r", "\n", data) for event, data in BREAKS.items()}


def test_a_megabyte_of_utf8_arrives_unchanged_live_and_replayed(pgbus_bus: Bus, pgbus_client: Connect) -> None:
    data = "\n".join("żółć 𝄞 ẞ 日本語 " * 36 for _ in range(1024))
    assert len(data.encode()) > 1_000_000
    live = pgbus_client("orders")
    live.next("pgbus:connected")
    pgbus_bus.stream("orders").broadcast(data)
    replayed = pgbus_client("orders", since=0)
    small = pgbus_bus.stream("orders").broadcast("behind it")

    for client in (live, replayed):
        assert client.next(timeout=20).data == data
        assert client.next().id == str(small)
        assert [event.data for event in judged(client.raw)][-2:] == [data, "behind it"]


INJECTION = "x\n\nid: 5\nevent: pgbus:shutdown\ndata: {}\n\nretry: 1\r\rid: 6\r\n\r\n: comment\ndata: y"


def test_data_cannot_inject_a_field_or_a_frame(pgbus_bus: Bus, pgbus_client: Connect) -> None:
    client = pgbus_client("orders")
    client.next("pgbus:connected")
    pgbus_bus.stream("orders").broadcast(INJECTION)
    pgbus_bus.stream("orders").broadcast(INJECTION, ephemeral=True)
    last = pgbus_bus.stream("orders").broadcast("last")
    until(lambda: client.messages and client.messages[-1].data == "last", "the last one arrives")

    events = judged(client.raw)[-3:]
    assert [event.data for event in events] == [re.sub("\r\n|\r", "\n", INJECTION)] * 2 + ["last"]
    assert {event.event for event in events} == {"message"}
    assert {event.retry for event in events} == {None}
    assert client.last_id == str(last)


@pytest.mark.parametrize("event", ["a\nid: 5", "a\rdata: x", "a\r\n\r\ndata: x", "pgbus:shutdown"])
def test_an_event_that_would_inject_is_refused_by_python_and_sql(
    event: str, pgbus_bus: Bus, pgbus_database: str
) -> None:
    for ephemeral in (False, True):
        with pytest.raises(InvalidEvent):
            pgbus_bus.stream("orders").broadcast("x", event=event, ephemeral=ephemeral)
    with session(pgbus_database) as connection:
        for function in ("broadcast", "broadcast_on_commit", "broadcast_ephemeral"):
            with pytest.raises(psycopg2.Error, match="bad event name"):
                run(connection, f"select pgbus.{function}('orders', 'x', %s)", event)


@pytest.mark.parametrize("field", ["since", "replay"])
def test_a_cursor_in_the_url_cannot_inject(field: str, pgbus_server: RunningServer) -> None:
    evil = "1\r\n\r\ndata: evil\n\n"
    answer = get(pgbus_server.url, f"/pgbus/streams/orders?{field}={quote(evil)}", Accept="text/event-stream")

    assert answer.status == 400
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.body.count(b"\n") == 1 and b"\r" not in answer.body


@pytest.mark.parametrize("cursor", ["1\tdata: evil", "<script>", "-1", "1.5", "9" * 17, "١٢", "\xff\xfe", "1~2", "0x1"])
def test_a_cursor_in_the_header_cannot_inject_and_costs_no_stream(
    cursor: str, pgbus_bus: Bus, pgbus_client: Connect
) -> None:
    header = cursor.encode().decode("latin-1")
    client = pgbus_client("orders", headers={"Last-Event-ID": header})
    gap = client.next("pgbus:gap-detected")
    pgbus_bus.stream("orders").broadcast("live")

    assert client.wait_for_response().status == 200
    assert '"reason":"invalid-cursor"' in gap.data
    assert client.next().data == "live"
    assert b"evil" not in client.raw and b"script" not in client.raw


# control frames and ephemerals


def fields(raw: bytes) -> list[list[bytes]]:
    """The lines of each frame."""
    return [frame.split(b"\n") for frame in raw.split(b"\n\n") if frame]


def test_control_frames_and_ephemerals_have_no_id_on_the_wire_and_messages_do(
    pgbus_bus: Bus, pgbus_settings: Settings
) -> None:
    with serving(pgbus_settings, heartbeat=0.1) as server:
        orders = pgbus_bus.stream("orders")
        orders.broadcast("0")
        client = server.client("orders", headers={"Last-Event-ID": "not a cursor"})
        client.next("pgbus:connected")
        orders.broadcast("small", ephemeral=True)
        orders.broadcast("1")
        orders.broadcast("L" * 20_000, ephemeral=True)
        orders.broadcast("2", event="order.paid")
        until(lambda: len(client.messages) == 4 and b": heartbeat " in client.raw, "all of them, and a heartbeat")
        server.instance.shutdown()
        client.wait_closed()

        frames = fields(client.raw)
        with_id = [frame for frame in frames if any(line.startswith(b"id") for line in frame)]
        assert [frame[-1] for frame in with_id] == [b"data: 1", b"data: 2"]
        controls = [frame[0] for frame in frames if frame[0].startswith(b"event: pgbus:")]
        assert controls == [b"event: pgbus:connected", b"event: pgbus:gap-detected", b"event: pgbus:shutdown"]
        assert client.last_id == str(orders.last_id())


@pytest.mark.parametrize("size", [0, 1, 7_000, 7_799, 7_800, 7_900, 8_000, 100_000, 1_000_000])
def test_an_ephemeral_of_any_size_reaches_who_is_connected(size: int, pgbus_bus: Bus, pgbus_client: Connect) -> None:
    client = pgbus_client("orders")
    client.next("pgbus:connected")
    data = ("é\\\"\n" * (size // 4 + 1))[:size]
    pgbus_bus.stream("orders").broadcast(data, event="hint", ephemeral=True)

    assert client.next("hint").data == data


def test_ephemerals_of_one_publisher_stay_in_order_whatever_their_size(
    pgbus_bus: Bus, pgbus_client: Connect
) -> None:
    client = pgbus_client("orders")
    client.next("pgbus:connected")
    sent = [f"{n} " + "x" * (20_000 if n % 7 == 3 else 10) for n in range(100)]
    for data in sent:
        pgbus_bus.stream("orders").broadcast(data, ephemeral=True)
    until(lambda: len(client.messages) == len(sent), "all arrive")

    assert [frame.data for frame in client.messages] == sent


def test_equal_ephemerals_of_one_transaction_all_arrive(pgbus_bus: Bus, pgbus_client: Connect) -> None:
    client = pgbus_client("orders")
    client.next("pgbus:connected")
    with pgbus_bus.transaction() as cursor:
        for _ in range(3):
            pgbus_bus.stream("orders").broadcast("same", ephemeral=True, using=cursor)

    assert [client.next().data for _ in range(3)] == ["same"] * 3


def test_an_ephemeral_is_not_stored_and_not_replayed(pgbus_bus: Bus, pgbus_client: Connect) -> None:
    orders = pgbus_bus.stream("orders")
    orders.broadcast("hint", ephemeral=True)
    orders.broadcast("L" * 20_000, ephemeral=True)
    orders.broadcast("stored")
    client = pgbus_client("orders", since=0)

    assert client.next().data == "stored"
    assert client.quiet(0.2)


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
        pgbus_bus.stream(name).broadcast(f"hint to {name}", ephemeral=True)
    replayed = {name: pgbus_client(name, since=0) for name in ALIKE}

    for clients in (live, signed):
        for name, client in clients.items():
            until(lambda client=client: len(client.messages) == 2, f"{name!r} gets its two")
    with session(pgbus_database) as connection:
        for name in ALIKE:
            assert [frame.data for frame in live[name].messages] == [f"to {name}", f"hint to {name}"]
            assert [frame.data for frame in signed[name].messages] == [f"to {name}", f"hint to {name}"]
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
