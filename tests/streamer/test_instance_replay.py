"""Resuming: where a client starts, which gap events it gets, and that a client far behind gets every message."""

from __future__ import annotations

import json
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
import pytest
from support import Serving, connect, gaps, percentile, received, run, serve_process, serving, session, stored, until

from pgbus_gevent.bus import Bus, Stream
from pgbus_gevent.core import relay_signs
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.client import StreamClient

Connect = Callable[..., StreamClient]


@pytest.fixture
def small_ring(pgbus_settings: Settings) -> Any:
    """Return a server whose rings have four messages and whose pages have three."""
    with serving(pgbus_settings, ring_messages=4, page_size=3) as server:
        yield server


def publish(bus: Bus, count: int, stream: str = "orders") -> list[int]:
    """Publish ``count`` messages, each with its number as data, and return their ids."""
    return [bus.stream(stream).broadcast(str(n)) or 0 for n in range(count)]


def ids(client: StreamClient) -> list[int]:
    return [id for id, _ in received(client)]


def until_has(client: StreamClient, last: int) -> list[int]:
    """Return the ids that a client has once it has ``last``."""
    until(lambda: client.messages and client.messages[-1].id == str(last), f"message {last} arrives")
    return ids(client)


# cursors


def test_a_client_that_drops_and_resumes_gets_what_it_missed_once(pgbus_bus: Bus, pgbus_client: Connect) -> None:
    client = pgbus_client("orders")
    client.next("pgbus:connected")
    expected = publish(pgbus_bus, 3)
    until_has(client, expected[-1])
    for _ in range(3):
        client.drop()
        expected += publish(pgbus_bus, 5)
        client.resume()
        expected += publish(pgbus_bus, 2)
        assert until_has(client, expected[-1]) == expected
    assert gaps(client) == []


@pytest.mark.parametrize("query", ["replay=5", "replay=0", ""])
def test_last_event_id_wins_over_the_url(query: str, pgbus_bus: Bus, pgbus_client: Connect) -> None:
    known = publish(pgbus_bus, 5)
    client = pgbus_client("orders", headers={"Last-Event-ID": str(known[3])}, query=query)
    assert until_has(client, known[-1]) == known[4:]
    with_since = pgbus_client("orders", since=known[0], headers={"Last-Event-ID": str(known[3])}, query=query)
    assert until_has(with_since, known[-1]) == known[4:]


def test_an_invalid_last_event_id_wins_too_and_gets_only_new_messages(pgbus_bus: Bus, pgbus_client: Connect) -> None:
    known = publish(pgbus_bus, 3)
    client = pgbus_client("orders", since=0, headers={"Last-Event-ID": "nonsense"})
    assert json.loads(client.next("pgbus:gap-detected").data) == {
        "stream": "orders", "requestedId": None, "oldestId": known[0], "lastId": known[-1], "reason": "invalid-cursor",
    }  # fmt: skip
    new = publish(pgbus_bus, 1)
    assert until_has(client, new[-1]) == new


def test_since_zero_gets_all_that_is_retained(small_ring: Serving, pgbus_bus: Bus) -> None:
    known = publish(pgbus_bus, 23)
    for _ in range(2):  # the second finds the stream open
        client = small_ring.client("orders", since=0)
        assert until_has(client, known[-1]) == known
        assert gaps(client) == []


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 7, 22, 23, 24, 10_000])
def test_replay_gets_the_last_messages_whether_the_ring_has_them_or_not(
    count: int, small_ring: Serving, pgbus_bus: Bus
) -> None:
    known = publish(pgbus_bus, 23)
    clients = [small_ring.live("orders", query=f"replay={count}") for _ in range(3)]
    known += publish(pgbus_bus, 1)
    until_has(clients[0], known[-1])
    clients.append(small_ring.live("orders", query=f"replay={count + 1}"))
    for client in clients:
        assert until_has(client, known[-1]) == known[-(count + 1) :]


def test_replay_of_a_stream_without_messages_waits_for_the_first(pgbus_bus: Bus, pgbus_client: Connect) -> None:
    clients = [pgbus_client("orders", query="replay=3"), pgbus_client("orders", since=0)]
    for client in clients:
        client.next("pgbus:connected")
    known = publish(pgbus_bus, 1)
    for client in clients:
        assert until_has(client, known[-1]) == known


