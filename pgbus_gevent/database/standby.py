"""Sessions with a streaming standby, and the mark that its primary sets.

Any session may be with another standby, because the URL may lead to several. What a session shows is therefore true only of the
statements of that session.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import cast

import psycopg2.extensions as ext

from ..core.standby import Mark, State
from ..settings.casting import redact_url
from .addresses import Route
from .connect import connect
from .patience import READ, Patience
from .pool import Pool
from .queries import Queries

PATIENCE = 2.0
"""Seconds for a statement, before the primary is asked. Doubled as :class:`Patience` says."""

CONNECT_TIMEOUT = 2.0

_FREE_WITHIN = 1.0  # seconds to wait for a free session, before the primary is asked

_MARK = """
select m.mark, m.wal, m.instant, coalesce((select n.msg_id from pgbus.messages n order by n.msg_id + 0 desc limit 1), 0)
from pgbus._mark() m
"""

# The mark is read after the position: one that is read is then never older than what the position shows.
_STATE = """
select pg_is_in_recovery(), (pg_last_wal_replay_lsn() - '0/0'::pg_lsn)::bigint, pg_sequence_last_value('pgbus.mark')
"""


class _OneSession:
    """Stands in for the pool of :class:`Queries`, so that all its statements run on one connection."""

    def __init__(self, connection: ext.connection) -> None:
        self._connection = connection

    @contextmanager
    def connection(self, patience: Patience | None = None) -> Iterator[ext.connection]:
        yield self._connection


class Session:
    """A session with a standby, lent by :meth:`Standby.session`."""

    def __init__(self, connection: ext.connection) -> None:
        self._connection = connection
        # Queries only takes connections from its pool.
        self.queries = Queries(cast(Pool, _OneSession(connection)))

    def state(self) -> State:
        """Return what the server shows now."""
        with self._connection.cursor() as database_cursor:
            database_cursor.execute(_STATE)
            ((recovering, position, mark),) = database_cursor.fetchall()
        return State(bool(recovering), None if position is None else int(position), None if mark is None else int(mark))


class Standby:
    """The standby at ``url``: a pool of sessions that refuse to write. ``primary`` is the pool that leads to its primary.

    Raises only the exceptions of :mod:`pgbus_gevent.errors`.
    """

    def __init__(self, url: str, primary: Pool, *, size: int, connect_timeout: float, statement_timeout: float) -> None:
        # Of several hosts, a standby is taken. A primary is taken only to say what is wrong.
        attrs = "" if "target_session_attrs" in ext.parse_dsn(url) else "prefer-standby"
        self.pool = Pool(
            partial(
                connect,
                str(ext.make_dsn(url, target_session_attrs=attrs)) if attrs else url,
                application_name="pgbus-standby",
                connect_timeout=min(connect_timeout, CONNECT_TIMEOUT),
                statement_timeout=statement_timeout,
                settings={"default_transaction_read_only": "on"},
                route=Route(),
            ),
            size=size,
            timeout=_FREE_WITHIN,
        )
        self.shown_url = redact_url(url)
        self._primary = primary
        self._patience = Patience(PATIENCE)
        self._mark_patience = Patience(READ)

    def mark(self) -> Mark:
        """Have the primary set its mark, and return it. Raises :class:`DatabaseError`."""
        with self._primary.connection(self._mark_patience) as connection, connection.cursor() as database_cursor:
            database_cursor.execute(_MARK)
            ((mark, position, instant, newest),) = database_cursor.fetchall()
        return Mark(int(mark), int(position), float(instant), int(newest), monotonic())

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Lend a session. Raises :class:`DatabaseError` also for an error in the block, as :meth:`Pool.connection` does."""
        with self.pool.connection(self._patience) as connection:
            yield Session(connection)

    def discard_idle(self) -> None:
        """Close the sessions that are kept. The URL may lead to another server now."""
        self.pool.discard_idle()

    def close(self) -> None:
        """Close the pool. Idempotent."""
        self.pool.close()
