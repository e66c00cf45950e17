"""The procedures of docs/operations/backup.md, against real clusters, with a worker and its clients."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2.extensions as ext
import pytest
from cli_parts import environment
from page_parts import block_of
from page_running_parts import as_url
from support import Serving, free_port, gaps, last, reasons, run, serving, session, since_the_gap, stored, until
from ways import Address, binary

from pgbus_gevent.bus import Bus
from pgbus_gevent.database.embedded import SYSTEM_USER, EmbeddedPostgres
from pgbus_gevent.database.migrating import migrate
from pgbus_gevent.settings.table import Settings

pytestmark = [pytest.mark.slow, pytest.mark.program]

PATIENCE = 60.0
PAGE_URL = re.compile(r"postgresql://postgres@db/(\w+)")


class Cluster:
    """A PostgreSQL that archives its log as the page says, with databases that the page calls ``shop``."""

    def __init__(self, folder: Path, server: EmbeddedPostgres) -> None:
        self.folder = folder
        self.server = server

    def url(self, name: str) -> str:
        return str(ext.make_dsn(self.server.url, dbname=name))

    def put_in(self, text: str, name: str) -> str:
        """Return a text of the page with this cluster's addresses, and with another name for ``shop``."""
        text = re.sub(r"\bshop", name, text.replace("/backup", str(self.folder)))
        return PAGE_URL.sub(lambda match: as_url(self.url(match[1])), text)

    def shell(self, text: str, name: str, **user: Any) -> None:
        """Run a block in the cluster's folder."""
        programs = f"{Path(binary('psql')).parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.put_in(text, name)],
            cwd=self.folder,
            env=environment(PATH=programs),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
            **user,
        )
        assert done.returncode == 0, done.stdout.decode()

    def sql(self, text: str, name: str, database: str = "postgres") -> None:
        """Run the statements of a block, one by one."""
        with session(self.url(database)) as connection:
            for statement in filter(str.strip, self.put_in(text, name).split(";\n")):
                run(connection, statement)

    def make(self, name: str) -> str:
        """Make a database with the schema, and return its URL."""
        self.sql(f"create database {name}", name)
        migrate(self.url(name))
        return self.url(name)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="pgbus-test-backup-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "wal").mkdir()
        for path in (folder, folder / "wal"):
            path.chmod(0o777)  # PostgreSQL may run as another user
        archive = block_of("docs/operations/backup.md", "archive").replace("/backup", name)
        options = {"fsync": "off", "wal_level": "logical", "max_connections": "100", **settings_in(archive)}
        with EmbeddedPostgres.open(folder / "data", options=options) as server:
            yield Cluster(folder, server)


def settings_in(text: str) -> dict[str, str]:
    """Return the settings in lines of ``postgresql.conf``."""
    return {name: value.strip("'") for name, value in re.findall(r"^(\w+) = (.+)$", text, re.MULTILINE)}


def publish(bus: Bus, *data: str) -> list[int]:
    return [bus.stream("orders").broadcast(each) for each in data]


def is_told(server: Serving, bus: Bus, url: str, lost: int) -> None:
    """Check that the clients that were sent lost messages are told, and that all go on with what is there."""
    told = [server.clients[0], server.client("orders", since=lost)]
    with session(url) as connection:
        kept = stored(connection, "orders")
    for client in told:
        until(lambda client=client: reasons(client) == ["ahead"], "it is told", PATIENCE)
        assert gaps(client)[0]["requestedId"] == lost
    (new,) = publish(bus, "new")
    assert new > lost, "an id that somebody has seen is not given again"
    for client in told:
        until(lambda client=client: last(client) == "new", "it goes on", PATIENCE)
        assert since_the_gap(client) == [*kept, (new, "new")]


def back_on(server: Serving, reconnects: int) -> None:
    """Wait until the worker has a new session."""
    listener = server.instance.listener
    until(lambda: listener.reconnects > reconnects and listener.live, "it listens again", PATIENCE)


def test_a_database_that_was_dumped_replaces_the_one_in_use(cluster: Cluster, pgbus_settings: Settings) -> None:
    url = cluster.make("toys")
    settings = replace(pgbus_settings, database_url=url, catch_up_interval=60.0)
    with serving(settings) as server, Bus(settings=settings) as bus:
        client = server.live("orders")
        ids = publish(bus, "a", "b")
        cluster.shell(block_of("docs/operations/backup.md", "dump"), "toys")
        ids += publish(bus, "c", "d")
        until(lambda: last(client) == "d", "it gets all")
        cluster.shell(block_of("docs/operations/backup.md", "restore"), "toys")
        reconnects = server.instance.listener.reconnects
        cluster.sql(block_of("docs/operations/backup.md", "swap"), "toys")
        back_on(server, reconnects)
        is_told(server, bus, url, ids[-1])


def test_a_dump_without_the_messages_has_the_triggers_of_watched_tables(
    cluster: Cluster, pgbus_settings: Settings
) -> None:
    url = cluster.make("books")
    settings = replace(pgbus_settings, database_url=url, catch_up_interval=60.0)
    with serving(settings) as server, Bus(settings=settings) as bus:
        with session(url) as connection:
            run(connection, "create table books (id integer)")
            run(connection, "select pgbus.watch_table('books', 'orders')")
        client = server.live("orders")
        ids = publish(bus, "a", "b")
        until(lambda: last(client) == "b", "it gets all")
        cluster.shell(block_of("docs/operations/backup.md", "without"), "books")
        reconnects = server.instance.listener.reconnects
        cluster.sql(block_of("docs/operations/backup.md", "swap"), "books")
        back_on(server, reconnects)
        is_told(server, bus, url, ids[-1])
        with session(url) as connection:
            run(connection, "insert into books values (7)")
        until(lambda: '"new":{"id":7}' in (last(client) or ""), "the table is watched")


