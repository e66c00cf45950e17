"""The bytes on the wire, read by an independent decoder: data, events, cursors, control frames, ephemeral messages."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import quote

import psycopg2
import pytest
from support import get, judged, run, serving, session, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.errors import InvalidEvent
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.testing.servers import RunningServer

Connect = Callable[..., StreamClient]

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
    client.next()
    pgbus_bus.stream("orders").broadcast(INJECTION, ephemeral=True)
    client.next()  # a stored message may overtake an ephemeral one
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


# control frames and ephemeral messages


def fields(raw: bytes) -> list[list[bytes]]:
    """Return the lines of each frame."""
    return [frame.split(b"\n") for frame in raw.split(b"\n\n") if frame]


def test_only_messages_and_the_first_control_frame_have_an_id_and_it_comes_last(
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
        assert [frame[-2] for frame in with_id[1:]] == [b"data: 1", b"data: 2"]
        assert all(frame[-1].startswith(b"id: ") for frame in with_id)
        controls = [line for frame in frames for line in frame if line.startswith(b"event: pgbus:")]
        assert controls == [b"event: pgbus:connected", b"event: pgbus:gap-detected", b"event: pgbus:shutdown"]
        assert client.last_id == str(orders.last_id())


@pytest.mark.parametrize("size", [0, 1, 7_000, 7_799, 7_800, 7_900, 8_000, 100_000, 1_000_000])
def test_an_ephemeral_message_of_any_size_reaches_connected_clients(
    size: int, pgbus_bus: Bus, pgbus_client: Connect
) -> None:
    client = pgbus_client("orders")
    client.next("pgbus:connected")
    data = ('é\\"\n' * (size // 4 + 1))[:size]
    pgbus_bus.stream("orders").broadcast(data, event="hint", ephemeral=True)

    assert client.next("hint").data == data


def test_ephemeral_messages_of_one_publisher_stay_in_order_at_any_size(pgbus_bus: Bus, pgbus_client: Connect) -> None:
    client = pgbus_client("orders")
    client.next("pgbus:connected")
    sent = [f"{n} " + "x" * (20_000 if n % 7 == 3 else 10) for n in range(100)]
    for data in sent:
        pgbus_bus.stream("orders").broadcast(data, ephemeral=True)
    until(lambda: len(client.messages) == len(sent), "all arrive")

    assert [frame.data for frame in client.messages] == sent


def test_equal_ephemeral_messages_of_one_transaction_all_arrive(pgbus_bus: Bus, pgbus_client: Connect) -> None:
    client = pgbus_client("orders")
    client.next("pgbus:connected")
    with pgbus_bus.transaction() as cursor:
        for _ in range(3):
            pgbus_bus.stream("orders").broadcast("same", ephemeral=True, using=cursor)

    assert [client.next().data for _ in range(3)] == ["same"] * 3


def test_an_ephemeral_message_is_not_stored_and_not_replayed(pgbus_bus: Bus, pgbus_client: Connect) -> None:
    orders = pgbus_bus.stream("orders")
    # Once a connected client has received the message, the worker is done with it. Until then, a new client may get it live.
    witness = pgbus_client("orders", since=0)
    witness.next("pgbus:connected")
    orders.broadcast("hint", ephemeral=True)
    orders.broadcast("L" * 20_000, ephemeral=True)
    orders.broadcast("stored")
    seen = {witness.next().data for _ in range(3)}
    client = pgbus_client("orders", since=0)

    assert seen == {"hint", "L" * 20_000, "stored"}
    assert client.next().data == "stored"
    assert client.quiet(0.2)
