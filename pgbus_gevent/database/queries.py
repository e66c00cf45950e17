"""The statements that publish, and those of the streamer's reads, each with the shape of its answer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import psycopg2.extensions as ext

from ..core.rows import EphemeralRow, Mark, Opening, OpenQuestion, PageRows, Revoked, Row, TailRow
from ..messages import Message
from . import batch, revocations
from .patience import READ, Patience
from .pool import Pool
from .session_settings import OWN_SEARCH_PATH
from .traces import traced


class Publication(NamedTuple):
    """The arguments of a broadcast except its stream and data."""

    event: str | None = None
    visible_to: str | None = None
    exclude: str | None = None
    key: str | None = None


_ROW = (
    "m.msg_id, m.event, m.data, m.visible_to, m.exclude, m.prev_id, date_part('epoch', m.created_at), m.trace, m.place,"
    " m.bytes_to >= %(bytes)s"
)

# octet_length() does not fetch a toasted text, so a page of large messages costs no more than it delivers. One row more than
# `limit` is read, to see whether there are more. The limit is a subselect to hide it from the planner: if the planner saw that
# the average stream has fewer rows, it would read and sort the whole stream. Nothing below the horizon is searched: until the
# next vacuum, the index has an entry for every message that was removed there.
_PAGES = f"""
select s.n, h.msg_id, a.anchor, f.forgotten, {_ROW}
from unnest(%(streams)s::text[], %(after)s::bigint[]) with ordinality as s(stream, after, n)
left join pgbus.horizons h on h.stream = s.stream
cross join lateral (
  select (select b.msg_id from pgbus.messages b
          where b.stream = s.stream and b.msg_id <= s.after and b.msg_id > coalesce(h.msg_id, 0)
          order by b.msg_id desc limit 1) as anchor
  offset 0
) a
cross join (select coalesce(pg_sequence_last_value('pgbus.forgotten'), 0) as forgotten offset 0) f
left join lateral (
  select m.*, row_number() over w as place, sum(octet_length(m.data)) over w as bytes_to
  from (
    select m.* from pgbus.messages m
    where m.stream = s.stream and m.msg_id > greatest(s.after, h.msg_id)
    order by m.msg_id
    limit (select %(limit)s + 1)
  ) m
  window w as (order by m.msg_id rows unbounded preceding)
) m on m.bytes_to - octet_length(m.data) < %(bytes)s
order by s.n, m.msg_id
"""  # nosec B608 # _ROW is a constant

# `offset 0` keeps the planner from computing the state again for every row.
_OPENINGS = f"""
select s.n, state.head, state.horizon, state.oldest, state.start, {_ROW}
from unnest(%(streams)s::text[], %(cursors)s::bigint[], %(replays)s::bigint[])
  with ordinality as s(stream, cursor, replay, n)
