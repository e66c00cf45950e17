"""Fresh databases for tests, each a copy of a template that contains the schema."""

from __future__ import annotations

import os
import secrets
import tempfile
from itertools import count
from typing import Any

import psycopg2
import psycopg2.extensions as ext

from ..database.embedded import EmbeddedPostgres
from ..database.migrating import migrate
from .leaks import database_peers, peer_of, settled

OPTIONS = {"fsync": "off", "max_connections": "300", "full_page_writes": "off"}
"""PostgreSQL's settings for an embedded server in tests, whose data need not survive a crash of the machine."""

_SESSIONS = """
select application_name, state, query from pg_stat_activity
where datname = %s and backend_type = 'client backend' order by backend_start
"""

_COPIES_FILES = "select current_setting('fsync') = 'off' and current_setting('server_version_num')::integer >= 150000"


class TestDatabases:
    """Makes databases on the server at ``url``, or on an embedded server until :meth:`close`.

    Processes that give the same existing ``directory`` share one embedded server, which the last one stops. Methods raise
    psycopg2.Error, or :class:`~pgbus_gevent.errors.PgbusError` if the server cannot be started or the schema cannot be made.
    """

    __test__ = False  # pytest takes a class with this prefix for a class of tests

    def __init__(self, url: str | None = None, *, directory: str | None = None) -> None:
        self.embedded: EmbeddedPostgres | None = None
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        if url is None:
            if directory is None:
                self._directory = tempfile.TemporaryDirectory(prefix="pgbus-test-", ignore_cleanup_errors=True)
                directory = self._directory.name
            os.chmod(directory, 0o755)  # nosec B103 # the server may run as another user, which must be able to enter
            self.embedded = EmbeddedPostgres.open(directory, options=OPTIONS)
            url = self.embedded.url
        self.url = url
        self._prefix = f"pgbus_test_{os.getpid()}_{secrets.token_hex(3)}"  # several machines may test on one server
        self._numbers = count(1)
        self._template: str | None = None
        self._strategy: str | None = None
        self._made: list[str] = []

    def make(self) -> str:
        """Make a database with the schema. Returns its URL."""
        if self._template is None:
            self._template = self._create(f"{self._prefix}_template")
            migrate(self.url_of(self._template))
        return self.url_of(self._create(f"{self._prefix}_{next(self._numbers)}", self._template))

    def make_empty(self) -> str:
        """Make an empty database. Returns its URL."""
        return self.url_of(self._create(f"{self._prefix}_{next(self._numbers)}"))

    def url_of(self, name: str) -> str:
        """Return the server's URL with the database ``name``."""
        return str(ext.make_dsn(self.url, dbname=name))

    def _create(self, name: str, template: str = "template0") -> str:
        if self._strategy is None:
            # Copying files takes half the time of the default since PostgreSQL 15, if its checkpoints need no fsync.
            ((copies,),) = self._run(_COPIES_FILES)
            self._strategy = "strategy file_copy" if copies else ""
        self._run(f'create database "{name}" template "{template}" encoding "UTF8" {self._strategy}')
        self._made.append(name)
        return name

    def drop(self, url: str) -> None:
        """Drop a database that :meth:`make` made, and end the sessions that still use it."""
        name = str(ext.parse_dsn(url)["dbname"])
        self._run(f'drop database if exists "{name}" with (force)')
        self._made.remove(name)

    def left(self, url: str) -> list[str]:
        """Describe, one per line, the sessions on a database that have not ended by themselves within a few seconds."""
        name = str(ext.parse_dsn(url)["dbname"])
        rows = settled(lambda: self._run(_SESSIONS, name))
        return [f"database session {role!r}, {state}, its last statement: {query}" for role, state, query in rows]

    def _run(self, statement: str, *arguments: str) -> list[tuple[Any, ...]]:
        connection: Any = psycopg2.connect(self.url)
        try:
            connection.autocommit = True
            database_peers.add(peer_of(connection.fileno()))
            with connection.cursor() as cursor:
                cursor.execute(statement, arguments or None)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()

    def close(self) -> None:
        """Drop the remaining databases, or end the embedded server."""
        if self._directory is None:
            for name in list(self._made):
                self.drop(self.url_of(name))
        if self.embedded is not None:
            self.embedded.close()
        if self._directory is not None:
            self._directory.cleanup()
