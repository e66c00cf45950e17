"""The statements that publish, and those of the streamer's reads, each with the shape of its answer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg2.extensions as ext

from ..core.rows import LARGE, EphemeralRow, Mark, Opening, OpenQuestion, PageRows, Revoked, TailRow
from ..errors import RolledBack
from ..messages import Message
from . import batch, revocations, statements
from .patience import READ, Patience
from .pool import Pool
from .session_settings import OWN_SEARCH_PATH
from .statements import Publication
from .traces import traced

# The messages of a stream between two ids: how many there are, and the sum of their ids, which detects a replaced message.
_INVENTORY = """
select coalesce(h.msg_id, 0), i.messages, i.total
from unnest(%(streams)s::text[], %(floors)s::bigint[], %(heads)s::bigint[]) with ordinality as s(stream, floor, head, n)
left join pgbus.horizons h on h.stream = s.stream
cross join lateral (
  select count(*) as messages, coalesce(sum(m.msg_id), 0) as total
  from pgbus.messages m
  where m.stream = s.stream and m.msg_id > greatest(s.floor, h.msg_id) and m.msg_id <= s.head
  offset 0
) i
order by s.n
"""

# Leaves out the data of streams that were not asked for, and large data. The reader fetches these by pages.
_TAIL = """
select m.msg_id, m.stream, m.prev_id, m.event,
       case when octet_length(m.data) < {large} and coalesce(m.stream = any(%(streams)s), true) then m.data end,
       m.visible_to, m.exclude, date_part('epoch', m.created_at), m.trace
