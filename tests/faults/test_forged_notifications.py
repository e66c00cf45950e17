"""A notification is only a hint: a forged one, or one about messages that are not in the table, delivers nothing that lasts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from time import time
from typing import Any

import psycopg2
import psycopg2.extensions as ext
import pytest
from database_parts import BELL
from support import Serving, get, reasons, run, serving, session, stored, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.core.buckets import bucket_of, channel
from pgbus_gevent.database import notifications
from pgbus_gevent.messages import MAX_ID
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer import listener
from pgbus_gevent.testing.client import StreamClient

CATCH_UP = 0.5


@pytest.fixture
def server(pgbus_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    # If PostgreSQL stands still for a moment, the session is not given up, and no ephemeral message is lost with it.
    monkeypatch.setattr(notifications, "LIFE", 60.0)
    with serving(pgbus_settings, catch_up_interval=CATCH_UP) as found:
        yield found


@pytest.fixture
def connection(pgbus_database: str) -> Iterator[Any]:
    with session(pgbus_database) as found:
        yield found


@pytest.fixture
def stranger(pgbus_database: str, connection: Any) -> Iterator[Any]:
    """A session of a role without any grant."""
    role = f"stranger_{connection.info.backend_pid}"
    run(connection, f"create role {role}")
    with session(str(ext.make_dsn(pgbus_database, options=f"-c role={role}"))) as found:
        yield found
    run(connection, f"drop role {role}")


def doorbell(connection: Any, stream: str = "orders") -> str:
    """The name of the channel of a stream's bucket, which an attacker may have learnt."""
    return channel(str(run(connection, "select doorbell from pgbus.channels()")[0][0]), bucket_of(stream))


def notify(connection: Any, channel: str, *payload: Any) -> None:
    run(connection, "select pg_notify(%s, %s)", channel, json.dumps(payload))


def message(id: int, prev_id: int | None, data: str = "forged", created_at: float | None = None) -> list[Any]:
    return ["message", "orders", id, prev_id, time() if created_at is None else created_at, None, data, None, None]


def data(client: StreamClient) -> list[str]:
    return [frame.data for frame in client.messages]


def until_last(client: StreamClient, expected: str) -> None:
    until(lambda: data(client)[-1:] == [expected], f"{expected!r} is the last that it gets")


@pytest.mark.parametrize("channel", ["pgbus", "pgbus_control"])
def test_a_role_without_a_grant_hears_nothing_and_changes_nothing(
    channel: str, server: Serving, pgbus_bus: Bus, stranger: Any, connection: Any
) -> None:
    client = server.live("orders")
    head = pgbus_bus.stream("orders").broadcast("a")
    until_last(client, "a")
    run(stranger, f"listen {channel}")
    for payload in (message(head + 1, head), ["ephemeral", "orders", 1, None, "forged", None, None], ["control"]):
        notify(stranger, channel, *payload)
    run(stranger, f"unlisten {channel}; listen {channel}")
    stranger.notifies.clear()
    for number in range(5):
        pgbus_bus.stream("orders").broadcast(str(number))
        pgbus_bus.stream("orders").broadcast(f"hint {number}", ephemeral=True)
    until(lambda: len(data(client)) == 11, "it gets them all")
    run(stranger, "select 1")
    assert [notify.payload for notify in stranger.notifies] == []
    assert "forged" not in data(client)
    assert reasons(client) == []
    for statement in ("select * from pgbus.channels()", "table pgbus.messages", "select pgbus.change_channels()"):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            run(stranger, statement)


def test_if_the_channels_name_leaks_a_forged_message_does_not_last(
    server: Serving, pgbus_bus: Bus, connection: Any
) -> None:
    client = server.live("orders")
    head = pgbus_bus.stream("orders").broadcast("a")
    until_last(client, "a")
    notify(connection, doorbell(connection), *message(head + 1_000_000, head))
    until(lambda: reasons(client) == ["ahead"], "it gets a gap event")
    pgbus_bus.stream("orders").broadcast("b")
    until_last(client, "b")
    newcomer = server.live("orders", since=0)
    until_last(newcomer, "b")
    assert data(newcomer) == ["a", "b"]
    assert reasons(newcomer) == []


@pytest.mark.parametrize("prev", [0, None, "head", MAX_ID - 1])
def test_an_impossible_id_silences_no_stream(
    prev: int | str | None, server: Serving, pgbus_bus: Bus, connection: Any
) -> None:
    client = server.live("orders")
    head = pgbus_bus.stream("orders").broadcast("a")
    until_last(client, "a")
    prev_id = head if prev == "head" else prev
    notify(connection, doorbell(connection), *message(MAX_ID, prev_id))  # type: ignore[arg-type]
    pgbus_bus.stream("orders").broadcast("b")
    until_last(client, "b")
    assert [int(frame.id or 0) for frame in client.messages] == [id for id, _ in stored(connection, "orders")]
    assert reasons(client) == []


def got(client: StreamClient) -> list[tuple[int, str]]:
    return [(int(frame.id or 0), frame.data) for frame in client.messages]