def test_the_connected_frame_names_the_stream_and_its_last_id(pgbus_bus: Bus, pgbus_client: Connect) -> None:
    known = publish(pgbus_bus, 2)
    told = json.loads(pgbus_client("orders", since=known[0]).next("pgbus:connected").data)

    assert told["streams"] == [{"name": "orders", "lastId": known[-1]}]
    assert len(bytes.fromhex(told["connectionId"])) >= 8


# gaps


def prune(url: str, stream: str, below: int) -> None:
    """Remove the messages up to an id and note the horizon, as pruning does."""
    with session(url) as connection:
        connection.autocommit = False
        run(connection, "delete from pgbus.messages where stream = %s and msg_id <= %s", stream, below)
        run(
            connection,
            "insert into pgbus.horizons values (%s, %s) on conflict (stream) do update set msg_id = excluded.msg_id",
            stream,
            below,
        )
        connection.commit()


@pytest.mark.parametrize("watched", [False, True])
def test_a_client_with_a_cursor_below_the_horizon_is_told_and_gets_the_rest(
    watched: bool, small_ring: Serving, pgbus_bus: Bus, pgbus_database: str
) -> None:
    known = publish(pgbus_bus, 20)
    if watched:
        small_ring.live("orders")
    prune(pgbus_database, "orders", known[9])
    client = small_ring.client("orders", since=known[2])

    assert until_has(client, known[-1]) == known[10:]
    assert gaps(client) == [
        {"stream": "orders", "requestedId": known[2], "oldestId": known[10], "lastId": known[-1], "reason": "expired"}
    ]


def test_a_cursor_just_at_the_horizon_has_missed_nothing(
    small_ring: Serving, pgbus_bus: Bus, pgbus_database: str
) -> None:
    known = publish(pgbus_bus, 20)
    prune(pgbus_database, "orders", known[9])
    client = small_ring.client("orders", since=known[9])

    assert until_has(client, known[-1]) == known[10:]
    assert gaps(client) == []


@pytest.mark.parametrize("watched", [False, True])
def test_a_client_of_a_stream_that_was_pruned_to_nothing_is_still_told_of_the_gap(
    watched: bool, small_ring: Serving, pgbus_bus: Bus, pgbus_database: str
) -> None:
    known = publish(pgbus_bus, 20)
    if watched:
        small_ring.live("orders")
    prune(pgbus_database, "orders", known[-1])
    old, current = small_ring.client("orders", since=known[2]), small_ring.live("orders", since=known[-1])
    told = json.loads(old.next("pgbus:gap-detected").data)
    assert (told["requestedId"], told["lastId"], told["reason"]) == (known[2], known[-1], "expired")

    new = publish(pgbus_bus, 1)
    assert until_has(old, new[-1]) == until_has(current, new[-1]) == new
    assert len(gaps(old)) == 1 and gaps(current) == []


def test_since_zero_on_a_pruned_stream_is_no_gap(small_ring: Serving, pgbus_bus: Bus, pgbus_database: str) -> None:
    known = publish(pgbus_bus, 20)
    prune(pgbus_database, "orders", known[9])
    client = small_ring.client("orders", since=0)

    assert until_has(client, known[-1]) == known[10:]
    assert gaps(client) == []


@pytest.mark.parametrize("watched", [False, True])
def test_a_client_with_a_cursor_above_the_last_id_is_told_and_gets_everything(
    watched: bool, small_ring: Serving, pgbus_bus: Bus
) -> None:
    known = publish(pgbus_bus, 20)
    if watched:
        small_ring.live("orders")
    client = small_ring.client("orders", since=known[-1] + 1000)

    assert until_has(client, known[-1]) == known
    assert gaps(client) == [
        {
            "stream": "orders", "requestedId": known[-1] + 1000, "oldestId": known[0], "lastId": known[-1],
            "reason": "ahead",
        }
    ]  # fmt: skip
    assert client.last_id == str(known[-1])