from pgbus.messages m
where m.msg_id + 0 {range} order by m.msg_id + 0
"""
_TAIL_ABOVE = f"({_TAIL.format(large=LARGE, range='> %(above)s')} limit %(limit)s)"
_TAIL_HOLES = f"({_TAIL.format(large=LARGE, range='= any(%(holes)s)')}) union all {_TAIL_ABOVE}"


def _ping(connection: ext.connection) -> None:
    with connection.cursor() as database_cursor:
        database_cursor.execute("select 1")


class Queries:
    """Sends these statements on connections of one pool. Raises only the exceptions of :mod:`pgbus_gevent.errors`.

    A *cursor* here is a client's place in a stream; psycopg2's is called a database cursor.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._reading = {
            name: Patience(READ, waits=name in ("revocations", "moved"))
            for name in ("revocations", "moved", "tail", "pages", "openings", "ephemerals")
        }

    @contextmanager
    def transaction(self, isolation: str | None = None) -> Iterator[ext.cursor]:
        """Lend a database cursor in a new transaction. Commits at the end of the block, and rolls back if the block raises.

        ``isolation`` is the isolation level, as psycopg2 takes it; the default is READ COMMITTED.
        """
        with self.pool.connection() as connection:
            connection.autocommit = False
            if isolation is not None:
                connection.set_session(isolation_level=isolation)
            try:
                # psycopg2's own class, because an application's statements run on it.
                with connection.cursor(cursor_factory=ext.cursor) as database_cursor:
                    database_cursor.execute(OWN_SEARCH_PATH, (getattr(connection, "own_search_path", None),))
                    yield database_cursor
                if connection.info.transaction_status == ext.TRANSACTION_STATUS_INERROR:
                    raise RolledBack()  # commit() would not: PostgreSQL answers it with a rollback
                connection.commit()
            finally:
                # Skips a closed connection: its InterfaceError would hide the error that closed it.
                if not connection.closed:
                    connection.rollback()
                    connection.set_session(isolation_level="DEFAULT", autocommit=True)

    def _all(self, statement: str, parameters: Any = None, read: str | None = None) -> list[tuple[Any, ...]]:
        """Return all rows of a statement. ``read`` names a read of the streamer, which has its own patience."""
        patience = None if read is None else self._reading[read]
        with self.pool.connection(patience) as connection, connection.cursor() as database_cursor:
            database_cursor.execute(statement, parameters)
            return database_cursor.fetchall()

    # publishing

    def broadcast(self, stream: str, data: str, publication: Publication, trace: str | None = None) -> int:
        """Append one message in its own transaction. Returns its id. ``trace`` is the publisher's traceparent."""
        rows = self._all(*traced(statements.BROADCAST, (stream, data, *publication), trace))
        return int(rows[0][0])

    def broadcast_many(
        self,
        stream: str,
        data: Sequence[str],
        publication: Publication,
        keys: Sequence[str | None] | None = None,
        trace: str | None = None,
    ) -> int | None:
        """Append several messages in one transaction. Returns the id of the last, or None if ``data`` is empty.

        ``keys`` are the messages' idempotency keys. A message whose key the stream has already is not appended again.
        """
        arguments = (stream, list(data), *publication[:3], None if keys is None else list(keys))
        rows = self._all(*traced(statements.BROADCAST_MANY, arguments, trace))
        return None if rows[0][0] is None else int(rows[0][0])

    def broadcast_ephemeral(self, stream: str, data: str, publication: Publication) -> None:
        """Send a message to the clients that are connected now."""
        self._all(statements.BROADCAST_EPHEMERAL, (stream, data, *publication[:3]))

    def broadcast_batch(self, messages: Sequence[batch.Outgoing]) -> None:
        """Publish messages of several streams in one transaction. Each stream keeps this order; ephemeral ones are sent last."""
        if messages:
            self._all(batch.STATEMENT, batch.parameters(messages))

    # asking

    def last_ids(self, streams: Sequence[str]) -> list[int]:
        """Return the id of each stream's newest message, or 0, from one snapshot."""
        return [int(row[0]) for row in self._all(statements.LAST_IDS, (list(streams),))]

    def last_id(self, stream: str) -> int:
        """Return the id of the stream's newest message, or 0."""
        return int(self._all("select pgbus.last_id(%s)", (stream,))[0][0])

    def read_after(self, stream: str, after: int, limit: int) -> list[Message]:
        """Return at most ``limit`` of the stream's messages above the id ``after``, oldest first."""
        rows = self._all(statements.READ_AFTER, (stream, after, limit))
        return [Message(stream, *row) for row in rows]

    def ping(self) -> None:
        """Return when the database answers."""
        self.pool.ask(_ping)

    def disconnect(self, owner: str) -> None:
        """End all connections of an owner, on all workers."""
        self._all(statements.DISCONNECT, (owner,))

    # the streamer's reads

    def revocations(self, after: Mark | None = None, *, recent: bool = False) -> Revoked:
        """Return the revocations of the transactions that had not ended at the mark ``after``.

        The revocations of the last ten minutes come too with ``recent``, and alone if there is no mark. If the mark does not count
        any more, because the server was replaced or restarted, or the table was restored, all that are kept come.
        """
        return revocations.read(partial(self._all, read="revocations"), after, recent=recent)

    def ring_control(self) -> bool:
        """Have all workers read the revocations. Returns False if no notification can be sent now."""
        return bool(self._all("select pgbus._ring_control()", read="revocations")[0][0])

    def moved(self, heads: dict[str, int], pruned: Collection[str] = ()) -> tuple[int, dict[str, int]]:
        """Return the newest id of all streams, or 0, and the newest ids of the streams whose newest id differs from the given head.

        A lower id does not count for the streams in ``pruned``, which are known to have lost all their messages to pruning.
        """
        asked = statements.moved_asked(heads, pruned)
        return statements.moved_rows(self._all(statements.MOVED, asked, read="moved"))

    def inventory(self, ranges: Sequence[tuple[str, int, int]]) -> list[tuple[int, int, int]]:
        """Return, for each (stream, floor, head): the horizon, the number of messages up to the head that lie above the floor and
        the horizon, and the sum of their ids."""
        streams, floors, heads = map(list, zip(*ranges, strict=True))
        rows = self._all(_INVENTORY, {"streams": streams, "floors": floors, "heads": heads})
        return [(int(horizon), int(count), int(total)) for horizon, count, total in rows]

    def tail(self, above: int, holes: Sequence[int], streams: Sequence[str] | None, *, limit: int) -> list[TailRow]:
        """Return the messages with the ids ``holes``, if they exist, and the first ``limit`` messages above the id ``above``.

        Messages of all streams come, by rising id. With ``streams``, only the messages of these streams come with data.
        """
        rows = self._all(
            _TAIL_HOLES if holes else _TAIL_ABOVE,
            {"above": above, "holes": holes, "streams": None if streams is None else list(streams), "limit": limit},
            read="tail",
        )
        return [TailRow(*row) for row in rows]

    def pages(self, after: Sequence[tuple[str, int]], *, limit: int, size: int) -> list[PageRows]:
        """Return a page for each (stream, cursor): at most ``limit`` messages and about ``size`` bytes each.

        A page takes messages while it has less than ``size`` bytes, so it gets one message even if that is larger.
        """
        asked = statements.pages_asked(after, limit=limit, size=size)
        return statements.page_rows(self._all(statements.PAGES, asked, read="pages"), len(after), limit)

    def openings(self, questions: Sequence[OpenQuestion], *, limit: int, size: int) -> list[Opening]:
        """Return the state of each stream, and its newest messages, bounded as in :meth:`pages`."""
        asked = statements.openings_asked(questions, limit=limit, size=size)
        return statements.opening_rows(self._all(statements.OPENINGS, asked, read="openings"), questions, limit)

    def ephemerals(self, ids: Sequence[int]) -> dict[int, EphemeralRow]:
        """Return the large ephemeral messages that still exist, by number."""
        rows = self._all(
            "select id, stream, event, data, visible_to, exclude from pgbus.ephemerals where id = any(%s)",
            (list(ids),),
            read="ephemerals",
        )
        return {int(id): EphemeralRow(*rest) for id, *rest in rows}
