"""A real PgBouncer in transaction mode stands between a worker and its database."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2.extensions as ext
import pytest
from support import free_port, get, received, run, serving, session, stored, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.commands.finding import FAIL, OK
from pgbus_gevent.commands.findings import findings
from pgbus_gevent.database import Database, green
from pgbus_gevent.database.connect import connect
from pgbus_gevent.errors import DatabaseError, Deaf
from pgbus_gevent.settings.table import Settings

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="there is no PgBouncer")

Pooler = Callable[..., str]


@pytest.fixture
def pooler(pgbus_database: str) -> Iterator[Pooler]:
    """Starts a PgBouncer before the test's database, with its defaults except the given settings. Returns its URL."""
    own = ext.parse_dsn(pgbus_database)
    if not own.get("host", "").startswith("/"):
        pytest.skip("the database is not on a unix socket")
    started: list[subprocess.Popen[bytes]] = []
    folder = tempfile.mkdtemp(prefix="pgbus-test-pgbouncer-")

    def start(**options: str) -> str:
        port = free_port()
        lines = {"listen_addr": "127.0.0.1", "listen_port": port, "unix_socket_dir": "", "auth_type": "any"}
        lines |= {"pool_mode": "transaction", "logfile": f"{folder}/log", **options}
        database = f"* = host={own['host']} port={own.get('port', '5432')} user={own.get('user', 'postgres')}"
        path = Path(folder, "pgbouncer.ini")
        path.write_text(
            f"[databases]\n{database}\n[pgbouncer]\n" + "".join(f"{name} = {value}\n" for name, value in lines.items())
        )
        # PgBouncer refuses to run as root.
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            owner = os.stat(own["host"])
            os.chown(folder, owner.st_uid, owner.st_gid)
            user = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
        started.append(
            subprocess.Popen(
                [str(PGBOUNCER), "-q", str(path)], stderr=subprocess.DEVNULL, start_new_session=True, **user
            )
        )
        url = str(ext.make_dsn(pgbus_database, host="127.0.0.1", port=port))

        def answers() -> bool:
            try:
                connect(url, application_name="x", connect_timeout=10.0, statement_timeout=10.0).close()
            except DatabaseError:
                return False
            return True

        try:
            until(answers, "it takes connections", 60)
        except BaseException:
            print(Path(folder, "log").read_text())
            raise
        return url

    yield start
    for process in started:
        process.terminate()
        process.wait(10)
    shutil.rmtree(folder)


def opened(url: str, **more: Any) -> Any:
    green.install()
    return closing(connect(url, application_name="pgbus-test", connect_timeout=20.0, statement_timeout=7.5, **more))


def rows(connection: Any, statement: str) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall())


SETTINGS = (
    "select current_setting('statement_timeout'), current_setting('search_path'), current_setting('enable_seqscan'),"
    " current_setting('transaction_isolation'), current_setting('transaction_read_only')"
)


@pytest.mark.parametrize("options", [{}, {"ignore_startup_parameters": "options"}], ids=["refuses", "ignores"])
def test_our_settings_hold_for_each_of_our_statements_and_for_no_others(
    options: dict[str, str], pooler: Pooler
) -> None:
    url = pooler(default_pool_size="1", **options)
    name = ext.parse_dsn(url)["dbname"]
    with session(url) as other, opened(url, settings={"default_transaction_read_only": "on"}) as connection:
        run(other, f'alter database "{name}" set default_transaction_isolation = serializable')
        before = run(other, SETTINGS)
        for _ in range(3):
            assert rows(connection, SETTINGS) == [("7500ms", "pg_catalog, pg_temp", "off", "read committed", "on")]
            # The pooler gives both the same session of the server, one at a time.
            assert run(other, SETTINGS) == before
        connection.autocommit = False
        assert rows(connection, "select 1") == [(1,)]
        assert rows(connection, SETTINGS)[0][:3] == ("7500ms", "pg_catalog, pg_temp", "off")
        connection.rollback()


