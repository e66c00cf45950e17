"""The database goes back in time under a worker. No client keeps or gets a message that it lacks without being told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg2.extensions as ext
import pytest
from plain_parts import plain
from support import Serving, gaps, last, reasons, received, run, serving, session, since_the_gap, stored, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.testing.databases import TestDatabases

CATCH_UP = 0.5
PATIENCE = 30.0  # seconds; on a quiet machine, it takes one catch_up_interval


@pytest.fixture
def server(pgbus_settings: Settings) -> Iterator[Serving]:
    with serving(pgbus_settings, catch_up_interval=CATCH_UP) as found:
        yield found


@pytest.fixture
def connection(pgbus_database: str) -> Iterator[Any]:
    with session(pgbus_database) as found:
        yield found


def publish(bus: Bus, *data: str, stream: str = "orders") -> list[int]:
    return [bus.stream(stream).broadcast(each) for each in data]


def lose(connection: Any, count: int, stream: str = "orders") -> None:
    """Delete the newest messages, as after a failover to a standby that lacks them."""
    run(
        connection,
        "delete from pgbus.messages where stream = %s and msg_id in"
        " (select msg_id from pgbus.messages where stream = %s order by msg_id desc limit %s)",
        stream,
        stream,
        count,
    )


# Messages that were delivered are gone


def test_within_the_catch_up_interval_clients_that_got_lost_messages_are_told(
    server: Serving, pgbus_bus: Bus, connection: Any
) -> None:
    clients = [server.live("orders") for _ in range(3)]
    ids = publish(pgbus_bus, *"abcde")
    for client in clients:
        until(lambda client=client: last(client) == "e", "it gets all")
    lose(connection, 2)
    for client in clients:
        until(lambda client=client: reasons(client) and last(client) == "c", "it gets a gap event", PATIENCE)
        expected = {"stream": "orders", "requestedId": ids[4], "oldestId": ids[0], "lastId": ids[2], "reason": "ahead"}
        assert gaps(client) == [expected]
        assert since_the_gap(client) == stored(connection, "orders")
    newcomers = [server.live("orders", since=0), server.live("orders", query="replay=2")]
    until(lambda: [len(client.messages) for client in newcomers] == [3, 2], "they get what there is")
    [new] = publish(pgbus_bus, "f")
    for client in [*clients, *newcomers]:
        until(lambda client=client: last(client) == "f" and client.last_id == str(new), "it goes on")
    assert [reasons(client) for client in newcomers] == [[], []]
    assert [reasons(client) for client in clients] == [["ahead"]] * 3


def test_a_message_after_the_loss_reaches_all_connected_clients(
    server: Serving, pgbus_bus: Bus, connection: Any
) -> None:
    """The message's id is above the worker's head, and its prev_id is below it."""
    client = server.live("orders")
    publish(pgbus_bus, *"abcde")
    until(lambda: last(client) == "e", "it gets all")
    lose(connection, 2)
    publish(pgbus_bus, "f")
    until(lambda: reasons(client) and last(client) == "f", "it gets a gap event and the new message", PATIENCE)
    assert since_the_gap(client) == stored(connection, "orders")


def test_a_client_behind_another_server_is_told_too(pgbus_settings: Settings, pgbus_bus: Bus, connection: Any) -> None:
    """Deliver through a response body, as on a host that does not hand over its sockets."""
    with plain(pgbus_settings, catch_up_interval=CATCH_UP) as server:
        live, away = server.live("orders"), server.live("orders")
        publish(pgbus_bus, *"abcde")
        for client in (live, away):
            until(lambda client=client: last(client) == "e", "it gets all")
        away.drop()
        lose(connection, 2)
        until(lambda: reasons(live) and last(live) == "c", "it gets a gap event", PATIENCE)
        away.resume()
        until(lambda: reasons(away) and last(away) == "c", "it gets a gap event when it comes back")
        publish(pgbus_bus, "f")
        for client in (live, away):
            until(lambda client=client: last(client) == "f", "it goes on")
            assert since_the_gap(client) == stored(connection, "orders")


@pytest.mark.parametrize("statement", ["truncate pgbus.messages, pgbus.horizons", "delete from pgbus.messages"])
def test_an_emptied_table_is_noticed(statement: str, server: Serving, pgbus_bus: Bus, connection: Any) -> None:
    client = server.live("orders")
    ids = publish(pgbus_bus, *"abc")
    until(lambda: last(client) == "c", "it gets all")
    run(connection, statement)
    until(lambda: reasons(client) == ["ahead"], "it gets a gap event", PATIENCE)
    assert gaps(client)[0]["requestedId"] == ids[2]
    newcomer = server.live("orders", since=0)
    publish(pgbus_bus, "d")
    for each in (client, newcomer):
        until(lambda each=each: last(each) == "d", "it goes on")
    assert [data for _, data in received(newcomer)] == ["d"]


def test_a_client_with_a_lost_cursor_gets_all_retained_messages(
    server: Serving, pgbus_bus: Bus, connection: Any
) -> None:
    live, away = server.live("orders"), server.live("orders")
    publish(pgbus_bus, *"abcde")
    for client in (live, away):
        until(lambda client=client: last(client) == "e", "it gets all")
    away.drop()
    lose(connection, 2)
    until(lambda: reasons(live), "the worker has noticed", PATIENCE)
    away.resume()
    until(lambda: reasons(away) and last(away) == "c", "it gets what there is")
    assert since_the_gap(away) == stored(connection, "orders")
    publish(pgbus_bus, "f")
    away.drop()
    away.resume()
    until(lambda: last(away) == "f", "it goes on")
    assert reasons(away) == ["ahead"]


@pytest.mark.parametrize("left", [0, 3])
def test_a_client_of_a_worker_that_did_not_see_the_loss_is_told_too(
    left: int, pgbus_settings: Settings, pgbus_bus: Bus, connection: Any
) -> None:
    """Newer messages exist by then, and none has the lost one as its prev_id."""
    with serving(pgbus_settings, catch_up_interval=CATCH_UP) as server:
        client, kept = server.live("orders"), server.live("orders", since=0)
        ids = publish(pgbus_bus, *"abcde")
        until(lambda: last(client) == last(kept) == "e", "they get all")
    lose(connection, 5 - left)
    connection.cursor().execute("select setval('pgbus.message_ids', last_value + 1000) from pgbus.message_ids")
    publish(pgbus_bus, *"fgh")
    with serving(pgbus_settings, catch_up_interval=CATCH_UP) as server:
        several = f"/pgbus/streams?stream=orders&since={ids[4]}&stream=stock"
        lost = [
            server.live("orders", since=ids[4]),
            server.live("orders", since=ids[3]),
            StreamClient(server.url, several),
        ]
        server.clients.append(lost[2])
        for client in lost:
            until(lambda client=client: reasons(client) and last(client) == "h", "it gets a gap event and all messages")
        rows = stored(connection, "orders")
        assert [[gap["requestedId"] for gap in gaps(client)] for client in lost] == [[ids[4]], [ids[3]], [ids[4]]]
        for client in lost:
            assert {gap["reason"] for gap in gaps(client)} == {"ahead"}
            assert {(gap["oldestId"], gap["lastId"]) for gap in gaps(client)} == {(rows[0][0], rows[-1][0])}
            assert [frame.data for frame in client.messages] == [data for _, data in rows]
        for id, _ in rows[:-1]:
            client = server.live("orders", since=id)
            until(lambda client=client: last(client) == "h", "it gets the rest")
            assert (reasons(client), received(client)) == ([], [row for row in rows if row[0] > id])
        publish(pgbus_bus, "i")
        for client in lost:
            until(lambda client=client: last(client) == "i", "it goes on")
            assert reasons(client) == ["ahead"]


def test_the_cursor_of_a_stream_that_was_forgotten_is_not_taken_for_a_lost_one(
    pgbus_settings: Settings, pgbus_bus: Bus, connection: Any
) -> None:
    ids = publish(pgbus_bus, *"abc")
    run(connection, "update pgbus.messages set created_at = now() - interval '1 day'")
    run(connection, "select * from pgbus.prune(array['orders'], array[interval '1 hour'])")
    run(connection, "update pgbus.horizons set pruned_at = now() - interval '100 days'")
    run(connection, "select pgbus._forget(null, interval '1 day')")
    publish(pgbus_bus, "other", stream="other")
    publish(pgbus_bus, "d")
    with serving(pgbus_settings) as server:
        for id in ids:
            client = server.live("orders", since=id)
            until(lambda client=client: last(client) == "d", "it goes on")
            assert reasons(client) == []


def test_only_the_stream_that_lost_messages_is_replayed(server: Serving, pgbus_bus: Bus, connection: Any) -> None:
    client = StreamClient(server.url, "/pgbus/streams?stream=orders&stream=stock")
    server.clients.append(client)
    client.next("pgbus:connected", timeout=PATIENCE)
    for data in "abcde":
        publish(pgbus_bus, data)
        publish(pgbus_bus, data, stream="stock")
    until(lambda: len(client.messages) == 10, "it gets all")
    lose(connection, 2)
    until(lambda: len(client.messages) == 13, "it gets again what there is", PATIENCE)
    assert [gap["stream"] for gap in gaps(client)] == ["orders"]
    # An id never goes beyond what was sent: the old id of the stock, and the new one of the orders.
    kept = stored(connection, "orders"), stored(connection, "stock")
    assert [frame.id for frame in client.messages[10:]] == [f"0~{id}.{kept[1][-1][0]}" for id, _ in kept[0]]
    client.drop()
    client.resume()
    publish(pgbus_bus, "f", stream="stock")
    until(lambda: last(client) == "f", "it goes on")
    assert len(client.messages) == 14


def test_a_stream_that_was_pruned_is_not_ahead_not_even_when_it_is_forgotten(
    server: Serving, pgbus_bus: Bus, connection: Any
) -> None:
    client = server.live("orders")
    publish(pgbus_bus, *"abc")
    until(lambda: last(client) == "c", "it gets all")
    run(connection, "update pgbus.messages set created_at = now() - interval '1 day'")
    run(connection, "select * from pgbus.prune(array['orders'], array[interval '1 hour'])")
    log = server.instance.registry.log("orders")
    assert log is not None
    until(lambda: log.pruned, "the worker knows", PATIENCE)
    run(connection, "update pgbus.horizons set pruned_at = now() - interval '100 days'")
    run(connection, "select pgbus._forget(null, interval '1 day')")
    assert run(connection, "select * from pgbus.horizons") == []
    sweeps = server.instance.sweeper.sweeps
    until(lambda: server.instance.sweeper.sweeps > sweeps + 2, "it has looked again", PATIENCE)
    publish(pgbus_bus, "d")
    until(lambda: last(client) == "d", "it goes on")
    assert (reasons(client), len(client.messages)) == ([], 4)


# Another database in its place


def shut(connection: Any, name: str) -> None:
    """End the sessions of a database, and let no new ones in."""
    run(connection, f'alter database "{name}" allow_connections false')
    run(connection, "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", name)
    until(lambda: not run(connection, "select from pg_stat_activity where datname = %s", name), "they end")


def swap(admin: str, old: str, new: str) -> None:
    """Replace a database by another one, and end the sessions of both."""
    with session(admin) as connection:
        for name in (old, new):
            shut(connection, name)
        run(connection, f'alter database "{old}" rename to "{old}_before"')
        run(connection, f'alter database "{new}" rename to "{old}"')
        run(connection, f'alter database "{old}" allow_connections true')
        run(connection, f'drop database "{old}_before"')


def test_a_restored_backup_is_noticed_as_soon_as_the_session_is_there_again(
    pgbus_settings: Settings, pgbus_databases: TestDatabases
) -> None:
    admin, url = pgbus_databases.url, pgbus_databases.make()
    name = str(ext.parse_dsn(url)["dbname"])
    settings = replace(pgbus_settings, database_url=url)
    # No periodic sweep runs within the test, so only the new session can notice.
    with serving(settings, catch_up_interval=60.0) as server, Bus(settings=settings) as bus:
        publish(bus, *"abc")
        backup = f"{name}_backup"
        with session(admin) as connection:
            shut(connection, name)
            run(connection, f'create database "{backup}" template "{name}"')
            run(connection, f'alter database "{name}" allow_connections true')
        until(lambda: server.instance.listener.live, "it listens")
        clients = [server.live("orders", since=0), server.live("orders")]
        ids = publish(bus, *(str(n) for n in range(100)))
        for client in clients:
            until(lambda client=client: last(client) == "99", "it gets all")
        before = server.instance.listener.reconnects
        swap(admin, name, backup)
        until(lambda: server.instance.listener.reconnects > before and server.instance.listener.live, "it is back")
        for client in clients:
            until(lambda client=client: reasons(client) and last(client) == "c", "it gets a gap event", PATIENCE)
            assert gaps(client)[0]["requestedId"] == ids[-1]
        newcomer = server.live("orders", since=0)
        publish(bus, "new")
        for client in [*clients, newcomer]:
            until(lambda client=client: last(client) == "new", "it goes on")
        with session(url) as connection:
            assert received(newcomer) == since_the_gap(clients[0]) == stored(connection, "orders")


# Holes, and rows that others wrote


@pytest.mark.parametrize(("ring", "query"), [(1, ""), (100, ""), (1, "replay=6"), (100, "replay=6")])
def test_rows_that_were_deleted_in_the_middle_are_reported(
    ring: int, query: str, pgbus_settings: Settings, pgbus_bus: Bus, connection: Any
) -> None:
    ids = publish(pgbus_bus, *"abcdefgh")
    run(connection, "delete from pgbus.messages where msg_id = any(%s)", ids[2:4])
    with serving(pgbus_settings, ring_messages=ring, page_size=3) as server:
        client = server.live("orders", **({"query": query} if query else {"since": ids[1]}))
        until(lambda: last(client) == "h", "it gets what there is")
        assert [(gap["reason"], gap["requestedId"], gap["oldestId"]) for gap in gaps(client)] == [
            ("expired", ids[1], ids[4])
        ]
        assert received(client) == stored(connection, "orders")[0 if query else 2 :]


def test_messages_deleted_in_the_middle_are_no_longer_sent_from_memory(
    server: Serving, pgbus_bus: Bus, connection: Any
) -> None:
    live = server.live("orders")
    ids = publish(pgbus_bus, *"abcdefgh")
    until(lambda: last(live) == "h", "it gets all")
    log = server.instance.registry.log("orders")
    assert log is not None
    run(connection, "delete from pgbus.messages where msg_id = any(%s)", ids[2:4])
    until(lambda: not log.ids, "the worker has noticed", PATIENCE)
    newcomers = [server.live("orders", since=since) for since in (0, ids[1], ids[4])]
    newcomers.append(server.live("orders", query="replay=5"))
    for client in newcomers:
        until(lambda client=client: last(client) == "h", "it gets what there is")
    assert ["".join(data for _, data in received(client)) for client in newcomers] == ["abefgh", "efgh", "fgh", "befgh"]
    assert [reasons(client) for client in newcomers] == [["expired"], ["expired"], [], ["expired"]]
    assert reasons(live) == []


def test_a_client_of_several_streams_gets_the_gap_event_too(server: Serving, pgbus_bus: Bus, connection: Any) -> None:
    ids = publish(pgbus_bus, *"abcdefgh")
    run(connection, "delete from pgbus.messages where msg_id = any(%s)", ids[2:4])
    client = StreamClient(server.url, f"/pgbus/streams?stream=stock&stream=orders&since={ids[1]}")
    server.clients.append(client)
    until(lambda: last(client) == "h", "it gets what there is")
    assert [(gap["stream"], gap["reason"]) for gap in gaps(client)] == [("orders", "expired")]
    assert client.last_id == f"1~0.{ids[-1]}"


def test_rows_that_replication_or_copy_brings_arrive_within_the_catch_up_interval_in_order(
    server: Serving, pgbus_bus: Bus, connection: Any
) -> None:
    client = server.live("orders")
    [first] = publish(pgbus_bus, "a")
    until(lambda: last(client) == "a", "it gets the first")
    run(connection, "set session_replication_role = replica")
    run(
        connection,
        "insert into pgbus.messages (stream, msg_id, prev_id, data)"
        " select 'orders', %s + n * 1000, case when n %% 2 = 0 then %s + (n - 1) * 1000 end, n::text"
        " from generate_series(1, 20) n order by random()",
        first,
        first,
    )
    until(lambda: last(client) == "20", "all arrive", PATIENCE)
    assert received(client) == stored(connection, "orders")
    assert reasons(client) == []


def test_a_row_replicated_late_below_the_head_reaches_no_client_beyond_it(
    server: Serving, pgbus_bus: Bus, connection: Any
) -> None:
    """As docs/sql.md says, rows of a stream must be committed in the order of their ids."""
    client = server.live("orders")
    first, second = publish(pgbus_bus, "a"), publish(pgbus_bus, "b")
    until(lambda: last(client) == "b", "it gets both")
    late = first[0] - 10
    run(connection, "insert into pgbus.messages (stream, msg_id, data) values ('orders', %s, 'late')", late)
    publish(pgbus_bus, "c")
    until(lambda: last(client) == "c", "it goes on")
    assert [int(frame.id or 0) for frame in client.messages][:2] == [first[0], second[0]]
    assert (len(client.messages), reasons(client)) == (3, [])
