"""Opening connections: hosts that are mute, refuse or have no address, and the settings of every connection."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import psycopg2
import psycopg2.extensions as ext
import pytest
from database_parts import PATIENCE, Proxy, is_waiting, opened_sessions, until

from pgbus_gevent.database import green
from pgbus_gevent.database.connect import connect, translate
from pgbus_gevent.errors import DatabaseError, DatabaseUnavailable, InvalidArgument

ROOT = Path(green.__file__).parents[2]


def opened(url: str, connect_timeout: float = PATIENCE, statement_timeout: float = 20.0, **more: Any) -> Any:
    """A context manager of a connection."""
    return closing(
        connect(
            url,
            application_name="pgbus-test",
            connect_timeout=connect_timeout,
            statement_timeout=statement_timeout,
            **more,
        )
    )


def one(connection: Any, statement: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0]


@pytest.fixture(autouse=True)
def cooperative() -> None:
    green.install()


@pytest.fixture
def mute() -> Iterator[int]:
    """A port that accepts connections and sends nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def refusing() -> Iterator[int]:
    """A port without a listener, which no other program gets meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])


def with_hosts(url: str, *before: tuple[str, int]) -> str:
    """The URL with other hosts listed before its own."""
    own = ext.parse_dsn(url)
    hosts = [*before, (own.get("host", ""), own.get("port", "5432"))]
    return str(ext.make_dsn(url, host=",".join(h for h, _ in hosts), port=",".join(str(p) for _, p in hosts)))


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    found = Proxy(database)
    yield found
    found.stop()


@contextmanager
def takes(least: float, most: float = PATIENCE) -> Iterator[None]:
    """Assert how many seconds the block takes. At most: this process and the server may stand still for some of them."""
    began = monotonic()
    yield
    assert least <= monotonic() - began <= most


# hosts


def test_a_mute_port_is_given_up_at_the_connect_timeout(mute: int) -> None:
    with (
        takes(0.3),
        pytest.raises(DatabaseUnavailable, match="did not answer the connect in time"),
        opened(f"postgresql://u@127.0.0.1:{mute}/d", connect_timeout=0.3),
    ):
        pass


def test_the_hub_runs_on_while_a_port_is_mute(mute: int) -> None:
    url = f"postgresql://u@127.0.0.1:{mute}/d"
    connecting = gevent.spawn(connect, url, application_name="x", connect_timeout=PATIENCE, statement_timeout=1.0)
    for _ in range(20):
        gevent.sleep(0.01)
    assert not connecting.ready(), "it has held up all others"
    connecting.kill()


def test_a_refused_connection_says_so_at_once(refusing: int) -> None:
    with (
        takes(0),
        pytest.raises(DatabaseUnavailable, match=rf"refused \(address 127\.0\.0\.1, port {refusing}\)$"),
        opened(f"postgresql://u@127.0.0.1:{refusing}/d", connect_timeout=2 * PATIENCE),
    ):
        pass


def test_a_host_that_is_mute_is_stepped_over(database: str, mute: int) -> None:
    def found(timeout: float) -> Any:
        with takes(timeout), opened(with_hosts(database, ("127.0.0.1", mute)), connect_timeout=timeout) as connection:
            return one(connection, "select 1")

    # The mute host costs the whole timeout, but a busy server needs more than a moment.
    for timeout in (0.3, 1.0, 4.0):
        with suppress(DatabaseUnavailable):
            assert found(timeout) == 1
            return
    assert found(16.0) == 1


def test_a_host_that_refuses_is_stepped_over(database: str, refusing: int) -> None:
    with opened(with_hosts(database, ("127.0.0.1", refusing), ("127.0.0.1", refusing))) as connection:
        assert one(connection, "select 1") == 1


def test_a_name_that_does_not_resolve_is_stepped_over(database: str) -> None:
    with opened(with_hosts(database, ("no-such-host.invalid", 5432))) as connection:
        assert one(connection, "select 1") == 1


def test_a_name_that_does_not_resolve_is_named() -> None:
    with (
        pytest.raises(DatabaseUnavailable, match=r"host no-such-host\.invalid does not resolve"),
        opened("postgresql://u@no-such-host.invalid/d"),
    ):
        pass


def test_every_address_of_a_name_is_tried(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    original: Any = socket.getaddrinfo

    def resolve(name: str, *more: Any, **named: Any) -> Any:
        if name != "db.example":
            return original(name, *more, **named)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("127.0.0.9", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with opened(str(ext.make_dsn(proxy.url, host="db.example"))) as connection:
        assert one(connection, "select 1") == 1
        assert connection.info.host == "db.example"  # TLS and .pgpass need the name


def test_a_host_without_the_wanted_target_session_attrs_is_skipped(database: str) -> None:
    with (
        pytest.raises(DatabaseUnavailable, match="hot standby"),
        opened(str(ext.make_dsn(database, target_session_attrs="standby"))),
    ):
        pass
    with opened(str(ext.make_dsn(database, target_session_attrs="read-write"))):
        pass


def test_a_database_that_is_not_there_is_unavailable(database: str) -> None:
    with (
        pytest.raises(DatabaseUnavailable, match='database "nowhere" does not exist'),
        opened(str(ext.make_dsn(database, dbname="nowhere"))),
    ):
        pass


@pytest.mark.parametrize(
    "url", ["postgresql://u:s3cret@h:x:y/d?nonsense=1", "postgres//u:s3cret@host", "s3cret", "a='s3cret"]
)
def test_a_url_that_cannot_be_parsed_is_refused_without_showing_the_password(url: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot be parsed") as refused, opened(url):
        pass
    assert "s3cret" not in str(refused.value)


def test_a_password_that_is_taken_for_the_host_is_not_shown() -> None:
    with pytest.raises(DatabaseUnavailable) as failed, opened("postgresql://u:p@s3cret@no-such-host.invalid/d"):
        pass
    assert "s3cret" not in str(failed.value)


# settings of a connection


def test_a_connection_is_in_autocommit_mode_and_has_its_settings(database: str) -> None:
    with opened(database, statement_timeout=7.5, settings={"lock_timeout": "3s"}) as connection:
        assert connection.autocommit
        shown = {
            name: one(connection, f"show {name}")
            for name in (
                "statement_timeout", "lock_timeout", "application_name", "client_connection_check_interval",
                "idle_session_timeout", "transaction_isolation",
            )
        }  # fmt: skip
    assert shown == {
        "statement_timeout": "7500ms",
        "lock_timeout": "3s",
        "application_name": "pgbus-test",
        "client_connection_check_interval": "2s",
        "idle_session_timeout": "0",
        "transaction_isolation": "read committed",
    }


def test_the_options_of_the_url_are_kept(database: str) -> None:
    url = ext.make_dsn(database, options="-c search_path=pg_catalog -c work_mem=5MB")
    with opened(str(url)) as connection:
        assert one(connection, "show work_mem") == "5MB"
        assert one(connection, "show statement_timeout") == "20s"


def test_our_statements_are_read_committed_whatever_the_database_says(pgbus_database: str) -> None:
    with opened_sessions(pgbus_database) as opener:
        name = ext.parse_dsn(pgbus_database)["dbname"]
        opener().run(f"alter database {name} set default_transaction_isolation = 'repeatable read'")
        assert opener().one("show transaction_isolation") == "repeatable read"
    with opened(pgbus_database) as connection:
        assert one(connection, "show transaction_isolation") == "read committed"


@pytest.mark.parametrize("how", ["url", "environment", "role"])
def test_text_is_exchanged_in_utf8_whatever_else_is_set(
    how: str, pgbus_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = pgbus_database
    if how == "url":
        url = str(ext.make_dsn(url, client_encoding="latin1"))
    elif how == "environment":
        monkeypatch.setenv("PGCLIENTENCODING", "latin1")
    else:
        with opened_sessions(url) as opener:
            opener().run(f"alter database {ext.parse_dsn(url)['dbname']} set client_encoding = 'latin1'")
    with opened(url) as connection:
        assert one(connection, "select '\u2713 \U0001f600'") == "\u2713 \U0001f600"


# statements


def test_a_statement_is_ended_by_the_server_at_its_timeout(database: str) -> None:
    # Not shorter, because each statement has it, and those of the connect too.
    with opened(database, statement_timeout=1.5) as connection:
        with takes(1.5), pytest.raises(psycopg2.errors.QueryCanceled):
            one(connection, "select pg_sleep(60)")
        assert one(connection, "select 1") == 1


def test_a_server_that_no_longer_answers_is_given_up(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(proxy.url) as connection:
        assert one(connection, "select 1") == 1
        monkeypatch.setattr(green, "STATEMENT_GRACE", 0.3)
        connection.statement_timeout = 0.2
        proxy.dead = True
        with takes(0.5), pytest.raises(psycopg2.OperationalError, match="did not answer the statement in time"):
            one(connection, "select 1")
        assert connection.closed


def test_a_server_that_falls_silent_while_connecting_is_given_up(proxy: Proxy) -> None:
    proxy.dead = True
    with takes(0.3), pytest.raises(DatabaseUnavailable, match="in time"), opened(proxy.url, connect_timeout=0.3):
        pass


def test_other_connections_of_the_process_wait_as_psycogreen_lets_them(database: str) -> None:
    with opened_sessions(database) as opener:
        holder, waiter = opener(), opener()  # of plain psycopg2
        holder.run("select pg_advisory_lock(7)")
        waiting = waiter.spawn("select pg_advisory_lock(7)")
        until(lambda: is_waiting(holder, waiter), "others go on while it waits")
        holder.run("select pg_advisory_unlock(7)")
        waiting.get(timeout=PATIENCE)


UNPATCHED = """
import sys, time
from pgbus_gevent.database.connect import connect
began = time.monotonic()
try:
    times = {"connect_timeout": float(sys.argv[2]), "statement_timeout": float(sys.argv[3])}
    connection = connect(sys.argv[1], application_name="x", **times)
    cursor = connection.cursor()
    cursor.execute("select pg_sleep(100)")