def test_listen_through_it_is_found_deaf_although_it_hears_itself(pooler: Pooler, pgbus_settings: Settings) -> None:
    database = Database(replace(pgbus_settings, database_url=pooler()))
    green.install()
    with closing(database):
        try:
            with closing(database.listen()) as listening:
                assert not listening.hears(0.5)
                assert "pooler" in listening.cause
        except Deaf as error:
            assert "pooler" in error.cause


def test_a_worker_delivers_by_sweeps_and_says_that_listen_is_deaf(
    pooler: Pooler, pgbus_settings: Settings, pgbus_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = replace(pgbus_settings, database_url=pooler(), catch_up_interval=2.0)
    with serving(settings) as server, Bus(settings=settings) as bus:
        clients = [server.live(f"s:{n}") for n in range(3)]
        for n in range(30):
            bus.stream(f"s:{n % 3}").broadcast(str(n))
        with session(pgbus_database) as connection:
            for n, client in enumerate(clients):
                until(lambda client=client: len(client.messages) == 10, "all arrive", 40)
                assert received(client) == stored(connection, f"s:{n}")
        replayed = server.client("s:0", since=0)
        until(lambda: len(replayed.messages) == 10, "they are replayed", 40)
        until(lambda: server.instance.listener.deaf, "it is noticed")
        # Not at once, if the database has just stood still.
        answer = until(lambda: (found := get(server.url, "/pgbus/readyz")).status == 200 and found, "it is ready")
        assert b"LISTEN is deaf" in answer.body and b"transaction mode" in answer.body
        assert (
            "LISTEN is deaf" in caplog.text and "transaction mode" in caplog.text and "PGBUS_LISTEN_URL" in caplog.text
        )


def test_a_worker_with_a_direct_url_for_listen_hears_at_once(
    pooler: Pooler, pgbus_settings: Settings, pgbus_database: str
) -> None:
    settings = replace(pgbus_settings, database_url=pooler(), listen_url=pgbus_database, catch_up_interval=60.0)
    with serving(settings) as server, Bus(settings=settings) as bus:
        client = server.live("orders")
        until(lambda: server.instance.listener.live, "it listens")
        bus.stream("orders").broadcast("x")
        assert client.next(timeout=40).data == "x", "long before the next sweep"
        assert server.instance.pruner.take_part() == 0


def test_a_pooler_in_session_mode_is_no_reason_to_be_deaf(pooler: Pooler, pgbus_settings: Settings) -> None:
    settings = replace(pgbus_settings, database_url=pooler(pool_mode="session"), catch_up_interval=60.0)
    with serving(settings) as server, Bus(settings=settings) as bus:
        until(lambda: server.instance.listener.live, "it listens")
        client = server.live("orders")
        bus.stream("orders").broadcast("x")
        assert client.next(timeout=40).data == "x"


def test_the_schema_is_made_through_it(pooler: Pooler, pgbus_databases: Any) -> None:
    url = pgbus_databases.make_empty()
    own = ext.parse_dsn(pooler())
    through = str(ext.make_dsn(url, host=own["host"], port=own["port"]))
    assert Database(Settings(database_url=through, secret="x" * 16)).migrate() != []
    with session(url) as connection:
        assert run(connection, "select pgbus.broadcast('orders', 'x') > 0") == [(True,)]


def test_doctor_names_the_pooler(pooler: Pooler, pgbus_settings: Settings, pgbus_database: str) -> None:
    settings = replace(pgbus_settings, database_url=pooler())
    found = {one.check: one for one in findings(settings)}
    assert (found["pooler"].level, found["listen"].level) == (OK, FAIL)
    assert "are sent with each statement" in found["pooler"].text
    assert "pooler" in found["listen"].text and "PGBUS_LISTEN_URL" in found["listen"].todo
    direct = {one.check: one for one in findings(replace(settings, listen_url=pgbus_database))}
    assert direct["listen"].level == OK