def test_a_move_by_logical_replication_is_no_gap(cluster: Cluster, pgbus_settings: Settings) -> None:
    url, other = cluster.make("old_shop"), cluster.make("new_shop")
    settings = replace(pgbus_settings, database_url=url)
    with serving(settings) as server, Bus(settings=settings) as bus, session(other) as there, session(url) as here:
        ids = publish(bus, "pruned", "a", "b")
        run(here, "update pgbus.messages set created_at = now() - interval '1 day' where msg_id = %s", ids[0])
        run(here, "select * from pgbus.prune(array['orders'], array[interval '1 hour'])")
        client = server.live("orders", since=ids[0])
        cluster.sql(block_of("docs/operations/backup.md", "publication"), "old_shop", "old_shop")
        # Within one cluster, the slot has to be made by hand, because making it would wait for the statement itself.
        run(here, "select pg_create_logical_replication_slot('pgbus_move', 'pgoutput')")
        text = block_of("docs/operations/backup.md", "subscription").replace(";", " with (create_slot = false);")
        cluster.sql(text, "old_shop", "new_shop")
        copied = block_of("docs/operations/backup.md", "copied")
        until(lambda: run(there, copied) == [(0,)], "the rows are copied", PATIENCE)
        ids += publish(bus, "c")
        until(lambda: last(client) == "c", "it gets all")
        [(end,)] = run(here, "select pg_current_wal_lsn()")
        passed = "select confirmed_flush_lsn >= %s::pg_lsn from pg_replication_slots where slot_name = 'pgbus_move'"
        until(lambda: run(here, passed, end) == [(True,)], "the new server has everything", PATIENCE)
        assert stored(there, "orders") == stored(here, "orders")
        run(there, "alter subscription pgbus_move disable")  # the slot is in the same cluster, see above
        run(there, "alter subscription pgbus_move set (slot_name = none)")
        run(there, "drop subscription pgbus_move")
    settings = replace(pgbus_settings, database_url=other)
    with serving(settings) as server, Bus(settings=settings) as bus:
        clients = [server.live("orders", since=since) for since in (ids[-1], ids[1], ids[0] - 1)]
        (new,) = publish(bus, "new")
        for client in clients:
            until(lambda client=client: last(client) == "new", "it goes on")
        assert new > ids[-1]
        assert [reasons(client) for client in clients] == [[], [], ["expired"]]
        assert [[frame.data for frame in client.messages] for client in clients] == [
            ["new"],
            ["b", "c", "new"],
            ["a", "b", "c", "new"],
        ]


def test_a_point_in_time_is_restored(cluster: Cluster, pgbus_settings: Settings) -> None:
    url = cluster.make("tools")
    user: dict[str, Any] = {"user": SYSTEM_USER} if os.geteuid() == 0 else {}
    cluster.shell(block_of("docs/operations/backup.md", "base"), "tools")
    way = Address(url, url)
    settings = replace(pgbus_settings, database_url=way.url, catch_up_interval=60.0)
    with serving(settings) as server, Bus(settings=settings) as bus, session(url) as old:
        client = server.live("orders")
        ids = publish(bus, "a", "b")
        [(time,)] = run(old, "select clock_timestamp()::text")
        ids += publish(bus, "c", "d")
        until(lambda: last(client) == "d", "it gets all")
        archived = run(old, "select pg_walfile_name(pg_switch_wal())")[0][0]
        until(lambda: (cluster.folder / "wal" / archived).exists(), "the log is archived", PATIENCE)
        point = block_of("docs/operations/backup.md", "point").replace("2026-11-30 09:59:00+00", time)
        with recovered(cluster, point, user) as other:
            reconnects = server.instance.listener.reconnects
            way.lead_to(str(ext.make_dsn(other, dbname="tools")))
            cluster.sql("alter database tools allow_connections false", "tools")
            run(
                old,
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = 'tools' and pid <> pg_backend_pid()",
            )
            back_on(server, reconnects)
            is_told(server, bus, str(ext.make_dsn(other, dbname="tools")), ids[-1])
            server.close()
    way.stop()


@contextmanager
def recovered(cluster: Cluster, point: str, user: dict[str, Any]) -> Iterator[str]:
    """Start a server on the base backup, and yield its URL when it has recovered."""
    base = cluster.folder / "base"
    with (base / "postgresql.auto.conf").open("a") as file:
        file.write(cluster.put_in(point, "tools"))
    (base / "recovery.signal").touch()
    if user:
        subprocess.run(["chown", "-R", SYSTEM_USER, base], check=True, timeout=60)
    port = free_port()
    folder = tempfile.mkdtemp(prefix="pgbus-test-recovered-")
    os.chmod(folder, 0o777)
    options = f"-p {port} -k {folder} -c listen_addresses= -c fsync=off -c unix_socket_permissions=0777"
    start = f"{binary('pg_ctl')} -D {base} -w -l {folder}/log -o {shlex.quote(options)} start"
    url = str(ext.make_dsn(cluster.server.url, host=folder, port=port))
    try:
        cluster.shell(start, "tools", **user)
        with session(url) as connection:
            until(lambda: run(connection, "select not pg_is_in_recovery()") == [(True,)], "it is promoted", PATIENCE)
        yield url
    finally:
        cluster.shell(f"{binary('pg_ctl')} -D {base} -m immediate -w stop", "tools", **user)
        subprocess.run(["rm", "-rf", folder], check=True, timeout=60)