except Exception as error:
    print(f"{type(error).__name__} after {time.monotonic() - began:.1f}")
"""


@pytest.mark.parametrize("at", ["a mute port", "the database"])
def test_a_process_that_is_not_patched_keeps_the_timeouts_too(at: str, database: str, mute: int) -> None:
    arguments = [database, "20", "1.5"] if at == "the database" else [f"postgresql://u@127.0.0.1:{mute}/d", "1", "20"]
    done = subprocess.run(
        [sys.executable, "-c", UNPATCHED, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    kind, seconds = done.stdout.split(" after ")
    assert kind == ("QueryCanceled" if at == "the database" else "DatabaseUnavailable")
    assert float(seconds) < 2 * PATIENCE


# errors


@pytest.mark.parametrize(
    ("statement", "kind", "sqlstate"),
    [
        ("select pgbus.last_id('')", InvalidArgument, None),
        ("select 1 / 0", DatabaseError, "22012"),
        ("select * from nowhere", DatabaseError, "42P01"),
        ("do $$ begin raise serialization_failure; end $$", DatabaseError, "40001"),
        ("do $$ begin raise too_many_connections; end $$", DatabaseUnavailable, "53300"),
        ("select pg_terminate_backend(pg_backend_pid())", DatabaseUnavailable, None),
    ],
)
def test_errors_become_the_packages_own(
    statement: str, kind: type[Exception], sqlstate: str | None, database: str
) -> None:
    with opened(database) as connection:
        with pytest.raises(psycopg2.Error) as failed:
            one(connection, statement)
        found = translate(failed.value)
    assert type(found) is kind
    assert getattr(found, "sqlstate", None) == sqlstate
    assert "\n" not in str(found)


def test_an_interrupted_connect_is_closed_even_if_its_traceback_is_kept() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"postgresql://127.0.0.1:{server.getsockname()[1]}/x"
        connecting = gevent.spawn(connect, url, application_name="x", connect_timeout=PATIENCE, statement_timeout=10.0)
        peer, _ = server.accept()
        with peer:
            peer.settimeout(PATIENCE / 2)
            assert peer.recv(1000)  # it waits for the answer to its startup packet
            connecting.kill(RuntimeError("as a log would keep it"))
            held = connecting.exc_info
            assert held[0] is RuntimeError
            assert peer.recv(1000) == b""