left join pgbus.horizons h on h.stream = s.stream
cross join lateral (
  select pgbus._head(s.stream) as head, coalesce(h.msg_id, 0) as horizon,
         (select o.msg_id from pgbus.messages o where o.stream = s.stream and o.msg_id > coalesce(h.msg_id, 0)
          order by o.msg_id limit 1) as oldest,
         (select b.msg_id from pgbus.messages b where b.stream = s.stream and b.msg_id > coalesce(h.msg_id, 0)
          order by b.msg_id desc offset s.replay limit 1) as start
  offset 0
) state
left join lateral (
  select m.*, row_number() over w as place, sum(octet_length(m.data)) over w as bytes_to
  from (
    select m.* from pgbus.messages m
    where m.stream = s.stream and m.msg_id > s.cursor and m.msg_id > state.horizon
    order by m.msg_id desc
    limit (select %(limit)s + 1)
  ) m
  window w as (order by m.msg_id desc rows unbounded preceding)
) m on m.bytes_to - octet_length(m.data) < %(bytes)s
order by s.n, m.msg_id
"""  # nosec B608 # _ROW is a constant

LAST_IDS = """
select pgbus.last_id(s.stream) as last_id from unnest(%s::text[]) with ordinality as s(stream, n) order by s.n
"""

# The first row is about all streams together. Avoids `exists`, which the planner may turn into a join that reads the whole table.
# `offset 0` keeps the planner from searching for the newest message twice.
_MOVED = """
select null, coalesce((select m.msg_id from pgbus.messages m order by m.msg_id + 0 desc limit 1), 0)
union all
select s.stream, t.newest
from unnest(%(streams)s::text[], %(heads)s::bigint[], %(pruned)s::boolean[]) as s(stream, head, pruned)
cross join lateral (
  select coalesce((select m.msg_id from pgbus.messages m
                   where m.stream = s.stream
                         and m.msg_id > coalesce((select h.msg_id from pgbus.horizons h where h.stream = s.stream), 0)
                   order by m.msg_id desc limit 1), 0) as newest
  offset 0
) t
where t.newest > s.head or t.newest < s.head and not s.pruned
"""

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
       case when octet_length(m.data) < 8000 and coalesce(m.stream = any(%(streams)s), true) then m.data end,
       m.visible_to, m.exclude, date_part('epoch', m.created_at), m.trace
from pgbus.messages m
where m.msg_id + 0 {range} order by m.msg_id + 0
"""
_TAIL_ABOVE = f"({_TAIL.format(range='> %(above)s')} limit %(limit)s)"
_TAIL_HOLES = f"({_TAIL.format(range='= any(%(holes)s)')}) union all {_TAIL_ABOVE}"


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
        rows = self._all(*traced("select pgbus.broadcast(%s, %s, %s, %s, %s, %s)", (stream, data, *publication), trace))
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
        statement = "select pgbus.broadcast_many(%s, %s::text[], %s, %s, %s, %s::text[])"
        rows = self._all(*traced(statement, arguments, trace))
        return None if rows[0][0] is None else int(rows[0][0])

    def broadcast_ephemeral(self, stream: str, data: str, publication: Publication) -> None:
        """Send a message to the clients that are connected now."""
        self._all("select pgbus.broadcast_ephemeral(%s, %s, %s, %s, %s)", (stream, data, *publication[:3]))

    def broadcast_batch(self, messages: Sequence[batch.Outgoing]) -> None:
        """Publish messages of several streams in one transaction. Each stream keeps this order; ephemeral ones are sent last."""
        if messages:
            self._all(batch.STATEMENT, batch.parameters(messages))

    # asking

    def last_ids(self, streams: Sequence[str]) -> list[int]:
        """Return the id of each stream's newest message, or 0, from one snapshot."""
        return [int(row[0]) for row in self._all(LAST_IDS, (list(streams),))]

    def last_id(self, stream: str) -> int:
        """Return the id of the stream's newest message, or 0."""
        return int(self._all("select pgbus.last_id(%s)", (stream,))[0][0])

    def read_after(self, stream: str, after: int, limit: int) -> list[Message]:
        """Return at most ``limit`` of the stream's messages above the id ``after``, oldest first."""
        rows = self._all("select * from pgbus.read_after(%s, %s, %s)", (stream, after, limit))
        return [Message(stream, *row) for row in rows]

    def ping(self) -> None:
        """Return when the database answers."""
        self.pool.ask(_ping)

    def disconnect(self, owner: str) -> None:
        """End all connections of an owner, on all workers."""
        self._all("select pgbus.disconnect(%s)", (owner,))

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
        all_of_them, *found = self._all(
            _MOVED,
            {"streams": list(heads), "heads": list(heads.values()), "pruned": [name in pruned for name in heads]},
            read="moved",
        )
        return int(all_of_them[1]), {str(name): int(newest) for name, newest in found}

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
        rows = self._all(
            _PAGES,
            {
                "streams": [stream for stream, _ in after],
                "after": [cursor for _, cursor in after],
                "limit": limit,
                "bytes": size,
            },
            read="pages",
        )
        found = [PageRows([], 0, False) for _ in after]
        for n, horizon, anchor, forgotten, *message, place, full in rows:
            page = found[n - 1]
            if place is not None and place <= limit:
                page.rows.append(Row(*message))
            more = page.more or bool(full) or (place or 0) > limit
            found[n - 1] = page._replace(horizon=horizon or 0, more=more, anchor=anchor or 0, forgotten=forgotten)
        return found

    def openings(self, questions: Sequence[OpenQuestion], *, limit: int, size: int) -> list[Opening]:
        """Return the state of each stream, and its newest messages, bounded as in :meth:`pages`."""
        rows = self._all(
            _OPENINGS,
            {
                "streams": [question.stream for question in questions],
                "cursors": [question.cursor for question in questions],
                "replays": [question.replay for question in questions],
                "limit": limit,
                "bytes": size,
            },
            read="openings",
        )
        found: dict[int, Opening] = {}
        for n, head, horizon, oldest, start, *message, place, full in rows:
            opening = found.get(n)
            if opening is None:
                cursor = questions[n - 1].cursor
                floor = head if cursor is None else max(cursor, horizon or 0)
                opening = Opening(head, horizon or 0, oldest or 0, start or 0, floor, [])
            if place is not None and place <= limit:
                opening.rows.append(Row(*message))
            if full or (place or 0) > limit:
                # Older messages were left out, so the rows are complete only above the id before the lowest one.
                lowest = message[0] if place > limit else message[0] - 1
                opening = opening._replace(floor=max(opening.floor, lowest))
            found[n] = opening
        return [found[n] for n in range(1, len(questions) + 1)]

    def ephemerals(self, ids: Sequence[int]) -> dict[int, EphemeralRow]:
        """Return the large ephemeral messages that still exist, by number."""
        rows = self._all(
            "select id, stream, event, data, visible_to, exclude from pgbus.ephemerals where id = any(%s)",
            (list(ids),),
            read="ephemerals",
        )
        return {int(id): EphemeralRow(*rest) for id, *rest in rows}
