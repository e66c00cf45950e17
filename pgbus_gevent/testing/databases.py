"""Fresh databases for tests, each a copy of one template that has the schema in it."""

from __future__ import annotations

import os
import tempfile
from itertools import count
from typing import Any

import psycopg2
import psycopg2.extensions as ext

from ..database.embedded import EmbeddedPostgres
from ..database.schema import migrate

OPTIONS = {"fsync": "off", "max_connections": "300", "full_page_writes": "off"}
"""Of an embedded server for tests: its data need not outlive a crash of the machine."""


class TestDatabases:
    """Makes databases on the server at ``url``, or on an embedded one that goes with :meth:`close`."""

    __test__ = False  # not a class of tests, whatever its name

    def __init__(self, url: str | None = None) -> None:
        self.embedded: EmbeddedPostgres | None = None
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        if url is None:
            # The server may run as another user, who has to be let in.
            self._directory = tempfile.TemporaryDirectory(prefix="pgbus-test-", ignore_cleanup_errors=True)
            os.chmod(self._directory.name, 0o755)
            self.embedded = EmbeddedPostgres.open(self._directory.name, options=OPTIONS)
            url = self.embedded.url
        self.url = url
        self._prefix = f"pgbus_test_{os.getpid()}"
        self._numbers = count(1)
        self._template: str | None = None
        self._made: list[str] = []

    def make(self) -> str:
        """The URL of a new database with the schema in it."""
        if self._template is None:
            self._template = self._create(f"{self._prefix}_template")
            migrate(self.url_of(self._template))
        return self.url_of(self._create(f"{self._prefix}_{next(self._numbers)}", self._template))

    def make_empty(self) -> str:
        """The URL of a new database with nothing in it."""
        return self.url_of(self._create(f"{self._prefix}_{next(self._numbers)}"))

    def url_of(self, name: str) -> str:
        """The server's URL with another database."""
        return str(ext.make_dsn(self.url, dbname=name))

    def _create(self, name: str, template: str = "template0") -> str:
        self._run(f'create database "{name}" template "{template}" encoding "UTF8"')
        self._made.append(name)
        return name

    def drop(self, url: str) -> None:
        """Drop a database that :meth:`make` made, whoever is still connected to it."""
        name = str(ext.parse_dsn(url)["dbname"])
        self._run(f'drop database if exists "{name}" with (force)')
        self._made.remove(name)

    def _run(self, statement: str) -> None:
        connection: Any = psycopg2.connect(self.url)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
        finally:
            connection.close()

    def close(self) -> None:
        """Drop what is left; an embedded server ends with it."""
        if self.embedded is not None:
            self.embedded.close()
        else:
            for name in list(self._made):
                self.drop(self.url_of(name))
        if self._directory is not None:
            self._directory.cleanup()