def test_a_cursor_on_a_stream_that_never_was_is_ahead(small_ring: Serving, pgbus_bus: Bus) -> None:
    client = small_ring.client("never", since=42)
    told = json.loads(client.next("pgbus:gap-detected").data)
    assert told == {"stream": "never", "requestedId": 42, "oldestId": 0, "lastId": 0, "reason": "ahead"}


def test_a_committed_cursor_above_the_head_of_the_worker_is_not_ahead(
    pgbus_bus: Bus, pgbus_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without LISTEN the worker looks every ten minutes only, so the page is ahead of it.
    monkeypatch.setattr(relay_signs, "POLL_SHARE", 10.0)
    with serving(pgbus_settings, wake="poll", catch_up_interval=60.0) as server:
        live = server.live("orders")
        known = publish(pgbus_bus, 3)
        client = server.live("orders", since=known[1])

        assert until_has(client, known[-1]) == known[2:]
        assert gaps(client) == []
        assert until_has(live, known[-1]) == known


# far behind


@pytest.mark.parametrize("count", [1_200, 20_000])
def test_a_client_far_behind_gets_all_messages_and_does_not_delay_live_ones(
    count: int, pgbus_bus: Bus, pgbus_database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = pgbus_bus.stream("orders")
    stream.broadcast_many([str(n) for n in range(count)])
    with serve_process(pgbus_database) as server, session(pgbus_database) as connection:
        live = connect(server.url, "orders")
        live.next("pgbus:connected", timeout=20)
        expected = stored(connection, "orders")
        assert len(expected) == count

        began = monotonic()
        late = [connect(server.url, "orders", since=0), connect(server.url, "orders", since=expected[count // 3][0])]
        until(
            lambda: len(late[0].messages) >= count and len(late[1].messages) >= count - count // 3 - 1, "all replayed"
        )
        took = monotonic() - began
        assert received(late[0]) == expected
        assert received(late[1]) == expected[count // 3 + 1 :]

        # Once more, with messages coming meanwhile. If a process stands still, they are late, so the best of some times counts.
        for _ in range(5):
            lags = replayed_beside_live(server.url, connection, stream, live)
            if percentile(lags, 0.5) < 1.0:
                break
        expected = stored(connection, "orders")
        until(lambda: len(late[0].messages) >= len(expected), "the live ones arrive at the others too")
        assert received(late[0]) == expected
        assert received(live) == expected[count:]
        for client in (live, *late):
            client.close()
    with capsys.disabled():
        print(
            f"\n{count} behind: replayed in {took:.2f} s; {len(lags)} live ones meanwhile:"
            f" p50 {percentile(lags, 0.5) * 1000:.1f} ms, p99 {percentile(lags, 0.99) * 1000:.1f} ms"
        )
    assert percentile(lags, 0.5) < 1.0


def replayed_beside_live(url: str, connection: Any, stream: Stream, live: StreamClient) -> list[float]:
    """Replay all to a new client while messages are published. Return the seconds that each of these took to the live client."""
    count, before = len(stored(connection, stream.name)), len(live.messages)
    with connect(url, stream.name, since=0) as late:
        sent: dict[str, float] = {}
        while len(late.messages) < count or len(sent) < 10:
            sent[str(stream.broadcast(f"live {len(sent)}"))] = monotonic()
            gevent.sleep(0.01)
        until(lambda: len(live.messages) == before + len(sent), "the live ones arrive")
        until(lambda: len(late.messages) == count + len(sent), "and where all are replayed")
        assert received(late) == stored(connection, stream.name)
    arrived = {frame.id: at for frame, at in zip(live.frames, live.times, strict=True)}
    return [arrived[id] - at for id, at in sent.items()]


BUSY = """
do $$
declare ending timestamptz := clock_timestamp() + interval '60 s';
begin
  while not pg_try_advisory_xact_lock_shared(1) and clock_timestamp() < ending loop
    perform pgbus.broadcast('busy:' || (random() * 299)::int, clock_timestamp()::text);
    commit;
  end loop;
end $$
"""


def test_a_client_far_behind_catches_up_while_hundreds_of_streams_move_without_pause(
    pgbus_bus: Bus, pgbus_database: str
) -> None:
    def publish() -> None:
        with session(pgbus_database) as connection:
            run(connection, BUSY)

    pgbus_bus.stream("busy:0").broadcast_many([str(n) for n in range(20_000)])
    with serve_process(pgbus_database) as server, session(pgbus_database) as connection:
        live = [connect(server.url, f"busy:{n}") for n in range(300)]
        for client in live:
            client.next("pgbus:connected", timeout=20)
        run(connection, "select pg_advisory_lock(1)")  # until then, they publish
        publishers = [gevent.spawn(publish) for _ in range(16)]
        until(lambda: sum(len(client.messages) for client in live) > 300, "they move")
        behind = connect(server.url, "busy:0", since=0)
        until(lambda: len(behind.messages) >= 500, "pages are read meanwhile")
        assert not any(publisher.ready() for publisher in publishers)
        run(connection, "select pg_advisory_unlock(1)")
        gevent.joinall(publishers, timeout=30, raise_error=True)
        for client in (*live, behind):
            client.close()


def test_many_that_come_back_at_once_from_different_cursors_all_get_the_rest(
    small_ring: Serving, pgbus_bus: Bus
) -> None:
    known = publish(pgbus_bus, 60)
    before = small_ring.instance.reader.reads
    clients = [small_ring.client("orders", since=known[n % 50]) for n in range(100)]
    for n, client in enumerate(clients):
        assert until_has(client, known[-1]) == known[n % 50 + 1 :]
    assert small_ring.instance.reader.reads - before < 200, "reads are merged"


# the cursor that the first frame tells


STARTS: dict[str, tuple[dict[str, Any], Callable[[list[int]], str]]] = {
    "none": ({}, lambda ids: str(ids[-1])),
    "since zero": ({"since": 0}, lambda ids: "0"),
    "since": ({"since": 2}, lambda ids: str(ids[2])),
    "header": ({"header": 2}, lambda ids: str(ids[2])),
    "the head": ({"since": 9}, lambda ids: str(ids[9])),
    "pruned": ({"since": 1}, lambda ids: str(ids[1])),
    "malformed": ({"header": "nonsense"}, lambda ids: str(ids[-1])),
    "ahead": ({"header": str(2**53 - 1)}, lambda ids: "0"),
}


@pytest.mark.parametrize("start", STARTS)
def test_a_client_that_is_cut_off_after_the_first_frame_resumes_from_its_start(
    start: str, small_ring: Serving, pgbus_bus: Bus, pgbus_database: str
) -> None:
    asked, told = STARTS[start]
    sent = publish(pgbus_bus, 10)
    if start == "pruned":
        prune(pgbus_database, "orders", sent[4])
    since, header = asked.get("since"), asked.get("header")
    client = small_ring.client(
        "orders",
        since=sent[since] if since else since,
        headers={"Last-Event-ID": str(sent[header] if isinstance(header, int) else header)} if header else None,
    )
    frame = client.next("pgbus:connected")
    assert frame.id == told(sent) and frame.retry is not None
    client.drop()
    client.frames.clear()
    client._taken, client._headers, client.last_id = 0, {}, frame.id  # as one that got no more than that
    sent += publish(pgbus_bus, 1)
    client.resume()
    start_id = int(frame.id or 0)
    expected = [id for id in sent if id > start_id and not (start == "pruned" and id <= sent[4])]
    assert until_has(client, sent[-1]) == expected


def test_several_streams_have_their_starts_in_one_id(pgbus_server: Serving, pgbus_bus: Bus) -> None:
    orders, stock = publish(pgbus_bus, 3), publish(pgbus_bus, 2, "stock")
    client = StreamClient(pgbus_server.url, f"/pgbus/streams?stream=orders&since={orders[0]}&stream=stock&stream=news")
    try:
        frame = client.next("pgbus:connected")
        assert frame.id == f"0~{orders[0]}.{stock[1]}.0"
        client.drop()
        client.frames.clear()
        client._taken, client.last_id = 0, frame.id
        news = publish(pgbus_bus, 2, "news")
        client.resume()
        until(lambda: len(client.messages) == 4, "all of them")
        assert [frame.data for frame in client.messages if (frame.id or "").startswith("0~")] == ["1", "2"]
        assert client.last_id is not None and client.last_id.endswith(f"~{orders[2]}.{stock[1]}.{news[1]}")
    finally:
        client.close()
