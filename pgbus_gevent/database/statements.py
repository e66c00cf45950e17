"""The texts of statements that more than one driver runs, and the meaning of their rows. This module knows no driver.

The methods of :class:`pgbus_gevent.database.queries.Queries` run them with psycopg2, :mod:`pgbus_gevent.database.using` runs them
with the driver of the application, and :mod:`pgbus_gevent.aio` with psycopg 3.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..core.names import check_event, check_key, check_label
from ..core.rows import Opening, OpenQuestion, PageRows, Row


class Publication(NamedTuple):
    """The arguments of a broadcast except its stream and data."""

    event: str | None = None
    visible_to: str | None = None
    exclude: str | None = None
    key: str | None = None


def publication(event: str | None, visible_to: str | None, exclude: str | None, key: str | None = None) -> Publication:
    """Return the arguments, checked. Raises :class:`InvalidArgument`."""
    return Publication(
        check_event(event), check_label(visible_to, "visible_to"), check_label(exclude, "exclude"), check_key(key)
    )


# publishing

BROADCAST = "select pgbus.broadcast(%s, %s, %s, %s, %s, %s)"
BROADCAST_MANY = "select pgbus.broadcast_many(%s, %s::text[], %s, %s, %s, %s::text[])"
BROADCAST_EPHEMERAL = "select pgbus.broadcast_ephemeral(%s, %s, %s, %s, %s)"
BROADCAST_ON_COMMIT = "select pgbus.broadcast_on_commit(%s, %s, %s, %s, %s, %s)"
BROADCAST_MANY_ON_COMMIT = """
select pgbus.broadcast_on_commit(%s, m.data, %s, %s, %s, m.key)
from rows from (json_to_recordset(%s) as (data text, key text)) with ordinality as m(data, key, n) order by m.n
"""
DISCONNECT = "select pgbus.disconnect(%s)"


def many_on_commit(
    stream: str, data: Sequence[str], publication: Publication, keys: Sequence[str | None] | None
) -> tuple[str, tuple[Any, ...]]:
    """Return the statement that queues several messages, and its parameters.

    The messages are one JSON text, because the application may have changed how its driver adapts lists.
    """
    messages = [{"data": text, "key": key} for text, key in zip(data, keys or [None] * len(data), strict=True)]
    return BROADCAST_MANY_ON_COMMIT, (stream, *publication[:3], json.dumps(messages, ensure_ascii=False))


# asking

READ_AFTER = "select * from pgbus.read_after(%s, %s, %s)"


def last_ids(streams: int) -> str:
    """Return the statement for the newest ids of so many streams.

    It takes texts and not a list, because the application may have changed how its driver adapts lists.
    """
    names = ", ".join(["%s"] * streams)
    return (
        "select pgbus.last_id(s.stream)"
        f" from unnest(array[{names}]::text[]) with ordinality as s(stream, n) order by s.n"  # nosec B608 # only %s
    )


CHANNELS = """
select c.doorbell, c.control, exists (select from pg_listening_channels() l where l = c.control) from pgbus.channels() c
"""
"""The names of the channels, and whether this session listens on the control channel."""

# the reads of those who follow streams

_ROW = (
    "m.msg_id, m.event, m.data, m.visible_to, m.exclude, m.prev_id, date_part('epoch', m.created_at), m.trace, m.place,"
    " m.bytes_to >= %(bytes)s"
)

# octet_length() does not fetch a toasted text, so a page of large messages costs no more than it delivers. One row more than
# `limit` is read, to see whether there are more. The limit is a subselect to hide it from the planner: if the planner saw that
# the average stream has fewer rows, it would read and sort the whole stream. Nothing below the horizon is searched: until the
# next vacuum, the index has an entry for every message that was removed there.
PAGES = f"""
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
OPENINGS = f"""
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
MOVED = """
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


def page_rows(answer: Iterable[tuple[Any, ...]], count: int, limit: int) -> list[PageRows]:
    """Return the ``count`` pages in the answer to ``PAGES``, which was asked for ``limit`` messages of each stream."""
    found = [PageRows([], 0, False) for _ in range(count)]
    for n, horizon, anchor, forgotten, *message, place, full in answer:
        page = found[n - 1]
        if place is not None and place <= limit:
            page.rows.append(Row(*message))
        more = page.more or bool(full) or (place or 0) > limit
        found[n - 1] = page._replace(horizon=horizon or 0, more=more, anchor=anchor or 0, forgotten=forgotten)
    return found


def opening_rows(answer: Iterable[tuple[Any, ...]], questions: Sequence[OpenQuestion], limit: int) -> list[Opening]:
    """Return the openings in the answer to ``OPENINGS``, which was asked ``questions``, each for ``limit`` messages."""
    found: dict[int, Opening] = {}
    for n, head, horizon, oldest, start, *message, place, full in answer:
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


def openings_asked(questions: Sequence[OpenQuestion], *, limit: int, size: int) -> dict[str, Any]:
    """Return the parameters of ``OPENINGS``."""
    return {
        "streams": [question.stream for question in questions],
        "cursors": [question.cursor for question in questions],
        "replays": [question.replay for question in questions],
        "limit": limit,
        "bytes": size,
    }


def pages_asked(after: Sequence[tuple[str, int]], *, limit: int, size: int) -> dict[str, Any]:
    """Return the parameters of ``PAGES``."""
    return {
        "streams": [stream for stream, _ in after],
        "after": [cursor for _, cursor in after],
        "limit": limit,
        "bytes": size,
    }


def moved_asked(heads: Mapping[str, int], pruned: Collection[str]) -> dict[str, Any]:
    """Return the parameters of ``MOVED``."""
    return {"streams": list(heads), "heads": list(heads.values()), "pruned": [name in pruned for name in heads]}


def moved_rows(answer: Sequence[tuple[Any, ...]]) -> tuple[int, dict[str, int]]:
    """Return the newest id of all streams, and those of the streams that have moved, from the answer to ``MOVED``."""
    all_of_them, *found = answer
    return int(all_of_them[1]), {str(name): int(newest) for name, newest in found}