@pytest.mark.parametrize("rings", [True, False], ids=["rings", "does not ring"])
def test_a_forged_message_with_the_very_next_id_hides_no_message(
    rings: bool, server: Serving, pgbus_bus: Bus, pgbus_database: str, connection: Any
) -> None:
    client, other = server.live("orders"), server.live("orders", query="replay=5")
    head = pgbus_bus.stream("orders").broadcast("a")
    until_last(client, "a")
    # From then on, the worker reads each message from the table too. What came before it has only heard.
    until(lambda: server.instance.sweeper._tail.top is not None, "it has swept")
    with session(pgbus_database) as squatter:
        if not rings:
            run(squatter, "select pg_advisory_lock(%s, bell) from generate_series(0, 15) bell", BELL)
        for number in range(5):
            # The forged notification is the first one of the transaction, so it comes before that of the message.
            run(connection, "begin")
            [(id,)] = run(connection, "select pgbus.broadcast('orders', %s)", f"b{number}")
            notify(connection, doorbell(connection), *message(id, head))
            run(connection, "commit")
            head = id
    pgbus_bus.stream("orders").broadcast("c")
    for each in (client, other):
        until_last(each, "c")
        # A client may get the last message before a look at the table shows that an earlier one was forged.
        until(lambda each=each: set(stored(connection, "orders")) <= set(got(each)), "it gets all that is stored")
        expected = [id for id, _ in stored(connection, "orders")]
        frames = got(each)
        assert [id for id, data in frames if data != "forged"][-len(expected) :] == expected
        assert set(reasons(each)) <= {"ahead"}


def test_unreadable_payloads_delay_nothing(server: Serving, pgbus_bus: Bus, connection: Any) -> None:
    client = server.live("orders")
    channel = doorbell(connection)
    payloads = [
        "[" * 7000, '["message", ' + "9" * 7000 + "]", '["moved", ' + "[" * 3000 + "]" * 3001, '["message"]', "{}",
        '["message", "orders", NaN, Infinity, -Infinity, 5, 5, 5, 5]', '["large", "orders", 99999]', "\x7f", '"',
        '["moved", ' + ", ".join(f'"s{n}"' for n in range(1000)) + "]", '["control"]',
    ]  # fmt: skip
    for number in range(20):
        for payload in payloads:
            run(connection, "select pg_notify(%s, %s)", channel, payload)
        pgbus_bus.stream("orders").broadcast(str(number))
        pgbus_bus.stream("orders").broadcast(f"hint {number}", ephemeral=True)
    until(lambda: len(data(client)) == 40, "it gets them all")
    assert server.instance.alive
    assert server.instance.listener.reconnects == 0


@pytest.mark.parametrize("at", ["Infinity", "-Infinity", "NaN", "1e300", "-1e300", "0"])
def test_no_time_in_a_payload_spoils_the_metrics(at: str, server: Serving, pgbus_bus: Bus, connection: Any) -> None:
    client = server.live("orders")
    head = pgbus_bus.stream("orders").broadcast("a")
    until_last(client, "a")
    payload = f'["message", "orders", {head + 5}, {head}, {at}, null, "forged", null, null]'
    run(connection, "select pg_notify(%s, %s)", doorbell(connection), payload)
    until(lambda: reasons(client), "it was taken, and found out")
    [total] = [
        float(line.split()[1])
        for line in get(server.url, "/pgbus/metrics").body.decode().splitlines()
        if line.startswith("pgbus_append_to_send_seconds_sum")
    ]
    assert 0 <= total < 60


def test_a_large_ephemeral_message_reaches_only_the_stream_that_it_was_published_to(
    server: Serving, pgbus_bus: Bus, connection: Any
) -> None:
    private, public = server.live("private"), server.live("public")
    pgbus_bus.stream("private").broadcast("secret" * 3000, ephemeral=True)
    until(lambda: data(private), "its own stream gets it")
    [(number,)] = run(connection, "select id from pgbus.ephemerals")
    notify(connection, doorbell(connection, "public"), "large", "public", number)
    pgbus_bus.stream("public").broadcast("after", ephemeral=True)
    until_last(public, "after")
    assert data(public) == ["after"]


def test_names_that_got_about_can_be_changed_while_all_runs(
    server: Serving, pgbus_bus: Bus, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "PING_SOON", 0.1)
    client = server.live("orders")
    former = doorbell(connection)
    run(connection, "select pgbus.change_channels()")
    assert doorbell(connection) != former

    def heard() -> bool:
        pgbus_bus.stream("orders").broadcast("probe", ephemeral=True)
        return bool(data(client))

    until(heard, "it listens on the new one", pause=0.05)
    notify(connection, former, "ephemeral", "orders", 1, None, "forged", None, None)
    head = pgbus_bus.stream("orders").broadcast("a")
    notify(connection, former, *message(head + 1, head))
    pgbus_bus.stream("orders").broadcast("b")
    until_last(client, "b")
    assert "forged" not in data(client)
