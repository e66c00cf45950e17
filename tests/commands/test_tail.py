"""``tail`` as users run it: in a pipe, on a database that restarts, with readers that stop reading."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import psycopg2
import pytest
from cli_parts import PATIENCE, PROGRAM, Cli, Tail, environment
from support import until

from pgbus_gevent.bus import Bus
from pgbus_gevent.database.embedded import EmbeddedPostgres
from pgbus_gevent.testing.databases import OPTIONS


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """A deadline for each test, so that none waits for ever."""
    with gevent.Timeout(170):
        yield


@pytest.fixture
def cli(tmp_path: Path, pgbus_database: str) -> Cli:
    return Cli(tmp_path, pgbus_database)


def execute(url: str, statement: str, *arguments: Any) -> list[Any]:
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement, arguments)
        return cursor.fetchall() if cursor.description else []


# what it prints


def test_a_message_is_a_line_of_id_event_and_data(cli: Cli, pgbus_bus: Bus) -> None:
    first = pgbus_bus.stream("orders").broadcast("<p>paid</p>", event="order.paid")
    second = pgbus_bus.stream("orders").broadcast("plain")
    with Tail(cli, "orders", "--since", "0") as tail:
        assert tail.line() == f"{first} order.paid <p>paid</p>"
        assert tail.line() == f"{second} - plain"


def test_with_several_streams_the_name_is_a_column(cli: Cli, pgbus_bus: Bus) -> None:
    ids = {name: pgbus_bus.stream(name).broadcast(name, event="e") for name in ("日本", "orders")}
    with Tail(cli, "orders", "日本", "orders", "--replay", "1") as tail:
        assert {tail.line(), tail.line()} == {f"{ids['orders']} orders e orders", f"{ids['日本']} 日本   e 日本"}


def test_further_lines_of_data_stand_below_the_first(cli: Cli, pgbus_bus: Bus) -> None:
    id = pgbus_bus.stream("orders").broadcast("one\ntwo\r\n\rfour", event="e")
    with Tail(cli, "orders", "--since", "0") as tail:
        indent = " " * len(f"{id} e ")
        assert [tail.line() for _ in range(4)] == [f"{id} e one", f"{indent}two", indent, f"{indent}four"]


def test_control_characters_do_not_reach_the_terminal(cli: Cli, pgbus_bus: Bus) -> None:
    id = pgbus_bus.stream("orders").broadcast("\x1b[2J\tx\x9b", event="a\x07b")
    with Tail(cli, "orders", "--since", "0") as tail:
        assert tail.line() == rf"{id} a\x07b \x1b[2J" + "\t" + r"x\x9b"


@pytest.mark.parametrize(
    "data", ["", "one\ntwo", "\x1b[2J \x85 \u2028 \u2029 \x7f", 'é "日本" \\ \t', " leading", "x" * 500_000]
)
def test_json_is_one_object_a_line_with_the_data_unchanged(data: str, cli: Cli, pgbus_bus: Bus) -> None:
    id = pgbus_bus.stream("ordérs").broadcast(data, event="e")
    with Tail(cli, "ordérs", "--since", "0", "--json") as tail:
        line = tail.line()
        assert len(line.splitlines()) == 1
        assert json.loads(line) == {"stream": "ordérs", "id": id, "event": "e", "data": data}


def test_json_has_null_for_a_missing_id_or_event(cli: Cli, pgbus_bus: Bus) -> None:
    with Tail(cli, "orders", "--json") as tail:
        tail.sync(pgbus_bus, "orders")
        pgbus_bus.stream("orders").broadcast("hint", ephemeral=True)
        assert tail.message() == {"stream": "orders", "id": None, "event": None, "data": "hint"}


def test_flags_may_stand_between_names(cli: Cli, pgbus_bus: Bus) -> None:
    ids = {pgbus_bus.stream(name).broadcast(name) for name in ("a", "b")}
    with Tail(cli, "a", "--json", "--replay", "1", "b") as tail:
        assert {tail.message()["id"], tail.message()["id"]} == ids


# where it starts


def test_without_a_cursor_it_starts_with_the_next_message(cli: Cli, pgbus_bus: Bus) -> None:
    pgbus_bus.stream("orders").broadcast("old")
    with Tail(cli, "orders", "--json") as tail:
        tail.sync(pgbus_bus, "orders")
        pgbus_bus.stream("orders").broadcast("new")
        assert tail.message()["data"] == "new"


@pytest.mark.parametrize("start, first", [(["--replay", "2"], "3"), (["--replay", "99"], "0"), (["--since", "0"], "0")])
def test_it_starts_at_the_given_place(start: list[str], first: str, cli: Cli, pgbus_bus: Bus) -> None:
    pgbus_bus.stream("orders").broadcast_many(list("01234"))
    with Tail(cli, "orders", "--json", *start) as tail:
        assert tail.message()["data"] == first


def test_since_an_id_starts_after_it_and_leaves_nothing_out(cli: Cli, pgbus_bus: Bus) -> None:
    stream = pgbus_bus.stream("orders")
    last = stream.broadcast_many([str(n) for n in range(3000)])
    assert last is not None
    with Tail(cli, "orders", "--json", "--since", str(last - 2990)) as tail:
        stream.broadcast("3000")
        assert [tail.message()["data"] for _ in range(2991)] == [str(n) for n in range(10, 3001)]


def test_an_id_of_one_stream_is_a_place_in_the_others(cli: Cli, pgbus_bus: Bus) -> None:
    pgbus_bus.stream("a").broadcast("before")
    since = pgbus_bus.stream("b").broadcast("before")
    with Tail(cli, "a", "b", "--json", "--since", str(since)) as tail:
        pgbus_bus.stream("a").broadcast("after")
        pgbus_bus.stream("b").broadcast("after")
        assert sorted((tail.message() | {"id": 0}).items() for _ in range(2)) == [
            {"stream": name, "id": 0, "event": None, "data": "after"}.items() for name in "ab"
        ]
        tail.signal()
        assert tail.end().err == ""


def test_it_reports_a_cursor_beyond_the_end(cli: Cli, pgbus_bus: Bus) -> None:
    last = pgbus_bus.stream("orders").broadcast("x")
    with Tail(cli, "orders", "--json", "--since", f"{2**53 - 1}") as tail:
        assert tail.complaint() == (
            f"pgbus-gevent: orders: {2**53 - 1} is above the last id, {last}; all retained messages follow"
        )
        assert tail.message()["id"] == last


def test_it_reports_messages_that_are_gone(cli: Cli, pgbus_bus: Bus, pgbus_database: str) -> None:
    gone, kept = (pgbus_bus.stream("orders").broadcast(data) for data in ("gone", "kept"))
    assert gone is not None
    execute(pgbus_database, "delete from pgbus.messages where msg_id = %s", gone)
    execute(pgbus_database, "insert into pgbus.horizons (stream, msg_id) values ('orders', %s)", gone)
    with Tail(cli, "orders", "--json", "--since", str(gone - 1)) as tail:
        assert tail.message()["data"] == "kept"
        assert tail.complaint() == (
            f"pgbus-gevent: orders: the messages after {gone - 1} and before {kept} are no longer retained; the rest follows"
        )


def test_it_shows_messages_that_are_not_for_everybody(cli: Cli, pgbus_bus: Bus) -> None:
    pgbus_bus.stream("orders").broadcast("x", visible_to="admins")
    with Tail(cli, "orders", "--json", "--since", "0") as tail:
        assert tail.message()["data"] == "x"
        tail.signal()
        assert tail.end().err == ""


# how it ends


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGHUP, 0)])
def test_a_signal_ends_it_in_silence(number: int, status: int, cli: Cli, pgbus_bus: Bus) -> None:
    handler = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        tail = Tail(cli, "orders", "--json")
    finally:
        signal.signal(signal.SIGHUP, handler)
    with tail:
        tail.sync(pgbus_bus, "orders")
        tail.signal(number)
        ended = tail.end()
        assert (ended.status, ended.err) == (status, "")


def test_under_nohup_it_outlives_its_terminal(cli: Cli, pgbus_bus: Bus) -> None:
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        tail = Tail(cli, "orders", "--json")
    finally:
        signal.signal(signal.SIGHUP, handler)
    with tail:
        tail.sync(pgbus_bus, "orders")
        tail.signal(signal.SIGHUP)
        pgbus_bus.stream("orders").broadcast("still here")
        assert tail.message()["data"] == "still here"


def test_it_leaves_no_session_behind(cli: Cli, pgbus_bus: Bus, pgbus_database: str) -> None:
    with Tail(cli, "orders", "--json", PGAPPNAME="x") as tail:
        tail.sync(pgbus_bus, "orders")
        tail.signal()
        tail.end()
    pgbus_bus.close()
    deadline = monotonic() + PATIENCE
    others = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    while execute(pgbus_database, others) != [(0,)]:
        assert monotonic() < deadline
        gevent.sleep(0.05)


def test_head_ends_it_without_a_further_message(cli: Cli, pgbus_bus: Bus) -> None:
    id = pgbus_bus.stream("orders").broadcast("x")
    command = shlex.join([*PROGRAM, "tail", "orders", "--since", "0"])
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -1; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        timeout=PATIENCE,
        env=environment(**cli.variables),
    )
    assert (done.stdout.decode(), done.stderr) == (f"{id} - x\n0\n", b"")


def test_a_write_into_a_broken_pipe_ends_it(cli: Cli, pgbus_bus: Bus) -> None:
    pgbus_bus.stream("orders").broadcast_many(["x" * 1000] * 1000)
    command = shlex.join([*PROGRAM, "tail", "orders", "--since", "0"])
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -1 >/dev/null; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        timeout=PATIENCE,
        env=environment(**cli.variables),
    )
    assert (done.stdout, done.stderr) == (b"0\n", b"")


# a reader that stops, and a database that goes away


def test_a_reader_that_pauses_still_gets_everything(cli: Cli, pgbus_bus: Bus, pgbus_database: str) -> None:
    stream = pgbus_bus.stream("orders")
    data = [f"{n}{'x' * 1000}" for n in range(3000)]
    # The deadline is so short that the follower is sent away, and comes back, again and again.
    with Tail(cli, "orders", "--json", "--since", "0", "--log-level", "debug", PGBUS_WRITE_DEADLINE="0.2") as tail:
        stream.broadcast_many(data)
        while "slow-consumer" not in tail.complaint():
            pass
        # Its listener goes on meanwhile: of a million pages, only the few remain that PostgreSQL keeps before it cleans up.
        # The queue is that of the whole server, so for a while it may be another test whose listener stands still.
        few = "select pg_notification_queue_usage() < 0.00001"
        until(lambda: execute(pgbus_database, few) == [(True,)], "its listener goes on", PATIENCE)
        reading = gevent.spawn(tail.process.stderr.read)  # type: ignore[union-attr]
        assert [tail.message()["data"] for _ in data] == data
        stream.broadcast("last")
        assert tail.message()["data"] == "last"
        tail.signal()
        assert tail.process.wait(PATIENCE) == 0
        reading.join(PATIENCE)


def test_a_signal_ends_it_while_its_reader_pauses(cli: Cli, pgbus_bus: Bus) -> None:
    pgbus_bus.stream("orders").broadcast_many(["x" * 1000] * 1000)
    reader, writer = os.pipe()
    try:
        with Tail(
            cli, "orders", "--since", "0", "--log-level", "debug", out=writer, PGBUS_WRITE_DEADLINE="0.2"
        ) as tail:
            while "slow-consumer" not in tail.complaint():
                pass
            tail.signal()
            assert tail.end().status == 0
    finally:
        os.close(reader)
        os.close(writer)


def test_sessions_that_are_terminated_lose_and_repeat_nothing(cli: Cli, pgbus_bus: Bus, pgbus_database: str) -> None:
    stream = pgbus_bus.stream("orders")
    with Tail(cli, "orders", "--json") as tail:
        tail.sync(pgbus_bus, "orders")
        expected, found = [], []
        for n in range(3):
            execute(
                pgbus_database,
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()",
            )
            pgbus_bus.close()
            expected += [str(n * 10 + m) for m in range(10)]
            for data in expected[-10:]:
                stream.broadcast(data)
            found += [tail.message()["data"] for _ in range(10)]
        assert found == expected


@pytest.fixture
def embedded() -> Iterator[tuple[Cli, EmbeddedPostgres]]:
    """A command line that finds its database, with its server, in its data directory."""
    with tempfile.TemporaryDirectory(prefix="pgbus-test-") as directory:
        os.chmod(directory, 0o755)  # the server may run as another user
        with EmbeddedPostgres.open(directory, options=OPTIONS) as server:
            cli = Cli(Path(directory))
            cli.ok("migrate")
            yield cli, server


def test_it_goes_on_over_restarts_of_the_database(embedded: tuple[Cli, EmbeddedPostgres]) -> None:
    cli, server = embedded
    with Bus(server.url, secret="a secret of the test") as bus, Tail(cli, "orders", "--json") as tail:
        stream = bus.stream("orders")
        tail.sync(bus, "orders")
        for n, mode in enumerate(("fast", "immediate")):
            stream.broadcast(f"before {n}")
            server.restart(mode)  # type: ignore[arg-type]
            bus.close()
            stream.broadcast(f"after {n}")
        assert [tail.message()["data"] for _ in range(4)] == ["before 0", "after 0", "before 1", "after 1"]
        tail.signal()
        ended = tail.end()
        assert ended.status == 0
        assert ended.out == "" or all(json.loads(line)["event"] == "sync" for line in ended.out.splitlines())


def test_a_tail_waits_for_a_database_that_goes_away(
    embedded: tuple[Cli, EmbeddedPostgres],
) -> None:
    cli, server = embedded
    with Bus(server.url, secret="a secret of the test") as bus:
        last = bus.stream("orders").broadcast("before")
    with Tail(cli, "orders", "--json", "--since", str(last)) as tail:
        # From here on it need not be reachable. It may have asked for the messages already, or not yet.
        listens = "select 1 from pg_stat_activity where application_name = 'pgbus-listen'"
        until(lambda: execute(server.url, listens), "it has started", PATIENCE)
        server.restart("immediate")
        with Bus(server.url, secret="a secret of the test") as bus:
            bus.stream("orders").broadcast("after")
        assert tail.message()["data"] == "after"


def test_it_keeps_the_embedded_database_running(embedded: tuple[Cli, EmbeddedPostgres]) -> None:
    cli, server = embedded
    with Bus(server.url, secret="a secret of the test") as bus:
        bus.stream("orders").broadcast("x")
    server.close()
    with Tail(cli, "orders", "--json", "--since", "0") as tail:
        assert tail.message()["data"] == "x"
        id = cli.ok("broadcast", "orders", "y").strip()
        assert tail.message()["id"] == int(id)
        assert re.search(r"orders +2 ", cli.ok("streams"))
        tail.signal()
        assert tail.end().status == 0
    with pytest.raises(psycopg2.OperationalError):
        execute(server.url, "select 1")
